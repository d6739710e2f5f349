from __future__ import annotations

import math

import pytest
import torch

from graftlm.alignment.advantages import MovingBaseline
from graftlm.alignment.episodes import group_episodes, penalised_answers, ppo_episodes, reinforce_episodes
from graftlm.alignment.rewards import Rewarded
from graftlm.errors import UserError
from graftlm.objectives import grpo_loss, ppo_policy_loss, ppo_value_loss, rloo_loss, step_share
from tests.alignment.conftest import answer, rollouts_of, scores_of

NAN = math.nan


def rewarded(*totals: float) -> Rewarded:
    values = torch.tensor(totals, dtype=torch.float64)
    return Rewarded(values, {"r": values}, {})


def one_answer_and_another() -> tuple:  # type: ignore[type-arg]
    rollouts = rollouts_of(answer("p", 1, 0, (7, 8, 2)), answer("q", 1, 0, (9,)), answer("p", 1, 1, (7,)))
    scores = scores_of(
        rollouts,
        [[-1.0, -2.0, -0.5], [-9.0], [-1.0]],
        [[-1.5, -1.0, -0.5], [-3.0], [-3.0]],
        [[0.5, 0.4, 0.3], [7.0], [0.25]],
    )
    return rollouts, scores


def test_ppo_by_hand() -> None:
    """Rewards [0, 0, 1], values [0.5, 0.4, 0.3], no KL: the advantages that the issue gives."""
    rollouts, scores = one_answer_and_another()
    found = ppo_episodes(rollouts, scores, rewarded(1, 5, 0), "p", kl_coefficient=0.0, whitened=False)
    assert found.advantages.tolist() == pytest.approx([0.43675, 0.565, 0.7, -0.25])
    assert found.returns is not None
    assert found.returns.tolist() == pytest.approx([0.93675, 0.965, 1.0, 0.0])
    assert (found.counts, found.places, found.size.rows, found.size.tokens) == ((3, 1), (0, 2), 2, 4)


def test_ppo_pays_for_divergence_token_by_token() -> None:
    """k1 = log π − log π_ref = [0.5, −1, 0] and [2]; with β 0.1 rewards are [−0.05, 0.1, 1] and [−0.2]."""
    rollouts, scores = one_answer_and_another()
    found = ppo_episodes(rollouts, scores, rewarded(1, 5, 0), "p", kl_coefficient=0.1, lam=1.0, whitened=False)
    assert found.returns is not None
    assert found.returns.tolist() == pytest.approx([1.05, 1.1, 1.0, -0.2])  # λ 1: what is still to come
    assert found.advantages.tolist() == pytest.approx([0.55, 0.7, 0.7, -0.45])


def test_ppo_whitens_the_policys_own_tokens() -> None:
    rollouts, scores = one_answer_and_another()
    plain = ppo_episodes(rollouts, scores, rewarded(1, 5, 0), "p", kl_coefficient=0.1, whitened=False)
    white = ppo_episodes(rollouts, scores, rewarded(1, 500, 0), "p", kl_coefficient=0.1)
    expected = (plain.advantages - plain.advantages.mean()) / plain.advantages.std(correction=0)
    torch.testing.assert_close(white.advantages, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(white.returns, plain.returns)  # made before whitening


def groups() -> tuple:  # type: ignore[type-arg]
    rollouts = rollouts_of(
        *(answer("p", row, index, (7, 8)) for row in (1, 2) for index in range(2)), answer("p", 3, 0, (9,))
    )
    return rollouts, scores_of(rollouts, [[-1.0, -1.0]] * 4 + [[-1.0]], [[-1.0, -2.0]] * 2 + [[-3.0, -1.0]] * 2 + [[0]])


def test_group_advantages_by_hand() -> None:
    """Rewards 1, 0 | 2, 6 | 5: means 0.5 and 4, deviations √½ and √8 (n − 1)."""
    rollouts, scores = groups()
    values = rewarded(1, 0, 2, 6, 5)
    found = group_episodes(rollouts, scores, values, "p", baseline="mean")
    assert found.advantages.tolist() == pytest.approx([0.5, 0.5, -0.5, -0.5, -2, -2, 2, 2, 0])
    grpo = group_episodes(rollouts, scores, values, "p")
    assert grpo.row_advantages is not None
    half = 0.5 / (math.sqrt(0.5) + 1e-4)
    two = 2 / (math.sqrt(8) + 1e-4)
    assert grpo.row_advantages.tolist() == pytest.approx([half, -half, -two, two, 0])
    rloo = group_episodes(rollouts, scores, values, "p", baseline="leave_one_out")
    assert rloo.row_advantages is not None
    assert rloo.row_advantages.tolist() == pytest.approx([1, -1, -4, 4])  # the lone answer has nothing beside it
    assert rloo.counts == (2, 2, 2, 2)


def test_group_rewards_less_the_divergence() -> None:
    """Σ k1 is 1 for the first prompt's answers, and 2 for the second's: equal in a group, it changes nothing there."""
    rollouts, scores = groups()
    found = group_episodes(rollouts, scores, rewarded(1, 0, 2, 6, 5), "p", baseline="mean", kl_coefficient=0.5)
    assert found.row_advantages is not None
    assert found.row_advantages.tolist() == pytest.approx([0.5, -0.5, -2, 2, 0])
    scores = scores_of(rollouts, [[-1.0, -1.0]] * 4 + [[-1.0]], [[-1.0, -2.0], [-1, -1], [0, 0], [-1, -1], [-1]])
    found = group_episodes(rollouts, scores, rewarded(1, 0, 2, 6, 5), "p", baseline="mean", kl_coefficient=0.5)
    assert found.row_advantages is not None
    assert found.row_advantages.tolist() == pytest.approx([0.25, -0.25, -1.5, 1.5, 0])  # k1: 1, 0 | −2, 0 | 0


def test_reinforce_by_hand() -> None:
    """Rewards 1, 0, 2, 6, 5 less half of Σ k1 (1, 1, 2, 2, −1), less the mean of earlier steps."""
    rollouts, scores = groups()
    values = rewarded(1, 0, 2, 6, 5)
    found = reinforce_episodes(rollouts, scores, values, "p", kl_coefficient=0.5, baseline=MovingBaseline(0.9, 2.0, 1))
    assert found.row_advantages is not None
    assert found.row_advantages.tolist() == pytest.approx([-1.5, -2.5, -1, 3, 3.5])
    assert penalised_answers(found, 0.5).tolist() == pytest.approx([0.5, -0.5, 1, 5, 5.5])
    first = reinforce_episodes(rollouts, scores, values, "p")
    assert first.advantages.tolist() == pytest.approx([1, 1, 0, 0, 2, 2, 6, 6, 5])


def test_answers_without_a_reward_are_left_out() -> None:
    rollouts, scores = groups()
    found = group_episodes(rollouts, scores, rewarded(1, NAN, 2, 6, 5), "p", baseline="mean")
    assert found.places == (0, 2, 3, 4)
    assert found.row_advantages is not None
    assert found.row_advantages.tolist() == pytest.approx([0, -2, 2, 0])


def test_all_rewards_equal_give_nothing_to_learn() -> None:
    rollouts, scores = groups()
    for baseline in ("deviation", "mean", "leave_one_out"):
        found = group_episodes(rollouts, scores, rewarded(1, 1, 3, 3, 5), "p", baseline=baseline)
        assert not found.advantages.any()


def test_losses_take_episodes_and_parts_add_up() -> None:
    rollouts, scores = one_answer_and_another()
    whole = ppo_episodes(rollouts, scores, rewarded(1, 5, 0), "p", kl_coefficient=0.1)
    now = whole.old_log_probs + torch.tensor([0.1, -0.3, 0.3, 0.05])
    values = torch.tensor([0.1, 0.2, 0.3, 0.4])
    policy = ppo_policy_loss(now, whole.old_log_probs, whole.advantages)
    assert whole.old_values is not None
    assert whole.returns is not None
    value = ppo_value_loss(values, whole.old_values, whole.returns)
    total = step_share(policy + value, whole.counts, whole.size)
    shares = []
    for rows, tokens in (((1,), [3]), ((0,), [0, 1, 2])):
        part = whole.part(rows)
        assert part.old_values is not None
        assert part.returns is not None
        terms = ppo_policy_loss(now[tokens], part.old_log_probs, part.advantages)
        terms = terms + ppo_value_loss(values[tokens], part.old_values, part.returns)
        shares.append(step_share(terms, part.counts, whole.size))
    torch.testing.assert_close(sum(shares), total)
    groups_ = group_episodes(rollouts, scores, rewarded(1, 5, 0), "p", baseline="leave_one_out")
    assert groups_.row_advantages is not None
    assert len(rloo_loss(now, groups_.old_log_probs, groups_.row_advantages, groups_.counts)) == 2
    terms = grpo_loss(now, groups_.old_log_probs, groups_.advantages, groups_.reference_log_probs, kl_weight=0.1)
    assert len(terms) == 4


def test_what_is_missing_is_named() -> None:
    rollouts = rollouts_of(answer("p", 1, 0, (7,)), answer("p", 1, 1, (8,)))
    scores = scores_of(rollouts, [[-1.0], [-1.0]])
    with pytest.raises(UserError, match="p: PPO needs the values"):
        ppo_episodes(rollouts, scores, rewarded(1, 0), "p")
    with pytest.raises(UserError, match=r"p: a KL coefficient of 0\.1, and no reference"):
        group_episodes(rollouts, scores, rewarded(1, 0), "p", kl_coefficient=0.1)
    with pytest.raises(UserError, match="unknown policy 'q'"):
        group_episodes(rollouts, scores, rewarded(1, 0), "q")
    with pytest.raises(UserError, match="unknown baseline"):
        group_episodes(rollouts, scores, rewarded(1, 0), "p", baseline="median")  # type: ignore[arg-type]
    lone = rollouts_of(answer("p", 1, 0, (7,)))
    with pytest.raises(UserError, match="only answer of its group"):
        group_episodes(lone, scores_of(lone, [[-1.0]]), rewarded(1), "p", baseline="leave_one_out")
