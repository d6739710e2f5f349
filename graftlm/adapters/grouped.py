"""Low-rank products of several adapters beside one base product.

On a CPU a loop of in-place products over the spans, inside one autograd function, is the fastest of what was
tried (docs/decisions.md). Where the base weight is a plain matrix the base product is fused in: its input
gradient and the adapters' share one buffer, and nothing is added twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from graftlm.adapters.routing import Routing, Span
from graftlm.base.products import linear, matmul


@dataclass(frozen=True)
class Group:
    """One adapter's part of a product: where it applies and how; its factors travel beside it."""

    name: str
    spans: tuple[Span, ...]
    scale: float
    dropout: float


@dataclass(frozen=True)
class Product:
    """Everything but the tensors: the groups, the routing that they come from, and the place's number."""

    groups: tuple[Group, ...]
    routing: Routing
    place: int

    def drops(self, group: Group) -> bool:
        """Whether a group's inputs are dropped out in this call."""
        return group.dropout > 0.0 and group.name in self.routing.dropping

    def keep_mask(self, group: Group, span: Span, like: torch.Tensor) -> torch.Tensor | None:
        """Dropout factors of a group over one span, as wide as ``like``."""
        return self.routing.keep_mask(group.name, span, like.shape[-1], self.place, group.dropout, like)


def adapted_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    product: Product,
    factors: list[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """y = x Wᵀ + b, plus scale · (x Aᵀ) Bᵀ on each group's spans.

    x (tokens, in); weight (out, in) and bias frozen; factors A (r, in), B (out, r) for each group → (tokens, out).
    """
    result: torch.Tensor = _AdaptedLinear.apply(x, weight, bias, product, *_flat(factors))  # type: ignore[no-untyped-call]
    return result


def add_low_rank(
    y: torch.Tensor, x: torch.Tensor, product: Product, factors: list[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """y plus scale · (x Aᵀ) Bᵀ on each group's spans, for a base product that was made elsewhere.

    y (tokens, out), x (tokens, in) → (tokens, out), written into y.
    """
    result: torch.Tensor = _AddLowRank.apply(y, x, product, *_flat(factors))  # type: ignore[no-untyped-call]
    return result


def _flat(factors: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for pair in factors for tensor in pair]


def _forward(
    y: torch.Tensor, x: torch.Tensor, product: Product, factors: tuple[torch.Tensor, ...]
) -> list[torch.Tensor]:
    """Add every group's update to y in place; gives the inner products h = x Aᵀ, span by span."""
    inner: list[torch.Tensor] = []
    for number, group in enumerate(product.groups):
        A, B = factors[2 * number], factors[2 * number + 1]
        for span in group.spans:
            rows = _input(x, product, group, span, A.dtype)
            h = matmul(rows, A.T)
            add_outer(y[span.start : span.stop], h, B, group.scale)
            inner.append(h)
    return inner


def add_outer(y: torch.Tensor, h: torch.Tensor, B: torch.Tensor, scale: float) -> None:
    """Add scale · h Bᵀ to y (tokens, out) in place; h (tokens, r), B (out, r)."""
    if y.dtype == h.dtype == B.dtype:
        y.addmm_(h, B.T, alpha=scale)
    else:
        y += (scale * matmul(h, B.T)).to(y.dtype)


def _input(x: torch.Tensor, product: Product, group: Group, span: Span, dtype: torch.dtype) -> torch.Tensor:
    rows = x[span.start : span.stop].to(dtype)
    mask = product.keep_mask(group, span, rows)
    return rows if mask is None else rows * mask


def _backward(
    gy: torch.Tensor,
    gx: torch.Tensor | None,
    x: torch.Tensor,
    product: Product,
    factors: tuple[torch.Tensor, ...],
    inner: tuple[torch.Tensor, ...],
    wanted: tuple[bool, ...],
) -> list[torch.Tensor | None]:
    """Gradients of the factors that are ``wanted``; each group's part of the input gradient is added to gx in place."""
    gradients: list[torch.Tensor | None] = []
    position = 0
    for number, group in enumerate(product.groups):
        A, B = factors[2 * number], factors[2 * number + 1]
        gA = torch.zeros_like(A) if wanted[2 * number] else None
        gB = torch.zeros_like(B) if wanted[2 * number + 1] else None
        for span in group.spans:
            g = gy[span.start : span.stop].to(B.dtype)
            h = inner[position]
            position += 1
            gh = matmul(g, B).mul_(group.scale)
            if gA is not None:
                gA += matmul(gh.T, _input(x, product, group, span, A.dtype))
            if gB is not None:
                gB.T.add_(matmul(h.T, g), alpha=group.scale)  # this way round it is faster by far
            if gx is not None:
                part = gx[span.start : span.stop]
                if not product.drops(group) and part.dtype == A.dtype:
                    part.addmm_(gh, A)
                else:
                    update = matmul(gh, A)
                    mask = product.keep_mask(group, span, update)
                    part += (update if mask is None else update * mask).to(part.dtype)
        gradients += [gA, gB]
    return gradients


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        product: Product,
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        y = linear(x, weight, bias)
        inner = _forward(y, x, product, factors)
        ctx.product, ctx.n_factors = product, len(factors)
        ctx.save_for_backward(x, weight, *factors, *inner)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[Any, ...]:
        x, weight, *rest = ctx.saved_tensors
        factors, inner = tuple(rest[: ctx.n_factors]), tuple(rest[ctx.n_factors :])
        gx = matmul(gy, weight) if ctx.needs_input_grad[0] else None
        gradients = _backward(gy, gx, x, ctx.product, factors, inner, ctx.needs_input_grad[4:])
        return gx, None, None, None, *gradients


class _AddLowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, x: torch.Tensor, product: Product, *factors: torch.Tensor) -> torch.Tensor:
        inner = _forward(y, x, product, factors)
        ctx.mark_dirty(y)
        ctx.product, ctx.n_factors = product, len(factors)
        ctx.save_for_backward(x, *factors, *inner)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        factors, inner = tuple(rest[: ctx.n_factors]), tuple(rest[ctx.n_factors :])
        gx = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        gradients = _backward(gy, gx, x, ctx.product, factors, inner, ctx.needs_input_grad[3:])
        return gy, gx, None, *gradients


def add_to_spans(y: torch.Tensor, parts: list[tuple[Span, torch.Tensor]]) -> torch.Tensor:
    """A copy of y (tokens, …) with each part (span tokens, …) added on its span. Spans may overlap."""
    if not parts:
        return y
    spans = tuple(span for span, _ in parts)
    result: torch.Tensor = _AddToSpans.apply(y, spans, *(part for _, part in parts))  # type: ignore[no-untyped-call]
    return result


class _AddToSpans(torch.autograd.Function):
    """One copy forward and none backward, where a chain of slice assignments would copy at each."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, spans: tuple[Span, ...], *parts: torch.Tensor) -> torch.Tensor:
        ctx.spans, ctx.dtypes = spans, [part.dtype for part in parts]
        result = y.clone()
        for span, part in zip(spans, parts, strict=True):
            result[span.start : span.stop] += part.to(y.dtype)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[Any, ...]:
        parts = [gy[span.start : span.stop].to(dtype) for span, dtype in zip(ctx.spans, ctx.dtypes, strict=True)]
        return gy, None, *parts
