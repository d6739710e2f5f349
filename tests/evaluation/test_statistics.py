"""Intervals against published and hand-worked values, and their coverage in simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftlm.evaluation.statistics import (
    accuracy_change,
    clustered_mean,
    clustered_share,
    exact_share,
    loss_change,
    loss_interval,
    mean_loss,
    paired_share_change,
    wilson_interval,
)
from graftlm.training.forward import RowScore
from tests.evaluation.fake_run import Row


def rows_of(losses: np.ndarray, tokens: np.ndarray) -> list[Row]:
    return [Row(-float(loss), int(count), 0) for loss, count in zip(losses, tokens, strict=True)]


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_the_published_values(successes: int, trials: int, low: float, high: float) -> None:
    interval = wilson_interval(successes, trials)
    assert interval.value == successes / trials
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)


def test_wilson_of_no_trial_is_unknown() -> None:
    assert not wilson_interval(0, 0).known


def test_paired_share_change_gives_the_published_value() -> None:
    # Newcombe 1998, "Improved confidence intervals … paired data", example a: 36 both, 12 and 2 alone, 0 neither
    before = [True] * 36 + [False] * 12 + [True] * 2
    after = [True] * 36 + [True] * 12 + [False] * 2
    change = paired_share_change(before, after)
    assert (change.before, change.after, change.value) == pytest.approx((0.76, 0.96, 0.20))
    assert (change.low, change.high) == pytest.approx((0.0569, 0.3404), abs=6e-5)
    assert change.significant
    back = paired_share_change(after, before)
    assert (back.low, back.high) == pytest.approx((-0.3404, -0.0569), abs=6e-5)
    assert back.significant


@pytest.mark.parametrize(
    ("rows", "cells"),  # probabilities of: exact both times, only before, only after, never
    [(60, (0.02, 0.0, 0.89, 0.09)), (60, (0.0, 0.0, 0.97, 0.03)), (200, (0.3, 0.1, 0.15, 0.45))],
)
def test_paired_share_change_covers_the_truth(rows: int, cells: tuple[float, ...]) -> None:
    rng = np.random.default_rng(5)
    truth, runs, covered = cells[2] - cells[1], 400, 0
    for _ in range(runs):
        drawn = rng.choice(4, rows, p=cells)
        change = paired_share_change((drawn <= 1).tolist(), ((drawn == 0) | (drawn == 2)).tolist())
        covered += change.low <= truth <= change.high
    assert covered / runs > 0.915  # 95% less three standard errors


def test_mean_loss_weights_rows_by_their_tokens() -> None:
    scores = [RowScore(-2.0, 1, 1), RowScore(-6.0, 3, 2)]
    assert mean_loss(scores) == 2.0  # (2 + 6) / (1 + 3), not the mean of 2 and 2
    assert mean_loss([RowScore(-1.0, 1, 0), RowScore(-9.0, 3, 0)]) == 2.5
    assert exact_share(scores) == 0.5
    assert math.isnan(mean_loss([]))
    assert math.isnan(exact_share([]))


def test_loss_change_is_paired_and_weighted() -> None:
    before = [Row(-4.0, 2, 0), Row(-9.0, 3, 0), Row(-5.0, 5, 0)]
    after = [Row(-2.0, 2, 0), Row(-3.0, 3, 0), Row(-5.0, 5, 0)]
    change = loss_change(before, after)
    assert (change.before, change.after, change.value) == pytest.approx((1.8, 1.0, -0.8))
    # The changes a token of the rows are −1, −2 and 0: no resample leaves that range.
    assert -2 <= change.low < -0.8 < change.high <= 0


def test_bootstrap_agrees_with_the_normal_interval_of_many_equal_rows() -> None:
    rng = np.random.default_rng(3)
    for rows in (400, 3000):  # BCa, percentile
        tokens = np.full(rows, 4)
        change = rng.normal(-0.5, 1.0, rows)
        result = loss_change(rows_of(8.0 * np.ones(rows), tokens), rows_of(8.0 + 4 * change, tokens))
        half = 1.96 * change.std(ddof=1) / math.sqrt(rows)
        assert (result.low, result.high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.08 * half)
        assert result.significant


def test_bootstrap_covers_the_truth() -> None:
    rng = np.random.default_rng(8)
    runs, rows, covered = 200, 60, 0
    for _ in range(runs):
        tokens = rng.integers(1, 12, rows)
        base = rng.gamma(2.0, 1.0, rows) * tokens
        change = rng.normal(-0.3, 0.8, rows) * tokens  # independent of the row's length: the truth is −0.3
        result = loss_change(rows_of(base, tokens), rows_of(base + change, tokens))
        covered += result.low <= -0.3 <= result.high
    assert covered / runs > 0.90  # 95% less three standard errors


def test_pairing_removes_what_makes_rows_hard() -> None:
    rng = np.random.default_rng(1)
    tokens = np.full(100, 5)
    base = rng.gamma(2.0, 5.0, 100)
    change = loss_change(rows_of(base, tokens), rows_of(base - 0.5 + rng.normal(0, 0.2, 100), tokens))
    alone = loss_interval(rows_of(base, tokens))
    assert change.significant
    assert change.high - change.low < 0.1 * (alone.high - alone.low)


def test_same_scores_give_the_same_interval() -> None:
    rng = np.random.default_rng(2)
    scores = rows_of(rng.gamma(2.0, 1.0, 50), np.full(50, 2))
    assert loss_interval(scores) == loss_interval(scores)
    assert loss_interval(scores, seed=1) != loss_interval(scores)
    wide, narrow = loss_interval(scores, level=0.99), loss_interval(scores, level=0.8)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_no_change_at_all_is_not_significant() -> None:
    scores = [Row(-2.0, 2, 2), Row(-3.0, 1, 0), Row(-1.0, 4, 4)]
    change = loss_change(scores, scores)
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)
    assert not change.significant
    assert not accuracy_change(scores, scores).significant


@pytest.mark.parametrize(
    "scores",
    [
        [],
        [Row(-1.0, 2, 0)],
        [Row(math.nan, 2, 0), Row(-1.0, 2, 0)],
        [Row(-math.inf, 2, 0), Row(-1.0, 2, 0)],
        [Row(0.0, 0, 0), Row(-1.0, 2, 0)],
    ],
    ids=["no row", "one row", "NaN", "infinite", "no token"],
)
def test_what_has_no_interval_claims_nothing(scores: list[Row]) -> None:
    before = [Row(-3.0, score.tokens, 0) for score in scores]
    change = loss_change(before, scores)
    assert not change.known
    assert not change.significant


def test_different_rows_are_an_error() -> None:
    with pytest.raises(ValueError, match="different rows"):
        loss_change([Row(-1.0, 2, 0)], [Row(-1.0, 3, 0)])
    with pytest.raises(ValueError, match="different rows"):
        loss_change([Row(-1.0, 2, 0)], [])
    with pytest.raises(ValueError, match="different rows"):
        accuracy_change([Row(-1.0, 2, 0)], [])


def test_a_share_of_clusters_of_one_is_wilsons() -> None:
    found = clustered_share([1.0] * 7 + [0.0] * 3, [1.0] * 10, 10)
    wilson = wilson_interval(7, 10)
    assert (found.value, found.low, found.high) == pytest.approx((wilson.value, wilson.low, wilson.high))


def test_a_share_of_clusters_by_hand() -> None:
    """2 of 2, 0 of 2 and 3 of 4: 5/8; variance ((2 − 1.25)² + 1.25² + (3 − 2.5)²) / 64 = 0.0371, so 6.32 trials."""
    trials = (5 / 8) * (3 / 8) / ((0.75**2 + 1.25**2 + 0.5**2) / 64)
    assert trials == pytest.approx(6.3158, abs=1e-4)
    found = clustered_share([2, 0, 3], [2, 2, 4], 8)
    z2 = 1.959964**2
    middle = (5 / 8 + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(z2 * ((5 / 8) * (3 / 8) / trials + z2 / (4 * trials**2))) / (1 + z2 / trials)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_a_share_without_variance() -> None:
    """All right: as many trials as clusters. All half right: as many as there are comparisons."""
    ends, wilson = clustered_share([2, 2, 2], [2, 2, 2], 6), wilson_interval(3, 3)
    assert (ends.low, ends.high) == pytest.approx((wilson.low, wilson.high))
    half, wilson = clustered_share([1, 1, 1], [2, 2, 2], 6), wilson_interval(3, 6)
    assert (half.low, half.high) == pytest.approx((wilson.low, wilson.high))
    assert not clustered_share([], [], 0).known


def test_a_mean_of_clusters() -> None:
    found = clustered_mean([1.0, 3.0], [1, 1])
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2 - 12.7062, 2 + 12.7062), abs=1e-4)
    assert not clustered_mean([1.0], [2]).known
    assert math.isnan(clustered_mean([], []).value)
