"""Labelled rows as instructions, on examples worked out by hand and on random ones."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.formatting import Demonstrations, FormatSettings, asked, demonstration_pool, format_rows
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.prepare import RowCounts
from graftlm.data.task_template import TaskTemplate, parse_task_template
from graftlm.errors import UserError

Rows = list[tuple[int, dict[str, Any]]]
MOODS: dict[str, Any] = {
    "name": "moods",
    "family": "sentiment",
    "columns": {"text": ["text", "sentence"], "label": ["label"]},
    "labels": {"good": [1], "bad": [0], "so-so": []},
    "words": {"en": {"good": "fine", "bad": "poor", "so-so": "fair"}},
    "descriptions": {"en": ["How is it?", "Say {{ choices | listed }}."]},
    "input": "Text: {{ text }}",
    "output": "{{ label }}",
    "inverted": {"descriptions": {"en": ["Be {{ label }}."]}, "input": "", "output": "{{ text }}"},
}


def moods(**changes: Any) -> TaskTemplate:
    return parse_task_template({**MOODS, **changes}, "moods.yaml")


def numbered(*rows: dict[str, Any]) -> Rows:
    return list(enumerate(rows, 1))


def written(instance: Instance) -> tuple[str, str]:
    return instance.messages[0].content, instance.messages[1].content


def test_a_row_by_hand() -> None:
    (instance,) = format_rows(
        numbered({"sentence": " so nice ", "label": 1}),
        moods(descriptions={"en": ["How is it?"]}),
        FormatSettings(source="a.csv", licence="CC0", keys=False),
        0,
    )
    assert instance == Instance(
        (Message("user", "How is it?\n\nText: so nice"), Message("assistant", "fine")),
        "a.csv",
        1,
        Provenance("sentiment", "moods/1", "en", "CC0"),
    )


def test_demonstrations_by_hand() -> None:
    template = moods(descriptions={"en": ["How is it?"]}, demonstration="{{ input }}\nMood: {{ output }}")
    settings = FormatSettings(demonstrations=(1, 1))
    pool = demonstration_pool(numbered({"text": "ugh", "label": "BAD"}), template, settings, 0)
    (instance,) = format_rows(numbered({"text": "nice", "label": "1"}), template, settings, 0, pool=pool)
    assert written(instance) == ("How is it?\n\nText: ugh\nMood: poor\n\nText: nice\nMood:", "fine")


def test_inverted_by_hand() -> None:
    (instance,) = format_rows(numbered({"text": "ugh", "label": 0}), moods(), FormatSettings(inverted=True), 0)
    assert written(instance) == ("Be poor.", "ugh")
    assert instance.provenance.template == "moods-inverted/1"


def test_all_descriptions() -> None:
    counts = RowCounts()
    rows = numbered({"text": "ugh", "label": 0}, {"text": "nice", "label": 1})
    found = list(format_rows(rows, moods(), FormatSettings(all_descriptions=True), 0, counts=counts))
    assert [i.provenance.template for i in found] == ["moods/1", "moods/2"] * 2
    assert (counts.rows, counts.read, counts.kept) == (2, 4, 4)


def test_label_words_come_in_every_order() -> None:
    rows = numbered(*({"text": f"text {i}", "label": 1} for i in range(200)))
    found = format_rows(rows, moods(descriptions={"en": ["Say {{ choices | listed }}."]}), FormatSettings(), 0)
    orders = Counter(written(instance)[0].partition("\n")[0] for instance in found)
    assert len(orders) == 6
    assert min(orders.values()) > 15


def test_rows_that_cannot_be_formatted_are_counted_by_reason() -> None:
    rows = numbered(
        {"text": "nice", "label": "1"},
        {"text": "nice", "label": "7"},
        {"text": "  ", "label": 1},
        {"text": None, "label": 1},
        {"label": 1},
        {"text": ["x", {"deep": 1}], "label": 1.0},
        {"text": {"deep": 1}, "label": 1},
    )
    counts = RowCounts()
    assert len(list(format_rows(rows, moods(), FormatSettings(source="f"), 0, counts=counts))) == 2
    assert counts.dropped == {
        "label '7' is not in the template's list": 1,
        "nothing in column 'text'": 2,
        "missing column 'text'": 1,
        "column 'text' holds no text": 1,
    }
    assert counts.read == counts.kept + sum(counts.dropped.values()) == 7
    assert counts.examples["missing column 'text'"] == ["f:5"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (FormatSettings(demonstrations=(0, 9)), "allowed are 0 to 8"),
        (FormatSettings(demonstrations=(3, 2)), "the smaller first"),
        (FormatSettings(few_shot_ratio=0.5), "needs demonstrations"),
        (FormatSettings(demonstrations=(1, 2), few_shot_ratio=1.5), "a share from 0 to 1"),
        (FormatSettings(demonstrations=(1, 2)), "training rows"),
        (FormatSettings(language="fr"), "no descriptions in 'fr'; there are: en"),
        (FormatSettings(spellings={"5": "great"}), "no label 'great'; it has: good, bad, so-so"),
    ],
)
def test_settings_that_cannot_be(settings: FormatSettings, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(format_rows(numbered({"text": "x", "label": 1}), moods(), settings, 0))


def test_an_endless_template_stops_the_run() -> None:
    loop = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}{{ text }}"
    with pytest.raises(UserError, match="was stopped"):
        list(format_rows(numbered({"text": "x", "label": 1}), moods(input=loop), FormatSettings(), 0))


texts = st.text("abc ", min_size=1, max_size=3)
labelled = st.lists(
    st.fixed_dictionaries(
        {"text": texts, "label": st.sampled_from(["good", "bad", "so-so"]), "split": st.sampled_from(["train", "test"])}
    ),
    min_size=1,
    max_size=30,
)
shots = st.tuples(st.integers(0, 8), st.integers(0, 8)).map(lambda pair: (min(pair), max(pair)))


@given(labelled, shots, st.integers(0, 3), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(
    rows: list[dict[str, Any]], demonstrations: tuple[int, int], seed: int, inverted: bool, chance: Any
) -> None:
    settings = FormatSettings(demonstrations=demonstrations, few_shot_ratio=None, inverted=inverted)

    def formatted(given: Rows) -> dict[int, tuple[Message, ...]]:
        pool = demonstration_pool(given, moods(), settings, seed, most=4)
        return {i.row: i.messages for i in format_rows(given, moods(), settings, seed, pool=pool)}

    first = numbered(*rows)
    shuffled = list(first)
    chance.shuffle(shuffled)
    assert formatted(first) == formatted(shuffled)


@given(labelled, st.integers(1, 8), st.integers(0, 3))
def test_demonstrations_are_training_rows_and_never_the_row_itself(
    rows: list[dict[str, Any]], count: int, seed: int
) -> None:
    template = moods(descriptions={"en": ["D"]}, demonstration="<{{ input }}>{{ output }}")
    settings = FormatSettings(demonstrations=(count, count))
    pool = demonstration_pool(numbered(*rows), template, settings, seed)

    def plain(text: str) -> str:
        return " ".join(text.split()).lower()

    held_out = {plain(row["text"]) for row in rows if row["split"] == "test"}
    training = {plain(row["text"]) for row in rows if row["split"] == "train"} - held_out
    for instance in format_rows(numbered(*rows), template, settings, seed, pool=pool):
        own = plain(rows[instance.row - 1]["text"])
        shown = [part.partition(">")[0] for part in instance.messages[0].content.split("<")[1:]]
        drawn = [plain(text.removeprefix("Text:")) for text in shown]
        drawn = drawn[:-1] if drawn else drawn
        assert own not in drawn
        assert set(drawn) <= training
        assert len(set(drawn)) == len(drawn)


@given(st.integers(1, 8), st.integers(0, 100))
def test_labels_of_demonstrations_are_balanced(count: int, seed: int) -> None:
    template = moods(descriptions={"en": ["D"]}, demonstration="<{{ output }}>")
    rows = numbered(*({"text": f"t{i}", "label": ["good", "good", "good", "bad", "so-so"][i % 5]} for i in range(60)))
    settings = FormatSettings(demonstrations=(count, count))
    pool = demonstration_pool(rows, template, settings, seed)
    for instance in format_rows(rows[:10], template, settings, seed, pool=pool):
        words = instance.messages[0].content.split("<")[1:-1]
        counts = Counter(words)
        assert len(words) == count
        assert max(counts.values()) - min([counts[w] for w in counts] if len(counts) == 3 else [0]) <= 1


def test_zero_and_few_shot_rows_are_mixed_by_the_ratio() -> None:
    rows = numbered(*({"text": f"t{i}", "label": i % 2} for i in range(1000)))
    template = moods(descriptions={"en": ["D"]}, demonstration="<{{ output }}>")
    settings = FormatSettings(demonstrations=(0, 4), few_shot_ratio=0.3)
    pool = demonstration_pool(rows, template, settings, 0)
    shots = Counter(i.messages[0].content.count("<") for i in format_rows(rows, template, settings, 0, pool=pool))
    assert set(shots) == {0, 2, 3, 4, 5}  # the row itself is written as an example without an answer
    assert 640 < shots[0] < 760


def test_fewer_demonstrations_than_asked_are_counted() -> None:
    rows = numbered({"text": "a", "label": 1}, {"text": "b", "label": 1})
    settings = FormatSettings(demonstrations=(4, 4))
    counts = RowCounts()
    pool = demonstration_pool(rows, moods(), settings, 0)
    assert len(list(format_rows(rows, moods(), settings, 0, pool=pool, counts=counts))) == 2
    assert counts.truncated == {"fewer demonstrations than drawn": 2}


def test_rows_of_a_held_out_file_are_no_demonstrations() -> None:
    training = numbered({"text": "a", "label": 1}, {"text": "b", "label": 0}, {"text": "c", "label": 0})
    held_out = asked(numbered({"text": "B", "label": 1}, {"text": "C", "label": "?"}), moods(), FormatSettings())
    pool = demonstration_pool(training, moods(), FormatSettings(), 0, held_out=held_out)
    assert {fields.values["text"] for rows in pool.by_label.values() for fields in rows} == {"a"}


def test_no_pool_row_asks_the_same_as_another_demonstration() -> None:
    rows = numbered({"text": "a", "label": 1}, {"text": "A ", "label": 0}, {"text": "b", "label": 0})
    pool = demonstration_pool(rows, moods(), FormatSettings(), 0)
    assert isinstance(pool, Demonstrations)
    settings = FormatSettings(demonstrations=(8, 8))
    for instance in format_rows(numbered({"text": "c", "label": 0}), moods(), settings, 0, pool=pool):
        assert instance.messages[0].content.lower().count("text: a") == 1
