"""The objective of a reward head: of two answers the better one gets the higher reward, by each criterion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.objectives.groups import comparisons, is_compared, mean_share, right_share
from graftlm.objectives.objective import RowScores
from graftlm.objectives.reward import reward_loss


@dataclass(frozen=True)
class Reward:
    """−log σ(r⁺ − r⁻ − margin) of every comparison, by criterion; criteria are trained together.

    A ranked list is one element, the mean over its comparisons. The loss is the sum over the criteria of each one's
    mean over the groups of the step that were judged by it. ``margin`` is added to the rows' own.
    """

    criteria: tuple[str, ...] = ("reward",)
    margin: float = 0.0
    centring: float = 0.0
    name: str = "reward"
    needs_reference: bool = False

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> tuple[int, ...]:
        """How many groups of the step have something to compare, by criterion."""
        return tuple(sum(is_compared(row, number) for row in rows) for number in range(len(self.criteria)))

    def loss(self, scores: RowScores, statistics: tuple[int, ...]) -> torch.Tensor:
        """These groups' share of the step's loss."""
        rewards = scores.log_probs.view(len(scores.rows), len(self.criteria))
        parts = []
        for number, groups in enumerate(statistics):
            pairs = comparisons(scores, number)
            own = rewards[:, number]
            margin = pairs.margin + self.margin
            terms = reward_loss(own[pairs.better], own[pairs.worse], margin=margin, centring=self.centring)
            parts.append(mean_share(terms, pairs.share, groups))
        return torch.stack(parts).sum()

    def measure(self, scores: RowScores, statistics: tuple[int, ...]) -> Mapping[str, float]:
        """Loss, and the mean over the criteria of accuracy and rewards; each criterion's where there are several."""
        rewards = scores.log_probs.view(len(scores.rows), len(self.criteria))
        found: dict[str, list[float]] = {}
        for number, groups in enumerate(statistics):
            if not groups:
                continue
            pairs, own = comparisons(scores, number), rewards[:, number]
            better, worse = own[pairs.better], own[pairs.worse]
            values = {
                "accuracy": right_share(better, worse),
                "margin": better - worse,
                "chosen_reward": better,
                "rejected_reward": worse,
            }
            for key, value in values.items():
                mean = float(mean_share(value, pairs.share, groups))
                found.setdefault(key, []).append(mean)
                if len(self.criteria) > 1:
                    found[f"{self.criteria[number]}_{key}"] = [mean]
        means = {key: sum(several) / len(several) for key, several in found.items()}
        return {"loss": float(self.loss(scores, statistics)), **means}
