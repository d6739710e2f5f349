"""A module with adapters beside it: linear layers, norms and embeddings, token by token."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from graftlm.adapters.grouped import Group, Product, adapted_linear, add_low_rank, add_outer, add_to_spans
from graftlm.adapters.method import Change, LowRank, Update
from graftlm.adapters.routing import Routing, Span, current_routing
from graftlm.adapters.serving import add_low_rank_served, add_served, serves
from graftlm.base.places import LinearPlace, ModulePlace
from graftlm.base.products import foreign_forward, linear


class ModuleSite:
    """Takes the place of ``forward`` on one module instance, as long as an adapter has an update there."""

    def __init__(self, place: ModulePlace) -> None:
        self.place = place
        self.updates: dict[str, Update] = {}
        self._merged_from = _cheaper_merged_from(place)
        self._base_forward: Callable[..., torch.Tensor] = place.module.forward
        self._override = place.module.__dict__.get("forward")  # the fast one, or another library's
        #: The weight and bias of a linear layer as torch has it, which nobody else changed; else None.
        self._plain: dict[str, Any] | None = None
        if type(place.module) is nn.Linear and foreign_forward(place.module) is None:
            self._plain = place.module._parameters
        place.module.forward = self.forward

    def detach(self) -> None:
        """Give the module the ``forward`` back that it had."""
        del self.place.module.__dict__["forward"]
        if self._override is not None:
            self.place.module.forward = self._override

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        routing = current_routing()
        if routing is not None and self.place.source and routing.source is not None:
            routing = routing.source
        if routing is None:
            return self._base_forward(x, *args, **kwargs)
        if routing.whole is not None and not torch.is_grad_enabled():
            update = self.updates.get(routing.whole)
            if isinstance(update, LowRank) and (y := self._served(x, routing.tokens, update)) is not None:
                return y
        names = [name for name in routing.spans if name in self.updates]
        if not names:
            return self._base_forward(x, *args, **kwargs)
        flat, shape = self._by_token(x, routing)
        low_rank = {name: update for name in names if isinstance(update := self.updates[name], LowRank)}
        changes = {name: update for name in names if isinstance(update := self.updates[name], Change)}
        if serves(routing):
            y = self._without_gradients(flat, routing, low_rank, changes)
            y = y.view(*shape, *y.shape[1:])
            return y.transpose(1, 2) if self.place.heads_first else y
        flat = _prepared(flat, routing, changes)
        if not changes:
            y = self._with_low_rank(flat, routing, low_rank)
        elif low_rank and _share_tokens(routing, low_rank, changes):
            base = self._base_forward(flat)
            y = add_low_rank(base.clone(), flat, *self._product(routing, low_rank))
            y = add_to_spans(y, self._deltas(flat, base, routing, changes))
        else:
            y = self._with_low_rank(flat, routing, low_rank)
            y = add_to_spans(y, self._deltas(flat, y, routing, changes))
        y = y.view(*shape, *y.shape[1:])
        return y.transpose(1, 2) if self.place.heads_first else y

    def _served(self, x: torch.Tensor, tokens: int, update: LowRank) -> torch.Tensor | None:
        """The short way, without gradients, where one low-rank update serves all tokens.

        None where it does not lead: at other modules than linear layers, in other precisions, or with a start.
        """
        place, factors = self.place, update.plain_factors()
        if factors is None or not isinstance(place, LinearPlace):
            return None
        A, B = factors
        dtype, shape = x.dtype, x.shape
        if A.dtype != dtype or B.dtype != dtype or x.numel() != tokens * place.in_features:
            return None
        # In half precision a small update would be lost in the rounding of W + sBA.
        if tokens >= self._merged_from and dtype in (torch.float32, torch.float64):
            weight = place.dense_weight()
            if weight is not None and weight.dtype == dtype and not torch.is_autocast_enabled(x.device.type):
                merged = torch.addmm(weight, B, A, alpha=update.scale)
                return linear(x, merged, _bias(place.module))
        # Little but the two products with A and B is left to save here: views and look-ups count.
        flat = x if len(shape) == 2 else x.reshape(tokens, -1)
        plain = self._plain
        y = self._base_forward(flat) if plain is None else linear(flat, plain["weight"], plain["bias"])
        add_outer(y, linear(flat, A), B, update.scale)
        return y if len(shape) == 2 else y.view(*shape[:-1], -1)

    def _without_gradients(
        self, x: torch.Tensor, routing: Routing, low_rank: Mapping[str, LowRank], changes: Mapping[str, Change]
    ) -> torch.Tensor:
        """The module's output for tokens in one dimension, with every update."""
        for name in (name for name, change in changes.items() if change.prepares):  # one sees what another made
            x = add_served(x, routing, (name,), lambda name, own: changes[name].prepare(own) - own, x)
        base = self._base_forward(x)
        adding = tuple(name for name, change in changes.items() if change.adds)
        y = add_served(base, routing, adding, lambda name, own, out: changes[name](own, out), x, base)
        return add_low_rank_served(y, x, routing, self.place.path, low_rank) if low_rank else y

    def _by_token(self, x: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Size]:
        """The input with its tokens in one dimension, and the shape that they had."""
        if isinstance(self.place.module, nn.Embedding):
            if x.numel() != routing.tokens and routing.tokens % x.numel() == 0:  # positions, one row for all
                x = x.expand(routing.tokens // x.numel(), -1)
            flat, shape = x.reshape(-1), x.shape
        elif x.dim() > 3:
            x = x.transpose(1, 2) if self.place.heads_first else x
            flat, shape = x.flatten(0, 1), x.shape[:2]
        else:
            flat, shape = x.reshape(-1, x.shape[-1]), x.shape[:-1]
        self._check_tokens(len(flat), routing)
        return flat, shape

    def _check_tokens(self, tokens: int, routing: Routing) -> None:
        if tokens != routing.tokens:
            raise RuntimeError(
                f"{self.place.path} ran on {tokens} tokens, but the routing covers {routing.tokens}: "
                "this layer sees other tokens than the batch, and cannot be routed by them"
            )

    def _with_low_rank(self, flat: torch.Tensor, routing: Routing, updates: Mapping[str, LowRank]) -> torch.Tensor:
        """The base's output plus the low-rank updates, in one product where the weight is plain."""
        if not updates:
            return self._base_forward(flat)
        product, factors = self._product(routing, updates)
        weight = self.place.dense_weight() if isinstance(self.place, LinearPlace) else None
        if weight is not None:
            return adapted_linear(flat, weight, _bias(self.place.module), product, factors)
        return add_low_rank(self._base_forward(flat), flat, product, factors)

    def _product(
        self, routing: Routing, updates: Mapping[str, LowRank]
    ) -> tuple[Product, list[tuple[torch.Tensor, torch.Tensor]]]:
        groups = tuple(
            Group(name, routing.spans[name], update.scale, update.dropout) for name, update in updates.items()
        )
        return Product(groups, routing, self.place.index), [update.factors() for update in updates.values()]

    def _deltas(
        self, x: torch.Tensor, y: torch.Tensor, routing: Routing, changes: Mapping[str, Change]
    ) -> list[tuple[Span, torch.Tensor]]:
        deltas = []
        for name, change in changes.items():
            for span in routing.spans[name] if change.adds else ():
                own, out = x[span.start : span.stop], y[span.start : span.stop]
                keep = None
                if change.dropout:
                    keep = routing.keep_mask(name, span, x.shape[-1], self.place.index, change.dropout, own)
                deltas.append((span, change(own, out) if keep is None else change.with_dropout(own, own * keep, out)))
        return deltas


def _cheaper_merged_from(place: ModulePlace) -> float:
    """From how many tokens on W + sBA is made faster than the products with A and B; never at the wide head."""
    if not isinstance(place, LinearPlace) or place.block is None:
        return float("inf")
    return 2 * place.in_features * place.out_features / (place.in_features + place.out_features)


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def _share_tokens(routing: Routing, one: Mapping[str, Update], other: Mapping[str, Update]) -> bool:
    """Whether any token is served by one of each."""
    return any(
        any(name in one for name in segment.stack) and any(name in other for name in segment.stack)
        for segment in routing.segments
    )


def _prepared(x: torch.Tensor, routing: Routing, changes: Mapping[str, Change]) -> torch.Tensor:
    """The input after what changes do to it, on their own tokens."""
    for name, change in changes.items():
        if change.prepares:
            parts = [(span, change.prepare(part) - part) for span, part in _parts(x, routing.spans[name])]
            x = add_to_spans(x, parts)
    return x


def _parts(x: torch.Tensor, spans: tuple[Span, ...]) -> list[tuple[Span, torch.Tensor]]:
    return [(span, x[span.start : span.stop]) for span in spans]
