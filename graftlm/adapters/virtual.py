"""Virtual tokens: ids past the vocabulary, which the input embedding looks up in their row's adapters.

The n-th virtual token of a row has the id ``vocabulary + n``; where a stack has several adapters with virtual
tokens, they count on from one to the next, in the order of the stack. So they may stand anywhere in a row.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graftlm.adapters.method import VirtualTokens
from graftlm.adapters.routing import Routing, Stack, current_routing
from graftlm.base.places import EmbeddingPlace
from graftlm.errors import UserError


class EmbeddingSite:
    """Puts the vectors of virtual tokens into what the input embedding gives, by forward hooks on its modules."""

    def __init__(self, place: EmbeddingPlace, model: nn.Module) -> None:
        self.place = place
        self.tokens: dict[str, VirtualTokens] = {}
        self._kept = threading.local()
        self._handles = [
            handle
            for module in dict.fromkeys(model.get_submodule(path) for path in place.paths)
            for handle in (module.register_forward_pre_hook(self._hide), module.register_forward_hook(self._put))
        ]

    def detach(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    def _hide(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Give the embedding an id that it knows in the place of each virtual token."""
        ids: torch.Tensor = args[0]
        self._kept.ids = None
        routing = current_routing()
        if routing is None or not any(name in self.tokens for name in self._served(routing)):
            return None
        virtual = ids >= self.place.vocabulary
        if not bool(virtual.any()):
            return None
        self._kept.ids = ids
        return (ids.masked_fill(virtual, 0), *args[1:])

    def _put(self, _module: nn.Module, _args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        """Put the vectors where the virtual tokens are: as they are trained, not scaled as families scale (Gemma)."""
        ids, self._kept.ids = self._kept.ids, None
        routing = current_routing()
        if ids is None or routing is None:
            return None
        if routing.source is not None and routing.tokens != ids.numel():
            routing = routing.source
        flat = ids.reshape(-1)
        virtual = flat >= self.place.vocabulary
        table, rows = self._look_up(flat, virtual, routing)
        where = (virtual.nonzero().squeeze(1),)
        found = output.reshape(-1, self.place.width).index_put(where, table[rows].to(output.dtype))
        return found.view(output.shape)

    @staticmethod
    def _served(routing: Routing) -> set[str]:
        return {*routing.spans, *(routing.source.spans if routing.source is not None else ())}

    def _look_up(self, ids: torch.Tensor, virtual: torch.Tensor, routing: Routing) -> tuple[torch.Tensor, torch.Tensor]:
        """All vectors of the call, one stack's after the other's, and which of them each virtual token is."""
        begins: dict[Stack, tuple[int, int]] = {}
        tables: list[torch.Tensor] = []
        total = 0
        vectors = {name: self.tokens[name]() for name in routing.spans if name in self.tokens}
        rows = ids - self.place.vocabulary
        for segment in routing.segments:
            if segment.stack not in begins:
                own = [vectors[name] for name in segment.stack if name in vectors]
                begins[segment.stack] = (total, sum(len(table) for table in own))
                tables += own
                total += begins[segment.stack][1]
            begin, count = begins[segment.stack]
            part = slice(segment.start, segment.stop)
            here = rows[part][virtual[part]]
            if len(here) and int(here.max()) >= count:
                raise UserError(
                    f"the id {int(here.max()) + self.place.vocabulary} is no token: the vocabulary has "
                    f"{self.place.vocabulary}, and the row's adapters have {count} virtual tokens"
                )
            rows[part] += begin
        return torch.cat(tables), rows[virtual]


@dataclass(frozen=True)
class Expansion:
    """A batch with virtual tokens put in.

    ``columns`` (rows, length): where each column of the given batch now stands; ``mask`` (rows, new length) of the
    tokens there are; ``ids`` (rows, new length).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: torch.Tensor


def expand(ids: torch.Tensor, mask: torch.Tensor | None, counts: Sequence[int], vocabulary: int) -> Expansion:
    """Put ``counts[row]`` virtual tokens before the first real token of each row.

    ids (rows, length); mask (rows, length) or None where all are real. Where the last column is real in every row
    (padding on the left), new padding goes to the left too, so that it stays so.
    """
    rows, length = ids.shape
    most = max(counts)
    real = torch.ones_like(ids) if mask is None else mask.to(ids.dtype)
    first = real.argmax(dim=1)  # the first real column
    number = torch.tensor(counts, device=ids.device)
    left = bool(real[:, -1].all())
    shift = (most - number) if left else torch.zeros_like(number)
    column = torch.arange(length, device=ids.device).expand(rows, -1)
    columns = column + shift[:, None] + torch.where(column >= first[:, None], number[:, None], 0)
    new_ids = ids.new_zeros(rows, length + most).scatter(1, columns, ids)
    new_mask = real.new_zeros(rows, length + most).scatter(1, columns, real)
    for row, count in enumerate(counts):
        begin = int(first[row] + shift[row])
        new_ids[row, begin : begin + count] = vocabulary + torch.arange(count, device=ids.device)
        new_mask[row, begin : begin + count] = 1
    return Expansion(new_ids, new_mask, columns)


def count_virtual(stack: Stack, lengths: Mapping[str, int]) -> int:
    """How many virtual tokens a stack has."""
    return sum(lengths.get(name, 0) for name in stack)
