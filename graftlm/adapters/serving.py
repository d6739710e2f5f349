"""Updates of several adapters without gradients: the tokens of each one are gathered, whatever the order of the rows.

A step of decoding has one token a row, and rows come in any order: a product for every span would be one for every row.
Where the call keeps what is made of parameters, the factors of all adapters are put together once. As long as their
ranks are not too many, every token is multiplied with all of them side by side, and what is not its own is dropped in
between; else one batched product takes the place of one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from graftlm.adapters.grouped import add_outer
from graftlm.adapters.method import LowRank
from graftlm.adapters.routing import Gathered, Routing
from graftlm.base.products import linear

#: How many times the base's own work the products with all factors side by side may be, and still pay.
MOST_SIDE_BY_SIDE = 2
#: How many times the work a batched product may be, for adapters of unequal rank or number of tokens, and still pay.
MOST_PADDING = 4


def serves(routing: Routing) -> bool:
    """Whether a call needs neither gradients nor dropout."""
    return not torch.is_grad_enabled() and not routing.dropping


def add_low_rank_served(
    y: torch.Tensor, x: torch.Tensor, routing: Routing, path: str, updates: Mapping[str, LowRank]
) -> torch.Tensor:
    """y plus scale · (x Aᵀ) Bᵀ on each adapter's tokens: y (tokens, out), written to; x (tokens, in).

    ``path`` names the place, for what the routing keeps of it.
    """
    beside = _side_by_side(routing, path, updates)
    if beside is not None:
        reach, foreign = beside.served(routing, x.device)
        h = linear(x[reach].to(beside.A.dtype), beside.A).masked_fill_(foreign, 0.0)
        y[reach] += linear(h, beside.B).to(y.dtype)
        return y
    found = routing.gathered(tuple(updates), x.device)
    if found is None:
        for name, update in updates.items():
            A, B = update.factors()
            for start, stop in routing.spans[name]:
                add_outer(y[start:stop], linear(x[start:stop].to(A.dtype), A), B, update.scale)
        return y
    stacked = _stacked(routing, path, updates, x.device)
    if stacked is not None:
        stack, found = stacked
        chosen = x.index_select(0, found.padded).view(len(stack.A), -1, x.shape[1])
        added = torch.bmm(torch.bmm(chosen.to(stack.A.dtype), stack.A), stack.B).view(-1, y.shape[1])
        added = added if found.places is None else added.index_select(0, found.places)
        return y.index_add_(0, found.index, added.to(y.dtype))
    chosen = x.index_select(0, found.index)
    added = y.new_empty(len(chosen), y.shape[1])
    for name, start, stop in found.parts:
        update = updates[name]
        A, B = update.factors()
        h, part = linear(chosen[start:stop].to(A.dtype), A), added[start:stop]
        if h.dtype == B.dtype == part.dtype:
            part.addmm_(h, B.T, beta=0, alpha=update.scale)
        else:
            part.copy_(update.scale * (h @ B.T))
    return y.index_add_(0, found.index, added)


@dataclass(frozen=True)
class _SideBySide:
    """Factors of several adapters at one place side by side: A (ranks, in) and B (out, ranks), scaled.

    ``updates`` are those that they were made of, by name, and ``ranks`` how many each has. ``fit``: all are numbers, so
    that what is nought stays nought; they are of one precision; and not so many that the base's own product is little
    beside theirs. Else nothing is made.
    """

    updates: dict[str, LowRank]
    ranks: tuple[tuple[str, int], ...]
    A: torch.Tensor
    B: torch.Tensor
    fit: bool

    @staticmethod
    def of(updates: dict[str, LowRank]) -> _SideBySide:
        factors = {name: (*update.factors(), update.scale) for name, update in updates.items()}
        inner, outer = next((A.shape[1], len(B)) for A, B, _ in factors.values())
        ranks = sum(len(A) for A, _, _ in factors.values())
        one_precision = len({factor.dtype for A, B, _ in factors.values() for factor in (A, B)}) == 1
        if not one_precision or ranks * (inner + outer) > MOST_SIDE_BY_SIDE * inner * outer:
            return _SideBySide(updates, (), torch.empty(0), torch.empty(0), fit=False)
        As = torch.cat([A for A, _, _ in factors.values()])
        Bs = torch.cat([scale * B for _, B, scale in factors.values()], dim=1)
        finite = bool(As.isfinite().all() and Bs.isfinite().all())
        return _SideBySide(updates, tuple((name, len(A)) for name, (A, _, _) in factors.items()), As, Bs, finite)

    def served(self, routing: Routing, device: torch.device) -> tuple[slice, torch.Tensor]:
        """From the first to the last token that any of them serves, and which inner products are not a token's own.

        (tokens from there to there, ranks).
        """
        key = ("side by side", self.ranks, device)
        if key not in routing.memo:
            spans = {name: routing.spans.get(name, ()) for name, _ in self.ranks}
            first = min(span.start for own in spans.values() for span in own)
            last = max(span.stop for own in spans.values() for span in own)
            foreign = torch.ones(last - first, len(self.A), dtype=torch.bool)
            stops = accumulate(rank for _, rank in self.ranks)
            for (name, rank), stop in zip(self.ranks, stops, strict=True):
                for span in spans[name]:
                    foreign[span.start - first : span.stop - first, stop - rank : stop] = False
            routing.memo[key] = slice(first, last), foreign.to(device)
        found: tuple[slice, torch.Tensor] = routing.memo[key]
        return found


def _side_by_side(routing: Routing, path: str, updates: Mapping[str, LowRank]) -> _SideBySide | None:
    """The factors of these adapters at a place, side by side, or None where nothing is kept or they do not fit.

    Those that were used there before stay beside them, so that nothing is made anew whenever a row comes or goes.
    """
    kept = routing.kept
    if kept is None:
        return None
    key = ("side by side", path)
    beside: _SideBySide | None = kept.get(key)
    if beside is None or any(beside.updates.get(name) is not update for name, update in updates.items()):
        own = dict(updates)
        together = _SideBySide.of({**beside.updates, **own}) if beside is not None and beside.fit else None
        beside = kept[key] = together if together is not None and together.fit else _SideBySide.of(own)
    return beside if beside.fit else None


@dataclass(frozen=True)
class _Stack:
    """Factors of several adapters at one place: A (adapters, in, r) and B (adapters, r, out), scaled.

    Noughts stand past a smaller rank. ``updates`` are those that it was made of, by name.
    """

    updates: dict[str, LowRank]
    A: torch.Tensor
    B: torch.Tensor

    @staticmethod
    def of(updates: dict[str, LowRank]) -> _Stack:
        factors = [update.factors() for update in updates.values()]
        rank = max(len(A) for A, _ in factors)
        scaled = [(A.T, update.scale * B.T) for (A, B), update in zip(factors, updates.values(), strict=True)]
        return _Stack(
            updates,
            torch.stack([nn.functional.pad(A, (0, rank - A.shape[1])) for A, _ in scaled]),
            torch.stack([nn.functional.pad(B, (0, 0, 0, rank - len(B))) for _, B in scaled]),
        )

    def suits(self, found: Gathered) -> bool:
        """Whether padding is not most of the product."""
        work = sum((stop - start) * self.updates[name].rank for name, start, stop in found.parts)
        return len(self.A) * found.most * self.A.shape[2] <= MOST_PADDING * work


def _stacked(
    routing: Routing, path: str, updates: Mapping[str, LowRank], device: torch.device
) -> tuple[_Stack, Gathered] | None:
    """The factors of these adapters at a place, stacked, and the tokens of each.

    Adapters that were used there before stay in the stack, so that it is not made anew whenever a row comes or goes.
    None where nothing is kept, adapters differ in precision, or have too unequal ranks or numbers of tokens.
    """
    kept = routing.kept
    if kept is None or len(updates) == 1:
        return None
    stack: _Stack | None = kept.get(path)
    if stack is None or any(stack.updates.get(name) is not update for name, update in updates.items()):
        together = {**(stack.updates if stack is not None else {}), **updates}
        if len({parameter.dtype for update in together.values() for parameter in update.parameters()}) > 1:
            return None
        stack = kept[path] = _Stack.of(together)
    found = routing.gathered(tuple(stack.updates), device)
    if found is not None and not stack.suits(found) and len(stack.updates) > len(updates):  # too many are idle
        stack = kept[path] = _Stack.of(dict(updates))
        found = routing.gathered(tuple(updates), device)
    return (stack, found) if found is not None and stack.suits(found) else None


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
        result = y.clone()
        for name in names:
            for start, stop in routing.spans[name]:
                result[start:stop] += make(name, *(one[start:stop] for one in inputs)).to(y.dtype)
        return result
    chosen = [one.index_select(0, found.index) for one in inputs]
    made = [make(name, *(one[start:stop] for one in chosen)) for name, start, stop in found.parts]
    added = made[0] if len(made) == 1 else torch.cat(made)
    return y.index_add(0, found.index, added.to(y.dtype))
