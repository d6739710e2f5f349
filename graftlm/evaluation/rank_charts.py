"""Pictures of ranks: how many triples each matrix was left (AdaLoRA), and quality at each rank (DyLoRA)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.evaluation.charts import Axis, Tick, linear_axis

#: rank, held-out loss a token, share of exact answers
RankScore = tuple[int, float, float]


@dataclass(frozen=True)
class RankMap:
    """Ranks by layer and matrix: a row for each layer, a cell for each column, None where it has no such matrix."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int | None, ...]], ...]

    @property
    def most(self) -> int:
        """The largest rank, at least 1."""
        return max(1, *(rank for _, cells in self.rows for rank in cells if rank is not None))

    @property
    def total(self) -> int:
        """All ranks together."""
        return sum(rank for _, cells in self.rows for rank in cells if rank is not None)


@dataclass(frozen=True)
class RankCurve:
    """Loss against rank, laid out in percent of a box, with the scores it shows."""

    x: Axis
    y: Axis
    path: str
    markers: tuple[tuple[float, float], ...]
    hover: tuple[tuple[float, float, str], ...]
    scores: tuple[RankScore, ...]


def rank_map(ranks: Mapping[str, int]) -> RankMap | None:
    """The map of ranks by module path, or None where there are none.

    The first number in a path is its layer. Stacks of layers (of an encoder-decoder) are told apart by name.
    """
    if not ranks:
        return None
    parts = {path: _parts(path) for path in ranks}
    stacks = {stack for stack, number, _ in parts.values() if number}
    columns = list(dict.fromkeys(matrix for _, _, matrix in parts.values()))
    table: dict[str, dict[str, int]] = {}
    for path, rank in ranks.items():
        stack, number, matrix = parts[path]
        label = f"{stack} {number}".strip() if len(stacks) > 1 else number
        table.setdefault(label, {})[matrix] = rank
    last = [column.rpartition(".")[2] for column in columns]
    names = tuple(short if last.count(short) == 1 else column for short, column in zip(last, columns, strict=True))
    rows = tuple((label, tuple(cells.get(column) for column in columns)) for label, cells in table.items())
    return RankMap(names, rows)


def _parts(path: str) -> tuple[str, str, str]:
    """Stack of layers, number of the layer and the matrix in it; no number for what stands outside of layers."""
    found = re.fullmatch(r"(.*?)\.?(\d+)\.(.+)", path)
    if found is None:
        return "", "", path
    return found[1].removeprefix("model.").partition(".")[0], found[2], found[3]


def rank_curve(scores: Sequence[RankScore]) -> RankCurve | None:
    """The curve of held-out loss by rank, or None where fewer than two ranks were scored."""
    known = sorted(score for score in scores if math.isfinite(score[1]))
    if len(known) < 2:
        return None
    low, high = known[0][0], known[-1][0]
    shown = [rank for number, (rank, *_) in enumerate(known) if number % math.ceil(len(known) / 8) == 0 or rank == high]
    x = Axis(low, high, False, tuple(Tick(100 * (rank - low) / (high - low), str(rank)) for rank in shown))
    y = linear_axis(min(loss for _, loss, _ in known), max(loss for _, loss, _ in known))
    points = tuple((round(x.at(rank), 2), round(100 - y.at(loss), 2)) for rank, loss, _ in known)
    hover = tuple(
        (*point, f"rank {rank}: loss {loss:.3g}, exact {100 * exact:.0f}%")
        for point, (rank, loss, exact) in zip(points, known, strict=True)
    )
    path = "".join(f"{'L' if number else 'M'}{px:g} {py:g}" for number, (px, py) in enumerate(points))
    return RankCurve(x, y, path, points, hover, tuple(known))
