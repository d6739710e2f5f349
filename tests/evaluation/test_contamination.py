from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import graftlm
from graftlm.data.grams import Grams
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.prepare import load_instances
from graftlm.data.sets import SetCard, write_set
from graftlm.data.trained_on import EMPTY, DataFile, TrainedOn, describe_files, trained_on
from graftlm.evaluation.contamination import NO_RECORD, Trained, overlaps, read_trained, texts_of_item
from graftlm.evaluation.statistics import Interval
from graftlm.evaluation.tasks.items import Item, read_items
from graftlm.recipe.task_file import load_task

STORY = (
    "Late in the evening the old ferryman rowed across the lake to fetch a parcel that nobody had asked for, "
    "and he found the landing stage empty but for a sleeping dog."
)
SHORT = "Why does bread rise when it is baked?"
CHINESE = "傍晚时分老渔夫划船过湖去取一个没有人要的包裹，码头上只有一条睡着的狗。"
OTHER = (
    "A baker in the next village keeps three ovens warm all night because the first train leaves before sunrise "
    "and its passengers like fresh rolls."
)


def instance(*texts: str, **origin: str) -> Instance:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[place % 2], text) for place, text in enumerate(texts))  # type: ignore[arg-type]
    return Instance(messages, "data.jsonl", 1, Provenance(**origin))


def item(**values: Any) -> Item:
    """An item of a task that asks with a pattern of many words around its columns."""
    asked = "Please read the following text with great care and then answer the question about it in one word: "
    texts = [text for value in values.values() for text in (value if isinstance(value, list) else [value])]
    return Item("rows.jsonl", 1, (Message("user", asked + " ".join(texts)),), values=values)


def known(*instances: Instance, empty: Sequence[Grams] = EMPTY) -> Trained:
    return Trained("mine", trained_on(instances, [], empty=empty))


PLANTED = known(
    instance("Read this. " + STORY.upper() + " Who slept?", "a dog"),
    instance("Question: " + SHORT + " Answer:", "Because of the yeast."),
    instance("请阅读：" + CHINESE, "好"),
)


@pytest.mark.parametrize(
    "values",
    [
        {"text": STORY},
        {"question": "Who?", "passages": ["Nothing here.", STORY]},
        {"text": "An unknown beginning. " + " ".join(STORY.split()[5:18]) + ", quite another end."},
        {"text": SHORT},
        {"text": CHINESE},
        {"text": "另外的开头，" + CHINESE[5:20]},
    ],
)
def test_a_planted_overlap_is_found(values: dict[str, Any]):
    items = [item(text=OTHER), item(**values), item(text=OTHER)]
    found = overlaps(PLANTED, items, task="reading", without=lambda rest: Interval(len(rest), 0, 1))
    assert found.rows == (1,)
    assert found.checked == 3
    assert (found.model, found.task, found.unknown, found.note) == ("mine", "reading", "", "")
    assert found.without == Interval(2, 0, 1)


@pytest.mark.parametrize(
    ("values", "checked"),
    [
        ({"text": OTHER}, 1),
        ({"text": "Mine. " + " ".join(STORY.split()[5:17]) + " is where twelve words end."}, 1),
        ({"text": SHORT.replace("bread", "dough")}, 1),
        ({"text": "A sleeping dog"}, 0),  # too short to be looked for
        ({"text": CHINESE[5:17] + "十二个字不算重复的文字"}, 1),
    ],
)
def test_no_overlap(values: dict[str, Any], checked: int):
    found = overlaps(PLANTED, [item(**values)], task="reading", without=lambda _: pytest.fail("not asked for"))
    assert (found.rows, found.checked, found.without) == ((), checked, None)


def test_all_rows_overlap_and_none_is_left_to_score():
    found = overlaps(PLANTED, [item(text=STORY)], task="reading", without=lambda _: pytest.fail("not asked for"))
    assert (found.rows, found.without) == ((0,), None)


def test_what_the_pattern_says_in_every_row_is_no_overlap():
    trained = known(instance(item(text=OTHER).messages[0].content, "yes"))
    assert overlaps(trained, [item(text=STORY), item(text="Yes?")], task="reading").rows == ()
    assert overlaps(trained, [item(text=OTHER)], task="reading").rows == (0,)


def test_texts_of_an_item():
    assert texts_of_item(item(text=STORY, options=["red", "blue"])) == [STORY, "red", "blue"]
    hidden = Item("rows", 1, (Message("user", "Asked."),), candidates=("yes", "no"), values={"licence": STORY, "n": 3})
    assert texts_of_item(hidden) == ["Asked.", "yes", "no"]
    spaced = Item("rows", 1, (Message("user", "In: two words!"),), values={"text": "Two  words", "note": OTHER})
    assert texts_of_item(spaced) == ["Two  words"]
    judged = Item("rows", 1, candidates=(STORY, OTHER), right=(0,), values={"good": STORY, "bad": OTHER})
    assert texts_of_item(judged) == [STORY, OTHER]


def test_shipped_data_is_not_taken_for_other_shipped_data():
    folder = Path(graftlm.__file__).parent / "demo" / "data"
    for name in ("advice", "feelings", "questions"):
        trained = known(*load_instances(folder / f"{name}.train.jsonl").items)
        own = {text for each in load_instances(folder / f"{name}.train.jsonl").items for text in contents(each)}
        for other in ("advice", "feelings", "questions"):
            held_out = load_instances(folder / f"{other}.held_out.jsonl").items
            new = [each for each in held_out if not own & set(contents(each))]
            items = [Item("held out", each.row, candidates=contents(each)) for each in new]
            assert overlaps(trained, items, task=other).rows == (), (name, other)


def test_shipped_suites_are_not_taken_for_shipped_data():
    place = Path(graftlm.__file__).parent
    demo = sorted((place / "demo" / "data").glob("*.train.jsonl"))
    trained = known(*(each for path in demo for each in load_instances(path).items))
    suites = sorted((place / "evaluation" / "suites").glob("*.yaml"))
    assert demo
    for path in suites:
        assert overlaps(trained, read_items(load_task(path)), task=path.stem).rows == (), path.stem


def contents(instance: Instance) -> tuple[str, ...]:
    return tuple(message.content for message in instance.messages)


def test_a_sampled_record_says_so_and_finds_most_long_passages():
    texts = [" ".join(f"{word}{number}" for word in OTHER.split()) for number in range(400)]
    sampled = known(*(instance(text, "yes") for text in texts), empty=[Grams(13, 1000), Grams(8, 1000)])
    one_in = sampled.record.grams[0].one_in
    assert one_in == 8  # 400 texts of 15 runs
    found = overlaps(sampled, [item(text=text) for text in texts], task="reading")
    assert found.note == (
        "of much training text a part is recorded: a passage of 30 words is found with 91%, a text of 10 words with 33%"
    )
    runs = len(OTHER.split()) - 12
    assert len(found.rows) / 400 == pytest.approx(1 - (7 / 8) ** runs, abs=0.06)
    assert overlaps(sampled, [item(text=STORY)], task="reading").rows == ()


def test_families():
    some = instance("a", "b", task="sentiment", template="t1", language="en")
    other = instance("a", "b", task="inference", language="zh")
    trained = known(some, some, other)
    assert trained.families == ("sentiment", "inference")
    assert trained.record.templates == {"t1": 2}
    assert trained.record.languages == {"en": 2, "zh": 1}
    assert (trained.unseen("sentiment"), trained.unseen("summary"), trained.unseen("")) == (False, True, None)
    assert known(some, instance("no family", "b")).unseen("summary") is None
    assert known().unseen("summary") is None
    gap = Trained("mine", known(some).record.joined(TrainedOn(gaps=("the rest",))))
    assert (gap.unseen("summary"), gap.unseen("sentiment")) == (None, False)


def test_a_record_survives_its_files_and_joins():
    whole = PLANTED.record
    again = TrainedOn.from_files(json.loads(json.dumps(whole.to_files()[0])), whole.to_files()[1])
    assert again.to_files() == whole.to_files()
    twice = whole.joined(again)
    assert twice.rows == 6
    assert twice.grams[0].hashes.tolist() == whole.grams[0].hashes.tolist()
    assert PLANTED.record.joined(TrainedOn()).to_files() == whole.to_files()


def test_files_are_named_without_the_folder_they_lie_in(tmp_path: Path):
    (tmp_path / "rows" / "deep").mkdir(parents=True)
    for name in ("rows/a.jsonl", "rows/deep/b.jsonl"):
        (tmp_path / name).write_text('{"prompt": "p", "completion": "c"}\n')
    card = write_set(tmp_path / "set", iter([instance("a", "b")]), SetCard())
    found = describe_files([tmp_path / "rows", tmp_path / "rows" / "a.jsonl", tmp_path / "set", "owner/name"])
    assert [each.name for each in found] == ["rows/a.jsonl", "rows/deep/b.jsonl", "a.jsonl", "set", "owner/name"]
    assert found[0].sha256 == found[2].sha256
    assert found[3] == DataFile("set", card.sha256)
    assert found[4].sha256 == ""


def test_there_is_no_adapter(tmp_path: Path):
    assert read_trained(tmp_path / "none").unknown == f"there is no adapter in {tmp_path / 'none'}"
    found = overlaps(read_trained(tmp_path), [item(text=STORY)], task="reading")
    assert (found.rows, found.checked) == ((), 0)
    assert found.unknown


def test_an_adapter_without_a_record(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    trained = read_trained(tmp_path)
    assert trained.unknown == NO_RECORD
    assert trained.unseen("summary") is None
