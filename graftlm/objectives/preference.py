"""Losses of preferences: a better and a worse answer to one prompt (DPO, IPO, ORPO, SimPO), or judged ones (KTO).

All give a term a row and reduce nothing: an adapter's loss is the sum of its terms divided by the rows of its whole
step. A log-ratio is log π(answer | prompt) − log π_ref(answer | prompt), summed over the answer's tokens.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch.nn.functional import logsigmoid, relu

from graftlm.errors import UserError, unknown_name
from graftlm.objectives.checks import check_finite, check_not_negative, check_positive, check_shapes

DPOLossType = Literal["sigmoid", "sigmoid_per_token", "hinge", "ipo", "ipo_per_token", "robust"]
DPO_LOSS_TYPES: tuple[str, ...] = get_args(DPOLossType)
_SMOOTHED = ("sigmoid", "sigmoid_per_token", "robust")


def dpo_loss(
    chosen_log_ratio: torch.Tensor,
    rejected_log_ratio: torch.Tensor,
    *,
    beta: float = 0.1,
    loss_type: DPOLossType = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_tokens: torch.Tensor | None = None,
    rejected_tokens: torch.Tensor | None = None,
) -> torch.Tensor:
    """Direct preference optimisation; with d = chosen − rejected log-ratio and smoothing ε a pair:

    - ``sigmoid``: −(1 − ε) log σ(βd) − ε log σ(−βd) (Rafailov et al. 2023, eq. 7; ε: conservative DPO, Mitchell 2023).
    - ``robust``: (−(1 − ε) log σ(βd) + ε log σ(−βd)) / (1 − 2ε), unbiased if a share ε of labels is flipped
      (Chowdhury et al. 2024).
    - ``hinge``: max(0, 1 − βd) (SLiC: Zhao et al. 2023, with the reference of Liu et al. 2023).
    - ``ipo``: (d − 1 / 2β)² of summed log-ratios (Azar et al. 2023, eq. 17 with τ = β).
    - ``ipo_per_token``, ``sigmoid_per_token``: the same of log-ratios divided by their answer's tokens; what several
      libraries call IPO, and length-normalised DPO.

    Args:
        chosen_log_ratio: (pairs,), any floating dtype.
        rejected_log_ratio: (pairs,).
        chosen_tokens: (pairs,) tokens of the better answers, for the forms a token; ``rejected_tokens`` likewise.

    Returns:
        (pairs,) of the same dtype; gradients go to both log-ratios.

    Raises:
        UserError: no such loss type, an option out of range, smoothing where the type has none, or missing or
            empty lengths.
        ValueError: shapes differ.
    """
    check_shapes(chosen_log_ratio=chosen_log_ratio, rejected_log_ratio=rejected_log_ratio)
    check_positive(beta=beta)
    if loss_type not in DPO_LOSS_TYPES:
        raise unknown_name("DPO loss type", loss_type, list(DPO_LOSS_TYPES))
    _check_smoothing(loss_type, label_smoothing)
    if loss_type.endswith("_per_token"):
        chosen_log_ratio = chosen_log_ratio / _lengths("chosen_tokens", chosen_tokens, chosen_log_ratio)
        rejected_log_ratio = rejected_log_ratio / _lengths("rejected_tokens", rejected_tokens, rejected_log_ratio)
    difference = chosen_log_ratio - rejected_log_ratio
    if loss_type in ("ipo", "ipo_per_token"):
        return (difference - 1 / (2 * beta)).square()
    if loss_type == "hinge":
        return relu(1 - beta * difference)
    kept, flipped = -logsigmoid(beta * difference), -logsigmoid(-beta * difference)
    if loss_type == "robust":
        return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * kept + label_smoothing * flipped


def _check_smoothing(loss_type: str, smoothing: float) -> None:
    if smoothing and loss_type not in _SMOOTHED:
        raise UserError(
            f"label_smoothing is {smoothing:g}, but the loss type '{loss_type}' has none",
            hint=f"Loss types with label smoothing: {', '.join(_SMOOTHED)}.",
        )
    if not 0 <= smoothing <= 1 or (loss_type == "robust" and smoothing >= 0.5):
        allowed = "from 0 to below 0.5" if loss_type == "robust" else "from 0 to 1"
        raise UserError(f"label_smoothing is {smoothing:g}; for '{loss_type}' it must be {allowed}")


def _lengths(name: str, tokens: torch.Tensor | None, beside: torch.Tensor) -> torch.Tensor:
    if tokens is None:
        raise UserError(f"a loss per token needs {name}", hint=f"Give {name}: how many tokens each answer has.")
    check_shapes(**{name: tokens, "log-ratios": beside})
    if bool((tokens < 1).any()):
        row = int((tokens < 1).nonzero()[0, 0]) if tokens.dim() else 0
        raise UserError(f"{name}: the answer of row {row} has no token", hint="Leave out pairs with an empty answer.")
    return tokens.to(beside.dtype)


def kto_reference_point(mismatched_log_ratios: torch.Tensor) -> torch.Tensor:
    """z₀, an estimate of KL(π ‖ π_ref): max(0, mean of the log-ratios of prompts with other prompts' answers).

    Ethayarajh et al. 2024, section 4. It belongs to the whole step of one adapter: give it that adapter's rows alone,
    all of them, and every micro-batch the one value. No gradient goes through it.

    Args:
        mismatched_log_ratios: (rows,), summed over the answer's tokens, any floating dtype.

    Returns:
        A scalar of the same dtype, 0 or more.

    Raises:
        UserError: there is none, or one is not finite.
    """
    values = mismatched_log_ratios.detach()
    if not values.numel():
        raise UserError("z0 of KTO: there is no log-ratio of a prompt with another's answer to estimate it from")
    check_finite("log-ratios of KTO's z0", values)
    return values.mean().clamp(min=0)


def kto_loss(
    log_ratio: torch.Tensor,
    desirable: torch.Tensor,
    z0: torch.Tensor | float,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Kahneman-Tversky optimisation: w₊ (1 − σ(β (r − z₀))) for a good answer, w₋ (1 − σ(β (z₀ − r))) for a bad one.

    Ethayarajh et al. 2024, eq. 7. Good and bad ones need not be of one prompt, nor as many.

    Args:
        log_ratio: (rows,) r, any floating dtype.
        desirable: (rows,) bool.
        z0: of :func:`kto_reference_point`: a number, or (rows,) where rows of several adapters stand together. A
            constant: no gradient goes there.

    Returns:
        (rows,) of the same dtype, in the order given.

    Raises:
        UserError: ``beta`` or a weight is out of range.
        ValueError: shapes differ.
    """
    check_shapes(log_ratio=log_ratio, desirable=desirable)
    check_positive(beta=beta)
    check_not_negative(desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if isinstance(z0, torch.Tensor):
        z0 = z0.detach()
        if z0.numel() > 1:
            check_shapes(log_ratio=log_ratio, z0=z0)
    good = desirable.bool()
    gain = beta * (log_ratio - z0)
    return torch.where(
        good, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    )  # 1 − σ(x) = σ(−x)


def orpo_loss(
    chosen_mean_log_prob: torch.Tensor, rejected_mean_log_prob: torch.Tensor, *, beta: float = 0.1
) -> torch.Tensor:
    """Odds ratio preference optimisation: −log p⁺ − β log σ(log odds p⁺ − log odds p⁻); no reference is needed.

    Hong et al. 2024, eqs. 4, 6 and 7 (β is their λ): log p is the mean over an answer's tokens, and
    odds p = p / (1 − p). The first term is instruction tuning on the better answer, the mean a token of each row.

    Args:
        chosen_mean_log_prob: (pairs,) at most 0, any floating dtype.
        rejected_mean_log_prob: (pairs,).

    Returns:
        (pairs,) of the same dtype; with ``beta`` 0 the first term alone.

    Raises:
        UserError: ``beta`` is negative.
        ValueError: shapes differ.
    """
    check_shapes(chosen_mean_log_prob=chosen_mean_log_prob, rejected_mean_log_prob=rejected_mean_log_prob)
    check_not_negative(beta=beta)
    ratio = _log_odds(chosen_mean_log_prob) - _log_odds(rejected_mean_log_prob)
    return -chosen_mean_log_prob - beta * logsigmoid(ratio)


def _log_odds(log_prob: torch.Tensor) -> torch.Tensor:
    """log p − log(1 − p). An answer known by heart has p = 1 in floating point: kept a little below."""
    log_prob = log_prob.clamp(max=-torch.finfo(log_prob.dtype).eps)
    return log_prob - torch.log(-torch.expm1(log_prob))


def simpo_loss(
    chosen_mean_log_prob: torch.Tensor,
    rejected_mean_log_prob: torch.Tensor,
    *,
    beta: float = 2.0,
    margin: float = 1.0,
) -> torch.Tensor:
    """Simple preference optimisation: −log σ(β (log p⁺ − log p⁻) − margin); no reference is needed.

    Meng et al. 2024, eq. 6 (the margin is their γ): log p is the mean over an answer's tokens.

    Args:
        chosen_mean_log_prob: (pairs,), any floating dtype.
        rejected_mean_log_prob: (pairs,).

    Returns:
        (pairs,) of the same dtype.

    Raises:
        UserError: an option is out of range.
        ValueError: shapes differ.
    """
    check_shapes(chosen_mean_log_prob=chosen_mean_log_prob, rejected_mean_log_prob=rejected_mean_log_prob)
    check_positive(beta=beta)
    check_not_negative(margin=margin)
    return -logsigmoid(beta * (chosen_mean_log_prob - rejected_mean_log_prob) - margin)
