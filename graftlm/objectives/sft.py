"""Supervised fine-tuning: the mean negative log-likelihood of the learnt tokens of a whole optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.objectives.objective import RowScores


def sft_loss(log_probs: torch.Tensor, step_tokens: int) -> torch.Tensor:
    """−Σ log p / N: log_probs (n,) of this micro-batch, N the learnt tokens of the whole step → scalar."""
    return -log_probs.sum() / step_tokens


@dataclass(frozen=True)
class SFT:
    """Instruction tuning: every learnt token of a step counts the same."""

    name: str = "sft"
    needs_reference: bool = False

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> int:
        """The step's number of learnt tokens."""
        return sum(row.n_supervised for row in rows)

    def loss(self, scores: RowScores, statistics: int) -> torch.Tensor:
        """This micro-batch's share of the step's mean."""
        return sft_loss(scores.log_probs, statistics)

    def measure(self, scores: RowScores, statistics: int) -> Mapping[str, float]:
        """Tokens and exact answers are counted by the loop."""
        return {}
