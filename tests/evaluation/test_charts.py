"""Axes, smoothing and paths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from graftlm.evaluation.charts import (
    RAW_POINTS,
    Curve,
    lay_out,
    linear_axis,
    shared_loss_axis,
    smoothed,
)


def test_axis_places_values_and_back() -> None:
    for axis in (linear_axis(0.3, 3.9), shared_loss_axis([Curve([(1, 9.0), (2, 0.05)], [])])):
        for share in (0, 25, 100):
            assert axis.at(axis.value(share)) == pytest.approx(share, abs=1e-9)
        assert axis.at(1e9) == 100
        assert all(0 <= tick.at <= 100 for tick in axis.ticks)
        assert len(axis.ticks) >= 2


def test_scale_is_logarithmic_where_losses_span_a_decade() -> None:
    assert shared_loss_axis([Curve([(1, 9.0), (2, 0.05)], [])]).log
    assert not shared_loss_axis([Curve([(1, 3.0), (2, 1.0)], [])]).log
    assert not shared_loss_axis([Curve([(1, 3.0)], [(2, 0.0)])]).log


@pytest.mark.parametrize("losses", [[], [math.nan], [math.inf, 2.0], [2.0, 2.0], [0.0], [1e-9, 1e9]])
def test_any_losses_have_an_axis_and_a_plot(losses: list[float]) -> None:
    curve = Curve(list(enumerate(losses, 1)), [(0, loss) for loss in losses[:1]])
    plot = lay_out(curve, shared_loss_axis([curve]), len(losses))
    assert "nan" not in plot.raw + plot.smooth + plot.held_out
    assert "inf" not in plot.raw + plot.smooth + plot.held_out


def test_smoothing_keeps_constants_and_has_no_lag() -> None:
    flat = smoothed([(step, 2.0) for step in range(100)])
    assert [loss for _, loss in flat] == pytest.approx([2.0] * 100)
    line = smoothed([(step, 0.1 * step) for step in range(100)])
    assert [loss for _, loss in line[20:80]] == pytest.approx([0.1 * step for step in range(20, 80)])


def test_losses_that_are_not_finite_are_gaps() -> None:
    points = [(float(step), math.nan if step == 50 else 2.0) for step in range(100)]
    values = np.array([loss for _, loss in smoothed(points)])
    assert np.isnan(values[50])
    assert np.delete(values, 50) == pytest.approx(2.0)
    curve = Curve(points, [])
    assert lay_out(curve, shared_loss_axis([curve]), 100).raw.count("M") == 2


def test_long_runs_stay_small_and_keep_their_extremes() -> None:
    losses = np.full(50_000, 2.0)
    losses[31_234] = 9.0
    curve = Curve(list(enumerate(losses.tolist())), [])
    axis = shared_loss_axis([curve])
    plot = lay_out(curve, axis, 50_000)
    assert plot.raw.count("L") <= RAW_POINTS
    assert f" {100 - axis.at(9.0):g}" in plot.raw
    assert len(plot.hover) < 300
