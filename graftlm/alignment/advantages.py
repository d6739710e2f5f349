"""From rewards to advantages. All are constants: no gradient goes through them.

Statistics are kept by group or by adapter, named by a whole number a row: what stands beside changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from graftlm.errors import UserError, unknown_name
from graftlm.objectives.checks import check_finite, check_shapes


@torch.no_grad()
def penalised_rewards(
    scores: torch.Tensor, kl: torch.Tensor, coefficient: float, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """−coefficient × KL at each token, and the answer's score at its last one (Ziegler et al. 2019, eq. 2).

    Args:
        scores: (rows,) what the reward says of each answer.
        kl: (rows, time) by :func:`graftlm.objectives.kl_estimate`, usually ``k1``.
        mask: (rows, time) bool, True at the answer's tokens; left out, all are.

    Returns:
        (rows, time) of the dtype of ``kl``; 0 where the mask is False, whatever stands there.

    Raises:
        UserError: an answer has no token to put its score at.
        ValueError: shapes do not fit.
    """
    mask = torch.ones_like(kl, dtype=torch.bool) if mask is None else mask
    check_shapes(kl=kl, mask=mask)
    answered = mask.any(1)
    check_shapes(scores=scores, rows=answered)
    empty = (~answered).nonzero()
    if len(empty):
        raise UserError(f"the answer of row {int(empty[0, 0])} has no token", hint="Leave out answers that are empty.")
    rewards = (-coefficient * kl).masked_fill(~mask, 0.0)
    places = torch.arange(kl.shape[1], device=kl.device).expand_as(kl)
    last = places.masked_fill(~mask, -1).amax(1, keepdim=True)
    return rewards.scatter_add(1, last, scores.to(kl.dtype)[:, None])


@torch.no_grad()
def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    *,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Generalised advantage estimates: A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V_{t+1} − V_t.

    Schulman et al. 2016, eq. 16, as its recursion. Behind the last token value and advantage are 0. The returns to
    train values on are A + V.

    Args:
        rewards: (…, time).
        values: (…, time): V_t is the value before the token t is chosen.
        mask: (…, time) bool; where it is False, on either side or between, a position is passed over as if it were
            not there, whatever stands in it, NaN too.

    Returns:
        (…, time) advantages in the wider dtype of the two, float32 at least; 0 where the mask is False.

    Raises:
        UserError: γ or λ is not within 0 and 1.
        ValueError: shapes differ.
    """
    check_shapes(rewards=rewards, values=values, mask=mask)
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0 <= number <= 1:
            raise UserError(f"{name} is {number:g}; it must be from 0 to 1")
    dtype = torch.promote_types(torch.promote_types(rewards.dtype, values.dtype), torch.float32)
    rewards, values = rewards.to(dtype), values.to(dtype)
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros_like(values.sum(-1))
    for time in range(values.shape[-1] - 1, -1, -1):
        value = values[..., time]
        advantage = rewards[..., time] + gamma * next_value - value + gamma * lam * next_advantage
        if mask is not None:
            real = mask[..., time]
            advantages[..., time] = advantage.masked_fill(~real, 0.0)
            value, advantage = torch.where(real, value, next_value), torch.where(real, advantage, next_advantage)
        else:
            advantages[..., time] = advantage
        next_value, next_advantage = value, advantage
    return advantages


@torch.no_grad()
def whiten(
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    owners: torch.Tensor | None = None,
    shift: bool = True,
    epsilon: float = 1e-8,
) -> torch.Tensor:
    """(A − mean) / √(variance + ε), over the whole step of one adapter, dividing by n (Ziegler et al. 2019's code).

    Args:
        values: (rows, time) or (n,): everything of the step, not of a micro-batch.
        mask: the same shape, bool.
        owners: (rows,) or the same shape, whole numbers: which adapter a row belongs to. Each is whitened by itself.
        shift: False puts the mean back, so that only the variance changes.

    Returns:
        The same shape and dtype; 0 where the mask is False. A lone value, and equal values, give 0.

    Raises:
        UserError: a value is not finite.
        ValueError: shapes do not fit.
    """
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    check_shapes(values=values, mask=mask)
    owners = torch.zeros_like(values, dtype=torch.int64) if owners is None else owners
    while owners.dim() < values.dim():
        owners = owners.unsqueeze(-1)
    kept = values[mask]
    check_finite("values to whiten", kept)
    group = _Groups(kept, owners.expand_as(values)[mask])
    result = group.centred / (group.mean(group.centred.square()) + epsilon).sqrt()
    if not shift:
        result = result + (kept - group.centred)
    return torch.zeros_like(values).masked_scatter(mask, result)


class _Groups:
    """Means and spreads by group. Sums start from the lowest value: equal ones are exactly 0 apart."""

    def __init__(self, values: torch.Tensor, groups: torch.Tensor) -> None:
        check_shapes(values=values, groups=groups)
        names, self.index = torch.unique(groups, return_inverse=True)
        self.sizes = torch.bincount(self.index, minlength=len(names))
        low, high = (
            values.new_zeros(len(names)).scatter_reduce(0, self.index, values, kind, include_self=False)
            for kind in ("amin", "amax")
        )
        self.varied = (high > low)[self.index]
        above = values - low[self.index]
        self.centred = above - self.mean(above)

    @property
    def counts(self) -> torch.Tensor:
        """How many are in the group of each: (n,) int64."""
        return self.sizes[self.index]

    def mean(self, terms: torch.Tensor) -> torch.Tensor:
        """The mean over the group of each: (n,) → (n,)."""
        sums = terms.new_zeros(len(self.sizes)).index_add(0, self.index, terms)
        return (sums / self.sizes)[self.index]


Scaling = Literal["deviation", "none"]


@torch.no_grad()
def group_advantages(
    rewards: torch.Tensor, groups: torch.Tensor, *, scaling: Scaling = "deviation", epsilon: float = 1e-4
) -> torch.Tensor:
    """(r − mean) / (deviation + ε) within the answers to one prompt (GRPO: Shao et al. 2024, section 4.1.2).

    The deviation divides by n − 1, as in the usual implementations. ``none`` takes the mean off alone (Dr. GRPO: Liu et
    al. 2025), for deviations give prompts that are nearly always or never solved a larger weight.

    Args:
        rewards: (rows,), any floating dtype.
        groups: (rows,) whole numbers, in any order; groups may differ in size.

    Returns:
        (rows,) of the same dtype; exactly 0 where all of a group are equal, or it has one row: see :func:`informative`.

    Raises:
        UserError: a reward is not finite, or there is no such scaling.
        ValueError: shapes differ.
    """
    check_finite("rewards", rewards)
    group = _Groups(rewards, groups)
    if scaling == "none":
        return group.centred
    if scaling != "deviation":
        raise unknown_name("scaling", scaling, ["deviation", "none"])
    counts = group.counts
    variance = group.mean(group.centred.square()) * counts / (counts - 1).clamp(min=1)
    return group.centred / (variance.sqrt() + epsilon)


@torch.no_grad()
def leave_one_out_advantages(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """r − the mean of the group's other rewards (RLOO: Kool et al. 2019; Ahmadian et al. 2024).

    Args:
        rewards: (rows,), any floating dtype.
        groups: (rows,) whole numbers, in any order.

    Returns:
        (rows,) of the same dtype; they sum to 0 within a group.

    Raises:
        UserError: a reward is not finite, or a group has one row, which leaves nothing to compare with.
        ValueError: shapes differ.
    """
    check_finite("rewards", rewards)
    group = _Groups(rewards, groups)
    counts = group.counts
    alone = (counts < 2).nonzero()
    if len(alone):
        raise UserError(
            f"row {int(alone[0, 0])} is the only answer of its group: leave-one-out has nothing to compare it with",
            hint="Sample two answers or more a prompt, or leave such groups out.",
        )
    return group.centred * (counts / (counts - 1)).to(rewards.dtype)


@torch.no_grad()
def informative(rewards: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Which rows are in a group whose rewards differ; the others teach nothing.

    Dynamic sampling (DAPO: Yu et al. 2025, eq. 11): sample prompts until enough groups are informative; count the rest.

    Args:
        rewards: (rows,), any floating dtype.
        groups: (rows,) whole numbers.

    Returns:
        (rows,) bool.

    Raises:
        UserError: a reward is not finite.
        ValueError: shapes differ.
    """
    check_finite("rewards", rewards)
    return _Groups(rewards, groups).varied


@dataclass(frozen=True)
class MovingBaseline:
    """REINFORCE's baseline: a running mean of rewards, of earlier steps only (Williams 1992), as a value.

    ``steps`` is how many it has seen; before the first there is no baseline, and the mean is 0.
    """

    decay: float = 0.9
    mean: float = 0.0
    steps: int = 0

    def advantages(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (…) less the baseline, the same shape."""
        return rewards.detach() - self.mean

    def updated(self, rewards: torch.Tensor) -> MovingBaseline:
        """The baseline after a step with these rewards (…); the first one sets it.

        Raises:
            UserError: there is no reward, or one is not finite.
        """
        if not rewards.numel():
            raise UserError("the baseline: a step without rewards")
        check_finite("rewards", rewards)
        latest = float(rewards.double().mean())
        mean = latest if not self.steps else self.decay * self.mean + (1 - self.decay) * latest
        return MovingBaseline(self.decay, mean, self.steps + 1)
