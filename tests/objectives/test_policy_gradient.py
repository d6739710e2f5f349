"""Losses of sampled answers: by hand, their gradients on both sides of the clip, masks, and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm.errors import UserError
from graftlm.objectives import (
    StepSize,
    entropy,
    grpo_loss,
    kl_estimate,
    ppo_clipped,
    ppo_policy_loss,
    ppo_value_loss,
    reinforce_loss,
    rloo_loss,
    row_sums,
    spread,
    step_share,
)

# Ratios π / π_old of six tokens, and advantages: inside the clip, beyond it where it cuts, and where it does not.
RATIOS = [1.1, 1.5, 0.5, 0.9, 1.5, 0.5]
ADVANTAGES = [2.0, 2.0, 2.0, -3.0, -3.0, -3.0]


def row(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def logs(*ratios: float, grad: bool = False) -> torch.Tensor:
    return row(*(math.log(ratio) - 1.0 for ratio in ratios), grad=grad)


def test_ppo_policy_by_hand() -> None:
    now, old, advantages = logs(*RATIOS, grad=True), row(*[-1.0] * 6), row(*ADVANTAGES)
    loss = ppo_policy_loss(now, old, advantages, clip=0.2)
    assert loss.tolist() == pytest.approx([-2.2, -2.4, -1.0, 2.7, 4.5, 2.4])
    loss.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == pytest.approx([-2.2, 0.0, -1.0, 2.7, 4.5, 0.0])
    assert ppo_clipped(now, old, advantages).tolist() == [False, True, False, False, False, True]


def test_clip_higher() -> None:
    """1.25 and 0.75: beyond 1.2 and within 1.28; the lower bound stays."""
    now = logs(1.25, 0.75, grad=True)
    loss = ppo_policy_loss(now, row(-1.0, -1.0), row(1.0, -1.0), clip=0.2, clip_high=0.28)
    assert loss.tolist() == pytest.approx([-1.25, 0.8])
    loss.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == pytest.approx([-1.25, 0.0])
    assert ppo_clipped(now, row(-1.0, -1.0), row(1.0, -1.0), clip_high=0.28).tolist() == [False, True]
    assert ppo_clipped(now, row(-1.0, -1.0), row(1.0, -1.0)).tolist() == [True, True]


def test_only_the_policy_gets_gradients() -> None:
    tensors = [row(-1.0, grad=True) for _ in range(4)]
    now, old, advantages, reference = tensors
    grpo_loss(now, old, advantages, reference, kl_weight=0.1).sum().backward()
    assert [tensor.grad is None for tensor in tensors] == [False, True, True, True]
    values, before, returns = (row(value, grad=True) for value in (0.4, 0.5, 1.0))
    ppo_value_loss(values, before, returns).sum().backward()
    assert [tensor.grad is None for tensor in (values, before, returns)] == [False, True, True]


def test_ppo_value_by_hand() -> None:
    """Within the clip; beyond it towards the return (cut: no gradient) and away from it (not cut)."""
    values, old, returns = row(0.6, 1.0, 0.0, grad=True), row(0.5, 0.5, 0.5), row(1.0, 1.0, 1.0)
    loss = ppo_value_loss(values, old, returns, clip=0.2)
    assert loss.tolist() == pytest.approx([0.08, 0.045, 0.5])
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([-0.4, 0.0, -1.0])
    assert ppo_value_loss(values, old, returns, clip=None).tolist() == pytest.approx([0.08, 0.0, 0.5])


def test_gradients() -> None:
    now, old, advantages = logs(*RATIOS, grad=True), row(*[-1.0] * 6), row(*ADVANTAGES)
    reference = logs(0.7, 1.3, 2.0, 0.4, 1.1, 0.8)
    mask = torch.tensor([True, True, True, True, False, True])
    for estimator in ("k1", "k2", "k3"):
        torch.autograd.gradcheck(
            lambda x, e=estimator: grpo_loss(
                x, old, advantages, reference, clip_high=0.3, kl_weight=0.5, kl_estimator=e, mask=mask
            ),
            now,
        )
    torch.autograd.gradcheck(
        lambda v: ppo_value_loss(v, row(0.5, 0.5, 0.5), row(1.0, 1.0, 1.0)), row(0.6, 1.0, 0.0, grad=True)
    )
    torch.autograd.gradcheck(lambda x: rloo_loss(x, old, row(2.0, -1.0), [2, 4]), now)
    torch.autograd.gradcheck(lambda x: reinforce_loss(x, advantages), now)
    torch.autograd.gradcheck(entropy, torch.randn(3, 5, dtype=torch.float64).requires_grad_())


def test_grpo_by_hand() -> None:
    """Ratio 1.1 and advantage 2, π_ref / π = 2: −2.2 + 0.5 × (2 − 1 − ln 2); slopes −2.2 + 0.5 × (1 − 2)."""
    now = row(-1.0, grad=True)
    arguments = (now, now.detach() - math.log(1.1), row(2.0), now.detach() + math.log(2))
    loss = grpo_loss(*arguments, kl_weight=0.5)
    assert loss.item() == pytest.approx(-2.2 + 0.5 * (1 - math.log(2)))
    loss.backward()
    assert now.grad is not None
    assert now.grad.item() == pytest.approx(-2.2 - 0.5)
    assert grpo_loss(*arguments).item() == pytest.approx(-2.2)


def test_rloo_by_hand() -> None:
    """Two answers of 2 and 1 tokens: ratios 1.1 × 0.9 and 1.5 (cut)."""
    now = logs(1.1, 0.9, 1.5, grad=True)
    loss = rloo_loss(now, row(-1.0, -1.0, -1.0), row(-2.0, 3.0), [2, 1])
    assert loss.tolist() == pytest.approx([2 * 0.99, -3 * 1.2])
    loss.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == pytest.approx([1.98, 1.98, 0.0])


def test_reinforce_by_hand() -> None:
    now = row(-0.5, -2.0, grad=True)
    loss = reinforce_loss(now, row(2.0, -3.0))
    assert loss.tolist() == [1.0, -6.0]
    loss.sum().backward()
    assert now.grad is not None
    assert now.grad.tolist() == [-2.0, 3.0]


@given(values=st.lists(st.tuples(st.floats(-9, 0), st.floats(-5, 5)), min_size=1, max_size=6))
def test_on_policy_all_have_one_gradient(values: list[tuple[float, float]]) -> None:
    """Where the policy is the one that sampled, PPO, GRPO and RLOO follow −A ∇ log π, as REINFORCE does."""
    now = row(*(value for value, _ in values), grad=True)
    old, advantages = now.detach().clone(), row(*(value for _, value in values))
    losses = [
        reinforce_loss(now, advantages),
        ppo_policy_loss(now, old, advantages),
        grpo_loss(now, old, advantages, old, kl_weight=0.3),
        rloo_loss(now, old, advantages, [1] * len(values)),
    ]
    gradients = [torch.autograd.grad(loss.sum(), now)[0] for loss in losses]
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0])
    for loss in losses[1:]:
        torch.testing.assert_close(loss.detach(), -advantages)


def test_estimates_of_the_divergence_by_hand() -> None:
    """d = ln 2."""
    now = row(-1.0, grad=True)
    expected = {"k1": (math.log(2), 1.0), "k2": (math.log(2) ** 2 / 2, math.log(2)), "k3": (0.5 - 1 + math.log(2), 0.5)}
    for estimator, (value, slope) in expected.items():
        estimate = kl_estimate(now, now.detach() - math.log(2), estimator)  # type: ignore[arg-type]
        assert estimate.item() == pytest.approx(value)
        assert torch.autograd.grad(estimate.sum(), now)[0].item() == pytest.approx(slope)
    with pytest.raises(UserError, match="unknown KL estimator 'k4'"):
        kl_estimate(now, now, "k4")  # type: ignore[arg-type]


def test_estimates_average_to_the_divergence() -> None:
    """Over all tokens, weighted as the policy samples them: k1 and k3 exactly; the gradient of k2 is its gradient."""
    logits, other = torch.randn(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    policy, reference = logits.log_softmax(-1), other.log_softmax(-1)
    true = (policy.exp() * (policy - reference)).sum()
    weights = policy.exp().detach()
    for estimator in ("k1", "k3"):
        estimate = (weights * kl_estimate(policy, reference, estimator)).sum()  # type: ignore[arg-type]
        torch.testing.assert_close(estimate, true)
    (wanted,) = torch.autograd.grad(true, logits, retain_graph=True)
    (k2,) = torch.autograd.grad((weights * kl_estimate(policy, reference, "k2")).sum(), logits, retain_graph=True)
    torch.testing.assert_close(k2, wanted)
    (k1,) = torch.autograd.grad((weights * kl_estimate(policy, reference, "k1")).sum(), logits)
    torch.testing.assert_close(k1, torch.zeros_like(k1))
    assert (kl_estimate(policy, reference, "k3") >= 0).all()


def test_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf], [math.log(3.0), 0.0, -torch.inf]], requires_grad=True)
    value = entropy(logits)
    assert value.tolist() == pytest.approx([math.log(2), 0.75 * math.log(4 / 3) + 0.25 * math.log(4)])
    value.sum().backward()
    assert logits.grad is not None
    # −p (log p + H)
    slope = -0.75 * (math.log(0.75) + value[1].item())
    assert logits.grad.tolist()[0] == pytest.approx([0.0, 0.0, 0.0], abs=1e-7)
    assert logits.grad.tolist()[1] == pytest.approx([slope, -slope, 0.0], abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_padded_tokens_never_matter(bad: float) -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    losses: list[Callable[..., torch.Tensor]] = [
        lambda a, b, c, d, m=None: ppo_policy_loss(a, b, c, mask=m),
        lambda a, b, c, d, m=None: ppo_value_loss(a, b, c, mask=m),
        lambda a, b, c, d, m=None: grpo_loss(a, b, c, d, kl_weight=0.2, mask=m),
        lambda a, b, c, d, m=None: reinforce_loss(a, c, mask=m),
    ]
    tensors = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for loss in losses:
        padded = tensors.masked_fill(~mask, bad).clone()
        first = padded[0].clone().requires_grad_()
        terms = loss(first, *padded[1:], mask)
        assert (terms[~mask] == 0).all()
        terms.sum().backward()
        plain = tensors[0][mask].requires_grad_()
        expected = loss(plain, *(tensor[mask] for tensor in tensors[1:]))
        expected.sum().backward()
        torch.testing.assert_close(terms[mask], expected)
        assert first.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(first.grad[mask], plain.grad)
        assert (first.grad[~mask] == 0).all()
    assert not ppo_clipped(tensors[0], tensors[0] - 1, tensors[1].abs(), mask=mask)[~mask].any()


def test_reductions_by_hand() -> None:
    terms, counts, step = row(1.0, 3.0, 10.0), [2, 1], StepSize(rows=4, tokens=6)
    assert row_sums(terms, counts).tolist() == [4.0, 10.0]
    assert spread(row(7.0, 8.0), counts).tolist() == [7.0, 7.0, 8.0]
    assert step_share(terms, counts, step).item() == pytest.approx(14 / 6)
    assert step_share(terms, counts, step, "row").item() == pytest.approx((2 + 10) / 4)
    assert step_share(terms, counts, step, "constant", max_tokens=5).item() == pytest.approx(14 / 20)
    assert step_share(row(2.0), [0, 1], StepSize(2, 1), "row").item() == 1.0
    assert step_share(row(), [], StepSize(0, 0), "row").item() == 0.0


@given(
    values=st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=5), min_size=1, max_size=6),
    cuts=st.sets(st.integers(1, 5)),
    normalisation=st.sampled_from(["row", "token", "constant"]),
)
def test_micro_batches_add_up(values: list[list[float]], cuts: set[int], normalisation: str) -> None:
    step = StepSize(len(values), sum(len(own) for own in values))

    def share(rows: list[list[float]]) -> torch.Tensor:
        flat = row(*(value for own in rows for value in own))
        return step_share(flat, [len(own) for own in rows], step, normalisation, max_tokens=8)  # type: ignore[arg-type]

    bounds = [0, *sorted(cut for cut in cuts if cut < len(values)), len(values)]
    parts = [share(values[start:stop]) for start, stop in pairwise(bounds)]
    torch.testing.assert_close(torch.stack(parts).sum(), share(values))


def test_errors() -> None:
    one = row(1.0)
    with pytest.raises(UserError, match="unknown normalisation 'tokens'"):
        step_share(one, [1], StepSize(1, 1), "tokens")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="max_tokens is 0"):
        step_share(one, [1], StepSize(1, 1), "constant")
    with pytest.raises(ValueError, match="add up to 2, not to 1"):
        row_sums(one, [2])
    with pytest.raises(UserError, match="clip is 0"):
        ppo_policy_loss(one, one, one, clip=0.0)
    with pytest.raises(UserError, match="clip is -1"):
        ppo_value_loss(one, one, one, clip=-1.0)
    with pytest.raises(ValueError, match="no reference_log_probs"):
        grpo_loss(one, one, one, kl_weight=0.1)
    with pytest.raises(ValueError, match="shapes differ"):
        ppo_policy_loss(one, one, one[:, None])
