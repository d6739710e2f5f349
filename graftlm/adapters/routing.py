"""Routing: which adapters serve which tokens, as an immutable value of one call.

Tokens are counted flat, row after row, so a padded batch (rows × length) and a packed one (1 × total) look the
same to an adapter. The value of the running call is thread-local: gradient checkpointing captures it when the
checkpointed function is called and puts it back around the recomputation, in whichever thread that runs.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from graftlm.adapters.attention import AttentionSite

#: From how many tokens on, on average, a product of each span is cheaper than one of gathered tokens.
LONG_SPAN = 16

Stack = tuple[str, ...]
RowAdapters = str | Stack | None


class Span(NamedTuple):
    """Consecutive flat tokens [start, stop) that an adapter serves."""

    start: int
    stop: int


@dataclass(frozen=True)
class Gathered:
    """Tokens in the order of the adapters that serve them, for adapters whose own tokens lie scattered.

    ``index`` (n,): the flat tokens, int64; ``parts``: which of these n each adapter serves: name, start, stop.
    """

    index: torch.Tensor
    parts: tuple[tuple[str, int, int], ...]

    @cached_property
    def most(self) -> int:
        """The most tokens that one of the adapters has."""
        return max(stop - start for _, start, stop in self.parts)

    @cached_property
    def padded(self) -> torch.Tensor:
        """``index`` with ``most`` tokens for each adapter, (adapters · most,); token 0 stands where one has fewer."""
        padded = self.index.new_zeros(len(self.parts), self.most)
        for row, (_, start, stop) in zip(padded, self.parts, strict=True):
            row[: stop - start] = self.index[start:stop]
        return padded.flatten()

    @cached_property
    def places(self) -> torch.Tensor | None:
        """Where each of ``index`` is in ``padded``; None where nothing is padded."""
        places = [n * self.most + i for n, (_, start, stop) in enumerate(self.parts) for i in range(stop - start)]
        return None if len(places) == len(self.padded) else self.index.new_tensor(places)


@dataclass(frozen=True)
class Segment:
    """Consecutive flat tokens [start, stop) of one routing; its adapters apply together.

    ``seeds`` holds, for each adapter that drops out inputs here, the seed of this row and step; ``length`` is
    the number of real tokens of the row (padding, if any, follows them), and ``offset`` how many of them come
    before ``start``, where the segment is but a part of the row.
    """

    start: int
    stop: int
    stack: Stack
    seeds: tuple[tuple[str, int], ...] = ()
    length: int | None = None
    offset: int = 0


@dataclass(frozen=True)
class Routing:
    """The segments of a batch, in order, covering all of its ``tokens`` flat tokens.

    ``source``: the routing of the encoder's tokens, where the batch is an encoder-decoder's. ``memo`` holds what
    follows from the segments and is worked out once for all places that need it. ``kept``, where given, holds what
    places make of the adapters' parameters for calls without gradients: several routings may share it, but only as
    long as no parameter changes.
    """

    segments: tuple[Segment, ...]
    tokens: int
    source: Routing | None = None
    kept: dict[Any, Any] | None = field(default=None, compare=False, repr=False)
    memo: dict[Any, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @staticmethod
    def of_rows(
        rows: Sequence[RowAdapters],
        tokens_per_row: int | Sequence[int],
        *,
        seeds: Sequence[Mapping[str, int]] | None = None,
        lengths: Sequence[int] | None = None,
        kept: dict[Any, Any] | None = None,
    ) -> Routing:
        """One segment a row. ``rows`` gives a name, a stack of names or None (the bare base) for each.

        ``tokens_per_row`` is the padded length, or one length a row for a packed batch. ``kept`` is a dictionary,
        empty at first, that steps of decoding share as long as no adapter's parameters change.
        """
        sizes = [tokens_per_row] * len(rows) if isinstance(tokens_per_row, int) else list(tokens_per_row)
        stops = list(accumulate(sizes))
        segments = tuple(
            Segment(
                stop - size,
                stop,
                as_stack(row),
                tuple(seeds[number].items()) if seeds is not None else (),
                lengths[number] if lengths is not None else None,
            )
            for number, (row, size, stop) in enumerate(zip(rows, sizes, stops, strict=True))
        )
        return Routing(segments, stops[-1] if stops else 0, kept=kept)

    @cached_property
    def spans(self) -> dict[str, tuple[Span, ...]]:
        """Where each adapter serves: neighbouring segments of one adapter are joined."""
        joined: dict[str, list[Span]] = {}
        for segment in self.segments:
            for name in segment.stack:
                spans = joined.setdefault(name, [])
                if spans and spans[-1].stop == segment.start:
                    spans[-1] = Span(spans[-1].start, segment.stop)
                else:
                    spans.append(Span(segment.start, segment.stop))
        return {name: tuple(spans) for name, spans in joined.items()}

    def gathered(self, names: tuple[str, ...], device: torch.device) -> Gathered | None:
        """The tokens of some adapters, gathered; None where their spans are few or long, and need no gathering.

        An adapter that serves none has an empty part.
        """
        key = (names, device)
        if key not in self.memo:
            spans = [self.spans.get(name, ()) for name in names]
            counts = [sum(stop - start for start, stop in own) for own in spans]
            number = sum(map(len, spans))
            found = None
            if number > sum(map(bool, spans)) and sum(counts) < LONG_SPAN * number:
                index = [token for own in spans for start, stop in own for token in range(start, stop)]
                stops = list(accumulate(counts))
                parts = tuple((name, stop - n, stop) for name, n, stop in zip(names, counts, stops, strict=True))
                found = Gathered(torch.tensor(index, device=device), parts)
            self.memo[key] = found
        result: Gathered | None = self.memo[key]
        return result

    def row_stacks(self, rows: int) -> list[Stack]:
        """The stack of each row of a padded batch.

        Raises:
            RuntimeError: a row has several, or rows are packed.
        """
        length = self.tokens // rows
        stacks: list[Stack] = []
        for segment in self.segments:
            if segment.start % length or segment.stop % length:
                raise RuntimeError("keys and values before a row need rows of one length and one routing each")
            stacks += [segment.stack] * ((segment.stop - segment.start) // length)
        return stacks

    @cached_property
    def whole(self) -> str | None:
        """The one adapter that serves every token, alone and without dropout, or None."""
        stacks = {segment.stack for segment in self.segments if segment.stop > segment.start}
        stack = stacks.pop() if len(stacks) == 1 else ()
        return stack[0] if len(stack) == 1 and not self.dropping else None

    @cached_property
    def dropping(self) -> frozenset[str]:
        """The adapters whose dropout is on in this call."""
        return frozenset(name for segment in self.segments for name, _ in segment.seeds)

    def keep_mask(
        self, name: str, span: Span, width: int, place: int, probability: float, like: torch.Tensor
    ) -> torch.Tensor | None:
        """Inverted-dropout factors (span tokens, width) of one adapter at one place, or None where it drops nothing.

        Each row draws from a generator of its own, seeded by (adapter and step and row: its seed; place), so the
        factors do not depend on the batch, and a recomputation draws the same.
        """
        if probability == 0.0 or name not in self.dropping:
            return None
        factors = torch.ones(span.stop - span.start, width, dtype=like.dtype, device=like.device)
        for segment in self.segments:
            if segment.start < span.start or segment.stop > span.stop:
                continue
            seed = dict(segment.seeds).get(name)
            if seed is None:
                continue
            size = segment.stop - segment.start
            length = size if segment.length is None else segment.length
            generator = torch.Generator(device=like.device).manual_seed(mix_seed(seed, place))
            draw = torch.rand(length, width, generator=generator, device=like.device)
            here = draw[segment.offset : segment.offset + size]
            first = segment.start - span.start
            factors[first : first + len(here)] = (here >= probability).to(like.dtype) / (1.0 - probability)
        return factors

    def select(self, positions: torch.Tensor) -> Routing:
        """The routing of the tokens at ``positions`` alone (ascending flat positions), for the language head."""
        chosen = positions.cpu()
        bounds = torch.tensor([0, *(segment.stop for segment in self.segments)])
        counts = torch.searchsorted(chosen, bounds[1:]) - torch.searchsorted(chosen, bounds[:-1])
        sizes = [int(count) for count in counts]
        segments = tuple(
            Segment(stop - size, stop, segment.stack, segment.seeds)
            for segment, size, stop in zip(self.segments, sizes, accumulate(sizes), strict=True)
        )
        return Routing(segments, len(chosen))

    def part(self, start: int, stop: int) -> Routing:
        """The routing of the flat tokens [start, stop); a row that is cut drops out what it would as a whole."""
        segments = tuple(
            Segment(
                max(segment.start, start) - start,
                min(segment.stop, stop) - start,
                segment.stack,
                segment.seeds,
                segment.stop - segment.start if segment.length is None else segment.length,
                segment.offset + max(start - segment.start, 0),
            )
            for segment in self.segments
            if segment.start < stop and segment.stop > start
        )
        return Routing(segments, stop - start)


def as_stack(row: RowAdapters) -> Stack:
    """A row's adapters as a tuple of names."""
    if row is None:
        return ()
    return (row,) if isinstance(row, str) else tuple(row)


def mix_seed(*parts: int | str) -> int:
    """One 63-bit seed from several numbers or words, the same in every process (splitmix64 steps)."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        value = int.from_bytes(part.encode()[:4096], "little") if isinstance(part, str) else part
        while True:
            state = (state ^ (value & _MASK)) * 0xBF58476D1CE4E5B9 & _MASK
            state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
            state ^= state >> 31
            value >>= 64
            if value in (0, -1):
                break
    return state >> 1


_MASK = 0xFFFFFFFFFFFFFFFF
KeyValues = Mapping[str, Mapping[str, tuple[torch.Tensor, torch.Tensor]]]


@dataclass(frozen=True)
class Call:
    """What a running call goes by: its routing, and the keys and values that adapters bring, by adapter and path.

    Where there are such: ``attention`` puts them before the rows' own; ``shifts``, by how much each row's positions
    shift; ``positions`` (rows, length) of the tokens in their own row, unshifted, and ``source_positions`` of the
    encoder's. ``memo`` holds what attention works out once for all layers.
    """

    routing: Routing
    key_values: KeyValues
    attention: AttentionSite | None = None
    shifts: tuple[int, ...] = ()
    positions: torch.Tensor | None = None
    source_positions: torch.Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


_current = threading.local()


def current_call() -> Call | None:
    """The call that runs in this thread, or None outside one."""
    return getattr(_current, "call", None)


def current_routing() -> Routing | None:
    """The routing of the call that runs in this thread, or None outside one."""
    call: Call | None = getattr(_current, "call", None)
    return None if call is None else call.routing


@contextmanager
def during(call: Call | None) -> Iterator[None]:
    """Make ``call`` the one that runs inside, in this thread."""
    before = current_call()
    _current.call = call
    try:
        yield
    finally:
        _current.call = before


def routed(routing: Routing | None) -> AbstractContextManager[None]:
    """Make ``routing`` that of the calls inside, in this thread."""
    return during(None if routing is None else Call(routing, {}))
