"""The picture of a comparison: score against trained parameters, a panel for each data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Literal

from graftlm.evaluation import wording
from graftlm.evaluation.charts import HELD_OUT, INK, TRAIN
from graftlm.evaluation.comparison import Comparison, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

SOFT, LINE, GRID = "#59626c", "#c8c6be", "#ebe9e2"
# Where a label may stand from its point, in points of type: (x, y, horizontal, vertical alignment), the best first.
Place = tuple[float, float, Literal["left", "center", "right"], Literal["bottom", "center", "top"]]
_NEAR: list[Place] = [
    (8, 0, "left", "center"),
    (-8, 0, "right", "center"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
]
_FAR: list[Place] = [
    (x, y, "left" if x > 0 else "right", "center")
    for distance in (14, 24, 36, 50, 66, 84)
    for x in (12, -12)
    for y in (distance, -distance)
]
PLACES = [*_NEAR, *_FAR]


def draw_comparison(comparisons: Sequence[Comparison], file: BinaryIO, title: str) -> None:
    """Draw one PNG picture; labels are moved until none lies on another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 5.2 * len(comparisons) + 0.5), dpi=150, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", color=INK, parse_math=False)
    panels = []
    for number, comparison in enumerate(comparisons):
        axes = figure.add_subplot(len(comparisons), 1, number + 1)
        panels.append((axes, comparison, _draw(axes, comparison)))
    figure.canvas.draw()  # lays the panels out; labels are placed in pixels
    figure.set_layout_engine("none")
    for axes, comparison, labels in panels:
        _place_labels(canvas, axes, comparison, labels)
    figure.savefig(file, format="png", facecolor="white")


def _known(comparison: Comparison) -> list[Standing]:
    return [each for each in comparison.standings if math.isfinite(each.score.value)]


def _draw(axes: Axes, comparison: Comparison) -> list[Annotation]:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    scale = 100 if comparison.metric.is_share else 1
    known = _known(comparison)
    for each in known:
        x, y = max(1, each.contender.trained_parameters), scale * each.score.value
        if each.score.known:
            axes.plot([x, x], [scale * each.score.low, scale * each.score.high], color=TRAIN, alpha=0.35, linewidth=2)
        if len(each.each) > 1:
            axes.plot([x] * len(each.each), [scale * one for one in each.each], "_", color=TRAIN, ms=7, mew=1.3)
        axes.plot([x], [y], "o", color=TRAIN, ms=6.5)
    marks = [("base", comparison.base.value)] if comparison.base is not None else []
    marks = [
        (name, scale * value) for name, value in [*marks, ("majority", comparison.majority)] if math.isfinite(value)
    ]
    for name, value in marks:
        axes.axhline(value, color=HELD_OUT, linewidth=1, linestyle="--" if name == "base" else ":")
    for (name, value), level in zip(marks, _apart(axes, [value for _, value in marks]), strict=True):
        axes.annotate(
            name,
            (1, value),
            xytext=(6, level),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=HELD_OUT,
            fontsize=9,
        )
    axes.set_xscale("log")
    sizes = [max(1, each.contender.trained_parameters) for each in known] or [1]
    axes.set_xlim(min(sizes) / 2.5, max(sizes) * 2.5)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _at: wording.short_count(round(value))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("trained parameters (logarithmic)", fontsize=9.5, color=SOFT)
    unit = ", %" if comparison.metric.is_share else ""
    better = "" if comparison.metric.higher_is_better else ", lower is better"
    axes.set_ylabel(f"{comparison.metric.label}{unit}{better}", fontsize=9.5, color=SOFT)
    rows = wording.plural(comparison.rows, "held-out row")
    axes.set_title(f"{comparison.data} ({rows}, 95% intervals)", fontsize=10.5, loc="left", color=INK, parse_math=False)
    axes.tick_params(which="both", labelsize=9, length=2, color=LINE, labelcolor=SOFT)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(y=0.1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    return [
        axes.annotate(
            each.contender.name,
            (max(1, each.contender.trained_parameters), scale * each.score.value),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=9,
            color=INK,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": LINE, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4},
        )
        for each in known
    ]


def _apart(axes: Axes, values: Sequence[float]) -> list[float]:
    """Offsets in points of type that keep two names at the right edge from lying on each other."""
    if len(values) < 2:
        return [0.0] * len(values)
    low, high = axes.get_ylim()
    if abs(values[0] - values[1]) > 0.05 * (high - low):
        return [0.0, 0.0]
    return [6.0, -6.0] if values[0] >= values[1] else [-6.0, 6.0]


def _place_labels(canvas: FigureCanvasAgg, axes: Axes, comparison: Comparison, labels: Sequence[Annotation]) -> None:
    """Give every label the first place where it lies on no point, no interval and no other label."""
    from matplotlib.transforms import Bbox

    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    scale = 100 if comparison.metric.is_share else 1
    pixel = axes.figure.dpi / 72
    taken: list[Bbox] = []
    for each in _known(comparison):
        x = max(1, each.contender.trained_parameters)
        ends = [each.score.value, *((each.score.low, each.score.high) if each.score.known else ())]
        points = axes.transData.transform([(x, scale * end) for end in ends])
        middle = points[0]
        taken.append(Bbox.from_bounds(middle[0] - 5 * pixel, middle[1] - 5 * pixel, 10 * pixel, 10 * pixel))
        low, high = points[:, 1].min(), points[:, 1].max()
        taken.append(Bbox.from_bounds(middle[0] - pixel, low, 2 * pixel, high - low))
        for one in each.each:
            place = axes.transData.transform((x, scale * one)) if math.isfinite(one) else middle
            taken.append(Bbox.from_bounds(place[0] - 4 * pixel, place[1] - pixel, 8 * pixel, 2 * pixel))
    frame = axes.get_window_extent(renderer)
    for value in (comparison.majority, *((comparison.base.value,) if comparison.base is not None else ())):
        if math.isfinite(value):
            level = axes.transData.transform((1, scale * value))[1]
            taken.append(Bbox.from_bounds(frame.x0, level - pixel, frame.width, 2 * pixel))
    for label in labels:
        boxes = []
        for place in PLACES:
            _put(label, place)
            boxes.append(_text_box(label, renderer))
        costs = [
            sum(_overlap(box, other) for other in taken) + 100 * max(0.0, frame.x0 - box.x0, box.x1 - frame.x1)
            for box in boxes
        ]
        best = costs.index(min(costs))  # the first of those that lie on nothing
        _put(label, PLACES[best])
        if best < len(_NEAR) and label.arrow_patch is not None:
            label.arrow_patch.set_visible(False)
        taken.append(boxes[best])


def _put(label: Annotation, place: Place) -> None:
    x, y, horizontal, vertical = place
    label.set_position((x, y))
    label.set_horizontalalignment(horizontal)
    label.set_verticalalignment(vertical)


def _text_box(label: Annotation, renderer: object) -> Bbox:
    """Where the text itself stands, without its line, a little larger."""
    from matplotlib.text import Text

    label.update_positions(renderer)  # type: ignore[arg-type]
    return Text.get_window_extent(label, renderer).padded(1.5)  # type: ignore[arg-type]


def _overlap(one: Bbox, other: Bbox) -> float:
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    high = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(wide * high) if wide > 0 and high > 0 else 0.0
