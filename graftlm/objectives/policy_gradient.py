"""Losses of sampled answers and their advantages: PPO, GRPO and its forms, RLOO, REINFORCE.

All give a term a token (RLOO: a row) and reduce nothing; :mod:`graftlm.objectives.reduction` has the ways to do so.
Tensors may be flat (tokens,) or padded (rows, time) with a mask: where it is False, terms are 0, and neither values nor
gradients there matter. Advantages, old log-probabilities, old values and returns are constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graftlm.objectives.checks import check_not_negative, check_positive, check_shapes
from graftlm.objectives.estimates import KLEstimator, kl_estimate
from graftlm.objectives.reduction import row_sums


def _real(mask: torch.Tensor | None, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Zeros where the mask is False, before anything is computed: an overflow there would be NaN in the gradient."""
    return list(tensors) if mask is None else [tensor.masked_fill(~mask, 0.0) for tensor in tensors]


def ppo_policy_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """−min(ρA, clip(ρ, 1 − clip, 1 + clip)A) with ρ = π / π_old (Schulman et al. 2017, eq. 7).

    Args:
        log_probs: (…) of the sampled tokens, any floating dtype.
        old_log_probs: the same shape; of the policy that sampled.
        advantages: the same shape.
        clip_high: the upper bound's own distance (DAPO's clip-higher: Yu et al. 2025, eq. 10); left out, ``clip``.
        mask: the same shape, bool.

    Returns:
        The same shape and dtype, a term a token.

    Raises:
        UserError: a clip is not above 0.
        ValueError: shapes differ.
    """
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, mask=mask)
    high = clip if clip_high is None else clip_high
    check_positive(clip=clip, clip_high=high)
    now, old, gain = _real(mask, log_probs, old_log_probs.detach(), advantages.detach())
    ratio = (now - old).exp()
    return torch.maximum(-gain * ratio, -gain * ratio.clamp(1 - clip, 1 + high))


@torch.no_grad()
def ppo_clipped(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Which tokens :func:`ppo_policy_loss` gives no gradient because of the clip: the same arguments → (…) bool."""
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages, mask=mask)
    ratio = (log_probs - old_log_probs).exp()
    high = clip if clip_high is None else clip_high
    cut = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return cut if mask is None else cut & mask


def ppo_value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    *,
    clip: float | None = 0.2,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """max((V − R)², (V_clip − R)²) / 2, where V_clip stays within ``clip`` of the values before the update.

    The squared error of Schulman et al. 2017, eq. 9, with the clip of its authors' code (openai/baselines, ppo2), and
    their factor of one half.

    Args:
        values: (…) any floating dtype.
        old_values: the same shape; of the value adapter that the advantages were made with.
        returns: the same shape; advantages before whitening + old values.
        clip: None leaves the plain squared error.
        mask: the same shape, bool.

    Returns:
        The same shape and dtype, a term a token.

    Raises:
        UserError: ``clip`` is not above 0.
        ValueError: shapes differ.
    """
    check_shapes(values=values, old_values=old_values, returns=returns, mask=mask)
    now, old, goal = _real(mask, values, old_values.detach(), returns.detach())
    plain = (now - goal).square() / 2
    if clip is None:
        return plain
    check_positive(clip=clip)
    near = old + (now - old).clamp(-clip, clip)
    return torch.maximum(plain, (near - goal).square() / 2)


def grpo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    reference_log_probs: torch.Tensor | None = None,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    kl_weight: float = 0.0,
    kl_estimator: KLEstimator = "k3",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Group relative policy optimisation: :func:`ppo_policy_loss` + kl_weight × KL to the reference, a token.

    Shao et al. 2024, eqs. 3 and 4. The published forms differ in what is given here and in how terms are reduced:

    =========  =======================  =============  ====================  =================
    form       advantages of a group    ``clip_high``  ``kl_weight``         ``step_share``
    =========  =======================  =============  ====================  =================
    GRPO       over its deviation       as ``clip``    above 0               ``row``
    DAPO       over its deviation       0.28           0                     ``token``
    Dr. GRPO   mean taken off alone     as ``clip``    0                     ``constant``
    =========  =======================  =============  ====================  =================

    Args:
        log_probs: (…) of the sampled tokens, any floating dtype.
        old_log_probs: the same shape.
        advantages: the same shape: a row's advantage for each of its tokens (:func:`graftlm.objectives.spread`).
        reference_log_probs: the same shape; needed where ``kl_weight`` is not 0.
        mask: the same shape, bool.

    Returns:
        The same shape and dtype, a term a token.

    Raises:
        UserError: an option is out of range.
        ValueError: shapes differ, or the reference is missing.
    """
    check_not_negative(kl_weight=kl_weight)
    terms = ppo_policy_loss(log_probs, old_log_probs, advantages, clip=clip, clip_high=clip_high, mask=mask)
    if not kl_weight:
        return terms
    if reference_log_probs is None:
        raise ValueError(f"kl_weight is {kl_weight:g}, but there are no reference_log_probs")
    check_shapes(log_probs=log_probs, reference_log_probs=reference_log_probs)
    now, reference = _real(mask, log_probs, reference_log_probs)
    return terms + kl_weight * kl_estimate(now, reference, kl_estimator)


def rloo_loss(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    counts: Sequence[int] | torch.Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
) -> torch.Tensor:
    """REINFORCE leave-one-out: the whole answer is one action, with :func:`ppo_policy_loss` of its probability.

    Ahmadian et al. 2024, after Kool et al. 2019. While the policy is still the one that sampled, its gradient is
    −A ∇ log π(answer); the clip matters from the second step on the same answers.

    Args:
        log_probs: (tokens,) flat, row after row, any floating dtype.
        old_log_probs: (tokens,).
        advantages: (rows,), by :func:`graftlm.alignment.leave_one_out_advantages`.
        counts: (rows,) tokens of each row.

    Returns:
        (rows,) of the same dtype, a term a row.

    Raises:
        UserError: a clip is not above 0.
        ValueError: shapes differ, or the counts do not add up to the tokens.
    """
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs)
    now, old = row_sums(log_probs, counts), row_sums(old_log_probs, counts)
    return ppo_policy_loss(now, old, advantages, clip=clip, clip_high=clip_high)


def reinforce_loss(
    log_probs: torch.Tensor, advantages: torch.Tensor, *, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """−A log π (Williams 1992): its gradient is that of the expected reward, if the policy is the one that sampled.

    The baseline is taken off in the advantage (:class:`graftlm.alignment.MovingBaseline`, or a group's mean).

    Args:
        log_probs: (…) of tokens, or of whole answers, any floating dtype.
        advantages: the same shape.
        mask: the same shape, bool.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: shapes differ.
    """
    check_shapes(log_probs=log_probs, advantages=advantages, mask=mask)
    now, gain = _real(mask, log_probs, advantages.detach())
    return -gain * now
