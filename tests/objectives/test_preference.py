"""Losses of preferences: by hand, their gradients, and what must not change them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm.errors import UserError
from graftlm.objectives import (
    DPO_LOSS_TYPES,
    dpo_loss,
    kto_loss,
    kto_reference_point,
    orpo_loss,
    simpo_loss,
)

NUMBER = st.floats(-50, 50)


def row(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def slopes(loss: Callable[..., torch.Tensor], *values: float) -> list[float]:
    """∂ loss / ∂ each of its numbers."""
    leaves = [row(value, grad=True) for value in values]
    return [gradient.item() for gradient in torch.autograd.grad(loss(*leaves).sum(), leaves)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("options", "value", "at_reference"),
    [
        ({}, 0.554355, math.log(2)),
        ({"label_smoothing": 0.1}, 0.584355, math.log(2)),
        ({"loss_type": "hinge"}, 0.7, 1.0),
        ({"loss_type": "ipo"}, 4.0, 25.0),
        # (0.9 × 0.55435524 − 0.1 × 0.85435524) / 0.8
        ({"loss_type": "robust", "label_smoothing": 0.1}, 0.516855244, math.log(2)),
    ],
)
def test_dpo_by_hand(options: dict[str, object], value: float, at_reference: float) -> None:
    actual = dpo_loss(row(1.0, 0.0), row(-2.0, 0.0), beta=0.1, **options)  # type: ignore[arg-type]
    assert actual.tolist() == pytest.approx([value, at_reference], abs=1e-6)
    assert dpo_loss(torch.tensor(1.0), torch.tensor(-2.0), **options).item() == pytest.approx(value, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "slope"),  # with respect to d = 1 − (−2) = 3, β = 0.1
    [
        ({}, -0.1 * sigmoid(-0.3)),
        ({"label_smoothing": 0.1}, -0.1 * (0.9 * sigmoid(-0.3) - 0.1 * sigmoid(0.3))),
        ({"loss_type": "robust", "label_smoothing": 0.1}, -0.1 * (0.9 * sigmoid(-0.3) + 0.1 * sigmoid(0.3)) / 0.8),
        ({"loss_type": "hinge"}, -0.1),
        ({"loss_type": "ipo"}, 2 * (3 - 5)),
    ],
)
def test_dpo_slopes_by_hand(options: dict[str, object], slope: float) -> None:
    """The better answer is pushed up and the worse one down, by the same."""
    assert slopes(lambda a, b: dpo_loss(a, b, beta=0.1, **options), 1.0, -2.0) == pytest.approx([slope, -slope])  # type: ignore[arg-type]


def test_dpo_per_token() -> None:
    """4 and −6 over 4 and 3 tokens: 1 and −2 a token, so the values of the summed forms at 1 and −2."""
    lengths = {"chosen_tokens": torch.tensor([4]), "rejected_tokens": torch.tensor([3])}
    for summed in ("sigmoid", "ipo"):
        form = {"loss_type": f"{summed}_per_token", **lengths}
        expected = dpo_loss(row(1.0), row(-2.0), loss_type=summed)  # type: ignore[arg-type]
        assert dpo_loss(row(4.0), row(-6.0), **form).item() == pytest.approx(expected.item())  # type: ignore[arg-type]
        slope = slopes(lambda a, b, s=summed: dpo_loss(a, b, loss_type=s), 1.0, -2.0)
        per_token = slopes(lambda a, b, f=form: dpo_loss(a, b, **f), 4.0, -6.0)
        assert per_token == pytest.approx([slope[0] / 4, slope[1] / 3])
    assert dpo_loss(row(4.0), row(-6.0), loss_type="ipo_per_token", **lengths).item() == pytest.approx(4.0)
    assert dpo_loss(row(4.0), row(-6.0), loss_type="ipo").item() == pytest.approx(25.0)


@pytest.mark.parametrize("loss_type", DPO_LOSS_TYPES)
def test_dpo_gradients(loss_type: str) -> None:
    lengths = {"chosen_tokens": torch.tensor([4, 2]), "rejected_tokens": torch.tensor([3, 7])}
    smoothing = 0.2 if loss_type in ("sigmoid", "robust") else 0.0
    torch.autograd.gradcheck(
        lambda a, b: dpo_loss(a, b, beta=0.3, loss_type=loss_type, label_smoothing=smoothing, **lengths),  # type: ignore[arg-type]
        (row(1.2, -3.0, grad=True), row(-2.1, 0.4, grad=True)),
    )


@given(a=NUMBER, b=NUMBER, shift=NUMBER, smoothing=st.floats(0, 1), beta=st.floats(0.01, 2))
def test_dpo_symmetries(a: float, b: float, shift: float, smoothing: float, beta: float) -> None:
    """Swapped answers are flipped labels; only the difference matters; the two orders differ by βd."""
    loss = dpo_loss(row(a), row(b), beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(dpo_loss(row(b), row(a), beta=beta, label_smoothing=1 - smoothing), loss)
    for loss_type in ("sigmoid", "hinge", "ipo"):
        here = dpo_loss(row(a), row(b), beta=beta, loss_type=loss_type)  # type: ignore[arg-type]
        there = dpo_loss(row(a + shift), row(b + shift), beta=beta, loss_type=loss_type)  # type: ignore[arg-type]
        torch.testing.assert_close(here, there)
    swapped = dpo_loss(row(b), row(a), beta=beta) - dpo_loss(row(a), row(b), beta=beta)
    torch.testing.assert_close(swapped, row(beta * (a - b)))


@given(a=NUMBER, b=NUMBER, share=st.floats(0, 0.45))
def test_robust_dpo_is_unbiased(a: float, b: float, share: float) -> None:
    """Its mean over labels of which a share is flipped is the plain loss of the true label."""
    options = {"loss_type": "robust", "label_smoothing": share}
    right, wrong = dpo_loss(row(a), row(b), **options), dpo_loss(row(b), row(a), **options)  # type: ignore[arg-type]
    torch.testing.assert_close((1 - share) * right + share * wrong, dpo_loss(row(a), row(b)), atol=1e-6, rtol=1e-6)


def test_dpo_keeps_extremes_finite() -> None:
    values = row(1e4, -1e4, grad=True)
    loss = dpo_loss(values, -values.detach(), beta=1.0)
    assert loss.tolist() == [0.0, 2e4]
    assert torch.autograd.grad(loss.sum(), values)[0].tolist() == [0.0, -1.0]


def test_kto_by_hand() -> None:
    good = torch.tensor([True, False])
    assert kto_loss(row(1.0, -2.0), good, 0.5, beta=0.1).tolist() == pytest.approx([0.487503, 0.437823], abs=1e-6)
    assert kto_loss(row(0.0, 0.0), good, torch.tensor(0.0)).tolist() == [0.5, 0.5]
    weighted = kto_loss(row(1.0, -2.0), good, 0.5, desirable_weight=3.0, undesirable_weight=0.5)
    assert weighted.tolist() == pytest.approx([3 * 0.4875026, 0.5 * 0.4378235], abs=1e-6)


def test_kto_slopes_by_hand() -> None:
    """σ' at β(r − z₀): the good answer is pushed up, the bad one down; z₀ is a constant."""
    bend = [sigmoid(x) * sigmoid(-x) for x in (0.05, -0.25)]
    ratios, z0 = row(1.0, -2.0, grad=True), row(0.5, 0.5, grad=True)
    loss = kto_loss(ratios, torch.tensor([True, False]), z0, desirable_weight=3.0, undesirable_weight=2.0)
    loss.sum().backward()
    assert ratios.grad is not None
    assert ratios.grad.tolist() == pytest.approx([-0.1 * 3 * bend[0], 0.1 * 2 * bend[1]])
    assert z0.grad is None


def test_kto_gradients() -> None:
    good = torch.tensor([True, False, True])
    torch.autograd.gradcheck(lambda r: kto_loss(r, good, 0.7, beta=0.4), row(1.2, -3.0, -0.2, grad=True))


@given(ratio=NUMBER, z0=st.floats(0, 20))
def test_kto_mirrors(ratio: float, z0: float) -> None:
    """Good at r is bad at 2 z₀ − r, and good and bad at one r add up to 1."""
    loss = kto_loss(row(ratio, 2 * z0 - ratio, ratio), torch.tensor([True, False, False]), z0)
    torch.testing.assert_close(loss[0], loss[1])
    torch.testing.assert_close(loss[0] + loss[2], row(1.0)[0])


def test_reference_point_belongs_to_an_adapter() -> None:
    assert kto_reference_point(row(1.0, -0.5, 1.0)).item() == 0.5
    assert kto_reference_point(row(1.0, -3.0)).item() == 0.0, "a divergence is not negative: the mean is clamped"
    assert not kto_reference_point(row(1.0, grad=True)).requires_grad
    beside = kto_loss(row(1.0, 1.0), torch.tensor([True, True]), row(0.5, 9.0))
    alone = [kto_loss(row(1.0), torch.tensor([True]), z0).item() for z0 in (0.5, 9.0)]
    assert beside.tolist() == alone
    with pytest.raises(UserError, match="no log-ratio"):
        kto_reference_point(row())
    with pytest.raises(UserError, match="row 1 is not a finite number"):
        kto_reference_point(row(1.0, math.nan))


def test_orpo_by_hand() -> None:
    """Means ln ½ and ln ¼: odds 1 and ⅓, so the log odds ratio is ln 3 and σ of it ¾."""
    loss = orpo_loss(row(math.log(0.5)), row(math.log(0.25)), beta=0.2)
    assert loss.item() == pytest.approx(math.log(2) - 0.2 * math.log(0.75), abs=1e-12)
    # d log odds / d log p = 1 / (1 − p): 2 and 4/3; −β σ(−ln 3) = −0.2 × ¼
    slope = slopes(lambda a, b: orpo_loss(a, b, beta=0.2), math.log(0.5), math.log(0.25))
    assert slope == pytest.approx([-1 - 0.05 * 2, 0.05 * 4 / 3])
    torch.autograd.gradcheck(
        lambda a, b: orpo_loss(a, b, beta=0.3), (row(-1.2, -0.1, grad=True), row(-0.4, -6.0, grad=True))
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_of_answers_known_by_heart(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, -1e-12, -200.0, 0.0], dtype=dtype, requires_grad=True)
    loss = orpo_loss(values, values.flip(0))
    loss.sum().backward()
    assert values.grad is not None
    assert loss.isfinite().all()
    assert values.grad.isfinite().all()


def test_simpo_by_hand() -> None:
    """2 × (−0.5 − (−1.5)) − 0.5 = 1.5."""
    loss = simpo_loss(row(-0.5), row(-1.5), beta=2.0, margin=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1.5)), abs=1e-12)
    slope = slopes(lambda a, b: simpo_loss(a, b, beta=2.0, margin=0.5), -0.5, -1.5)
    assert slope == pytest.approx([-2 * sigmoid(-1.5), 2 * sigmoid(-1.5)])
    torch.autograd.gradcheck(simpo_loss, (row(-1.2, -0.1, grad=True), row(-0.4, -6.0, grad=True)))


@given(a=st.floats(-20, 0), b=st.floats(-20, 0))
def test_simpo_without_a_margin_is_dpo_of_means(a: float, b: float) -> None:
    torch.testing.assert_close(simpo_loss(row(a), row(b), beta=1.5, margin=0), dpo_loss(row(a), row(b), beta=1.5))


def test_losses_are_terms_of_rows() -> None:
    """Nothing is averaged, so what stands beside a row changes nothing; float32 stays float32."""
    a, b = torch.randn(2, 7).neg().abs().neg()
    good = torch.arange(7) % 2 == 0
    for loss in (
        dpo_loss,
        orpo_loss,
        simpo_loss,
        lambda x, y: kto_loss(x, good[: len(x)] if len(x) > 1 else good[:1], 0.3),
    ):
        terms = loss(a, b)
        assert terms.shape == (7,)
        assert terms.dtype is torch.float32
        torch.testing.assert_close(loss(a[:1], b[:1]), terms[:1], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: dpo_loss(a, a, loss_type="ipo_per_tokens"), "Did you mean 'ipo_per_token'"),  # type: ignore[arg-type]
        (lambda a: dpo_loss(a, a, beta=0.0), "beta is 0; it must be above 0"),
        (lambda a: dpo_loss(a, a, loss_type="hinge", label_smoothing=0.1), "'hinge' has none"),
        (lambda a: dpo_loss(a, a, loss_type="robust", label_smoothing=0.5), "from 0 to below 0.5"),
        (lambda a: dpo_loss(a, a, label_smoothing=-0.1), "from 0 to 1"),
        (lambda a: dpo_loss(a, a, loss_type="ipo_per_token"), "needs chosen_tokens"),
        (
            lambda a: dpo_loss(a, a, loss_type="ipo_per_token", chosen_tokens=a, rejected_tokens=a - 1),
            "rejected_tokens: the answer of row 0 has no token",
        ),
        (lambda a: kto_loss(a, a > 0, 0.0, desirable_weight=-1.0), "desirable_weight is -1"),
        (lambda a: orpo_loss(a, a, beta=-1.0), "beta is -1"),
        (lambda a: simpo_loss(a, a, margin=math.nan), "margin is nan"),
    ],
)
def test_options_out_of_range(call: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(row(1.0, 2.0))


def test_shapes_do_not_broadcast() -> None:
    column = row(1.0, 2.0)[:, None]
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: dpo_loss(row(1.0, 2.0), column),
        lambda: kto_loss(row(1.0, 2.0), torch.tensor([True]), 0.0),
        lambda: kto_loss(row(1.0, 2.0), torch.tensor([True, False]), column),
        lambda: orpo_loss(row(-1.0), row(-1.0, -2.0)),
        lambda: simpo_loss(column, row(1.0, 2.0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="shapes differ"):
            call()
