"""A sublayer with adapters behind or beside it, by forward hooks on the modules around it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from graftlm.adapters.grouped import add_to_spans
from graftlm.adapters.method import SublayerChange
from graftlm.adapters.routing import Routing, current_routing, during
from graftlm.adapters.serving import add_served, serves
from graftlm.base.places import Sublayer


class SublayerSite:
    """Adds to a sublayer's output h what its adapters make of h and the residual stream x.

    x is the input of the norm before the sublayer, or of its first linear layer in a post-norm model. It is kept,
    by thread, from there until the output is made. h is what is added to x: where a family multiplies outputs before
    (Granite), adapters are given the product, and what they add to it is divided again.
    """

    def __init__(self, place: Sublayer, model: nn.Module) -> None:
        self.place = place
        self.updates: dict[str, SublayerChange] = {}
        self._kept = threading.local()
        config: Any = getattr(model, "config", None)
        self._multiplier = float(getattr(config, "residual_multiplier", 1.0))
        start = place.norm_before or place.linears[0]
        self._handles = [
            model.get_submodule(start).register_forward_pre_hook(self._keep),
            model.get_submodule(place.output).register_forward_hook(self._add),
        ]
        self._norm: Callable[[torch.Tensor], torch.Tensor] | None = None
        if place.norm_after:
            norm = model.get_submodule(place.norm_after)
            self._norm = _alone(norm)
            self._handles.append(norm.register_forward_hook(self._add_to_stream))

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _routing(self) -> tuple[Routing | None, list[str]]:
        routing = current_routing()
        if routing is not None and self.place.source and routing.source is not None:
            routing = routing.source
        return routing, [name for name in routing.spans if name in self.updates] if routing is not None else []

    def _keep(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._routing()[1]:
            self._kept.x = args[0]

    def _add(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        routing, names = self._routing()
        if routing is None or not names:
            return None
        h = output.reshape(-1, output.shape[-1])
        x = self._kept.x.reshape(h.shape)
        del self._kept.x
        if h.shape[0] != routing.tokens:
            raise RuntimeError(
                f"{self.place.output} ran on {h.shape[0]} tokens, but the routing covers {routing.tokens}: "
                "this layer sees other tokens than the batch, and cannot be routed by them"
            )
        if serves(routing):
            chosen = tuple(name for name in names if not self._closed(name))
            return add_served(h, routing, chosen, self._change, h, x).view(output.shape)
        parts = [
            (span, self._change(name, h[span.start : span.stop], x[span.start : span.stop]))
            for name in names
            if not self._closed(name)
            for span in routing.spans[name]
        ]
        return add_to_spans(h, parts).view(output.shape)

    def _closed(self, name: str) -> bool:
        """Whether an update waits for the norm of a post-norm model."""
        return self.updates[name].on_stream and self._norm is not None

    def _change(self, name: str, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        update, multiplier = self.updates[name], self._multiplier
        h = h if multiplier == 1.0 else multiplier * h
        added: torch.Tensor
        if update.on_stream:
            stream = h + x
            added = update(stream, stream, None)
        else:
            added = update(h, x, self._norm)
        return added if multiplier == 1.0 else added / multiplier

    def _add_to_stream(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        routing, names = self._routing()
        names = [name for name in names if self._closed(name)]
        if routing is None or not names:
            return None
        stream = output.reshape(-1, output.shape[-1])
        if serves(routing):

            def change(name: str, part: torch.Tensor) -> torch.Tensor:
                return self.updates[name](part, part, None)  # type: ignore[no-any-return]

            return add_served(stream, routing, tuple(names), change, stream).view(output.shape)
        parts = [
            (span, self.updates[name](part, part, None))
            for name in names
            for span in routing.spans[name]
            for part in [stream[span.start : span.stop]]
        ]
        return add_to_spans(stream, parts).view(output.shape)


def _alone(norm: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The base's own norm, for tokens that are not those of the whole batch."""

    def call(x: torch.Tensor) -> torch.Tensor:
        with during(None):
            result: torch.Tensor = norm(x)
            return result

    return call
