"""The objective of single answers that were found good or bad: Kahneman-Tversky optimisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.objectives.compared import likelihoods
from graftlm.objectives.objective import RowScores
from graftlm.objectives.preference import kto_loss, kto_reference_point


@dataclass(frozen=True)
class KTOStep:
    """How many rows a step has, and the reference point z₀ of its mismatched ones."""

    rows: int
    z0: float


@dataclass(frozen=True)
class KTO:
    """See :func:`kto_loss`. z₀ is that of one adapter's whole step, from its rows' prompts with other rows' answers."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    name: str = "kto"
    needs_reference: bool = True

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> KTOStep:
        """``mismatched``: the log-ratios of the rows that are scored and not learnt."""
        learnt = sum(not row.mismatched for leader in rows for row in leader.group)
        return KTOStep(learnt, float(kto_reference_point(torch.tensor(mismatched, dtype=torch.float64))))

    def loss(self, scores: RowScores, statistics: KTOStep) -> torch.Tensor:
        """These rows' share of the step's mean."""
        return self._terms(scores, statistics).sum() / statistics.rows

    def measure(self, scores: RowScores, statistics: KTOStep) -> Mapping[str, float]:
        """Loss, the share of rows on the right side of z₀, rewards of good and bad answers, and z₀."""
        rewards = self.beta * likelihoods(scores, reference=True).log_ratio
        good = self._good(scores)
        above = rewards - self.beta * statistics.z0
        right = torch.where(good, above > 0, above < 0).double() + 0.5 * (above == 0).double()
        found = {"loss": float(self.loss(scores, statistics)), "accuracy": float(right.mean()), "z0": statistics.z0}
        for key, own in (("chosen_reward", rewards[good]), ("rejected_reward", rewards[~good])):
            if len(own):
                found[key] = float(own.mean())
        return found

    def _good(self, scores: RowScores) -> torch.Tensor:
        judged = [row.judged is not None and bool(row.judged.desirable) for row in scores.rows]
        return torch.tensor(judged, device=scores.log_probs.device)

    def _terms(self, scores: RowScores, statistics: KTOStep) -> torch.Tensor:
        return kto_loss(
            likelihoods(scores, reference=True).log_ratio,
            self._good(scores),
            statistics.z0,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
