"""Losses of reward models, and the scale of their outputs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm.errors import UserError
from graftlm.objectives import ranked_reward_loss, rating_loss, reward_loss, reward_scale

REWARDS = st.lists(st.floats(-9, 9), min_size=2, max_size=6)


def row(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_by_hand() -> None:
    chosen, rejected = row(1.5, grad=True), row(0.2, grad=True)
    loss = reward_loss(chosen, rejected, margin=0.3, centring=0.01)
    assert loss.item() == pytest.approx(softplus(-1.0) + 0.01 * 1.7**2, abs=1e-12)
    loss.backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    push = 1 / (1 + math.e)  # σ(−1)
    assert chosen.grad.item() == pytest.approx(-push + 0.02 * 1.7)
    assert rejected.grad.item() == pytest.approx(push + 0.02 * 1.7)
    assert reward_loss(row(0.7), row(0.7)).item() == pytest.approx(math.log(2))


def test_gradients() -> None:
    pairs = (row(1.2, -3.0, grad=True), row(-2.1, 0.4, grad=True))
    torch.autograd.gradcheck(lambda a, b: reward_loss(a, b, margin=row(0.5, 2.0), centring=0.1), pairs)
    ranks = torch.tensor([1, 2, 2, 1, 0])
    answers = row(1.2, -3.0, 0.4, 0.9, -0.3, grad=True)
    torch.autograd.gradcheck(lambda r: ranked_reward_loss(r, [3, 2], ranks=ranks, centring=0.1), answers)
    rated = torch.tensor([True, False])
    torch.autograd.gradcheck(lambda r: rating_loss(r, row(2.0, 5.0), rated=rated), row(1.2, -3.0, grad=True))


@given(a=st.floats(-30, 30), b=st.floats(-30, 30), shift=st.floats(-30, 30))
def test_only_differences_matter_unless_centred(a: float, b: float, shift: float) -> None:
    torch.testing.assert_close(reward_loss(row(a + shift), row(b + shift)), reward_loss(row(a), row(b)))
    torch.testing.assert_close(reward_loss(row(a), row(b)) + (a - b), reward_loss(row(b), row(a)))
    torch.testing.assert_close(reward_loss(row(a), row(b), margin=1.0), reward_loss(row(a - 1.0), row(b)))


def test_criteria_are_terms_of_their_own() -> None:
    chosen, rejected = torch.randn(2, 5, 3, dtype=torch.float64)
    terms = reward_loss(chosen, rejected, margin=0.2, centring=0.1)
    assert terms.shape == (5, 3)
    for criterion in range(3):
        alone = reward_loss(chosen[:, criterion], rejected[:, criterion], margin=0.2, centring=0.1)
        torch.testing.assert_close(terms[:, criterion], alone)


def test_ranked_list_by_hand() -> None:
    """2, 1, −1, best first: the differences 1, 3 and 2, a third each."""
    rewards = row(2.0, 1.0, -1.0, grad=True)
    loss = ranked_reward_loss(rewards, [3])
    assert loss.tolist() == pytest.approx([(softplus(-1) + softplus(-3) + softplus(-2)) / 3])
    loss.sum().backward()
    one, two, three = (1 / (1 + math.exp(x)) for x in (1, 2, 3))
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-(one + three) / 3, (one - two) / 3, (three + two) / 3])


def test_ties_are_not_compared() -> None:
    """1 > {−1, 2}: two comparisons; the tied answers pull at each other nowhere."""
    loss = ranked_reward_loss(row(-1.0, 1.0, 2.0), [3], ranks=torch.tensor([2.0, 1.5, 2.0]))
    assert loss.tolist() == pytest.approx([(softplus(-2) + softplus(1)) / 2])


@given(lists=st.lists(REWARDS, min_size=1, max_size=4), data=st.data())
def test_a_list_is_one_element(lists: list[list[float]], data: st.DataObject) -> None:
    """The mean of its pairs, whatever list stands beside and in whatever order its answers stand."""
    flat = row(*(value for values in lists for value in values))
    terms = ranked_reward_loss(flat, [len(values) for values in lists])
    assert terms.shape == (len(lists),)
    for term, values in zip(terms, lists, strict=True):
        pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
        assert len(pairs) == len(values) * (len(values) - 1) // 2
        expected = reward_loss(row(*(a for a, _ in pairs)), row(*(b for _, b in pairs))).mean()
        torch.testing.assert_close(term, expected)
        order = data.draw(st.permutations(range(len(values))))
        shuffled = ranked_reward_loss(row(*(values[i] for i in order)), [len(values)], ranks=torch.tensor(order))
        torch.testing.assert_close(shuffled[0], term)


def test_lists_with_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="ranked list 1 has a single answer"):
        ranked_reward_loss(row(1.0, 2.0, 3.0), [2, 1])
    with pytest.raises(UserError, match="ranked list 0 has answers of one rank alone"):
        ranked_reward_loss(row(1.0, 2.0), [2], ranks=torch.tensor([1, 1]))
    with pytest.raises(ValueError, match="add up to 3, not to 2"):
        ranked_reward_loss(row(1.0, 2.0), [3])
    assert ranked_reward_loss(row(), []).shape == (0,)


def test_ratings_by_hand() -> None:
    rewards = torch.tensor([[1.0, 4.0], [2.0, math.nan]], dtype=torch.float64, requires_grad=True)
    ratings = torch.tensor([[3.0, 3.5], [math.nan, 1.0]], dtype=torch.float64)
    rated = torch.tensor([[True, True], [False, False]])
    loss = rating_loss(rewards, ratings, rated=rated)
    assert loss.tolist() == [[2.0, 0.125], [0.0, 0.0]]
    loss.sum().backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [[-2.0, 0.5], [0.0, 0.0]]


@given(values=REWARDS)
def test_reference_answers_have_mean_0_and_variance_1(values: list[float]) -> None:
    rewards = row(*values)
    if rewards.max() - rewards.min() < 1e-3:
        return
    scaled = reward_scale(rewards)(rewards)
    assert scaled.mean().item() == pytest.approx(0, abs=1e-9)
    assert scaled.var(correction=0).item() == pytest.approx(1, abs=1e-9)
    assert (scaled[rewards.argsort()].diff() >= 0).all()


def test_every_criterion_has_its_scale() -> None:
    rewards = row(1.0, 3.0, 5.0)
    scale = reward_scale(torch.stack([rewards, 10 * rewards + 7], 1))
    assert scale.mean.tolist() == [3.0, 37.0]
    torch.testing.assert_close(scale(torch.tensor([[3.0, 47.0]])), torch.tensor([[0.0, 1 / math.sqrt(8 / 3)]]).double())


def test_scales_that_cannot_be() -> None:
    with pytest.raises(UserError, match="all 2 rewards of criterion 1 are equal"):
        reward_scale(torch.tensor([[1.0, 2.0], [3.0, 2.0]]))
    with pytest.raises(UserError, match="row 1 is not a finite number"):
        reward_scale(row(1.0, math.nan))
    with pytest.raises(UserError, match="needs two or more"):
        reward_scale(row(1.0))
    with pytest.raises(UserError, match="centring is -1"):
        reward_loss(row(1.0), row(1.0), centring=-1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        reward_loss(row(1.0, 2.0), row(1.0, 2.0), margin=row(1.0))
