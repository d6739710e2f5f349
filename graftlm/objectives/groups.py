"""What objectives of preferences have in common: which answers of a group are compared, and the mean over groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.data.judged import Judgement, compared
from graftlm.objectives.objective import RowScores


@dataclass(frozen=True)
class Comparisons:
    """Comparisons of answers: ``better`` and ``worse`` (n,) int64 are rows, ``margin`` (n,) by how much.

    ``share`` (n,): 1 / comparisons of the same group, so that every group counts the same, however many answers it has.
    """

    better: torch.Tensor
    worse: torch.Tensor
    margin: torch.Tensor
    share: torch.Tensor


def group_starts(scores: RowScores) -> Iterator[tuple[int, tuple[EncodedRow, ...]]]:
    """Each group's rows, with the number of its first."""
    start = 0
    for size in scores.sizes or (1,) * len(scores.rows):
        yield start, scores.rows[start : start + size]
        start += size


def comparisons(scores: RowScores, criterion: int = 0) -> Comparisons:
    """All comparisons of the groups by one criterion, on the device and in the dtype of the scores."""
    better: list[int] = []
    worse: list[int] = []
    margins: list[float] = []
    shares: list[float] = []
    for start, rows in group_starts(scores):
        judged = [row.judged or Judgement() for row in rows]
        pairs = compared(judged, criterion)
        better += [start + one for one, _ in pairs]
        worse += [start + other for _, other in pairs]
        margins += [judged[other].margin for _, other in pairs]
        shares += [1 / len(pairs) for _ in pairs]
    device, dtype = scores.log_probs.device, scores.log_probs.dtype
    return Comparisons(
        torch.tensor(better, dtype=torch.int64, device=device),
        torch.tensor(worse, dtype=torch.int64, device=device),
        torch.tensor(margins, dtype=dtype, device=device),
        torch.tensor(shares, dtype=dtype, device=device),
    )


def is_compared(row: EncodedRow, criterion: int = 0) -> bool:
    """Whether the group that a row leads has a comparison by a criterion."""
    return bool(compared([each.judged or Judgement() for each in row.group], criterion))


def mean_share(terms: torch.Tensor, share: torch.Tensor, groups: int) -> torch.Tensor:
    """The mean over groups of the mean of each group's terms: (n,) → a scalar."""
    return (terms * share).sum() / max(1, groups)


def right_share(better: torch.Tensor, worse: torch.Tensor) -> torch.Tensor:
    """Whether the better answer has the higher number: 1, 0, or ½ where they are equal."""
    return (better > worse).to(better.dtype) + 0.5 * (better == worse).to(better.dtype)
