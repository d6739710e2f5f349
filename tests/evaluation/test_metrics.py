"""Metrics against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftlm.errors import UserError
from graftlm.evaluation.metrics import (
    METRICS,
    Outcomes,
    accuracy,
    exact_match,
    macro_f1,
    matthews,
    metric_named,
    perplexity,
)


def answers(truth: list[int], predicted: list[int], classes: int = 2) -> Outcomes:
    ones = np.ones(len(truth))
    return Outcomes(np.array(truth, np.int64), np.array(predicted, np.int64), classes, ones, ones)


def test_accuracy_and_exact_match_are_shares_of_right_rows() -> None:
    outcomes = answers([0, 0, 1, 1, 1], [0, 1, 1, 1, 0])
    assert accuracy(outcomes) == 3 / 5
    assert exact_match(outcomes) == 3 / 5


def test_matthews_of_two_classes() -> None:
    # 6 true positives, 3 true negatives, 1 false positive, 2 false negatives:
    # (6·3 − 1·2) / √(7 · 8 · 4 · 5) = 16 / √1120
    truth = [1] * 6 + [0] * 3 + [0] * 1 + [1] * 2
    predicted = [1] * 6 + [0] * 3 + [1] * 1 + [0] * 2
    assert matthews(answers(truth, predicted)) == pytest.approx(16 / math.sqrt(1120))


def test_matthews_of_three_classes() -> None:
    # confusion [[2, 1, 0], [0, 2, 0], [1, 0, 2]]: 6 right of 8; rows (3, 2, 3), columns (3, 3, 2);
    # (6·8 − (9 + 6 + 6)) / √((64 − 22)(64 − 22)) = 27 / 42
    truth = [0, 0, 0, 1, 1, 2, 2, 2]
    predicted = [0, 0, 1, 1, 1, 0, 2, 2]
    assert matthews(answers(truth, predicted, 3)) == pytest.approx(27 / 42)


@pytest.mark.parametrize("predicted", [[1, 1, 1, 1], [0, 0, 0, 0]])
def test_matthews_of_a_constant_answer_is_nought(predicted: list[int]) -> None:
    assert matthews(answers([0, 1, 1, 0], predicted)) == 0


def test_matthews_of_perfect_and_of_opposite_answers() -> None:
    assert matthews(answers([0, 1, 1], [0, 1, 1])) == pytest.approx(1)
    assert matthews(answers([0, 1, 1], [1, 0, 0])) == pytest.approx(-1)


def test_macro_f1_averages_classes_that_occur() -> None:
    # class 0: 2·2/(3+3); class 1: 2·2/(2+3); class 2: 2·2/(3+2); class 3 does not occur
    truth = [0, 0, 0, 1, 1, 2, 2, 2]
    predicted = [0, 0, 1, 1, 1, 0, 2, 2]
    assert macro_f1(answers(truth, predicted, 4)) == pytest.approx((4 / 6 + 4 / 5 + 4 / 5) / 3)


def test_perplexity_weighs_tokens_and_not_rows() -> None:
    outcomes = Outcomes(np.array([1, 1]), np.array([1, 1]), 2, np.array([1.0, 6.0]), np.array([1.0, 9.0]))
    assert perplexity(outcomes) == pytest.approx(math.exp(0.7))


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_value_takes_many_totals_at_once(metric) -> None:
    generator = np.random.default_rng(0)
    outcomes = answers(generator.integers(0, 3, 40).tolist(), generator.integers(0, 3, 40).tolist(), 3)
    counts = generator.multinomial(40, np.full(40, 1 / 40), size=7)
    together = metric.value(counts @ metric.sums(outcomes))
    for count, value in zip(counts, together, strict=True):
        drawn = outcomes.select(np.repeat(np.arange(40), count))
        assert value == pytest.approx(metric.of(drawn))


def test_no_rows_are_no_score() -> None:
    for metric in METRICS.values():
        assert math.isnan(metric.of(answers([], [])))


def test_an_unknown_metric_names_those_that_there_are() -> None:
    with pytest.raises(
        UserError, match="unknown metric 'mathews'; there are: accuracy, exact, f1, loss, matthews, perp"
    ) as e:
        metric_named("mathews")
    assert e.value.hint == "Did you mean 'matthews'?"
