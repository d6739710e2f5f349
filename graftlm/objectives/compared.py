"""Objectives of answers that were compared: the DPO family, ORPO and SimPO, on pairs and on ranked lists.

Every group is one element: its term is the mean over its comparisons, with one forward an answer, and the loss is the
mean over the groups of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.objectives.groups import comparisons, is_compared, mean_share, right_share
from graftlm.objectives.objective import RowScores
from graftlm.objectives.preference import DPOLossType, dpo_loss, orpo_loss, simpo_loss
from graftlm.objectives.reduction import row_sums


@dataclass(frozen=True)
class Likelihoods:
    """Of some answers, (n,) each: summed log-probability, that under the reference, and how many tokens.

    ``reference`` is 0 where the objective has none.
    """

    log_probs: torch.Tensor
    reference: torch.Tensor
    tokens: torch.Tensor

    @property
    def log_ratio(self) -> torch.Tensor:
        """log π − log π_ref of the whole answer."""
        return self.log_probs - self.reference

    @property
    def mean(self) -> torch.Tensor:
        """The mean log-probability a token."""
        return self.log_probs / self.tokens

    def at(self, places: torch.Tensor) -> Likelihoods:
        """Those of some of the answers."""
        return Likelihoods(self.log_probs[places], self.reference[places], self.tokens[places])


def likelihoods(scores: RowScores, *, reference: bool) -> Likelihoods:
    """Those of all rows.

    Raises:
        ValueError: a row has no log-probability under the reference, and one is needed.
    """
    log_probs = row_sums(scores.log_probs, scores.counts)
    known = [row.reference if reference else 0.0 for row in scores.rows]
    for row, value in zip(scores.rows, known, strict=True):
        if value is None:
            raise ValueError(f"{row.source}, row {row.row}: the reference has not scored it")
    tokens = [row.n_supervised for row in scores.rows]
    return Likelihoods(log_probs, log_probs.new_tensor(known), log_probs.new_tensor(tokens))


@dataclass(frozen=True)
class Compared:
    """An objective of comparisons; make one with :func:`dpo`, :func:`orpo` or :func:`simpo`.

    ``terms``: of better and worse answers and the margins, (n,) each, a term a comparison. ``reward``: the reward that
    answers have by the policy itself, to be shown.
    """

    name: str
    terms: Callable[[Likelihoods, Likelihoods, torch.Tensor], torch.Tensor]
    reward: Callable[[Likelihoods], torch.Tensor]
    needs_reference: bool = False

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> int:
        """The step's number of groups with something to compare."""
        return sum(is_compared(row) for row in rows)

    def loss(self, scores: RowScores, statistics: int) -> torch.Tensor:
        """These groups' share of the mean over the step's."""
        found, pairs = likelihoods(scores, reference=self.needs_reference), comparisons(scores)
        terms = self.terms(found.at(pairs.better), found.at(pairs.worse), pairs.margin)
        return mean_share(terms, pairs.share, statistics)

    def measure(self, scores: RowScores, statistics: int) -> Mapping[str, float]:
        """Loss, share of comparisons that the rewards get right, rewards, and how far from the reference."""
        found, pairs = likelihoods(scores, reference=self.needs_reference), comparisons(scores)
        better, worse = found.at(pairs.better), found.at(pairs.worse)
        shown = {
            "loss": self.terms(better, worse, pairs.margin),
            "accuracy": right_share(self.reward(better), self.reward(worse)),
            "margin": self.reward(better) - self.reward(worse),
            "chosen_reward": self.reward(better),
            "rejected_reward": self.reward(worse),
            "chosen_log_prob": better.log_probs,
            "rejected_log_prob": worse.log_probs,
        }
        if self.needs_reference:
            shown |= {"chosen_log_ratio": better.log_ratio, "rejected_log_ratio": worse.log_ratio}
        return {key: float(mean_share(value, pairs.share, statistics)) for key, value in shown.items()}


def dpo(*, beta: float = 0.1, loss_type: DPOLossType = "sigmoid", label_smoothing: float = 0.0) -> Compared:
    """Direct preference optimisation and its relatives; see :func:`dpo_loss`."""

    def terms(better: Likelihoods, worse: Likelihoods, _margin: torch.Tensor) -> torch.Tensor:
        return dpo_loss(
            better.log_ratio,
            worse.log_ratio,
            beta=beta,
            loss_type=loss_type,
            label_smoothing=label_smoothing,
            chosen_tokens=better.tokens,
            rejected_tokens=worse.tokens,
        )

    return Compared("dpo", terms, lambda answers: beta * answers.log_ratio, needs_reference=True)


def orpo(*, beta: float = 0.1) -> Compared:
    """Odds ratio preference optimisation; see :func:`orpo_loss`."""
    return Compared(
        "orpo",
        lambda better, worse, _margin: orpo_loss(better.mean, worse.mean, beta=beta),
        lambda answers: beta * answers.mean,
    )


def simpo(*, beta: float = 2.0, margin: float = 1.0) -> Compared:
    """Simple preference optimisation; see :func:`simpo_loss`."""
    return Compared(
        "simpo",
        lambda better, worse, _margin: simpo_loss(better.mean, worse.mean, beta=beta, margin=margin),
        lambda answers: beta * answers.mean,
    )
