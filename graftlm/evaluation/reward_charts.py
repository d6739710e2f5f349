"""What the report shows of a reward head: a row of numbers a criterion, and how sure it is beside how often right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graftlm.evaluation import wording
from graftlm.evaluation.charts import Axis, Tick
from graftlm.evaluation.reward_quality import RewardQuality
from graftlm.evaluation.statistics import Interval

#: From a coin to certainty: what a reward that prefers one of two answers can say of itself.
SURE = Axis(0.5, 1.0, False, tuple(Tick(at, f"{50 + at / 2:g}%") for at in (0.0, 50.0, 100.0)))
RIGHT = Axis(0.0, 1.0, False, tuple(Tick(at, f"{at:g}%") for at in (0.0, 25.0, 50.0, 75.0, 100.0)))


@dataclass(frozen=True)
class RewardRow:
    """A criterion as the page shows it: ``cells`` of text and small print, and its reliability diagram.

    ``path`` and ``points`` (x, y, width) are in percent of the box; ``hover`` says each point in words.
    """

    criterion: str
    cells: tuple[tuple[str, str], ...]
    path: str
    points: tuple[tuple[float, float, float], ...]
    hover: tuple[tuple[float, float, str], ...]

    @property
    def alternative(self) -> str:
        """The diagram in words."""
        return "; ".join(text for _, _, text in self.hover)


COLUMNS = (
    "comparisons right",
    "by length",
    "more than length",
    "good or bad",
    "calibration error",
    "prefers the longer answer",
)


def reward_rows(qualities: Sequence[RewardQuality]) -> tuple[RewardRow, ...]:
    """The rows of an adapter, one a criterion."""
    return tuple(_row(each) for each in qualities)


def _row(quality: RewardQuality) -> RewardRow:
    most = max((each.rows for each in quality.bins), default=1)
    points = tuple(
        (
            round(SURE.at(each.confidence), 2),
            round(100 - RIGHT.at(each.right), 2),
            round(6 + 8 * math.sqrt(each.rows / most), 1),
        )
        for each in quality.bins
    )
    tips = tuple(
        (x, y, f"{100 * each.confidence:.0f}% sure, {100 * each.right:.0f}% right, {_comparisons(each.rows)}")
        for (x, y, _), each in zip(points, quality.bins, strict=True)
    )
    path = "".join(f"{'L' if number else 'M'}{x:g} {y:g}" for number, (x, y, _) in enumerate(points))
    return RewardRow(quality.criterion, _cells(quality), path, points, tips)


def _cells(quality: RewardQuality) -> tuple[tuple[str, str], ...]:
    """Text and small print under each of ``COLUMNS``."""
    labels, side = quality.labels, "longer" if quality.longer_is_better else "shorter"
    people = [] if quality.longer_better is None else [f"people {_share(quality.longer_better)}"]
    if quality.length_correlation is not None:
        people.append(f"r = {quality.length_correlation:+.2f}".replace("-", wording.MINUS))
    return (
        (_share(quality.accuracy.value), f"{_ends(quality.accuracy)}; {wording.plural(quality.groups, 'group')}"),
        (_share(quality.length.value), f"the {side} answer"),
        (wording.share_pair(quality.over_length), ""),
        ("–", "") if labels is None else (_share(labels.accuracy.value), f"majority {_share(labels.majority.value)}"),
        (f"{100 * quality.error:.1f} points" if math.isfinite(quality.error) else "–", ""),
        (_share(quality.longer_preferred), "; ".join(people)),
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _comparisons(number: int) -> str:
    return wording.plural(number, "comparison")
