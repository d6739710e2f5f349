"""Reinforcement learning from preferences: advantages, and the control of the divergence from the reference."""

from graftlm.alignment.advantages import (
    MovingBaseline,
    gae,
    group_advantages,
    informative,
    leave_one_out_advantages,
    penalised_rewards,
    whiten,
)
from graftlm.alignment.controller import AdaptiveKL, FixedKL, KLController, controller_from_state

__all__ = [
    "AdaptiveKL",
    "FixedKL",
    "KLController",
    "MovingBaseline",
    "controller_from_state",
    "gae",
    "group_advantages",
    "informative",
    "leave_one_out_advantages",
    "penalised_rewards",
    "whiten",
]
