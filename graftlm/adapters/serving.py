"""Updates of several adapters without gradients: the tokens of each one are gathered, whatever the order of the rows.

A step of decoding has one token a row, and rows come in any order: a product for every span would be one for every row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from graftlm.adapters.grouped import add_outer, add_to_spans
from graftlm.adapters.method import LowRank
from graftlm.adapters.routing import Routing


def serves(routing: Routing) -> bool:
    """Whether a call needs neither gradients nor dropout."""
    return not torch.is_grad_enabled() and not routing.dropping


def add_low_rank_served(
    y: torch.Tensor, x: torch.Tensor, routing: Routing, updates: Mapping[str, LowRank]
) -> torch.Tensor:
    """y plus scale · (x Aᵀ) Bᵀ on each adapter's tokens: y (tokens, out), written to; x (tokens, in)."""
    found = routing.gathered(tuple(updates), x.device)
    if found is None:
        for name, update in updates.items():
            A, B = update.factors()
            for start, stop in routing.spans[name]:
                add_outer(y[start:stop], x[start:stop].to(A.dtype) @ A.T, B, update.scale)
        return y
    chosen = x.index_select(0, found.index)
    added = y.new_empty(len(chosen), y.shape[1])
    for name, start, stop in found.parts:
        update = updates[name]
        A, B = update.factors()
        h, part = chosen[start:stop].to(A.dtype) @ A.T, added[start:stop]
        if h.dtype == B.dtype == part.dtype:
            part.addmm_(h, B.T, beta=0, alpha=update.scale)
        else:
            part.copy_(update.scale * (h @ B.T))
    return y.index_add_(0, found.index, added)


def add_served(
    y: torch.Tensor,
    routing: Routing,
    names: tuple[str, ...],
    make: Callable[..., torch.Tensor],
    *inputs: torch.Tensor,
) -> torch.Tensor:
    """y (tokens, …) plus what ``make(name, *inputs)`` gives for each adapter's tokens; inputs (tokens, …). A copy."""
    if not names:
        return y
    found = routing.gathered(names, y.device)
    if found is None:
        parts = [
            (span, make(name, *(one[span.start : span.stop] for one in inputs)))
            for name in names
            for span in routing.spans[name]
        ]
        return add_to_spans(y, parts)
    chosen = [one.index_select(0, found.index) for one in inputs]
    made = [make(name, *(one[start:stop] for one in chosen)) for name, start, stop in found.parts]
    added = made[0] if len(made) == 1 else torch.cat(made)
    return y.index_add(0, found.index, added.to(y.dtype))
