"""Numbers about distributions: estimates of a divergence from sampled tokens, and the entropy."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from graftlm.errors import unknown_name
from graftlm.objectives.checks import check_shapes

KLEstimator = Literal["k1", "k2", "k3"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def kl_estimate(
    log_probs: torch.Tensor, reference_log_probs: torch.Tensor, estimator: KLEstimator = "k3"
) -> torch.Tensor:
    """KL(policy ‖ reference), estimated at each token that the policy sampled (Schulman 2020, "Approximating KL").

    With d = log π − log π_ref:

    - ``k1`` = d: unbiased, and negative at times. As a loss its gradient is 0 on average: it belongs into rewards.
    - ``k2`` = d² / 2: biased, never negative; as a loss it has the gradient of the divergence.
    - ``k3`` = e^−d − 1 + d: unbiased and never negative (GRPO's penalty: Shao et al. 2024, eq. 4).

    Args:
        log_probs: (…) of the policy, any floating dtype.
        reference_log_probs: the same shape; constants, no gradient goes there.

    Returns:
        The same shape and dtype, a value a token; nothing is reduced.

    Raises:
        UserError: there is no such estimator.
        ValueError: shapes differ.
    """
    check_shapes(log_probs=log_probs, reference_log_probs=reference_log_probs)
    difference = log_probs - reference_log_probs.detach()
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return difference.square() / 2
    if estimator == "k3":
        return torch.expm1(-difference) + difference
    raise unknown_name("KL estimator", estimator, list(KL_ESTIMATORS))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """−Σ p log p in nats: logits (…, vocabulary) → (…), the same dtype. Forbidden tokens may have −∞.

    Its mean over tokens is the bonus S of PPO (Schulman et al. 2017, eq. 9).
    """
    weights = logits.softmax(-1)
    return logits.logsumexp(-1) - (weights * logits.masked_fill(logits == -torch.inf, 0.0)).sum(-1)
