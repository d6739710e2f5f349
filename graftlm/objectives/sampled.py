"""Objectives of sampled answers: PPO's policy, GRPO and its forms, RLOO and REINFORCE, and the values of PPO.

What an answer was worth is known before the step (:class:`graftlm.data.sampled.Sampled`); no statistics are made here
but how many rows and tokens the step has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.batches import EncodedRow
from graftlm.data.sampled import Sampled
from graftlm.objectives.estimates import kl_estimate
from graftlm.objectives.objective import RowScores
from graftlm.objectives.policy_gradient import grpo_loss, ppo_clipped, ppo_value_loss, reinforce_loss, rloo_loss
from graftlm.objectives.reduction import Normalisation, StepSize, row_sums, step_share
from graftlm.objectives.sft import sft_loss


@dataclass(frozen=True)
class PolicyGradient:
    """Sampled answers become likelier by their advantages; make one with the functions below.

    ``clip`` None is plain REINFORCE, without a ratio to what sampled. ``by_answer``: the ratio is that of whole
    answers (RLOO). ``kl_weight`` of the divergence from the reference (k3) in the loss, a token. ``normalisation`` is
    that of :func:`graftlm.objectives.step_share`, with ``max_tokens`` for "constant".

    Rows of the step that nobody sampled are texts of a pretraining mix, all of whose tokens are learnt: ``text_weight``
    times their negative log-likelihood, a token, is added (InstructGPT's PPO-ptx: Ouyang et al. 2022, eq. 2).
    """

    name: str
    clip: float | None = 0.2
    clip_high: float | None = None
    kl_weight: float = 0.0
    normalisation: Normalisation = "token"
    max_tokens: int | None = None
    by_answer: bool = False
    text_weight: float = 0.0
    needs_reference: bool = False

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> MixedSize:
        """How many answers and tokens the step has, and how many tokens of texts."""
        answers = _size([row for row in rows if row.sampled is not None])
        return MixedSize(answers, sum(row.n_supervised for row in rows if row.sampled is None))

    def loss(self, scores: RowScores, statistics: MixedSize) -> torch.Tensor:
        """The part of the step's loss that is of these answers and texts."""
        answers, texts = _parted(scores)
        loss = self._of_answers(answers, statistics.answers)
        if not len(texts):
            return loss
        return loss + self.text_weight * sft_loss(texts, statistics.text_tokens)

    def _of_answers(self, scores: RowScores, statistics: StepSize) -> torch.Tensor:
        now, old, advantages = scores.log_probs, _numbers(scores, "log_probs"), _numbers(scores, "advantages")
        if self.by_answer:
            assert self.clip is not None
            each = [_known(row).advantages[0] for row in scores.rows]
            of_rows = now.new_tensor(each)
            terms = rloo_loss(now, old, of_rows, scores.counts, clip=self.clip, clip_high=self.clip_high)
            return terms.sum() / max(1, statistics.rows)
        if self.clip is None:
            terms = reinforce_loss(now, advantages)
        else:
            reference = _numbers(scores, "reference") if self.kl_weight else None
            terms = grpo_loss(
                now, old, advantages, reference, clip=self.clip, clip_high=self.clip_high, kl_weight=self.kl_weight
            )
        return step_share(terms, scores.counts, statistics, self.normalisation, max_tokens=self.max_tokens)

    @torch.no_grad()
    def measure(self, scores: RowScores, statistics: MixedSize) -> Mapping[str, float]:
        """How far the policy has moved: share of tokens (RLOO: answers) whose gradient the clip cuts off, KL a token
        from the policy that sampled, and the largest log-ratio to it, which is 0 at a phase's first step.
        """
        loss = float(self.loss(scores, statistics))
        scores, texts = _parted(scores)
        now = scores.log_probs
        old, advantages = _numbers(scores, "log_probs"), _numbers(scores, "advantages")
        found = {
            "loss": loss,
            "moved": float(kl_estimate(old, now, "k3").mean()),
            "largest_log_ratio": float((now - old).abs().max()),
        }
        if self.clip is not None:
            if self.by_answer:
                now, old = row_sums(now, scores.counts), row_sums(old, scores.counts)
                advantages = now.new_tensor([_known(row).advantages[0] for row in scores.rows])
            clipped = ppo_clipped(now, old, advantages, clip=self.clip, clip_high=self.clip_high)
            found["clip_share"] = float(clipped.double().mean())
        if len(texts):
            found["pretraining_loss"] = float(-texts.mean())
        return found


@dataclass(frozen=True)
class MixedSize:
    """What a policy's step has: answers with their tokens, and tokens of texts."""

    answers: StepSize
    text_tokens: int


@dataclass(frozen=True)
class Value:
    """What is still to come of an answer's reward, before each of its tokens: PPO's value adapter.

    ``weight``: of the loss, which is the mean over the step's tokens.
    """

    clip: float | None = 0.2
    weight: float = 1.0
    name: str = "value"
    needs_reference: bool = False

    def statistics(self, rows: Sequence[EncodedRow], mismatched: Sequence[float] = ()) -> StepSize:
        """How many answers and tokens the step has."""
        return _size(rows)

    def loss(self, scores: RowScores, statistics: StepSize) -> torch.Tensor:
        """These answers' part of the step's loss."""
        terms = ppo_value_loss(
            scores.log_probs, _numbers(scores, "values"), _numbers(scores, "returns"), clip=self.clip
        )
        return self.weight * step_share(terms, scores.counts, statistics, "token")

    @torch.no_grad()
    def measure(self, scores: RowScores, statistics: StepSize) -> Mapping[str, float]:
        """Loss, squared error, and the share of the returns' variance that the values explain."""
        returns = _numbers(scores, "returns")
        error = (scores.log_probs - returns).square().mean()
        variance = returns.var(correction=0)
        explained = 1 - error / variance if float(variance) > 0 else torch.zeros(())
        return {
            "loss": float(self.loss(scores, statistics)),
            "value_error": float(error),
            "explained_variance": float(explained),
        }


def _parted(scores: RowScores) -> tuple[RowScores, torch.Tensor]:
    """The sampled answers, and the log-probabilities of the tokens of texts, (n,)."""
    if all(row.sampled is not None for row in scores.rows):
        return scores, scores.log_probs[:0]
    parts: tuple[torch.Tensor, ...] = scores.log_probs.split(list(scores.counts))  # type: ignore[no-untyped-call]
    drawn = [number for number, row in enumerate(scores.rows) if row.sampled is not None]
    texts = [part for part, row in zip(parts, scores.rows, strict=True) if row.sampled is None]
    own = torch.cat([parts[number] for number in drawn]) if drawn else scores.log_probs[:0]
    counts, rows = tuple(scores.counts[number] for number in drawn), tuple(scores.rows[number] for number in drawn)
    return RowScores(own, counts, rows), torch.cat(texts)


def _size(rows: Sequence[EncodedRow]) -> StepSize:
    return StepSize(len(rows), sum(row.n_supervised for row in rows))


def _known(row: EncodedRow) -> Sampled:
    if row.sampled is None:
        raise ValueError(f"{row.source}, row {row.row}: it is no sampled answer")
    return row.sampled


def _numbers(scores: RowScores, key: str) -> torch.Tensor:
    """What is known of the tokens of all rows, (n,), on the device and in the dtype of the scores."""
    known = [value for row in scores.rows for value in getattr(_known(row), key)]
    if len(known) != len(scores.log_probs):
        raise ValueError(f"there are {len(known)} {key} for {len(scores.log_probs)} tokens")
    return scores.log_probs.new_tensor(known)
