"""The objective of a reward head: groups that are judged by different criteria, by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from graftlm.data.batches import EncodedRow
from graftlm.data.judged import Judgement
from graftlm.objectives import ranked_reward_loss
from graftlm.objectives.objective import RowScores
from graftlm.objectives.rewarded import Reward

NAN = math.nan
#: A pair by the first criterion, a list of three by the second, a pair by both in opposite orders.
RANKS = [[(0, NAN), (1, NAN)], [(NAN, 0), (NAN, 1), (NAN, 2)], [(0, 1), (1, 0)]]
REWARDS = torch.tensor(
    [[2.0, 9.0], [1.0, 9.0], [9.0, 2.0], [9.0, 1.0], [9.0, -1.0], [0.0, 3.0], [1.0, 1.0]], dtype=torch.float64
)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def group(ranks: Sequence[tuple[float, ...]], margin: float = 0.0) -> EncodedRow:
    rows = [
        EncodedRow([1, 2], [False, False], "g", 1, targets=[-1, 0], judged=Judgement(each, margin if place else 0.0))
        for place, each in enumerate(ranks)
    ]
    return replace(rows[0], beside=tuple(rows[1:]))


def scores(leaders: Sequence[EncodedRow], rewards: torch.Tensor) -> RowScores:
    rows = tuple(row for leader in leaders for row in leader.group)
    sizes = tuple(len(leader.group) for leader in leaders)
    return RowScores(rewards.flatten(), (rewards.shape[1],) * len(rows), rows, sizes)


def test_every_criterion_has_its_own_groups() -> None:
    """What stands in the place of an answer that was not judged, 9, counts nowhere."""
    objective = Reward(criteria=("kind", "true"))
    leaders = [group(ranks) for ranks in RANKS]
    statistics = objective.statistics(leaders)
    assert statistics == (2, 2)
    first = (softplus(-1.0) + softplus(1.0)) / 2  # 2 over 1; 0 over 1
    listed = (softplus(-1.0) + softplus(-3.0) + softplus(-2.0)) / 3
    second = (listed + softplus(2.0)) / 2  # and 1 over 3
    loss = objective.loss(scores(leaders, REWARDS), statistics)
    assert loss.item() == pytest.approx(first + second, abs=1e-12)
    found = objective.measure(scores(leaders, REWARDS), statistics)
    assert found["kind_accuracy"] == pytest.approx(1 / 2)
    assert found["true_accuracy"] == pytest.approx(1 / 2)
    assert found["true_margin"] == pytest.approx(((1 + 3 + 2) / 3 - 2) / 2)


def test_micro_batches_add_up_when_one_lacks_a_criterion() -> None:
    objective = Reward(criteria=("kind", "true"))
    leaders = [group(ranks) for ranks in RANKS]
    statistics = objective.statistics(leaders)
    whole = objective.loss(scores(leaders, REWARDS), statistics)
    parts = [
        objective.loss(scores([leaders[0]], REWARDS[:2]), statistics),
        objective.loss(scores(leaders[1:], REWARDS[2:]), statistics),
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_a_criterion_that_nothing_is_judged_by() -> None:
    objective = Reward(criteria=("kind", "true"))
    leaders = [group(RANKS[0])]
    assert objective.statistics(leaders) == (1, 0)
    assert objective.loss(scores(leaders, REWARDS[:2]), (1, 0)).item() == pytest.approx(softplus(-1.0))
    found = objective.measure(scores(leaders, REWARDS[:2]), (1, 0))
    assert found["accuracy"] == 1.0
    assert "true_accuracy" not in found


def test_margins_and_centring() -> None:
    """A margin of its own, 0.5, and that of the settings, 0.25; centring is of the sum of both rewards."""
    objective = Reward(margin=0.25, centring=0.1)
    leaders = [group([(0.0,), (1.0,)], margin=0.5)]
    rewards = torch.tensor([[1.0], [2.0]], dtype=torch.float64, requires_grad=True)
    loss = objective.loss(scores(leaders, rewards), (1,))
    assert loss.item() == pytest.approx(softplus(1.75) + 0.1 * 9)
    loss.backward()
    pull = 1 / (1 + math.exp(-1.75))
    assert rewards.grad is not None
    assert rewards.grad.flatten().tolist() == pytest.approx([0.6 - pull, 0.6 + pull])


def test_a_list_is_one_element_beside_a_pair() -> None:
    objective = Reward()
    leaders = [group([(0.0,), (1.0,), (2.0,)]), group([(0.0,), (1.0,)])]
    rewards = torch.tensor([0.3, -1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    expected = ranked_reward_loss(rewards, [3, 2]).mean()
    torch.testing.assert_close(objective.loss(scores(leaders, rewards[:, None]), (2,)), expected)
