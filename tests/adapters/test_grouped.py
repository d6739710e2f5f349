"""Products of several adapters at once: equal to the plain formula, to second thoughts of autograd, in every shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlm import AdaptedModel, LoRA, Routing
from graftlm.adapters.grouped import Group, Product, adapted_linear, add_low_rank
from graftlm.adapters.routing import RowAdapters, Span
from tests.adapters.test_invariants import ROUTINGS, assert_gradients_close, loss_and_gradients, make_rows, routed
from tests.families import add_random, make_base, relative

Factors = list[tuple[torch.Tensor, torch.Tensor]]
IN, OUT = 5, 4
SCALES = {"a": 2.0, "b": 0.5, "c": 1.25}
RANKS = {"a": 3, "b": 1, "c": 4}


def product_of(rows: list[RowAdapters], sizes: list[int]) -> Product:
    routing = Routing.of_rows(rows, sizes)
    groups = tuple(Group(name, spans, SCALES[name], 0.0) for name, spans in routing.spans.items())
    return Product(groups, routing, 0)


def make(product: Product, dtype: torch.dtype = torch.float64, grad: bool = True) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(grad)

    return {
        "x": draw(product.routing.tokens, IN),
        "weight": draw(OUT, IN).detach(),
        "bias": draw(OUT).detach(),
        "factors": [(draw(RANKS[g.name], IN), draw(OUT, RANKS[g.name])) for g in product.groups],
    }


def naive(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, product: Product, factors: Factors
) -> torch.Tensor:
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    for group, (A, B) in zip(product.groups, factors, strict=True):
        served = torch.zeros(len(x), 1, dtype=x.dtype)
        for span in group.spans:
            served[span.start : span.stop] += 1
        y = y + served * (group.scale * (x @ A.T) @ B.T)
    return y


def fused(x: torch.Tensor, weight: torch.Tensor, bias: Any, product: Product, factors: Factors) -> torch.Tensor:
    return adapted_linear(x, weight, bias, product, factors)


def beside(x: torch.Tensor, weight: torch.Tensor, bias: Any, product: Product, factors: Factors) -> torch.Tensor:
    return add_low_rank(nn.functional.linear(x, weight, bias), x, product, factors)


PRODUCTS = pytest.mark.parametrize("function", [fused, beside])
CASES: dict[str, tuple[list[RowAdapters], list[int]]] = {
    "one": (["a"], [4]),
    "ragged": (["a", "b", "c"], [1, 5, 3]),
    "several spans": (["a", "b", "a", None, "a"], [2, 3, 1, 2, 4]),
    "empty spans": (["a", "b", "a", "c"], [0, 3, 2, 0]),
    "stacks": ([("a", "b"), "b", ("b", "a", "c"), None], [2, 2, 3, 1]),
}


@PRODUCTS
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_formula(function: Callable[..., torch.Tensor], with_bias: bool, case: str) -> None:
    product = product_of(*CASES[case])
    parts = make(product)
    if not with_bias:
        parts["bias"] = None
    actual, expected = function(product=product, **parts), naive(product=product, **parts)
    torch.testing.assert_close(actual, expected)
    upstream = torch.randn(actual.shape, dtype=actual.dtype)
    leaves = [parts["x"], *(tensor for pair in parts["factors"] for tensor in pair)]
    for ours, theirs in zip(
        torch.autograd.grad(actual, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@PRODUCTS
@pytest.mark.parametrize("case", CASES)
def test_gradcheck(function: Callable[..., torch.Tensor], case: str) -> None:
    product = product_of(*CASES[case])
    parts = make(product)
    flat = [tensor for pair in parts["factors"] for tensor in pair]

    def run(x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        return function(x, parts["weight"], parts["bias"], product, pairs)

    assert torch.autograd.gradcheck(run, (parts["x"], *flat))


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", None, ("a", "c"), ("c", "b", "a")]), st.integers(0, 4)),
        min_size=1,
        max_size=8,
    )
)
def test_any_routing(rows: list[tuple[RowAdapters, int]]) -> None:
    product = product_of([row for row, _ in rows], [size for _, size in rows])
    parts = make(product, grad=False)
    expected = naive(product=product, **parts)
    torch.testing.assert_close(fused(product=product, **parts), expected)
    torch.testing.assert_close(beside(product=product, **parts), expected)


@PRODUCTS
def test_parts_without_gradients_are_left_alone(function: Callable[..., torch.Tensor]) -> None:
    """The first layer's input wants none, and a frozen adapter in a stack wants none either."""
    product = product_of(["a", ("a", "b")], [2, 3])
    parts = make(product)
    parts["x"] = parts["x"].detach()
    (A, B), frozen = parts["factors"][0], [tensor.detach() for tensor in parts["factors"][1]]
    parts["factors"][1] = tuple(frozen)
    y = function(product=product, **parts)
    y.square().sum().backward()
    expected = torch.autograd.grad(naive(product=product, **parts).square().sum(), [A, B])
    torch.testing.assert_close((A.grad, B.grad), expected)
    assert frozen[0].grad is None


@PRODUCTS
def test_mixed_precision(function: Callable[..., torch.Tensor]) -> None:
    """A bfloat16 base beside float32 adapters: the update is made in float32 and rounded once."""
    product = product_of(["a", None, ("b", "c")], [3, 1, 4])
    exact = make(product)
    x, weight, bias = (exact[key].detach().to(torch.bfloat16) for key in ("x", "weight", "bias"))
    factors = [(A.detach().float().requires_grad_(), B.detach().float().requires_grad_()) for A, B in exact["factors"]]
    x.requires_grad_()
    y = function(x, weight, bias, product, factors)
    assert y.dtype is torch.bfloat16
    wide = x.detach().double().requires_grad_()
    pairs = [(A.detach().double().requires_grad_(), B.detach().double().requires_grad_()) for A, B in factors]
    expected = naive(wide, weight.double(), bias.double(), product, pairs)
    assert relative(y.detach(), expected.detach()) < 1e-2
    upstream = torch.ones_like(expected)
    y.backward(upstream.to(y.dtype))
    expected.backward(upstream)
    assert x.grad is not None
    assert x.grad.dtype is torch.bfloat16
    assert relative(x.grad, wide.grad) < 1e-2
    for ours, theirs in zip(factors, pairs, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.grad.dtype is torch.float32
            assert relative(one.grad, other.grad) < 1e-2


def test_spans_join_neighbours_only() -> None:
    spans = Routing.of_rows(["a", ("b", "a"), None, "a", "b"], [2, 3, 1, 2, 2]).spans
    assert spans == {"a": (Span(0, 5), Span(6, 8)), "b": (Span(2, 5), Span(8, 10))}


# --- layers that have no plain weight ---------------------------------------------------------------------------


class Bytes(nn.Linear):
    """As quantised layers are: bytes and a step instead of a weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        step = linear.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((linear.weight.detach() / step).round().to(torch.int8), requires_grad=False)
        self.register_buffer("step", step)
        if linear.bias is not None:
            self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape
        return (x.view(-1, shape[-1]) @ (self.weight.to(x.dtype) * self.step).T).view(*shape[:-1], -1)


def test_a_quantised_layer_takes_the_general_path_with_equal_results() -> None:
    quantised, dense = make_base("llama"), make_base("llama")
    for name in ("q_proj", "o_proj"):
        for layer, other in zip(quantised.model.layers, dense.model.layers, strict=True):
            small = Bytes(getattr(layer.self_attn, name))
            setattr(layer.self_attn, name, small)
            with torch.no_grad():
                getattr(other.self_attn, name).weight.copy_(small.weight.float() * small.step)
    models = [AdaptedModel(quantised), AdaptedModel(dense)]
    for model in models:
        add_random(model, {"a": LoRA(rank=4), "b": LoRA(rank=3), "c": LoRA(rank=2)})
    rows = routed(make_rows(), ROUTINGS)
    assert models[0].places.linears["model.layers.0.self_attn.q_proj"].dense_weight() is None
    for checkpointing in (False, True):
        for model in models:
            model.gradient_checkpointing = checkpointing
        (first, ours), (second, theirs) = (loss_and_gradients(model, rows, [0, 1, 2, 3, 4]) for model in models)
        assert all(relative(a, b) < 1e-5 for a, b in zip(first, second, strict=True))
        assert_gradients_close(ours, theirs)
