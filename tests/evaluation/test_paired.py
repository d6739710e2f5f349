"""The paired bootstrap, tests of differences and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from graftlm.evaluation.metrics import METRICS, Floats, Outcomes
from graftlm.evaluation.sizes import size_change, size_interval
from graftlm.evaluation.statistics import (
    bca_interval,
    bootstrap_p,
    holm,
    mcnemar_p,
    percentile_interval,
    resampled,
    swap_p,
)


def outcomes(seed: int, share: float, rows: int = 300) -> Outcomes:
    truth = np.random.default_rng(7).integers(0, 2, rows)
    right = np.random.default_rng(seed).random(rows) < share
    return Outcomes(truth, np.where(right, truth, 1 - truth), 2, np.ones(rows), np.ones(rows))


def test_resampled_share_has_the_spread_of_a_binomial() -> None:
    metric = METRICS["accuracy"]
    one = outcomes(1, 0.7)
    draws = resampled([metric.sums(one)], metric.value)[0]
    share = metric.of(one)
    assert len(draws) == 9999
    assert draws.mean() == pytest.approx(share, abs=1e-3)
    assert draws.std() == pytest.approx(math.sqrt(share * (1 - share) / 300), rel=0.03)


def test_models_get_the_same_draws() -> None:
    metric = METRICS["matthews"]
    first, second = outcomes(1, 0.7), outcomes(2, 0.8)
    draws = resampled([metric.sums(each) for each in (first, second, first)], metric.value)
    assert np.array_equal(draws[0], draws[2])
    assert np.array_equal(draws, resampled([metric.sums(each) for each in (first, second, first)], metric.value))
    assert not np.array_equal(draws[0], resampled([metric.sums(first)], metric.value, seed=1)[0])


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    metric = METRICS["matthews"]
    first = outcomes(1, 0.7)
    predicted = first.predicted.copy()
    predicted[:6] = first.truth[:6]  # differs from the first in a few rows only
    second = Outcomes(first.truth, predicted, 2, first.loss, first.tokens)
    draws = resampled([metric.sums(first), metric.sums(second)], metric.value)
    paired = percentile_interval(0.0, draws[1] - draws[0])
    alone = percentile_interval(0.0, draws[0])
    assert paired.high - paired.low < 0.3 * (alone.high - alone.low)


def test_rows_must_be_the_same() -> None:
    metric = METRICS["accuracy"]
    with pytest.raises(ValueError, match="different rows: 300, 200"):
        resampled([metric.sums(outcomes(1, 0.5)), metric.sums(outcomes(1, 0.5, 200))], metric.value)


def test_percentile_interval_by_hand() -> None:
    interval = percentile_interval(50.0, np.arange(101.0))
    assert (interval.low, interval.high) == pytest.approx((2.5, 97.5))
    assert not percentile_interval(50.0, np.array([1.0, np.nan])).known
    assert not percentile_interval(math.nan, np.arange(101.0)).known


def test_bootstrap_p_by_hand() -> None:
    assert bootstrap_p(np.array([-1.0] + [1.0] * 98)) == pytest.approx(2 * 2 / 100)
    assert bootstrap_p(np.zeros(10)) == 1
    assert math.isnan(bootstrap_p(np.array([np.inf])))


def test_mcnemar_is_the_sign_test_of_rows_that_differ() -> None:
    # 6 against 1 of 7: 2 · (1 + 7) / 2⁷
    first = [True] * 6 + [False] + [True] * 5
    second = [False] * 6 + [True] + [True] * 5
    assert mcnemar_p(first, second) == pytest.approx(16 / 128)
    assert mcnemar_p(second, first) == pytest.approx(16 / 128)
    assert mcnemar_p(first, first) == 1


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.8 → ×4, ×3, ×2, ×1 = 0.04, 0.06, 0.06, 0.8, never falling
    assert holm([0.03, 0.01, 0.8, 0.02]) == pytest.approx([0.06, 0.04, 0.8, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_is_unknown() -> None:
    first, unknown, last = holm([0.01, math.nan, 0.04])
    assert (first, last) == pytest.approx((0.02, 0.04))
    assert math.isnan(unknown)


def ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def test_swapped_rows_give_the_p_value_of_all_swaps() -> None:
    generator = np.random.default_rng(3)
    first, second = generator.random(10), generator.random(10) + 0.3

    def difference(one: Floats, other: Floats, axis: int) -> Floats:
        return np.asarray(one.mean(axis=axis) - other.mean(axis=axis))

    exact = stats.permutation_test((first, second), difference, permutation_type="samples", vectorized=True)
    sums = [np.stack([each, np.ones(10)], axis=1) for each in (first, second, first)]
    p = swap_p(sums, [(0, 1), (1, 0), (0, 2)], ratio, resamples=20000)
    assert p[0] == pytest.approx(exact.pvalue, abs=0.01)
    assert p[1] == p[0]
    assert p[2] == 1


def test_a_swap_test_without_numbers_knows_nothing() -> None:
    nothing = np.zeros((5, 2))
    with np.errstate(invalid="ignore"):
        assert math.isnan(swap_p([nothing, nothing], [(0, 1)], ratio, resamples=99)[0])
    assert swap_p([nothing], [], ratio) == []


def test_bca_is_that_of_scipy_but_for_few_rows() -> None:
    values = np.random.default_rng(4).exponential(size=400)
    sums = np.stack([values, np.ones(400)], axis=1)
    draws = resampled([sums], ratio)[0]
    found = bca_interval(float(values.mean()), draws, ratio(sums.sum(axis=0) - sums))
    other = stats.bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(0)).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), rel=0.01)
    few = bca_interval(
        float(values[:8].mean()), resampled([sums[:8]], ratio)[0], ratio(sums[:8].sum(axis=0) - sums[:8])
    )
    plain = percentile_interval(few.value, resampled([sums[:8]], ratio)[0])
    assert few.high - few.low > plain.high - plain.low


def test_bca_of_equal_rows_is_a_point() -> None:
    found = bca_interval(0.5, np.full(999, 0.5), np.full(20, 0.5))
    assert (found.low, found.high) == (0.5, 0.5)


def test_a_size_has_an_interval_from_0_where_it_may_be_chance() -> None:
    generator = np.random.default_rng(5)
    noise = generator.normal(0, 1, (100, 4))
    found = size_interval(noise)
    assert found.low == 0
    assert found.value == pytest.approx(np.abs(noise.mean(axis=0)).sum())
    assert found.low <= found.value < found.high
    clear = size_interval(noise + np.array([1.0, -1.0, 0.0, 0.0]))
    assert 1.4 < clear.low < clear.value < clear.high < 2.8
    assert not size_interval(noise[:1]).known
    assert size_interval(np.zeros((9, 2))).high == 0


def test_a_change_of_a_size_gives_way_for_what_chance_adds() -> None:
    generator = np.random.default_rng(6)
    noise, other = generator.normal(0, 1, (100, 4)), generator.normal(0, 1, (100, 4))
    clear = size_change(noise + 1.0, noise + 2.0)
    assert (clear.value, clear.low, clear.high) == pytest.approx((4, 4, 4), abs=0.01)  # the same noise in both
    found = size_change(noise, other + np.array([1.0, 0.0, 0.0, 0.0]))
    assert found.value == pytest.approx(found.after - found.before)
    assert found.high - found.value > found.value - found.low - 0.05  # chance made the first too large
    same = size_change(noise, noise)
    assert (same.value, same.low, same.high) == (0, 0, 0)
