"""What an objective is: a loss over one adapter's rows, in two steps.

First what must be known of the whole optimizer step; then the loss of the rows that run together, such that the losses
of all of them add up to the loss of the step. Micro-batching, padding and neighbours then change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from graftlm.data.batches import EncodedRow


@dataclass(frozen=True)
class RowScores:
    """What some rows give, one after the other: log-probabilities of their learnt tokens, or rewards by criterion.

    ``log_probs`` (n,) are these values, ``counts`` how many each row has, ``sizes`` how many rows each group has: rows
    of a group stand together, and groups are whole. Without ``sizes`` every row stands alone.
    """

    log_probs: torch.Tensor
    counts: tuple[int, ...]
    rows: tuple[EncodedRow, ...]
    sizes: tuple[int, ...] | None = None


class Objective(Protocol):
    """A loss; see the module's text. Add one as a class with these methods and a name."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    @property
    def needs_reference(self) -> bool:
        """Whether rows must know their log-probability under a reference: the adapter as it starts."""
        ...

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> Any:
        """What the loss needs to know of the step: its rows, each the leader of its group.

        ``mismatched``: the log-ratios of rows that are scored and not learnt, by the parameters before the step.
        """
        ...

    def loss(self, scores: RowScores, statistics: Any) -> torch.Tensor:
        """These rows' part of the step's loss: a scalar."""
        ...

    def measure(self, scores: RowScores, statistics: Any) -> Mapping[str, float]:
        """Numbers to show of whole steps and of held-out rows, "loss" and "accuracy" among them; empty: tokens are
        counted instead. Of held-out rows the log-probabilities are summed over each row before.
        """
        ...
