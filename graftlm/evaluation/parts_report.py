"""Scores part by part: a table of all parts, and a picture of the differences to the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from graftlm.evaluation import wording
from graftlm.evaluation.charts import HELD_OUT, INK, TRAIN
from graftlm.evaluation.comparison import Comparison, Standing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOFT, LINE, GRID = "#59626c", "#c8c6be", "#ebe9e2"
COLOURS = (TRAIN, "#b0572c", "#5b4a9e", "#3f8f4f", "#9e4a78", "#7a7a2a")  # a contender each
MOST_PARTS = 80  # a picture of more could not be read, and its file would be too large
LONGEST = 44  # signs of a part's name in the picture


def by_name(comparison: Comparison) -> list[Standing]:
    """The lines of a part in an order that is the same in all parts."""
    return sorted(comparison.standings, key=lambda each: each.contender.name)


def draw_parts(parts: Sequence[Comparison], file: BinaryIO, title: str) -> int:
    """Draw, as one PNG picture, how far each adapter is from the base on each part; a panel for each metric.

    Gives the number of parts that are left out: those over ``MOST_PARTS`` and those without a score of the base.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = [each for each in parts if any(_known(standing) for standing in each.standings)]
    shown = known[:MOST_PARTS]
    panels: dict[str, list[Comparison]] = {}
    for each in shown:
        panels.setdefault(each.metric.name, []).append(each)
    names = sorted({standing.contender.name for each in shown for standing in each.standings})
    heights = [len(each) * (0.22 + 0.09 * len(names)) + 0.9 for each in panels.values()] or [1.0]
    figure = Figure(figsize=(9.2, sum(heights) + 0.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=13, x=0.01, ha="left", color=INK, parse_math=False)
    grid = figure.add_gridspec(max(1, len(panels)), 1, height_ratios=heights)
    for at, panel in enumerate(panels.values()):
        _draw(figure.add_subplot(grid[at, 0]), panel, names)
    if len(names) > 1 and figure.axes:
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=min(4, len(names)),
            fontsize=9,
            frameon=False,
        )
    figure.savefig(file, format="png", facecolor="white")
    return len(parts) - len(shown)


def _known(standing: Standing) -> bool:
    return standing.over_base is not None and math.isfinite(standing.over_base.value)


def _draw(axes: Axes, parts: Sequence[Comparison], names: Sequence[str]) -> None:
    metric = parts[0].metric
    scale = 100 if metric.is_share else 1
    for at, part in enumerate(parts):
        own = [each for each in by_name(part) if _known(each)]
        for place, standing in enumerate(own):
            change = standing.over_base
            assert change is not None
            y = at + (place - (len(own) - 1) / 2) * 0.7 / len(own)
            colour = COLOURS[names.index(standing.contender.name) % len(COLOURS)]
            if change.known:
                axes.plot([scale * change.low, scale * change.high], [y, y], color=colour, alpha=0.45, linewidth=2)
            axes.plot([scale * change.value], [y], "o", color=colour, ms=5)
    for name in names:
        axes.plot([], [], "o-", color=COLOURS[names.index(name) % len(COLOURS)], label=name)
    axes.axvline(0, color=HELD_OUT, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(parts)), [_shortened(part.data) for part in parts], parse_math=False)
    axes.set_ylim(len(parts) - 0.4, -0.6)
    better = "" if metric.higher_is_better else " (lower is better)"
    unit = ", points" if metric.is_share else ""
    axes.set_xlabel(f"{metric.label}, difference to the base{unit}{better}, 95% intervals", fontsize=9.5, color=SOFT)
    axes.tick_params(which="both", labelsize=9, length=2, color=LINE, labelcolor=SOFT)
    axes.grid(color=GRID, linewidth=0.7, axis="x")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def left_out(number: int) -> list[str]:
    """What is said of parts that the picture does not show."""
    if not number:
        return []
    return [f"The picture leaves out {wording.plural(number, 'part')}; all are in compare.json."]
