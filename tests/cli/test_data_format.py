"""`graftlm data format` and `graftlm data templates`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graftlm.data.sets import read_card, read_set
from tests.cli.conftest import Cli

MOODS = [{"text": f"text {i}", "label": ("pos", "neg")[i % 2]} for i in range(12)]


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_format_writes_what_train_reads(cli: Cli, tmp_path: Path):
    save(tmp_path / "train.jsonl", [*MOODS, {"text": "?", "label": "mixed"}])
    ended = cli(
        *("data", "format", "train.jsonl", "--template", "sentiment", "--out", "out.jsonl"),
        *("--demonstrations", "1-2", "--licence", "CC0", "--language", "zh"),
    )
    assert ended.code == 0
    assert ended.out == (
        "train.jsonl as sentiment (sentiment): text ← text; label ← label\n"
        "demonstrations from train.jsonl: negative 6, positive 6\n"
        "out.jsonl: 12 instances of 13 rows\n"
        "dropped    1: label 'mixed' is not in the template's list (train.jsonl:13)\n"
    )
    first = lines(tmp_path / "out.jsonl")[0]
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"]
    assert first["messages"][1]["content"] == "正面"
    assert (first["task"], first["language"], first["licence"], first["row"]) == ("sentiment", "zh", "CC0", 1)
    assert "read as messages: 12 rows" in cli("data", "preview", "out.jsonl", "--rows", "0").out
    again = cli(
        *("data", "format", "train.jsonl", "--template", "sentiment", "--out", "again.jsonl"),
        *("--demonstrations", "1-2", "--licence", "CC0", "--language", "zh"),
    )
    assert again.code == 0
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "out.jsonl").read_bytes()


def test_held_out_rows_are_no_demonstrations(cli: Cli, tmp_path: Path):
    save(tmp_path / "test.jsonl", MOODS[:2])
    save(tmp_path / "train.jsonl", MOODS)
    arguments = ("data", "format", "test.jsonl", "--template", "sentiment", "--out", "out.jsonl", "--demonstrations", 2)
    ended = cli(*arguments)
    assert (ended.code, "these look like held-out rows ('test')" in ended.err) == (2, True)
    assert "--split-file train.jsonl" in ended.err
    ended = cli(*arguments, "--split-file", "train.jsonl")
    assert "demonstrations from train.jsonl: negative 5, positive 5\n" in ended.out
    save(tmp_path / "both.jsonl", [{**row, "split": "test" if i < 4 else "train"} for i, row in enumerate(MOODS)])
    ended = cli(*arguments[:2], "both.jsonl", *arguments[3:])
    assert "negative 4, positive 4\n" in ended.out
    assert "dropped    4: of another split than 'train' (both.jsonl:1, " in ended.out
    ended = cli(*arguments[:2], "both.jsonl", *arguments[3:], "--split", "test")
    assert "out.jsonl: 4 instances of 12 rows\n" in ended.out


def test_unclear_columns_are_shown_and_may_be_given(cli: Cli, tmp_path: Path):
    save(tmp_path / "rows.jsonl", [{"body": "x", "stars": 5}, {"body": "y", "stars": 1}])
    arguments = ("data", "format", "rows.jsonl", "--template", "sentiment", "--out", "out.jsonl")
    ended = cli(*arguments)
    assert ended.code == 2
    assert "its columns are: body, stars\n" in ended.err
    assert "label ← ?" in ended.err
    assert not (tmp_path / "out.jsonl").exists()
    ended = cli(
        *arguments,
        *("--column", "text=body", "--column", "label=stars", "--label", "5=positive", "--label", "1=negative"),
    )
    assert ended.out.startswith("rows.jsonl as sentiment (sentiment): text ← body; label ← stars\n")
    assert [row["messages"][1]["content"] for row in lines(tmp_path / "out.jsonl")] == ["positive", "negative"]


def test_no_row_left_is_an_error_with_the_reasons(cli: Cli, tmp_path: Path):
    save(tmp_path / "rows.jsonl", [{"text": "x", "label": 7}])
    ended = cli("data", "format", "rows.jsonl", "--template", "sentiment", "--out", "out.jsonl")
    assert ended.code == 2
    assert "no row is left of 1: 1 × label '7' is not in the template's list" in ended.err
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.jsonl"]


def test_what_is_asked_wrongly_is_said(cli: Cli, tmp_path: Path):
    save(tmp_path / "rows.jsonl", MOODS)
    arguments = ("data", "format", "rows.jsonl", "--out", "out.jsonl", "--template")
    for more, message in [
        (("sentment",), "unknown task template 'sentment'"),
        (("sentiment", "--demonstrations", "9"), "allowed are 0 to 8"),
        (("sentiment", "--demonstrations", "few"), "expected a number from 0 to 8"),
        (("sentiment", "--language", "fr"), "no descriptions in 'fr'; there are: en, zh"),
        (("reading-choice", "--inverted", "--column", "context=text"), "not every field of 'reading-choice'"),
        (("sentiment", "--label", "5=great"), "no label 'great'"),
        (("sentiment", "--column", "text"), "expected name=value"),
        (("sentiment", "--out", "nowhere/out.jsonl"), "there is no folder nowhere"),
        (("sentiment", "--out", "out.csv"), "expected a file that ends in .jsonl"),
    ]:
        ended = cli(*arguments, *more)
        assert (ended.code, message in ended.err) == (2, True), ended.err


def test_joined_files(cli: Cli, tmp_path: Path):
    save(tmp_path / "qa.jsonl", [{"story": "s", "parts": [1], "question": "Who?", "answers": ["Ann"]}])
    save(tmp_path / "stories.jsonl", [{"story": "s", "texts": ["It rained.", "Ann came."]}])
    ended = cli(
        *("data", "format", "qa.jsonl", "--template", "reading-comprehension", "--out", "out.jsonl"),
        *("--join", "stories.jsonl", "--join-on", "story", "--column", "context=joined.texts[parts]"),
    )
    assert "context ← joined.texts[parts]" in ended.out
    assert "Ann came.\n\nQuestion: Who?" in lines(tmp_path / "out.jsonl")[0]["messages"][0]["content"]


def test_templates_are_listed(cli: Cli):
    ended = cli("data", "templates")
    assert ended.code == 0
    assert "sentiment" in ended.out
    assert "positive, negative" in ended.out
    assert "common-sense" in ended.out


def test_a_file_of_mixed_encodings_is_refused_with_the_place(cli: Cli, tmp_path: Path):
    good = '{"text": "schön", "label": "pos"}\n'
    (tmp_path / "rows.jsonl").write_bytes(good.encode() + good.encode("latin-1"))
    ended = cli("data", "format", "rows.jsonl", "--template", "sentiment", "--out", "out.jsonl")
    assert (ended.code, "rows.jsonl: not UTF-8: byte 48 (line 2) is 0xf6" in ended.err) == (2, True), ended.err
    assert list(tmp_path.iterdir()) == [tmp_path / "rows.jsonl"]


def test_templates_of_ones_own(cli: Cli, tmp_path: Path):
    save(tmp_path / "rows.jsonl", MOODS)
    template = (
        "name: own\nfamily: f\ncolumns: {text: [text]}\ndescriptions: {en: [D]}\ninput: '{{ text }}'\noutput: INK\n"
    )
    arguments = ("data", "format", "rows.jsonl", "--template", "own.yaml", "--out", "out.jsonl")
    for output, message in [
        ("'{{ text | upper }}'", ""),
        ("'{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}'", "an endless loop"),
        ("'{{ text.__class__ }}'", "task template own.yaml:\n  output.en: line 1 of"),
        ("'{{ text'", "output.en: line 1 of"),
        ("'{{ label }}'", "output.en: 'label' is not known here; known are: language, text"),
    ]:
        (tmp_path / "own.yaml").write_text(template.replace("INK", output), encoding="utf-8")
        (tmp_path / "out.jsonl").unlink(missing_ok=True)
        ended = cli(*arguments)
        assert (ended.code, message in ended.err) == (2 if message else 0, True), ended.err
        assert (tmp_path / "out.jsonl").exists() != bool(message)
    (tmp_path / "own.yaml").write_text(template.replace("INK", "'{{ text | upper }}'"), encoding="utf-8")
    assert cli(*arguments).code == 0
    assert lines(tmp_path / "out.jsonl")[0]["messages"][1]["content"] == "TEXT 0"


def test_a_folder_becomes_a_set(cli: Cli, tmp_path: Path):
    save(tmp_path / "dev.jsonl", [*MOODS[:4], {"text": "?", "label": "mixed"}])
    save(tmp_path / "train.jsonl", MOODS)
    arguments = ("data", "format", "dev.jsonl", "--template", "sentiment", "--licence", "CC0", "--split", "dev")
    assert cli(*arguments, "--demonstrations", 1, "--split-file", "train.jsonl", "--out", "set").code == 0
    card = read_card(tmp_path / "set")
    assert (card.rows, card.splits, card.licences) == (4, {"dev": 4}, {"CC0": 4})
    assert card.dropped == {"label 'mixed' is not in the template's list": 1}
    assert [(source.path, source.licence) for source in card.sources] == [("dev.jsonl", "CC0"), ("train.jsonl", "")]
    assert cli(*arguments, "--out", "out.jsonl").code == 0
    found = [instance.messages[-1].content for instance in read_set(tmp_path / "set")]
    assert found == [row["messages"][-1]["content"] for row in lines(tmp_path / "out.jsonl")]


def test_some_of_the_descriptions(cli: Cli, tmp_path: Path):
    save(tmp_path / "train.jsonl", MOODS)
    given = ("data", "format", "train.jsonl", "--template", "sentiment", "--out", "out.jsonl", "--descriptions")
    assert cli(*given, "3").code == 0
    assert {row["template"] for row in lines(tmp_path / "out.jsonl")} == {"sentiment/3"}
    assert cli(*given, "1,7", "--all-descriptions").code == 0
    assert [row["template"] for row in lines(tmp_path / "out.jsonl")] == ["sentiment/1", "sentiment/7"] * 12
    assert "'sentiment' has no description 8 in 'en'; there are 1 to 7" in cli(*given, "8").err
    assert "expected numbers, such as 1,3,5" in cli(*given, "1-3").err


def test_files_of_a_folder_have_columns_of_their_own(cli: Cli, tmp_path: Path):
    (tmp_path / "films").mkdir()
    save(tmp_path / "films" / "a.jsonl", MOODS)
    save(tmp_path / "films" / "b.jsonl", [{"review": row["text"], "label": row["label"]} for row in MOODS[:3]])
    arguments = ("data", "format", "films", "--template", "sentiment", "--out", "out.jsonl")
    ended = cli(*arguments)
    assert "films/a.jsonl as sentiment (sentiment): text ← text; label ← label\n" in ended.out
    assert "films/b.jsonl as sentiment (sentiment): text ← review; label ← label\n" in ended.out
    assert "out.jsonl: 15 instances of 15 rows\n" in ended.out
    places = [(Path(row["source"]).name, row["row"]) for row in lines(tmp_path / "out.jsonl")]
    assert places == [("a.jsonl", n) for n in range(1, 13)] + [("b.jsonl", n) for n in range(1, 4)]
    ended = cli(*arguments, "--demonstrations", 2)
    assert ended.code == 2
    assert "have different columns for 'sentiment': text ← text and review" in ended.err


def test_rows_that_are_no_demonstrations_are_counted(cli: Cli, tmp_path: Path):
    save(tmp_path / "test.jsonl", MOODS[:2])
    save(tmp_path / "train.jsonl", [*MOODS, {"text": "?", "label": "mixed"}, {"text": "", "label": "pos"}])
    ended = cli(
        *("data", "format", "test.jsonl", "--template", "sentiment", "--out", "out.jsonl", "--demonstrations", 2),
        *("--split-file", "train.jsonl"),
    )
    assert "no demonstration of 1: label 'mixed' is not in the template's list (train.jsonl:13)\n" in ended.out
    assert "no demonstration of 1: nothing in column 'text' (train.jsonl:14)\n" in ended.out


def test_what_is_read_is_not_replaced(cli: Cli, tmp_path: Path):
    save(tmp_path / "train.jsonl", MOODS)
    save(tmp_path / "more.jsonl", MOODS)
    before = (tmp_path / "train.jsonl").read_bytes()
    arguments = ("data", "format", "train.jsonl", "--template", "sentiment", "--out")
    ended = cli(*arguments, "./train.jsonl")
    assert ended.code == 2
    assert "--out train.jsonl: train.jsonl is read, and would be replaced" in ended.err
    ended = cli(*arguments, "more.jsonl", "--demonstrations", 1, "--split-file", "more.jsonl")
    assert "more.jsonl is read, and would be replaced" in ended.err
    assert (tmp_path / "train.jsonl").read_bytes() == (tmp_path / "more.jsonl").read_bytes() == before


def test_unreadable_templates_and_recipes(cli: Cli, tmp_path: Path):
    save(tmp_path / "train.jsonl", MOODS)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (tmp_path / "folder").mkdir()
    arguments = ("data", "format", "train.jsonl", "--out", "out.jsonl", "--template")
    assert "task template latin.yaml: not UTF-8, at byte 9" in cli(*arguments, "latin.yaml").err
    assert "task template folder: the file cannot be read: Is a directory" in cli(*arguments, "folder").err
    assert "latin.yaml is not UTF-8, at byte 9" in cli("data", "build", "latin.yaml", "--out", "set").err
    assert (
        "none.yaml cannot be read: No such file or directory\n" in cli("data", "build", "none.yaml", "--out", "s").err
    )


def test_rows_that_disagree_are_told_dropped_or_refused(cli: Cli, tmp_path: Path):
    rows = [*MOODS, {"text": "Text  3", "label": "pos"}, {"text": "text 4", "label": "pos"}]
    save(tmp_path / "train.jsonl", rows)
    arguments = ("data", "format", "train.jsonl", "--template", "sentiment", "--out", "out.jsonl")
    ended = cli(*arguments)
    assert ended.code == 0
    assert "out.jsonl: 14 instances of 14 rows\n" in ended.out
    assert "kept       2 with the same input and another label:\n" in ended.out
    assert "  train.jsonl:4 'negative' and train.jsonl:13 'positive'\n" in ended.out
    ended = cli(*arguments, "--contradictions", "drop")
    assert "out.jsonl: 12 instances of 14 rows\n" in ended.out
    assert "dropped    2: same input, other label (train.jsonl:4, train.jsonl:13)\n" in ended.out
    assert [row["row"] for row in lines(tmp_path / "out.jsonl")] == [1, 2, 3, *range(5, 13), 14]
    ended = cli(*arguments, "--all-descriptions")
    assert ended.out.count("train.jsonl:4 'negative' and train.jsonl:13 'positive'") == 1
    (tmp_path / "out.jsonl").unlink()
    ended = cli(*arguments, "--contradictions", "refuse")
    assert ended.code == 2
    assert "2 rows have the same input and another label, and nothing is written" in ended.err
    assert not (tmp_path / "out.jsonl").exists()
    assert "expected keep, drop, refuse" in cli(*arguments, "--contradictions", "skip").err
    assert cli(*arguments[:-1], "set").code == 0
    assert (
        "2 with the same input and another answer (sentiment 2): train.jsonl:4"
        in (tmp_path / "set" / "card.md").read_text()
    )


def test_groups_are_written_beside(cli: Cli, tmp_path: Path):
    save(tmp_path / "rows.jsonl", [{**row, "story": i // 4} for i, row in enumerate(MOODS)] + [MOODS[0]])
    arguments = ("data", "format", "rows.jsonl", "--template", "sentiment", "--out", "out.jsonl", "--group")
    ended = cli(*arguments, "story")
    assert "kept, but  1: no value in the column of groups (rows.jsonl:13)\n" in ended.out
    groups = [row.get("group_key", "") for row in lines(tmp_path / "out.jsonl")]
    assert len(set(groups[:12])) == 3
    assert (groups[0] == groups[3] != groups[4], groups[12]) == (True, "")
    ended = cli(*arguments, "stories")
    assert ended.code == 2
    assert "no column 'stories'; its columns are: text, label, story" in ended.err


def test_columns_to_join_on_are_checked(cli: Cli, tmp_path: Path):
    save(tmp_path / "qa.jsonl", [{"story": "s", "parts": [1], "question": "Who?", "answers": ["Ann"]}])
    save(tmp_path / "stories.jsonl", [{"tale": "s", "texts": ["It rained."]}])
    arguments = ("data", "format", "qa.jsonl", "--template", "reading-comprehension", "--out", "out.jsonl", "--join")
    ended = cli(*arguments, "stories.jsonl", "--join-on", "story")
    assert "stories.jsonl has no column 'story' to join on; its columns are: tale, texts" in ended.err
    ended = cli(*arguments, "stories.jsonl", "--join-on", "tale")
    assert "qa.jsonl has no column 'tale' to join on" in ended.err
