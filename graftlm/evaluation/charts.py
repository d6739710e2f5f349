"""The pictures of a report: loss curves (in the page and as PNG) and rows of dots with intervals.

In the page every position is a percentage of its box, lines have a fixed width and labels are text beside the SVG:
a plot then fits a phone and a wide screen with type of one size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]
Points = Sequence[tuple[float, float]]
RAW_POINTS = 400  # more would not be seen and would make the page heavy
INK, TRAIN, HELD_OUT, BROKE = "#1d2329", "#2b6cb0", "#b8500f", "#b3261e"
LOG_RATIO = 12.0  # losses that differ by more are easier to read on a logarithmic axis


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, in percent of the axis, and what it says."""

    at: float
    label: str


@dataclass(frozen=True)
class Axis:
    """A scale from a value to percent of the plot's length, with its marks."""

    low: float
    high: float
    log: bool
    ticks: tuple[Tick, ...] = ()

    def at(self, value: float) -> float:
        """Where ``value`` stands, in percent from the low end."""
        return 100 * _place(value, self.low, self.high, self.log)

    def value(self, at: float) -> float:
        """The value that stands at so many percent."""
        if self.log:
            return float(self.low * (self.high / self.low) ** (at / 100))
        return self.low + (self.high - self.low) * at / 100


@dataclass(frozen=True)
class Curve:
    """What one adapter's plot shows. Steps with a loss that is not finite break a line."""

    train: Points
    held_out: Points
    best: tuple[float, float] | None = None
    broke: float | None = None  # the step at which it diverged


@dataclass(frozen=True)
class Plot:
    """A curve laid out: SVG paths over a box of 100 × 100, markers and hover texts in percent."""

    x: Axis
    y: Axis
    raw: str
    smooth: str
    held_out: str
    markers: tuple[tuple[float, float], ...]
    best: tuple[float, float] | None
    broke: float | None
    hover: tuple[tuple[float, float, str], ...]


def shared_loss_axis(curves: Sequence[Curve]) -> Axis:
    """One loss axis for curves that are to be compared; logarithmic where they span more than a decade."""
    train = [loss for curve in curves for _, loss in curve.train if math.isfinite(loss)]
    held_out = [loss for curve in curves for _, loss in curve.held_out if math.isfinite(loss)]
    if not train and not held_out:
        return Axis(0.0, 1.0, log=False, ticks=(Tick(0, "0"), Tick(100, "1")))
    low, high = min(train + held_out), max(train + held_out)
    # The lowest single steps are noise: a step of two tokens may have almost no loss.
    floor = min([*held_out, *([float(np.quantile(train, 0.02))] if train else [])])
    if floor > 0 and high / floor > LOG_RATIO:
        return log_axis(floor, high)
    return linear_axis(low, high)


def linear_axis(low: float, high: float, *, label: Callable[[float], str] | None = None, bins: int = 5) -> Axis:
    """An axis that starts and ends at round numbers, from 0 where the values come near it."""
    from matplotlib.ticker import MaxNLocator

    if 0 < low < 0.5 * high:
        low = 0.0
    if high <= low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    marks = [float(mark) for mark in MaxNLocator(bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]
    marks = [0.0 if abs(mark) < 1e-12 else mark for mark in marks]
    low, high = marks[0], marks[-1]
    text = label or (lambda value: f"{value:g}")
    return Axis(low, high, False, tuple(Tick(100 * _place(v, low, high, False), text(v)) for v in marks))


def log_axis(low: float, high: float, *, label: Callable[[float], str] | None = None) -> Axis:
    """A logarithmic axis a little wider than its values, all above 0, with marks at 1, 2 and 5 or at decades."""
    low, high = low / 1.15, high * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
    marks = [mark for mark in marks if low <= mark <= high]
    if len(marks) > 6:  # whole decades, and not all of them where there are many
        whole = [mark for mark in marks if round(math.log10(mark), 6).is_integer()]
        marks = whole[:: math.ceil(len(whole) / 6)]
    text = label or (lambda value: f"{value:g}")
    ticks = tuple(Tick(100 * _place(mark, low, high, True), text(mark)) for mark in marks)
    return Axis(low, high, True, ticks)


def _last_step(curve: Curve, steps: int) -> float:
    return max(1, steps, *(step for step, _ in (*curve.train, *curve.held_out)))


def _step_axis(last: float) -> Axis:
    from matplotlib.ticker import MaxNLocator

    marks = [m for m in MaxNLocator(4, integer=True).tick_values(0, last) if 0 <= m <= last]
    return Axis(0, last, False, tuple(Tick(100 * m / last, f"{int(m):,}") for m in marks))


def _place(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(max(value, 1e-300)), math.log(low), math.log(high)
    return min(1.0, max(0.0, (value - low) / (high - low)))


def lay_out(curve: Curve, y: Axis, steps: int) -> Plot:
    """Place a curve in its plot."""
    x = _step_axis(_last_step(curve, steps))
    smooth = _thin(smoothed(curve.train))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return round(x.at(point[0]), 2), round(100 - y.at(point[1]), 2)

    known = [point for point in curve.held_out if math.isfinite(point[1])]
    return Plot(
        x=x,
        y=y,
        raw=_path(_envelope(curve.train), place),
        smooth=_path(smooth, place),
        held_out=_path(curve.held_out, place),
        markers=tuple(place(point) for point in known),
        best=place(curve.best) if curve.best and math.isfinite(curve.best[1]) else None,
        broke=None if curve.broke is None else round(x.at(curve.broke), 2),
        hover=tuple(_hover(smooth, known, place)),
    )


def _hover(
    smooth: Points, held_out: Points, place: Callable[[tuple[float, float]], tuple[float, float]]
) -> list[tuple[float, float, str]]:
    points = [
        (*place((step, loss)), f"step {step:,.0f}: training {loss:.3g}")
        for step, loss in smooth[:: max(1, len(smooth) // 120)]
        if math.isfinite(loss)
    ]
    points += [(*place((step, loss)), f"step {step:,.0f}: held-out {loss:.3g}") for step, loss in held_out]
    return sorted(points)


def smoothed(points: Points) -> list[tuple[float, float]]:
    """A Gaussian moving average over steps (no lag); losses that are not finite stay gaps and weigh nothing."""
    if len(points) < 8:
        return list(points)
    steps, losses = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
    known = np.isfinite(losses)
    width = max(2.0, len(points) / 25)
    reach = min(math.ceil(3 * width), (len(points) - 1) // 2)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    weights = np.convolve(known.astype(float), kernel, mode="same")
    sums = np.convolve(np.where(known, losses, 0.0), kernel, mode="same")
    means = np.where(known, sums / np.where(weights > 0, weights, 1.0), np.nan)
    return list(zip(steps.tolist(), means.tolist(), strict=True))


def _thin(points: Points) -> list[tuple[float, float]]:
    every = math.ceil(len(points) / RAW_POINTS) or 1
    kept = list(points[::every])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def _envelope(points: Points) -> list[tuple[float, float]]:
    """At most ``RAW_POINTS`` points that keep the extremes of what they stand for."""
    if len(points) <= RAW_POINTS:
        return list(points)
    kept: list[tuple[float, float]] = []
    for chunk in np.array_split(np.arange(len(points)), RAW_POINTS // 2):
        part = [points[index] for index in chunk]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends, key=lambda point: point[0])
    return kept


def _path(points: Points, place: Callable[[tuple[float, float]], tuple[float, float]]) -> str:
    """SVG path data; a gap where a loss is not finite."""
    commands: list[str] = []
    pen = "M"
    for point in points:
        if math.isfinite(point[1]):
            x, y = place(point)
            commands.append(f"{pen}{x:g} {y:g}")
            pen = "L"
        else:
            pen = "M"
    return "".join(commands)


def draw_png(named: Sequence[tuple[str, Curve, Axis, int]], file: BinaryIO, title: str) -> None:
    """Draw the loss curves of all adapters as one PNG picture.

    Args:
        named: name, curve, loss axis and number of steps of each adapter.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, max(1, len(named)))
    rows = max(1, math.ceil(len(named) / columns))
    figure = Figure(figsize=(3.6 * columns + 0.4, 2.7 * rows + 0.7), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left", color=INK, parse_math=False)
    for index, (name, curve, axis, steps) in enumerate(named):
        axes = figure.add_subplot(rows, columns, index + 1)
        _draw_curve(axes, curve, axis, steps)
        axes.set_title(name, fontsize=10, loc="left", color=INK, parse_math=False)
        if index == 0:
            axes.legend(fontsize=7.5, frameon=False)
    figure.savefig(file, format="png", facecolor="white")


def _draw_curve(axes: Axes, curve: Curve, axis: Axis, steps: int) -> None:
    def columns(points: Points) -> tuple[list[float], list[float]]:
        return [step for step, _ in points], [loss for _, loss in points]

    axes.plot(*columns(curve.train), color=TRAIN, alpha=0.25, linewidth=0.8)
    axes.plot(*columns(smoothed(curve.train)), color=TRAIN, linewidth=1.8, label="training, smoothed")
    axes.plot(
        *columns(curve.held_out), color=HELD_OUT, linewidth=1.2, marker="o", ms=4, clip_on=False, label="held-out"
    )
    if curve.best and math.isfinite(curve.best[1]):
        axes.plot(*columns([curve.best]), "o", ms=10, mfc="none", mec=HELD_OUT, label="best, and kept")
    if curve.broke is not None:
        axes.axvline(curve.broke, color=BROKE, linestyle=":")
        axes.annotate(" diverged", (curve.broke, 0.97), xycoords=("data", "axes fraction"), color=BROKE, fontsize=8)
    if axis.log:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set_ylim(axis.low, axis.high)
    axes.set_yticks([axis.value(tick.at) for tick in axis.ticks], [tick.label for tick in axis.ticks])
    axes.set_xlim(0, _last_step(curve, steps))
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8, length=2, color="#c8c6be", labelcolor="#59626c")
    axes.grid(axis="y", color="#ebe9e2", linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c8c6be")
