"""What an objective is: a loss over one adapter's rows, in two steps.

First what must be known of the whole optimizer step (from its rows, before anything runs); then the loss of the
rows of one micro-batch, such that the losses of all micro-batches add up to the loss of the step. Micro-batching,
padding and neighbours then change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from graftlm.data.batches import EncodedRow


@dataclass(frozen=True)
class RowScores:
    """Log-probabilities (n,) of the learnt tokens of some rows, one after the other; ``counts`` a row."""

    log_probs: torch.Tensor
    counts: tuple[int, ...]
    rows: tuple[EncodedRow, ...]


class Objective(Protocol):
    """A loss; see the module's text. Add one as a class with these two methods and a name."""

    @property
    def name(self) -> str:
        """What recipes call it."""
        ...

    def statistics(self, rows: Sequence[EncodedRow]) -> Any:
        """What the loss needs to know of all rows of the step."""
        ...

    def loss(self, scores: RowScores, statistics: Any) -> torch.Tensor:
        """This micro-batch's part of the step's loss: a scalar."""
        ...
