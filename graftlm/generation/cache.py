"""Keys and values of the rows that run: a table of slots, whose newest tokens all stand in one column.

A row that joins brings the keys and values of its prompt; they are copied so that they end where everybody's newest
token ends. So a step writes one column, whatever the ages of its rows, padding is only ever on the left, and any family
that transformers can cache works, whether it knows positions by rotation, by table or by distance. When the last
column is used, the table is moved back to the left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from graftlm.adapters.model import AdaptedModel


@dataclass(frozen=True)
class Piece:
    """Keys and values of the first ``length`` tokens of a row: of each layer two tensors (heads, length, width)."""

    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for pair in self.layers for tensor in pair)

    def cut(self, length: int) -> Piece:
        """Its first ``length`` tokens."""
        return Piece(tuple((keys[:, :length], values[:, :length]) for keys, values in self.layers))

    def copied(self) -> Piece:
        """The same in memory of its own."""
        return Piece(tuple((keys.clone(), values.clone()) for keys, values in self.layers))


class Columns(Cache):
    """A table of ``rows`` slots by ``width`` columns, in each layer that has keys and values.

    Columns [``first``, ``column``) hold tokens; the next ones go to ``column``. ``lengths``: how many tokens each used
    slot holds, which are its last columns before ``column``. Tensors are made when a layer first gives keys. Beyond
    ``most`` places the table has only what its rows need.
    """

    def __init__(self, rows: int, width: int, most: int | None = None) -> None:
        self.own: list[_Layer] = []
        super().__init__(layers=self.own)  # type: ignore[arg-type]
        self.rows, self.width, self.most = rows, width, most
        self.first = self.column = 0
        self.lengths: list[int] = []
        self._mask: torch.Tensor | None = None

    # --- what transformers asks ------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values (used slots, heads, new tokens, width) and give those of all tokens."""
        while len(self.own) <= layer_idx:
            self.own.append(_Layer(self))
        return self.own[layer_idx].update(key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.first

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.column - self.first + query_length, 0

    # --- rows come and go ------------------------------------------------------------------------------------

    def padded(self) -> bool:
        """Whether rows are of different lengths."""
        return bool(self.lengths) and min(self.lengths) < self.column - self.first

    def mask(self, new: int, device: torch.device) -> torch.Tensor | None:
        """Which columns hold tokens of their row, with ``new`` ones to come: (used slots, columns), or None if all."""
        if not self.padded():
            return None
        if self._mask is None:
            begin = self.column - torch.tensor(self.lengths)
            self._mask = (torch.arange(self.width) >= begin[:, None]).to(torch.int64).to(device)
        return self._mask[:, self.first : self.column + new]

    def advance(self, new: int = 1) -> None:
        """Count ``new`` tokens in that every used slot got."""
        self.column += new
        self.lengths = [length + new for length in self.lengths]

    def reserve(self, rows: int, longest: int) -> None:
        """See that there is a place for ``rows`` slots whose longest will have ``longest`` tokens."""
        if rows <= self.rows and longest <= self.width:
            return
        slots = self.rows if rows <= self.rows else max(rows, 2 * self.rows)
        width = self.width if longest <= self.width else _wide(longest)
        if self.most is not None and slots * width > self.most:
            slots, width = max(rows, len(self.lengths)), _wide(max(longest, self.column - self.first))
            if self.column > width:
                self._move_to(0)
        self._resize(slots, width)

    def make_room(self, new: int = 1) -> None:
        """See that ``new`` columns are free at the end."""
        if self.column + new > self.width:
            self.reserve(self.rows, self.column - self.first + new)
            self._move_to(0)

    def join(self, pieces: Sequence[Piece], slots: Sequence[int]) -> None:
        """Put rows into slots, those that are free or the next ones after the used."""
        longest = max(piece.length for piece in pieces)
        if not any(self.lengths):
            self.first = self.column = 0
        if longest > self.column:
            self.reserve(max(slots) + 1, longest)
            self._move_to(longest - (self.column - self.first))
        for piece, slot in zip(pieces, slots, strict=True):
            self._put(slot, piece)
        self.lengths += [0] * (max(slots) + 1 - len(self.lengths))
        for piece, slot in zip(pieces, slots, strict=True):
            self.lengths[slot] = piece.length
        self._settle()

    def _put(self, slot: int, piece: Piece) -> None:
        while len(self.own) < len(piece.layers):
            self.own.append(_Layer(self))
        for layer, (keys, values) in zip(self.own, piece.layers, strict=True):
            layer.put(slot, self.column, keys, values)

    def start(self, pieces: Sequence[Piece | None]) -> None:
        """Fill an empty table: what each row has already, all ending in one column."""
        self.lengths = [0 if piece is None else piece.length for piece in pieces]
        self.column = max(self.lengths)
        for slot, piece in enumerate(pieces):
            if piece is not None:
                self._put(slot, piece)

    def finish(self, new: int, lengths: Sequence[int]) -> None:
        """Count ``new`` columns in, of which rows that were padded fill but a part: now each has so many tokens."""
        self.column += new
        self.lengths = list(lengths)
        self._settle()

    def leave(self, slots: Sequence[int]) -> None:
        """Free slots; :meth:`compact` or :meth:`join` comes before the next step.

        What they held goes too: it may not have been numbers, and what is masked out is still multiplied.
        """
        for slot in slots:
            self.lengths[slot] = 0
        for layer in self.own:
            for table in layer.tables():
                table[list(slots), :, self.first : self.column] = 0

    def compact(self, slots: Sequence[int]) -> None:
        """Slot n becomes what slot ``slots[n]`` is; those that are not named go."""
        lengths = [self.lengths[slot] for slot in slots]
        copied = {n: slot for n, slot in enumerate(slots) if n != slot}
        if copied:
            self.copy(copied, max(self.lengths[slot] for slot in copied.values()))
        self.lengths = lengths
        self._settle()

    def copy(self, moves: Mapping[int, int], newest: int) -> None:
        """Slots get what the slots that ``moves`` names for them hold, all at once: their ``newest`` tokens."""
        to, source = list(moves), list(moves.values())
        begin = self.column - newest
        for layer in self.own:
            for table in layer.tables():
                table[to, :, begin : self.column] = table[source, :, begin : self.column]

    def piece(self, slot: int) -> Piece:
        """The keys and values of a slot, as a view of the table."""
        begin = self.column - self.lengths[slot]
        pairs = []
        for layer in self.own:
            keys, values = (table[slot, :, begin : self.column] for table in layer.tables())
            pairs.append((keys, values))
        return Piece(tuple(pairs))

    def _settle(self) -> None:
        self.first = self.column - max(self.lengths, default=0)
        self._mask = None

    def _move_to(self, first: int) -> None:
        """Move the used columns so that they begin with ``first``."""
        size = self.column - self.first
        for layer in self.own if size and first != self.first else ():
            for table in layer.tables():
                _move(table[: len(self.lengths)], self.first, first, size)
        self.first, self.column = first, first + size
        self._mask = None

    def _resize(self, rows: int, width: int) -> None:
        for layer in self.own:
            layer.resize(rows, width, len(self.lengths), self.first, self.column)
        self.rows, self.width = rows, width  # last: without memory for all layers, the table stays as it is
        self._mask = None


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a table. ``keys`` and ``values`` are those of the used slots and columns."""

    def __init__(self, owner: Columns) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self._tables: list[torch.Tensor] = []

    def tables(self) -> list[torch.Tensor]:
        """Keys and values, each (rows, heads, width, head width)."""
        return self._tables

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._tables = self._zeros((key_states, value_states), self.owner.rows, self.owner.width)
        self.is_initialized = True

    @staticmethod
    def _zeros(like: Sequence[torch.Tensor], rows: int, width: int) -> list[torch.Tensor]:
        # Zeros: what attention masks out is still multiplied, and must be a number.
        return [each.new_zeros(rows, each.shape[-3], width, each.shape[-1]) for each in like]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        owner, used = self.owner, len(key_states)
        stop = owner.column + key_states.shape[2]
        keys, values = self._tables
        keys[:used, :, owner.column : stop] = key_states
        values[:used, :, owner.column : stop] = value_states
        self.keys, self.values = keys[:used, :, owner.first : stop], values[:used, :, owner.first : stop]
        return self.keys, self.values

    def put(self, slot: int, stop: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write a row's keys and values (heads, length, width) so that they end before column ``stop``."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        for table, new in zip(self._tables, (keys, values), strict=True):
            table[slot, :, stop - new.shape[1] : stop] = new

    def resize(self, rows: int, width: int, used: int, first: int, stop: int) -> None:
        """Tables of a new size, with what the used slots and columns hold."""
        if not self.is_initialized:
            return
        new = self._zeros(self._tables, rows, width)
        for table, before in zip(new, self._tables, strict=True):
            table[:used, :, first:stop] = before[:used, :, first:stop]
        self._tables = new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.get_mask_sizes(query_length, 0)

    def get_seq_length(self) -> int:
        return self.owner.get_seq_length()

    def get_max_length(self) -> int:
        return -1


def _move(table: torch.Tensor, old: int, new: int, size: int) -> None:
    """Move ``size`` columns of a table (rows, heads, columns, width) from ``old`` to ``new``.

    In pieces that do not overlap where they go: nothing is allocated, so that no want of memory can stop it half way.
    """
    step = min(abs(new - old), size)
    begins = range(0, size, step)
    for begin in begins if new < old else reversed(begins):
        stop = min(begin + step, size)
        table[:, :, new + begin : new + stop] = table[:, :, old + begin : old + stop]


def _wide(longest: int) -> int:
    """The width of a table for rows of ``longest`` tokens: a quarter more, so that it is seldom moved."""
    return -(-(longest + max(longest // 4, 32)) // 32) * 32


@torch.no_grad()
def token_bytes(model: AdaptedModel) -> int:
    """How many bytes the keys and values of one token take."""
    table = Columns(1, 1)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    model.hidden(ids, past_key_values=table, use_cache=True)
    table.finish(1, [1])
    return table.piece(0).bytes
