"""Virtual tokens: ids past the vocabulary, which the input embedding looks up in their row's adapters.

The n-th virtual token of a row has the id ``vocabulary + n``; where a stack has several adapters with virtual
tokens, they count on from one to the next, in the order of the stack. So they may stand anywhere in a row.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graftlm.adapters.method import VirtualTokens
from graftlm.adapters.routing import Routing, Stack, current_routing
from graftlm.base.places import EmbeddingPlace
from graftlm.errors import UserError

#: The most that an adapter may have: far beyond what helps, and a misplaced number is found.
MOST_VIRTUAL_TOKENS = 1000


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
        vectors = {name: self.tokens[name]() for name in routing.spans if name in self.tokens}
        tables: list[torch.Tensor] = []
        spans: dict[Stack, tuple[int, int]] = {}
        total = 0
        for stack in dict.fromkeys(segment.stack for segment in routing.segments):
            own = [vectors[name] for name in stack if name in vectors]
            spans[stack] = (total, sum(len(table) for table in own))
            tables += own
            total += spans[stack][1]
        each = torch.tensor([spans[segment.stack] for segment in routing.segments])
        sizes = torch.tensor([segment.stop - segment.start for segment in routing.segments])
        begin, count = each.repeat_interleave(sizes, dim=0).to(ids.device)[virtual].unbind(1)
        number = ids[virtual] - self.place.vocabulary
        beyond = number >= count
        if bool(beyond.any()):
            raise unknown_id(int(ids[virtual][beyond][0]), self.place.vocabulary, int(count[beyond][0]))
        return torch.cat(tables), begin + number


def unknown_id(token: int, vocabulary: int, virtual: int) -> UserError:
    """The error for an id that is neither in the vocabulary nor one of a row's virtual tokens."""
    return UserError(
        f"the id {token} is no token: the vocabulary has {vocabulary}, and the row's adapters have "
        f"{virtual or 'no'} virtual tokens"
    )


def placed(ids: Sequence[int], count: int, vocabulary: int, *, drop_others: bool) -> tuple[int, ...]:
    """A row's ids under adapters with ``count`` virtual tokens: these in front, unless it holds some.

    ``drop_others``: those of adapters that do not serve it here (it was made for others) are left out.

    Raises:
        UserError: an id is neither in the vocabulary nor one of these, and ``drop_others`` is off.
    """
    if not drop_others and ids and max(ids) >= vocabulary + count:
        raise unknown_id(max(ids), vocabulary, count)
    kept = [token for token in ids if token < vocabulary + count]
    own = range(vocabulary, vocabulary + count) if all(token < vocabulary for token in kept) else ()
    return (*own, *kept)


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
