"""A reward head as it starts: weights from N(0, 1 / (hidden + 1)), no bias, a scale that changes nothing."""

from __future__ import annotations

import pytest
import torch

from graftlm.adapters.heads import RewardHead


@pytest.mark.parametrize("hidden", [63, 1023])
def test_first_weights(hidden: int) -> None:
    """Of 64 or 1,024 hidden sizes in all with the bias: a deviation of 1/8 or 1/32."""
    head = RewardHead.new(hidden, 200, seed=1, dtype=torch.float64, device=torch.device("cpu"))
    weight = head.weight.detach()
    assert weight.shape == (200, hidden)
    assert float(weight.std()) == pytest.approx((hidden + 1) ** -0.5, rel=0.03)
    assert abs(float(weight.mean())) < 0.03 * (hidden + 1) ** -0.5
    assert not head.bias.any()
    rewards = head(torch.ones(2, hidden, dtype=torch.float64))
    assert torch.equal(head.normalised(rewards), rewards)


def test_they_follow_the_seed_alone() -> None:
    made = [RewardHead.new(8, 2, seed=s, dtype=torch.float32, device=torch.device("cpu")).weight for s in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_scale_of_reference_answers() -> None:
    """Rewards 1, 2, 6: mean 3, variance (4 + 1 + 9) / 3."""
    head = RewardHead.new(4, 1, seed=0, dtype=torch.float64, device=torch.device("cpu"))
    rewards = torch.tensor([[1.0], [2.0], [6.0]], dtype=torch.float64)
    head.set_scale(rewards.mean(0), rewards.std(0, correction=0))
    found = head.normalised(rewards)
    assert found.flatten().tolist() == pytest.approx([each / (14 / 3) ** 0.5 for each in (-2, -1, 3)])
