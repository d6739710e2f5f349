"""Sets are written and read as they are, whole or not at all, with a card that adds up."""

from __future__ import annotations

import hashlib
import json

import pytest

from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.prepare import load_instances
from graftlm.data.sets import SetCard, check_shards, describe_source, read_card, read_set, write_set
from graftlm.errors import UserError


def instances(number):
    for i in range(number):
        said = (Message("user", f"question {i} 你好"), Message("assistant", f"answer {i}", None if i % 2 else True))
        origin = Provenance("sums" if i % 3 else "capitals", f"t{i % 2}", "en", "CC BY", f"u{i}")
        yield Instance(said, "a.csv", i + 1, origin)


def test_written_and_read(tmp_path):
    card = write_set(tmp_path / "set", instances(10), SetCard(), rows_per_shard=4)
    assert list(read_set(tmp_path / "set")) == list(instances(10))
    assert [shard.rows for shard in card.shards] == [4, 4, 2]
    assert card == read_card(tmp_path / "set")
    assert (card.rows, card.tasks, card.templates) == (10, {"capitals": 4, "sums": 6}, {"t0": 5, "t1": 5})
    assert card.shards[1].sha256 == hashlib.sha256((tmp_path / "set" / "shard-00001.parquet").read_bytes()).hexdigest()


def test_groups_within_a_shard(tmp_path):
    card = write_set(tmp_path / "set", instances(4001), SetCard(), rows_per_shard=4000)
    assert [shard.rows for shard in card.shards] == [4000, 1]
    assert list(read_set(tmp_path / "set")) == list(instances(4001))


def test_equal_instances_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_set(tmp_path / name, instances(50), SetCard(), rows_per_shard=20, files={"recipe.yaml": "seed: 1\n"})
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["card.json", "card.md", "recipe.yaml", *(f"shard-0000{i}.parquet" for i in range(3))]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_splits(tmp_path):
    place = tmp_path / "set"
    write_set(place, instances(9), SetCard(), split=lambda i: "test" if i.row % 3 == 0 else "train")
    assert [i.row for i in read_set(place, "test")] == [3, 6, 9]
    assert read_card(place).splits == {"test": 3, "train": 6}
    with pytest.raises(UserError, match="no split 'dev'; there are: test, train"):
        list(read_set(place, "dev"))


def test_drops_are_counted_while_writing(tmp_path):
    source = tmp_path / "a.csv"
    source.write_text("x")
    card = SetCard(sources=[describe_source(source, name="a.csv", licence="CC BY")])

    def kept():
        for instance in instances(8):
            if instance.row > 6:
                card.drop("too long", instance)
            else:
                yield instance

    written = write_set(tmp_path / "set", kept(), card)
    assert (written.rows, written.dropped, written.examples) == (
        6,
        {"too long": 2},
        {"too long": ["a.csv:7", "a.csv:8"]},
    )
    text = (tmp_path / "set" / "card.md").read_text()
    assert "| too long | 2 | a.csv:7, a.csv:8 |" in text
    assert f"| a.csv | CC BY | {hashlib.sha256(b'x').hexdigest()} |" in text
    assert "| sums | 4 | 66.7% |" in text


def test_a_failure_leaves_the_old_set(tmp_path):
    write_set(tmp_path / "set", instances(3), SetCard())

    def broken():
        yield from instances(2)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_set(tmp_path / "set", broken(), SetCard(), overwrite=True)
    assert len(list(read_set(tmp_path / "set"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match="no instance is left"):
        write_set(tmp_path / "set", [], SetCard())
    assert not (tmp_path / "set").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no set, and is not replaced"):
        write_set(tmp_path / "own", instances(1), SetCard())
    with pytest.raises(UserError, match="is no set"):
        read_card(tmp_path / "own")


def test_nothing_of_others_is_replaced(tmp_path):
    place = tmp_path / "set"
    write_set(place, instances(3), SetCard(), files={"recipe.yaml": "seed: 1\n"})
    with pytest.raises(UserError, match="is a set already"):
        write_set(place, instances(2), SetCard())
    assert len(list(read_set(place))) == 3
    assert write_set(place, instances(2), SetCard(), overwrite=True).rows == 2
    (place / "notes.txt").write_text("mine")
    (place / "shard-00007.parquet").write_bytes(b"mine too")
    (place / "plots").mkdir()
    words = r"besides the set it holds notes\.txt, plots, shard-00007\.parquet"
    with pytest.raises(UserError, match=words):
        write_set(place, instances(1), SetCard(), overwrite=True)
    assert len(list(read_set(place))) == 2
    assert (place / "notes.txt").read_text() == "mine"


def test_one_is_said_as_one(tmp_path):
    write_set(tmp_path / "set", instances(1), SetCard())
    assert "1 instance in 1 shard, sha256 " in (tmp_path / "set" / "card.md").read_text()


def test_changed_and_missing_shards(tmp_path):
    place = tmp_path / "set"
    write_set(place, instances(4), SetCard(), rows_per_shard=2)
    check_shards(place)
    (place / "shard-00001.parquet").write_bytes((place / "shard-00000.parquet").read_bytes())
    with pytest.raises(UserError, match=r"shard-00001\.parquet: this shard is not what the card"):
        check_shards(place)
    (place / "shard-00001.parquet").unlink()
    with pytest.raises(UserError, match="shard of the set is missing"):
        list(read_set(place))


def test_a_set_is_read_as_data(tmp_path):
    place = tmp_path / "set"
    write_set(place, instances(6), SetCard(), split=lambda i: "test" if i.row == 6 else "train")
    loaded = load_instances(place)
    assert loaded.items == list(instances(5))  # where each comes from is kept, and what is held out is left alone
    assert (loaded.format, loaded.counts.rows, loaded.counts.read) == ("a set", 5, 5)
    assert [i.row for i in load_instances(place, split="test").items] == [6]
    assert json.loads((place / "card.json").read_text())["rows"] == 6


def test_sets_of_earlier_versions_have_no_keys(tmp_path):
    import pyarrow.parquet as pq

    write_set(tmp_path / "set", instances(3), SetCard())
    path = tmp_path / "set" / "shard-00000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["input_key", "answer_key", "group_key"]), path)
    assert list(read_set(tmp_path / "set")) == list(instances(3))


def test_plain_texts(tmp_path):
    texts = [Instance((Message("text", "once upon a time"),), "a.txt", 1)]
    write_set(tmp_path / "set", texts, SetCard())
    assert load_instances(tmp_path / "set").items == texts
