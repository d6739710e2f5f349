"""Advantages: by hand, the identities that they obey, and neighbours and padding that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graftlm
from graftlm.alignment import (
    MovingBaseline,
    gae,
    group_advantages,
    informative,
    leave_one_out_advantages,
    penalised_rewards,
    whiten,
)
from graftlm.errors import UserError

EPISODE = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8)
REWARDS = st.lists(st.floats(-9, 9), min_size=2, max_size=6)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_gae_by_hand() -> None:
    expected = [0.43675, 0.565, 0.7]
    assert gae(row(0, 0, 1), row(0.5, 0.4, 0.3), 1.0, 0.95).tolist() == pytest.approx(expected, abs=1e-9)
    whole = gae(torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.4, 0.3]), 1.0, 0.95)
    assert whole.dtype is torch.float32
    assert whole.tolist() == pytest.approx(expected, abs=1e-6)
    assert graftlm.alignment.gae is gae, "by its public name, without a further import"
    # δ = (−0.14, −0.13, 0.7) with γ = 0.9, and γλ = 0.45
    discounted = gae(row(0, 0, 1), row(0.5, 0.4, 0.3), 0.9, 0.5)
    assert discounted.tolist() == pytest.approx([-0.14 + 0.45 * (-0.13 + 0.45 * 0.7), -0.13 + 0.45 * 0.7, 0.7])


@given(episode=EPISODE, gamma=st.floats(0, 1))
def test_gae_at_its_ends(episode: list[tuple[float, float]], gamma: float) -> None:
    """λ = 1: the discounted return less the value. λ = 0: the error of one step."""
    rewards, values = (row(*part) for part in zip(*episode, strict=True))
    returns = [sum(gamma**k * reward for k, (reward, _) in enumerate(episode[t:])) for t in range(len(episode))]
    torch.testing.assert_close(gae(rewards, values, gamma, 1.0), row(*returns) - values)
    torch.testing.assert_close(
        gae(rewards, values, gamma, 0.0), rewards + gamma * row(*values[1:].tolist(), 0.0) - values
    )


@given(
    episodes=st.lists(EPISODE, min_size=1, max_size=4),
    bad=st.sampled_from([0.0, 99.0, math.nan, math.inf]),
    data=st.data(),
)
def test_padding_never_matters(episodes: list[list[tuple[float, float]]], bad: float, data: st.DataObject) -> None:
    """Before, between or behind the real tokens: each row is as it is alone, and the padding has no advantage."""
    rewards, values = torch.full((2, len(episodes), 10), bad, dtype=torch.float64)
    mask = torch.zeros(len(episodes), 10, dtype=torch.bool)
    for number, episode in enumerate(episodes):
        places = sorted(data.draw(st.permutations(range(10)))[: len(episode)])
        mask[number, places] = True
        rewards[number, places], values[number, places] = (row(*part) for part in zip(*episode, strict=True))
    advantages = gae(rewards, values, 0.9, 0.8, mask=mask)
    assert (advantages[~mask] == 0).all()
    for number, episode in enumerate(episodes):
        alone = gae(*(row(*part) for part in zip(*episode, strict=True)), 0.9, 0.8)
        assert advantages[number][mask[number]].tolist() == alone.tolist()


def test_gae_is_constant_and_checks() -> None:
    values = row(0.5, 0.4).requires_grad_()
    assert not gae(row(0, 1), values).requires_grad
    with pytest.raises(UserError, match="lam is 2"):
        gae(row(0, 1), values, 1.0, 2.0)
    with pytest.raises(ValueError, match="shapes differ"):
        gae(row(0, 1), row(1))


def test_penalised_rewards_by_hand() -> None:
    kl = torch.tensor([[0.5, -1.0, math.nan], [2.0, 3.0, 4.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = penalised_rewards(row(10.0, -10.0), kl, 0.1, mask=mask)
    torch.testing.assert_close(rewards, torch.tensor([[-0.05, 10.1, 0.0], [-0.2, -0.3, -10.4]], dtype=torch.float64))
    torch.testing.assert_close(penalised_rewards(row(1.0), row(1.0, 2.0)[None], 0.5), row(-0.5, 0.0)[None])
    with pytest.raises(UserError, match="the answer of row 1 has no token"):
        penalised_rewards(row(1.0, 2.0), kl, 0.1, mask=mask & torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match="shapes differ"):
        penalised_rewards(row(1.0), kl, 0.1)


def test_whitening_by_hand() -> None:
    """Mean 3, variance 8/3, dividing by n."""
    deviation = math.sqrt(8 / 3)
    assert whiten(row(1, 3, 5)).tolist() == pytest.approx([-2 / deviation, 0, 2 / deviation])
    assert whiten(row(1, 3, 5), shift=False).tolist() == pytest.approx([3 - 2 / deviation, 3, 3 + 2 / deviation])
    assert whiten(row(0.1, 0.1, 0.1)).tolist() == [0, 0, 0]
    assert whiten(row(7)).tolist() == [0]
    with pytest.raises(UserError, match="row 1 is not a finite number"):
        whiten(row(1, math.nan))


@given(
    own=st.lists(st.floats(-9, 9), min_size=1, max_size=6),
    other=st.lists(st.floats(-1e6, 1e6), max_size=6),
    data=st.data(),
)
def test_an_adapter_is_whitened_by_itself(own: list[float], other: list[float], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(own) + len(other))))
    owners = torch.tensor([0] * len(own) + [1] * len(other))[list(order)]
    beside = whiten(row(*own, *other)[list(order)], owners=owners)[owners == 0]
    alone = whiten(row(*own)[[index for index in order if index < len(own)]])
    torch.testing.assert_close(beside, alone, rtol=1e-10, atol=1e-10)


def test_whitening_with_a_mask() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, 9.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    whitened = whiten(values, mask=mask)
    torch.testing.assert_close(whitened[mask], whiten(torch.tensor([1.0, 3.0, 5.0])))
    assert (whitened[~mask] == 0).all()
    apart = whiten(values, mask=mask, owners=torch.tensor([0, 1]))
    torch.testing.assert_close(apart, torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_group_advantages_by_hand() -> None:
    """Groups 5 = (1, 0, 0, 1) and 2 = (3, 1), mixed up: deviations √⅓ and √2, dividing by n − 1."""
    rewards, groups = row(1, 3, 0, 0, 1, 1), torch.tensor([5, 2, 5, 5, 2, 5])
    a, b = 0.5 / (math.sqrt(1 / 3) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    assert group_advantages(rewards, groups).tolist() == pytest.approx([a, b, -a, -a, -b, a])
    plain = group_advantages(rewards, groups, scaling="none")
    assert plain.tolist() == pytest.approx([0.5, 1, -0.5, -0.5, -1, 0.5])
    loo = leave_one_out_advantages(rewards, groups)
    assert loo.tolist() == pytest.approx([2 / 3, 2, -2 / 3, -2 / 3, -2, 2 / 3])


@given(groups=st.lists(REWARDS, min_size=1, max_size=4), shift=st.floats(-9, 9), data=st.data())
def test_groups_are_independent(groups: list[list[float]], shift: float, data: st.DataObject) -> None:
    flat = row(*(value for own in groups for value in own))
    names = torch.tensor([7 * number for number, own in enumerate(groups) for _ in own])
    order = list(data.draw(st.permutations(range(len(flat)))))
    for advantages in (
        group_advantages,
        leave_one_out_advantages,
        lambda r, g: group_advantages(r, g, scaling="none"),
    ):
        result = advantages(flat, names)
        torch.testing.assert_close(advantages(flat[order], names[order]), result[order], rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(advantages(flat + shift, names), result, rtol=1e-6, atol=1e-6)
        for number, own in enumerate(groups):
            mine = result[names == 7 * number]
            torch.testing.assert_close(mine, advantages(row(*own), torch.zeros(len(own), dtype=torch.int64)))
            assert mine.sum().item() == pytest.approx(0, abs=1e-7)
    others = [(sum(own) - value) / (len(own) - 1) for own in groups for value in own]
    torch.testing.assert_close(leave_one_out_advantages(flat, names), flat - row(*others))


@given(value=st.floats(-1e3, 1e3), size=st.integers(1, 9))
def test_equal_rewards_teach_nothing(value: float, size: int) -> None:
    rewards, groups = torch.full((size,), value), torch.zeros(size, dtype=torch.int64)
    assert group_advantages(rewards, groups).tolist() == [0.0] * size
    assert not informative(rewards, groups).any()


def test_informative_groups() -> None:
    rewards, groups = row(1, 0, 1, 1, 1, 0.3), torch.tensor([0, 1, 0, 1, 2, 0])
    assert informative(rewards, groups).tolist() == [True, True, True, True, False, True]


def test_rewards_that_cannot_be_compared() -> None:
    groups = torch.tensor([0, 0, 1])
    with pytest.raises(UserError, match="row 2 is the only answer of its group"):
        leave_one_out_advantages(row(1, 2, 3), groups)
    for advantages in (group_advantages, leave_one_out_advantages, informative):
        with pytest.raises(UserError, match=r"rewards: row 1 is not a finite number \(1 of 3 are not\)"):
            advantages(row(1, math.nan, 3), groups)
        with pytest.raises(ValueError, match="shapes differ"):
            advantages(row(1, 2), groups)
    with pytest.raises(UserError, match="unknown scaling"):
        group_advantages(row(1, 2, 3), groups, scaling="std")  # type: ignore[arg-type]


def test_moving_baseline() -> None:
    """The first step has none; the baseline is of earlier steps only."""
    start = MovingBaseline(decay=0.75)
    assert start.advantages(row(1, 3)).tolist() == [1, 3]
    first = start.updated(row(1, 3))
    assert first == MovingBaseline(0.75, 2.0, 1)
    assert first.advantages(row(1, 3)).tolist() == [-1, 1]
    assert first.updated(row(6)) == MovingBaseline(0.75, 0.75 * 2 + 0.25 * 6, 2)
    assert start == MovingBaseline(decay=0.75), "a value"
    with pytest.raises(UserError, match="without rewards"):
        start.updated(row())
