"""Reinforcement learning from preferences: answers of policies, what they are worth, and what is learnt from them."""

from graftlm.alignment.advantages import (
    MovingBaseline,
    gae,
    group_advantages,
    informative,
    leave_one_out_advantages,
    penalised_rewards,
    whiten,
)
from graftlm.alignment.best_of_n import Selection, best_of_n, best_of_n_kl, rejection_sampling
from graftlm.alignment.controller import AdaptiveKL, FixedKL, KLController, controller_from_state
from graftlm.alignment.episodes import Episodes, group_episodes, penalised_answers, ppo_episodes, reinforce_episodes
from graftlm.alignment.online import Policy, Values
from graftlm.alignment.rewards import (
    Reward,
    Rewarded,
    answered_reward,
    endpoint_reward,
    function_reward,
    python_reward,
    reward_rollouts,
)
from graftlm.alignment.rollouts import Prompt, Rollout, Rollouts, Sampling, make_policy, prompts_of, roll_out
from graftlm.alignment.scoring import Deviation, Roles, Scores, score_rollouts, token_outputs
from graftlm.alignment.watching import Concern, PhaseStatistics, concerns, phase_statistics, shown_answers

__all__ = [
    "AdaptiveKL",
    "Concern",
    "Deviation",
    "Episodes",
    "FixedKL",
    "KLController",
    "MovingBaseline",
    "PhaseStatistics",
    "Policy",
    "Prompt",
    "Reward",
    "Rewarded",
    "Roles",
    "Rollout",
    "Rollouts",
    "Sampling",
    "Scores",
    "Selection",
    "Values",
    "answered_reward",
    "best_of_n",
    "best_of_n_kl",
    "concerns",
    "controller_from_state",
    "endpoint_reward",
    "function_reward",
    "gae",
    "group_advantages",
    "group_episodes",
    "informative",
    "leave_one_out_advantages",
    "make_policy",
    "penalised_answers",
    "penalised_rewards",
    "phase_statistics",
    "ppo_episodes",
    "prompts_of",
    "python_reward",
    "reinforce_episodes",
    "rejection_sampling",
    "reward_rollouts",
    "roll_out",
    "score_rollouts",
    "shown_answers",
    "token_outputs",
    "whiten",
]
