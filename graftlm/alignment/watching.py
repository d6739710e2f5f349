"""What a phase looked like, in numbers, and what in a run of such numbers should make people look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch

from graftlm.alignment.advantages import informative
from graftlm.alignment.rewards import Rewarded
from graftlm.alignment.rollouts import Rollouts
from graftlm.alignment.scoring import Scores
from graftlm.errors import unknown_name
from graftlm.objectives.estimates import kl_estimate

WINDOW = 5  # steps that warnings look back
KL_GROWTH = 1.0  # nats an answer that the divergence may grow a step
ENTROPY_LEFT = 0.25  # of the first step's entropy
BY_LENGTH = 0.8  # of the reward's gain that longer answers alone would explain


@dataclass(frozen=True)
class PhaseStatistics:
    """One policy's phase. None where there is nothing to count it from.

    ``rewards``: the mean of each part, unweighted. ``kl_k1`` and ``kl_k3``: nats an answer from the reference, as two
    estimates. ``entropy``: nats a token. ``length``: tokens an answer. ``ended``: the share that ended by themselves.
    ``distinct_2``: different pairs of neighbouring tokens over all of them. ``equal_groups`` of ``groups``: prompts
    whose answers all got one reward. ``length_slope``: reward a token, fitted over the answers. ``failed``: answers
    without a reward; ``left_out``: prompts that were not asked. The deviations are those of rollout and scoring.
    """

    policy: str
    step: int
    answers: int
    reward_mean: float
    reward_std: float
    rewards: Mapping[str, float]
    kl_k1: float | None
    kl_k3: float | None
    entropy: float
    length: float
    ended: float
    distinct_2: float
    groups: int
    equal_groups: int
    length_slope: float
    failed: int
    left_out: int
    largest_deviation: float
    mean_deviation: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "rewards": dict(self.rewards)}


def phase_statistics(rollouts: Rollouts, scores: Scores, rewarded: Rewarded, policy: str) -> PhaseStatistics:
    """The numbers of one policy's phase; of rewards, over the answers that have one.

    Raises:
        UserError: the policy has no answers.
    """
    every = rollouts.of(policy)
    if not every:
        raise unknown_name("policy", policy, list(rollouts.policies))
    places = [place for place in every if bool(rewarded.good[place])]
    totals = rewarded.totals[places]
    lengths = torch.tensor([len(rollouts.answers[place].token_ids) for place in places], dtype=torch.float64)
    groups = torch.tensor(rollouts.groups(places))
    varied = informative(totals, groups)
    number = len(set(groups.tolist()))
    deviation = scores.deviations[policy]
    return PhaseStatistics(
        policy,
        rollouts.step,
        len(every),
        reward_mean=float(totals.mean()),
        reward_std=float(totals.std(correction=0)),
        rewards={name: float(part[places].mean()) for name, part in rewarded.parts.items()},
        kl_k1=_kl(scores, every, "k1"),
        kl_k3=_kl(scores, every, "k3"),
        entropy=float(torch.cat([scores.entropy[place] for place in every]).double().mean()),
        length=sum(len(rollouts.answers[place].token_ids) for place in every) / len(every),
        ended=sum(rollouts.answers[place].ended for place in every) / len(every),
        distinct_2=distinct_2([rollouts.answers[place].token_ids for place in every]),
        groups=number,
        equal_groups=number - len(set(groups[varied].tolist())),
        length_slope=_slope(lengths, totals),
        failed=len(every) - len(places),
        left_out=sum(each.policy == policy for each in rollouts.left_out),
        largest_deviation=deviation.largest,
        mean_deviation=deviation.mean,
    )


def _kl(scores: Scores, places: Sequence[int], estimator: Any) -> float | None:
    """Nats an answer on average, by an estimator."""
    found = [
        float(kl_estimate(scores.log_probs[place].double(), reference.double(), estimator).sum())
        for place in places
        if (reference := scores.reference[place]) is not None
    ]
    return sum(found) / len(found) if found else None


def shown_answers(rollouts: Rollouts, rewarded: Rewarded, policy: str, number: int = 3) -> list[dict[str, Any]]:
    """Some answers of a policy with what they were worth, as JSON: the first to each of the first prompts."""
    places = [place for place in rollouts.of(policy) if rollouts.answers[place].index == 0][:number]
    return [
        {
            "source": answer.prompt.source,
            "row": answer.prompt.row,
            "prompt": [{"role": message.role, "content": message.content} for message in answer.prompt.messages],
            "answer": answer.text,
            "finish": answer.finish,
            "reward": _or_none(rewarded.totals[place]),
            "rewards": {name: _or_none(part[place]) for name, part in rewarded.parts.items()},
        }
        for place in places
        for answer in (rollouts.answers[place],)
    ]


def _or_none(value: torch.Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None


def distinct_2(answers: Sequence[Sequence[int]]) -> float:
    """Different pairs of neighbouring tokens over all pairs, of all answers (Li et al. 2016); 1 without any."""
    pairs = [each for answer in answers for each in pairwise(answer)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _slope(lengths: torch.Tensor, rewards: torch.Tensor) -> float:
    """By how much rewards grow a token, by least squares; 0 where all answers are of one length."""
    centred = lengths - lengths.mean()
    spread = float(centred.square().sum())
    return float((centred * (rewards - rewards.mean())).sum()) / spread if spread > 0 else 0.0


@dataclass(frozen=True)
class Concern:
    """Something to look at: ``kind`` in one word, what was seen, and what to do."""

    kind: str
    policy: str
    step: int
    seen: str
    advice: str


def concerns(history: Sequence[PhaseStatistics], *, window: int = WINDOW) -> list[Concern]:
    """What the latest of one policy's phases, in order, should make people look at."""
    if not history:
        return []
    now, first = history[-1], history[0]
    then = history[-window] if len(history) >= window else None
    found: list[tuple[str, str, str]] = []
    if now.equal_groups == now.groups:
        found.append(
            (
                "equal_rewards",
                f"the answers to each of {now.groups} prompts all got one reward: nothing to learn from",
                "Take prompts that are sometimes answered well, a finer reward, a higher temperature or more answers a "
                "prompt.",
            )
        )
    if now.ended == 0.0:
        found.append(
            (
                "never_ends",
                f"none of {now.answers} answers ended by itself",
                "Raise max_new_tokens, set missing_end_penalty, or start from an adapter tuned on instructions.",
            )
        )
    if now.entropy < ENTROPY_LEFT * first.entropy:
        found.append(
            (
                "entropy",
                f"the entropy fell from {first.entropy:.2f} to {now.entropy:.2f} nats a token: answers become alike",
                "Raise the KL coefficient, lower the learning rate, or stop at an earlier checkpoint.",
            )
        )
    if then is not None:
        found += _trends(then, now, window)
    return [Concern(kind, now.policy, now.step, seen, advice) for kind, seen, advice in found]


def _trends(then: PhaseStatistics, now: PhaseStatistics, window: int) -> list[tuple[str, str, str]]:
    """What changed too much in the last steps."""
    found = []
    if now.kl_k3 is not None and then.kl_k3 is not None and now.kl_k3 - then.kl_k3 > KL_GROWTH * (window - 1):
        found.append(
            (
                "kl",
                f"the divergence from the reference grew from {then.kl_k3:.1f} to {now.kl_k3:.1f} nats an answer in "
                f"{window - 1} steps",
                "Raise the KL coefficient or use an adaptive one, lower the learning rate, or make fewer passes over a "
                "phase's answers.",
            )
        )
    gain, longer = now.reward_mean - then.reward_mean, now.length - then.length
    by_length = (now.length_slope + then.length_slope) / 2 * longer
    if gain > 0 and longer > 0.1 * then.length and by_length >= BY_LENGTH * gain:
        found.append(
            (
                "length",
                f"the reward grew by {gain:.3g} and answers by {longer:.0f} tokens, which would alone explain "
                f"{by_length:.3g}",
                "Read some answers; take length out of the reward, train the reward on pairs of like length, or add a "
                "penalty on length.",
            )
        )
    return found
