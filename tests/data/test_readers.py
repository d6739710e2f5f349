from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graftlm.data.readers import find_sources, read_rows
from graftlm.errors import UserError

ROWS = [{"prompt": "a", "completion": "1"}, {"prompt": "二\nb", "completion": "2"}]
NUMBERED = list(enumerate(ROWS, 1))


def test_json_forms(write):
    assert list(read_rows(write("a.json", ROWS))) == NUMBERED
    assert list(read_rows(write("b.json", {"version": 1, "data": ROWS}))) == NUMBERED
    assert list(read_rows(write("c.jsonl", ROWS))) == NUMBERED
    lines = "\n".join(json.dumps(row) for row in ROWS)
    assert list(read_rows(write("lines.json", lines))) == NUMBERED
    assert list(read_rows(write("array.jsonl", json.dumps(ROWS, indent=1)))) == NUMBERED
    assert list(read_rows(write("bom.json", b"\xef\xbb\xbf" + lines.encode()))) == NUMBERED
    packed = gzip.compress(lines.encode())
    assert list(read_rows(write("d.jsonl.gz", packed))) == NUMBERED
    assert list(read_rows(write("packed_without_a_suffix", packed))) == NUMBERED
    assert list(read_rows(write("one.json", ROWS[0]))) == NUMBERED[:1]
    assert list(read_rows(write("one_indented.json", json.dumps(ROWS[0], indent=2)))) == NUMBERED[:1]


def test_blank_lines_keep_line_numbers(write):
    path = write("a.jsonl", '{"text": "x"}\n\n{"text": "y"}\n')
    assert [number for number, _ in read_rows(path)] == [1, 3]


def test_tables(write, tmp_path):
    csv = 'prompt,completion\na,1\n"二\nb",2\n'
    assert list(read_rows(write("a.csv", csv))) == NUMBERED
    assert list(read_rows(write("b.csv", csv.replace(",", ";")))) == NUMBERED
    assert list(read_rows(write("c.tsv", csv.replace(",", "\t")))) == NUMBERED
    assert list(read_rows(write("d.csv.gz", gzip.compress(csv.encode())))) == NUMBERED
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "e.parquet")
    assert list(read_rows(tmp_path / "e.parquet")) == NUMBERED


def test_text_documents_are_split_at_blank_lines(write):
    path = write("a.txt", "\n[one\ntwo\n\n \nthree")
    assert list(read_rows(path)) == [(2, {"text": "[one\ntwo"}), (6, {"text": "three"})]


def test_folders(write, tmp_path):
    write("f/b.jsonl", ROWS)
    write("f/sub/a.json", ROWS)
    write("f/README.md", "no data")
    assert [Path(s).name for s in find_sources(tmp_path / "f")] == ["b.jsonl", "a.json"]
    assert list(read_rows(tmp_path / "f")) == NUMBERED * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        list(read_rows(tmp_path / "empty"))


def test_datasets_folder_and_splits(tmp_path):
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = datasets.Dataset.from_list([{"text": "x", "label": 1}], features=features)
    data.save_to_disk(str(tmp_path / "one"))
    assert list(read_rows(tmp_path / "one")) == [(1, {"text": "x", "label": "good"})]
    datasets.DatasetDict({"a": data, "b": data}).save_to_disk(str(tmp_path / "two"))
    assert len(list(read_rows(tmp_path / "two", split="b"))) == 1
    with pytest.raises(UserError, match=r"several splits.*a, b"):
        list(read_rows(tmp_path / "two"))


def test_hub_name_only_where_nothing_is_there(monkeypatch):
    asked = []

    def load(name):
        asked.append(name)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert list(read_rows("owner/name")) == NUMBERED
    assert asked == ["owner/name"]
    monkeypatch.setattr(datasets, "load_dataset", lambda name: 1 / 0)
    with pytest.raises(UserError, match="no file or folder here, and could not be loaded"):
        list(read_rows("owner/name"))


def failure(path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_rows(path))
    return str(caught.value)


def test_missing_path_names_what_is_there(write, tmp_path):
    write("reviews.jsonl", ROWS)
    message = failure(tmp_path / "review.jsonl")
    assert "no such file" in message
    assert "reviews.jsonl" in message
    assert "does not exist" in failure(tmp_path / "nowhere" / "x.json")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
@pytest.mark.parametrize("content", ["", " \n\n"])
def test_empty_file(write, name, content):
    assert "empty" in failure(write(name, content))


def test_no_rows(write):
    assert "holds no rows" in failure(write("a.json", "[ ]"))
    assert "holds no rows" in failure(write("a.csv", "a,b\n"))


def test_broken_json_names_row_line_and_column(write):
    lines = '{"text": "a"}\n{"text": "b"}\n{"text": broken}\n'
    assert "a.jsonl: row 3 is broken JSON: line 3, column 10" in failure(write("a.jsonl", lines))
    array = '[\n{"text": "a"},\n{"text": broken}]'
    assert "b.json: row 2 is broken JSON: line 3, column 10" in failure(write("b.json", array))
    assert "row 1 is broken JSON: line 2" in failure(write("c.json", '[\n{"text": "a"}'))
    assert "row 1 is broken JSON: line 1" in failure(write("d.json", '[{"text": "a"} {"text": "b"}]'))
    assert "row 1 is broken JSON" in failure(write("e.jsonl", '{"text": a}\n{"text": "b"}\n'))
    assert "is not JSON" in failure(write("f.json", "hello"))
    assert "after the end of the array" in failure(write("g.json", "[{}] x"))


def test_row_that_is_no_object(write):
    assert "row 2 is a number" in failure(write("a.json", "[{}, 3]"))
    assert "row 2 is a list" in failure(write("a.jsonl", '{"text": "a"}\n["b"]\n'))


def test_not_utf8_gives_the_byte(write):
    assert "byte 16 (line 2) is 0xe9" in failure(write("a.jsonl", b'{"text": ""}\n"a\n\xe9"'.replace(b'"a\n', b'"ab')))
    assert "byte 12 (line 1) is 0xe9" in failure(write("b.json", b'[{"text": "a\xe9"}]'))
    assert "UTF-16" in failure(write("c.json", '[{"text": "a"}]'.encode("utf-16")))


def test_broken_tables_and_archives(write):
    assert "row 2 (line 3) has 3 fields" in failure(write("a.csv", "a,b\n1,2\n1,2,3\n"))
    assert "row 1 (line 3) is broken" in failure(write("b.csv", 'a,b\n1,"2\n3,4\n'))
    assert "'a' stands twice" in failure(write("c.csv", "a,a\n1,2\n"))
    packed = gzip.compress(json.dumps(ROWS * 99).encode())
    assert "cannot be read" in failure(write("d.json.gz", packed[: len(packed) // 2]))
    assert "Parquet" in failure(write("e.parquet", b"PAR1 and no more"))
    assert "unknown kind" in failure(write("f.xyz", "hello"))
