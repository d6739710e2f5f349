"""From rewarded and scored answers to what a policy learns from: advantages token by token, per policy.

An :class:`Episodes` holds one policy's whole phase. Statistics such as whitening are made of all of it before it is cut
into mini-batches, so that neither its cut nor other policies change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from graftlm.adapters.routing import Stack
from graftlm.alignment.advantages import (
    MovingBaseline,
    gae,
    group_advantages,
    leave_one_out_advantages,
    penalised_rewards,
    whiten,
)
from graftlm.alignment.rewards import Rewarded
from graftlm.alignment.rollouts import Rollouts
from graftlm.alignment.scoring import Scores
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError, unknown_name
from graftlm.objectives.estimates import kl_estimate
from graftlm.objectives.reduction import StepSize, row_sums, spread

Baseline = Literal["deviation", "mean", "leave_one_out"]


@dataclass(frozen=True)
class Episodes:
    """Answers that one policy learns from; tensors are flat, row after row, as the losses take them.

    ``places``: of the rows in the rollouts. ``counts``: tokens a row. ``old_log_probs``, ``advantages`` and, where
    there are such roles, ``reference_log_probs``, ``old_values`` and ``returns``: (tokens,) float32 or float64.
    ``row_advantages`` (rows,): where an answer has one advantage, which is then that of each of its tokens.
    ``groups`` (rows,): which prompt it answers.
    """

    policy: str
    stack: Stack
    places: tuple[int, ...]
    rows: tuple[EncodedRow, ...]
    counts: tuple[int, ...]
    groups: tuple[int, ...]
    rewards: torch.Tensor
    old_log_probs: torch.Tensor
    advantages: torch.Tensor
    reference_log_probs: torch.Tensor | None = None
    old_values: torch.Tensor | None = None
    returns: torch.Tensor | None = None
    row_advantages: torch.Tensor | None = None

    @property
    def size(self) -> StepSize:
        """Rows and tokens, which the losses of mini-batches of these rows are divided by."""
        return StepSize(len(self.rows), sum(self.counts))

    def part(self, rows: Sequence[int]) -> Episodes:
        """Some of the rows, by number, in that order."""
        parts = torch.arange(sum(self.counts)).split(list(self.counts))  # type: ignore[no-untyped-call]
        tokens = torch.cat([parts[row] for row in rows])

        def of_tokens(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[tokens.to(values.device)]

        def of_rows(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[torch.tensor(list(rows), device=values.device)]

        rewards, old, advantages = of_rows(self.rewards), of_tokens(self.old_log_probs), of_tokens(self.advantages)
        assert rewards is not None
        assert old is not None
        assert advantages is not None
        return replace(
            self,
            places=tuple(self.places[row] for row in rows),
            rows=tuple(self.rows[row] for row in rows),
            counts=tuple(self.counts[row] for row in rows),
            groups=tuple(self.groups[row] for row in rows),
            rewards=rewards,
            old_log_probs=old,
            advantages=advantages,
            reference_log_probs=of_tokens(self.reference_log_probs),
            old_values=of_tokens(self.old_values),
            returns=of_tokens(self.returns),
            row_advantages=of_rows(self.row_advantages),
        )


def ppo_episodes(
    rollouts: Rollouts,
    scores: Scores,
    rewarded: Rewarded,
    policy: str,
    *,
    kl_coefficient: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    whitened: bool = True,
) -> Episodes:
    """PPO: −coefficient × k1 a token and the reward at the last one, GAE with the value adapter, whitened advantages.

    Answers without a reward are left out. Returns are made before whitening.

    Raises:
        UserError: the policy has no value adapter; or a coefficient above 0, and no reference.
    """
    base = _start(rollouts, scores, rewarded, policy)
    if base.old_values is None:
        raise UserError(
            f"{policy}: PPO needs the values of its answers, and it has no value adapter",
            hint="Name it in the roles: Roles(reference=(), value='critic'). GRPO and RLOO need none.",
        )
    kl = _padded(_k1(base, kl_coefficient), base.counts)
    mask = _mask(base.counts, kl.device)
    token_rewards = penalised_rewards(base.rewards.to(kl), kl, kl_coefficient, mask=mask)
    values = _padded(base.old_values, base.counts)
    advantages = gae(token_rewards, values, gamma, lam, mask=mask)
    returns = advantages + values
    if whitened:
        advantages = whiten(advantages, mask=mask)
    return replace(base, advantages=advantages[mask], returns=returns[mask])


def group_episodes(
    rollouts: Rollouts,
    scores: Scores,
    rewarded: Rewarded,
    policy: str,
    *,
    baseline: Baseline = "deviation",
    kl_coefficient: float = 0.0,
) -> Episodes:
    """One advantage an answer, by comparison with the others to its prompt.

    ``deviation``: (r − mean) / deviation, GRPO's; ``mean``: r − mean, Dr. GRPO's; ``leave_one_out``: r − the mean of
    the others, RLOO's. r is the reward less ``kl_coefficient`` × Σ k1 of the answer, as RLOO has it; GRPO takes 0 here
    and has the penalty in its loss. Answers without a reward are left out; with ``leave_one_out`` also those that are
    alone then.

    Raises:
        UserError: no such baseline; a coefficient above 0, and no reference; or with ``leave_one_out`` no prompt has
            two answers.
    """
    base = _start(rollouts, scores, rewarded, policy)
    if baseline == "leave_one_out":
        compared = [row for row, group in enumerate(base.groups) if base.groups.count(group) > 1]
        base = base.part(compared) if compared else base
    rewards = penalised_answers(base, kl_coefficient)
    groups = torch.tensor(base.groups)
    if baseline == "leave_one_out":
        advantages = leave_one_out_advantages(rewards, groups)
    elif baseline in ("deviation", "mean"):
        advantages = group_advantages(rewards, groups, scaling="deviation" if baseline == "deviation" else "none")
    else:
        raise unknown_name("baseline", baseline, ["deviation", "mean", "leave_one_out"])
    return _one_each(base, advantages)


def reinforce_episodes(
    rollouts: Rollouts,
    scores: Scores,
    rewarded: Rewarded,
    policy: str,
    *,
    baseline: MovingBaseline | None = None,
    kl_coefficient: float = 0.0,
) -> Episodes:
    """REINFORCE: an answer's advantage is its reward, less the divergence as in RLOO, less a running mean of earlier
    steps' rewards. ``baseline.updated(penalised_answers(episodes, kl_coefficient))`` is the next step's baseline.

    Raises:
        UserError: a coefficient above 0, and no reference.
    """
    base = _start(rollouts, scores, rewarded, policy)
    return _one_each(base, (baseline or MovingBaseline()).advantages(penalised_answers(base, kl_coefficient)))


def penalised_answers(episodes: Episodes, kl_coefficient: float) -> torch.Tensor:
    """Each answer's reward less ``kl_coefficient`` × Σ k1 of its tokens: (rows,) float64.

    Raises:
        UserError: a coefficient above 0, and no reference.
    """
    if not kl_coefficient:
        return episodes.rewards
    divergence = row_sums(_k1(episodes, kl_coefficient), episodes.counts)
    return episodes.rewards - kl_coefficient * divergence.to(episodes.rewards)


def _one_each(base: Episodes, advantages: torch.Tensor) -> Episodes:
    """The episodes with an advantage (rows,) for each answer."""
    advantages = advantages.to(base.old_log_probs)
    return replace(base, advantages=spread(advantages, base.counts), row_advantages=advantages)


def _start(rollouts: Rollouts, scores: Scores, rewarded: Rewarded, policy: str) -> Episodes:
    """The policy's answers that have a reward, with advantages of 0."""
    if len(rewarded.totals) != len(rollouts.answers) or len(scores.log_probs) != len(rollouts.answers):
        raise ValueError("rollouts, scores and rewards are of different answers")
    if policy not in rollouts.policies:
        raise unknown_name("policy", policy, list(rollouts.policies))
    places = tuple(place for place in rollouts.of(policy) if bool(rewarded.good[place]))
    answers = [rollouts.answers[place] for place in places]
    log_probs = torch.cat([scores.log_probs[place] for place in places])
    return Episodes(
        policy,
        answers[0].stack,
        places,
        tuple(answer.encoded() for answer in answers),
        tuple(len(answer.token_ids) for answer in answers),
        tuple(rollouts.groups(places)),
        rewarded.totals[list(places)],
        log_probs,
        torch.zeros_like(log_probs),
        _together([scores.reference[place] for place in places]),
        _together([scores.values[place] for place in places]),
    )


def _together(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _k1(episodes: Episodes, coefficient: float) -> torch.Tensor:
    """log π − log π_ref a token; 0 where there is no reference and it costs nothing."""
    if episodes.reference_log_probs is not None:
        return kl_estimate(episodes.old_log_probs, episodes.reference_log_probs, "k1")
    if coefficient:
        raise UserError(
            f"{episodes.policy}: a KL coefficient of {coefficient:g}, and no reference to diverge from",
            hint="Name it in the roles: Roles(reference=()) is the bare base. Or set kl_coefficient to 0.",
        )
    return torch.zeros_like(episodes.old_log_probs)


def _mask(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """(rows, longest) bool: True at the tokens of each answer."""
    return torch.arange(max(counts), device=device) < torch.tensor(list(counts), device=device)[:, None]


def _padded(flat: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Flat tokens as (rows, longest), 0 behind each row."""
    mask = _mask(counts, flat.device)
    return flat.new_zeros(mask.shape).masked_scatter(mask, flat)
