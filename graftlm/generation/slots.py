"""The rows that run, slot by slot beside their keys and values, and the pass of the model for their next tokens."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.base.threads import few_threads
from graftlm.generation.cache import Columns, Piece
from graftlm.generation.rows import Row
from graftlm.generation.sampling import RowSettings
from graftlm.generation.sources import Tables, next_states


class Slots:
    """Rows by slot of the table. A row that left stays in ``rows`` until another takes its slot or all close up."""

    def __init__(self, model: AdaptedModel, most: int | None = None) -> None:
        """``most``: how many tokens keys and values are kept for."""
        self.model = model
        self.rows: list[Row] = []
        self._free: list[int] = []  # slots whose rows have gone
        self._table = Tables(most) if model.kind == "encoder-decoder" else Columns(0, 0, most)
        self._settings: RowSettings | None = None  # of the rows, until they change
        self._routing: tuple[Any, Routing] | None = None
        self._versions: dict[str, Hashable] = {}
        self._made: dict[Any, Any] = {}  # of adapters' parameters, as long as rows run and no version changes

    @property
    def running(self) -> list[Row]:
        """The rows that have not left."""
        return [row for slot, row in enumerate(self.rows) if slot not in self._free]

    @property
    def settings(self) -> RowSettings:
        """Those of all rows, one value as long as they stay the same."""
        self._settings = self._settings or RowSettings.of([row.sampling for row in self.rows], self.model.device)
        return self._settings

    @property
    def routing(self) -> Routing:
        """That of all rows: one value, as long as they and their adapters stay the same."""
        stacks = [row.stack for row in self.rows]
        versions = {name: self.model.version(name) for name in dict.fromkeys(n for stack in stacks for n in stack)}
        state = (stacks, versions)
        if self._routing is None or self._routing[0] != state:
            if any(self._versions.get(name, version) != version for name, version in versions.items()):
                self._versions, self._made = {}, {}
            self._versions |= versions
            routing = Routing.of_rows(stacks, 1, kept=self._made)
            # The encoder does not run: its routing is never used, and need not be made anew in each step.
            self._routing = (state, replace(routing, source=routing) if isinstance(self._table, Tables) else routing)
        return self._routing[1]

    def forget(self) -> None:
        """Drop what was made of adapters' parameters: some have left."""
        self._routing, self._versions, self._made = None, {}, {}

    def make_room(self) -> None:
        """See that there is a column for the next token."""
        self._table.make_room()

    def forward(self) -> torch.Tensor:
        """Read the newest token of every row; no slot is free. Logits (rows, vocabulary) of the next ones."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self.model.device)
        routing = self.routing
        with few_threads():
            logits = self.model.score(self._states(ids, routing)[:, -1], routing)
        self._table.advance()
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _states(self, ids: torch.Tensor, routing: Routing) -> torch.Tensor:
        """Final states (rows, 1, hidden) of ids (rows, 1)."""
        if isinstance(self._table, Tables):
            return next_states(self.model, self._table, ids, routing)
        output = self.model.hidden(
            ids,
            self._table.mask(1, ids.device),
            adapters=routing,
            past_key_values=self._table,
            position_ids=torch.tensor([[row.position] for row in self.rows], device=ids.device),
            use_cache=True,
        )
        return output.last_hidden_state  # type: ignore[no-any-return]

    def piece(self, slot: int) -> Piece:
        """The keys and values of a row."""
        return self._table.piece(slot)

    def join(self, joining: Sequence[tuple[Row, Piece]]) -> None:
        """Give rows that have their first token a slot: a free one, best beside rows of the same adapters.

        Nobody has joined where that fails, for want of memory.
        """
        if not joining:
            return
        rows, free, slots = list(self.rows), list(self._free), []
        for row, _ in joining:
            beside = (slot for slot in free if _neighbours(rows, slot, row.stack))
            slot = next(beside, free[0] if free else len(rows))
            if slot == len(rows):
                rows.append(row)
            else:
                free.remove(slot)
                rows[slot] = row
            slots.append(slot)
        self._table.reserve(len(rows), max(row.columns for row in rows))
        self._table.join([piece for _, piece in joining], slots)
        self.rows, self._free, self._settings = rows, free, None

    def reorder(self, moves: Mapping[int, int], newest: int) -> None:
        """Let beams go on from others: slots get the ``newest`` tokens of the slots that are named for them."""
        if moves:
            self._table.copy(moves, newest)

    def leave(self, slots: Sequence[int]) -> None:
        """Free slots; those that no row takes before :meth:`close_up` are closed up then."""
        if slots:
            self._table.leave(slots)
            self._free += slots
            self._settings = None

    def remove(self, rows: Collection[int]) -> None:
        """Free the slots of rows, which are given by ``id``."""
        self.leave([slot for slot, row in enumerate(self.rows) if id(row) in rows and slot not in self._free])

    def close_up(self) -> None:
        """Move the last rows to where slots are free."""
        if not self._free:
            return
        free = set(self._free)
        kept = [slot for slot in range(len(self.rows)) if slot not in free]
        last = [slot for slot in kept if slot >= len(kept)]
        order = [last.pop() if slot in free else slot for slot in range(len(kept))]
        self._table.compact(order)
        self.rows = [self.rows[slot] for slot in order]
        self._free = []
        if not self.rows:
            self._routing, self._versions, self._made = None, {}, {}


def _neighbours(rows: Sequence[Row], slot: int, stack: Stack) -> bool:
    """Whether a slot is beside a row of these adapters."""
    return any(rows[next_to].stack == stack for next_to in (slot - 1, slot + 1) if 0 <= next_to < len(rows))
