"""Bins of a reliability diagram: they are those of the calibration error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftlm.evaluation.evaluation import BASE
from graftlm.evaluation.gains import compare_models
from graftlm.evaluation.measures import measures_of
from graftlm.evaluation.reliability import bins_of
from tests.evaluation.fake_task import choice, failed, likely, task_of, written


def test_bins_hold_confidence_and_share_right() -> None:
    items = [choice(row, 0) for row in range(1, 6)]
    sure = math.log(0.9), math.log(0.1)
    results = [
        likely(items[0], *sure),
        likely(items[1], *reversed(sure)),  # sure, and wrong
        likely(items[2], math.log(0.55), math.log(0.45)),
        failed(items[3]),
        likely(items[4], 0.0, None),
    ]
    low, high = bins_of(task_of("choice"), items, results)
    assert (low.confidence, low.right, low.rows) == pytest.approx((0.55, 1.0, 1))
    assert (high.confidence, high.right, high.rows) == pytest.approx(((0.9 + 0.9 + 1) / 3, 2 / 3, 3))
    assert bins_of(task_of("generate"), [written(1, "x")], [failed(written(1, "x"))]) == ()


def test_bins_add_up_to_the_calibration_error() -> None:
    rng = np.random.default_rng(0)
    items = [choice(row, int(rng.integers(2))) for row in range(1, 201)]
    results = [likely(item, *np.log(rng.dirichlet([1, 1]))) for item in items]
    task = task_of("choice")
    bins = bins_of(task, items, results)
    error = sum(each.rows * abs(each.confidence - each.right) for each in bins) / 200
    measure = next(each for each in measures_of(task) if each.name == "ece")
    assert error == pytest.approx(measure.of(items, results))
    assert compare_models(task, items, {BASE: results}).score(BASE).bins == bins
