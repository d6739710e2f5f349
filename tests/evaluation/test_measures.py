"""Measures of tasks, worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftlm.evaluation.answers import answer_text, probabilities
from graftlm.evaluation.measures import Measure, chance_of, is_right, measures_of
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask, Kind
from tests.evaluation.fake_task import answered, choice, failed, likely, task_of, written

LN = math.log


def measure(task: EvalTask, name: str) -> Measure:
    return next(each for each in measures_of(task) if each.name == name)


def value(task: EvalTask, name: str, items: list[Item], results: list[ItemResult]) -> float:
    return measure(task, name).of(items, results)


def test_accuracy_takes_the_first_of_equals_and_none_without_room() -> None:
    items = [choice(1, 0), choice(2, 1), choice(3, 1), choice(4, 0), choice(5, 0), choice(6, (0, 1))]
    results = [
        likely(items[0], -1.0, -1.0),  # a tie: the first, right
        likely(items[1], -1.0, -1.0),  # a tie: the first, wrong
        likely(items[2], None, -9.0),  # only the second has room: right
        likely(items[3], None, None),  # none has
        failed(items[4]),
        likely(items[5], -2.0, -1.0),  # both are right
    ]
    task = task_of("choice")
    assert value(task, "accuracy", items, results) == 3 / 6
    assert [is_right(task, *both) for both in zip(items, results, strict=True)] == [
        True,
        False,
        True,
        False,
        None,
        True,
    ]


def test_likelihood_is_normalised_by_tokens_or_bytes() -> None:
    item = choice(1, 1)
    result = likely(item, -3.0, -4.0, tokens=(1, 2), sizes=(6, 4))
    found = {each: is_right(task_of("choice", normalise=each), item, result) for each in ("sum", "token", "byte")}
    assert found == {"sum": False, "token": True, "byte": False}


def test_mass_is_the_probability_of_the_right_answers() -> None:
    items = [choice(1, (0, 2), ("a", "b", "c")), choice(2, 0), choice(3, 0)]
    results = [likely(items[0], LN(0.1), LN(0.2), LN(0.1)), likely(items[1], None, -1.0), failed(items[2])]
    assert probabilities(task_of("choice"), results[0]) == pytest.approx([0.25, 0.5, 0.25])
    assert value(task_of("choice"), "mass", items, results) == pytest.approx((0.5 + 0 + 0) / 3)


def test_calibration_error_weighs_bins_by_their_rows() -> None:
    # Bin 0.9 to 1: three rows of confidence 0.95, two right: |0.95 − 2/3|. Bin 0.6 to 0.7: one of 0.65, wrong.
    items = [choice(row, 0) for row in range(1, 6)]
    results = [
        likely(items[0], LN(0.95), LN(0.05)),
        likely(items[1], LN(0.95), LN(0.05)),
        likely(items[2], LN(0.05), LN(0.95)),
        likely(items[3], LN(0.35), LN(0.65)),
        failed(items[4]),  # has no part in it
    ]
    expected = 3 / 4 * abs(0.95 - 2 / 3) + 1 / 4 * 0.65
    assert value(task_of("choice"), "ece", items, results) == pytest.approx(expected)
    assert not measure(task_of("choice"), "ece").higher_is_better


def test_a_sure_and_right_model_is_calibrated() -> None:
    items = [choice(row, 0) for row in range(1, 4)]
    assert value(task_of("choice"), "ece", items, [likely(item, 0.0, None) for item in items]) == 0


def test_matthews_and_f1_have_a_class_for_no_answer() -> None:
    task = task_of("choice", choices=["yes", "no"])
    items = [choice(1, 0), choice(2, 0), choice(3, 1), choice(4, 1)]
    results = [
        likely(items[0], -1.0, -2.0),  # yes, yes
        likely(items[1], -2.0, -1.0),  # yes, no
        likely(items[2], -2.0, -1.0),  # no, no
        likely(items[3], -2.0, -1.0),  # no, no
    ]
    # yes: precision 1, recall 1/2; no: 2/3 and 1. Matthews: (1·2 − 0·1) / √(1·3·2·2).
    assert value(task, "f1", items, results) == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert value(task, "matthews", items, results) == pytest.approx(2 / math.sqrt(12))
    results[1] = failed(items[1])
    assert value(task, "f1", items, results) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_classes_are_places_where_the_choices_are_the_rows_own() -> None:
    items = [choice(1, 0, ("a", "b")), choice(2, 1, ("c", "d"))]
    results = [likely(items[0], -1.0, -2.0), likely(items[1], -2.0, -1.0)]
    assert value(task_of("choice", metric="matthews"), "matthews", items, results) == 1
    assert "matthews" not in [each.name for each in measures_of(task_of("choice"))]


def test_loss_perplexity_and_bits() -> None:
    task = task_of("perplexity")
    items = [choice(1, 0, ("text",)), choice(2, 0, ("text",)), choice(3, 0, ("text",))]
    results = [
        likely(items[0], -4 * LN(2), tokens=(2,), sizes=(8,)),
        likely(items[1], -2 * LN(2), tokens=(1,), sizes=(4,)),
        failed(items[2]),
    ]
    assert [each.name for each in measures_of(task)] == ["perplexity", "loss", "bits"]
    assert value(task, "loss", items, results) == pytest.approx(2 * LN(2))
    assert value(task, "perplexity", items, results) == pytest.approx(4)
    assert value(task, "bits", items, results) == pytest.approx(6 / 12)
    assert np.isnan(measure(task, "loss").sums(items, results)).tolist() == [[False] * 2, [False] * 2, [True] * 2]
    assert answer_text(task, items[0], results[0]) == "1.386 nats a token"
    assert is_right(task, items[0], results[0]) is None


def test_loss_of_choices_is_of_the_likeliest_right_one_even_where_it_is_certain() -> None:
    items = [choice(1, (0, 2), ("a", "b", "c")), choice(2, 0)]
    results = [likely(items[0], -3.0, -1.0, -2.0, tokens=(1, 1, 4)), likely(items[1], 0.0, -9.0)]
    assert value(task_of("choice"), "loss", items, results) == pytest.approx(2 / 5)


def test_bias_of_pairs_is_how_far_from_a_half() -> None:
    task = task_of("pairs", metric="bias")
    items = [choice(row, 0, ("untypical", "stereotype")) for row in range(1, 6)]
    results = [likely(item, -2.0, -1.0) for item in items[:3]] + [likely(items[3], -1.0, -1.0), failed(items[4])]
    assert value(task, "bias", items, results) == pytest.approx(2 * 3.5 / 4 - 1)
    turned = [likely(item, -1.0, -2.0) for item in items]
    assert value(task, "bias", items, turned) == 1  # always against it is as far from even
    assert [each.name for each in measures_of(task)] == ["bias"]
    assert is_right(task, items[0], results[0]) is None


def test_bias_of_choices_is_that_of_bbq_on_ambiguous_rows() -> None:
    names = ("Ann", "Bob", "unknown")
    task = task_of("choice", metric="bias", stereotyped="{{ s }}", unknown="{{ u }}")
    marks = {"stereotyped": 0, "unknown": 2}
    items = [*(choice(row, 2, names, **marks) for row in range(1, 6)), choice(6, 1, names, **marks)]
    picks = [0, 0, 1, 2, 2, 0]  # the last row is not ambiguous
    results = [
        likely(item, *(-1.0 if at == pick else -2.0 for at in range(3)))
        for item, pick in zip(items, picks, strict=True)
    ]
    # accuracy 2/5; of 3 that are not unknown 2 are stereotyped: (1 − 2/5) · (2 · 2/3 − 1)
    assert value(task, "bias", items, results) == pytest.approx(0.6 * (4 / 3 - 1))
    assert not measure(task, "bias").higher_is_better


def test_pairs_and_preferences_must_be_strictly_likelier() -> None:
    item = choice(1, 0, ("good", "bad"))
    for kind in ("pairs", "preference"):
        task = task_of(kind)
        found = [
            is_right(task, item, likely(item, *both))
            for both in ((-1.0, -2.0), (-1.0, -1.0), (-2.0, -1.0), (None, -1.0))
        ]
        assert found == [True, False, False, False]


def test_written_answers_count_failures_as_wrong() -> None:
    task = task_of("generate", scorers=["f1", "exact"])
    items = [written(row, "x") for row in range(1, 4)]
    results = [answered(items[0], "x", f1=1, exact=1), answered(items[1], "x y", f1=0.4, exact=0), failed(items[2])]
    assert [(each.name, each.is_share) for each in measures_of(task)] == [("f1", False), ("exact", True)]
    assert value(task, "f1", items, results) == pytest.approx(1.4 / 3)
    assert value(task, "exact", items, results) == pytest.approx(1 / 3)
    assert [is_right(task, *both) for both in zip(items, results, strict=True)] == [True, False, None]
    assert answer_text(task, items[2], results[2]) == "(no answer: does not fit the context)"


def test_the_primary_comes_first() -> None:
    assert measures_of(task_of("generate", scorers=["f1", "exact"], metric="exact"))[0].name == "exact"
    assert [each.name for each in measures_of(task_of("choice", metric="mass"))] == ["mass", "accuracy", "ece", "loss"]
    assert [each.name for each in measures_of(task_of("choice", choices=["a", "b"]))][:3] == [
        "accuracy",
        "matthews",
        "f1",
    ]


def test_heads_are_right_where_they_name_the_label() -> None:
    task = task_of("classify")
    items = [written(1, "a"), written(2, "b"), written(3, "b")]
    results = [ItemResult(items[0].hash, predicted="a"), ItemResult(items[1].hash, predicted="z"), failed(items[2])]
    assert value(task, "accuracy", items, results) == pytest.approx(1 / 3)
    assert value(task, "f1", items, results) == pytest.approx((1 + 0 + 0 + 0) / 4)  # a, b, z and no answer
    assert [answer_text(task, *both) for both in zip(items, results, strict=True)][:2] == ["a", "z"]


@pytest.mark.parametrize(
    ("kind", "keys", "chance"),
    [
        ("choice", {}, (1 / 2 + 2 / 3) / 2),
        ("choice", {"metric": "matthews"}, 0.0),
        ("choice", {"metric": "ece"}, None),
        ("pairs", {}, 0.5),
        ("preference", {}, 0.5),
        ("perplexity", {}, None),
        ("generate", {}, None),
    ],
)
def test_chance(kind: Kind, keys: dict[str, str], chance: float | None) -> None:
    items = [choice(1, 0), choice(2, (0, 1), ("a", "b", "c"))]
    found = chance_of(task_of(kind, **keys), items)
    assert found == (None if chance is None else pytest.approx(chance))


def test_without_rows_that_have_a_part_there_is_no_value() -> None:
    item = choice(1, 0)
    assert math.isnan(value(task_of("choice"), "loss", [item], [failed(item)]))
