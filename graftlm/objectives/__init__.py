"""Losses as pure functions of tensors, one file per family, and what makes an objective of them."""

from graftlm.objectives.estimates import KL_ESTIMATORS, KLEstimator, entropy, kl_estimate
from graftlm.objectives.policy_gradient import (
    grpo_loss,
    ppo_clipped,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    rloo_loss,
)
from graftlm.objectives.preference import (
    DPO_LOSS_TYPES,
    DPOLossType,
    dpo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)
from graftlm.objectives.reduction import NORMALISATIONS, Normalisation, StepSize, row_sums, spread, step_share
from graftlm.objectives.reward import RewardScale, ranked_reward_loss, rating_loss, reward_loss, reward_scale
from graftlm.objectives.sft import sft_loss

__all__ = [
    "DPO_LOSS_TYPES",
    "KL_ESTIMATORS",
    "NORMALISATIONS",
    "DPOLossType",
    "KLEstimator",
    "Normalisation",
    "RewardScale",
    "StepSize",
    "dpo_loss",
    "entropy",
    "grpo_loss",
    "kl_estimate",
    "kto_loss",
    "kto_reference_point",
    "orpo_loss",
    "ppo_clipped",
    "ppo_policy_loss",
    "ppo_value_loss",
    "ranked_reward_loss",
    "rating_loss",
    "reinforce_loss",
    "reward_loss",
    "reward_scale",
    "rloo_loss",
    "row_sums",
    "sft_loss",
    "simpo_loss",
    "spread",
    "step_share",
]
