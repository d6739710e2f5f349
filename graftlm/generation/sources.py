"""Encoder-decoders: prompts are sources, which the encoder reads whole; new tokens are the decoder's.

Of a source, the keys and values are kept that the decoder attends to, in a table of their own beside that of the
decoder's tokens. Both tables have the same slots; sources do not grow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from graftlm.adapters.decoder_positions import positions_are_unknown
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.errors import UserError
from graftlm.generation.cache import Columns, Piece
from graftlm.generation.prefill import Job, Read


def decoder_start(model: AdaptedModel) -> tuple[int, ...]:
    """The tokens that the decoder of an encoder-decoder begins with; () of other models.

    They are the start token, and the one that the base's generation settings force to follow it (BART), if any.

    Raises:
        UserError: the base names no start token, or numbers its decoder's positions in an unknown way.
    """
    if model.kind != "encoder-decoder":
        return ()
    if positions_are_unknown(model.base):
        raise UserError(
            f"{model.name} numbers its decoder's positions in a way that graftlm does not know, and cannot write here"
        )
    settings: Any = getattr(model.base, "generation_config", None)
    start = getattr(model.base.config, "decoder_start_token_id", None)
    start = getattr(settings, "decoder_start_token_id", None) if start is None else start
    if not isinstance(start, int):
        raise UserError(f"the configuration of {model.name} names no decoder_start_token_id, which answers begin with")
    forced = getattr(settings, "forced_bos_token_id", None)
    return (start, forced) if isinstance(forced, int) else (start,)


@dataclass(frozen=True)
class SourcePiece(Piece):
    """Keys and values of a source as the decoder sees it. ``own``: those of the decoder's first tokens."""

    own: Piece


class Tables(EncoderDecoderCache):
    """A table of the decoder's tokens and one of sources, with the same slots."""

    def __init__(self, most: int | None = None) -> None:
        self.own, self.source = Columns(0, 0, most), Columns(0, 0, most)
        super().__init__(self.own, self.source)

    @property
    def rows(self) -> int:
        """How many slots there are."""
        return self.own.rows

    def mask(self, new: int, device: torch.device) -> torch.Tensor | None:
        """Which columns of the decoder's hold tokens of their row, as in :meth:`Columns.mask`."""
        return self.own.mask(new, device)

    def advance(self) -> None:
        """Count a token in that every used slot got."""
        self.own.advance()

    def make_room(self) -> None:
        """See that the next column is free."""
        self.own.make_room()

    def reserve(self, rows: int, longest: int) -> None:
        """See that there is a place for ``rows`` slots whose longest will have ``longest`` tokens of the decoder."""
        self.own.reserve(rows, longest)
        self.source.reserve(rows, 0)

    def join(self, pieces: Sequence[Piece], slots: Sequence[int]) -> None:
        """Put rows into slots, those that are free or the next ones after the used."""
        found = [piece for piece in pieces if isinstance(piece, SourcePiece)]
        self.own.join([piece.own for piece in found], slots)
        self.source.join(found, slots)

    def leave(self, slots: Sequence[int]) -> None:
        """Mark slots as free."""
        self.own.leave(slots)
        self.source.leave(slots)

    def compact(self, slots: Sequence[int]) -> None:
        """Slot n becomes what slot ``slots[n]`` is; those that are not named go."""
        self.own.compact(slots)
        self.source.compact(slots)

    def copy(self, moves: Mapping[int, int], newest: int) -> None:
        """As :meth:`Columns.copy`; beams have one source."""
        self.own.copy(moves, newest)

    def piece(self, slot: int) -> SourcePiece:
        """What a slot holds, as a view of the tables."""
        return SourcePiece(self.source.piece(slot).layers, self.own.piece(slot))

    def show_sources(self) -> int:
        """Let the decoder find the keys and values of the used slots' sources; gives how wide they are."""
        source = self.source
        for number, layer in enumerate(source.own):
            keys, values = (table[: len(source.lengths), :, source.first : source.column] for table in layer.tables())
            layer.keys, layer.values = keys, values
            self.is_updated[number] = True
        return source.column - source.first


def next_states(model: AdaptedModel, tables: Tables, ids: torch.Tensor, routing: Routing) -> torch.Tensor:
    """The decoder's final states (rows, 1, hidden) of each row's newest token; ids (rows, 1)."""
    rows, width = len(ids), tables.show_sources()
    # What stands for the encoder's states is never read: their keys and values are there.
    states = torch.zeros(1, 1, 1, dtype=model.dtype, device=ids.device).expand(rows, width, -1)
    output = model.hidden(
        ids,
        tables.source.mask(0, ids.device),
        adapters=routing,
        decoder_input_ids=ids,
        decoder_attention_mask=tables.mask(1, ids.device),
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        past_key_values=tables,
        use_cache=True,
    )
    return output.last_hidden_state  # type: ignore[no-any-return]


def read_sources(model: AdaptedModel, jobs: Sequence[Job]) -> Read:
    """Read the sources of all jobs, whole, and the decoder's first tokens; in one pass of the model."""
    start, stacks = jobs[0].rows[0].start, [job.stack for job in jobs]
    states, pieces = _read(model, [job.prompt for job in jobs], stacks, start)
    for job, piece in zip(jobs, pieces, strict=True):
        job.piece = piece
    logits = model.score(states[:, -1], Routing.of_rows(stacks, 1))
    return Read(list(jobs), logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _read(
    model: AdaptedModel, sources: Sequence[Sequence[int]], stacks: Sequence[Stack], start: Sequence[int]
) -> tuple[torch.Tensor, list[SourcePiece]]:
    """The decoder's states (sources, first tokens, hidden), and the pieces of all."""
    rows, longest = len(sources), max(len(source) for source in sources)
    ids = torch.zeros(rows, longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, source in enumerate(sources):  # padded on the right: encoders may count positions by columns
        ids[number, : len(source)] = torch.tensor(source)
        mask[number, : len(source)] = 1
    own, cross = Columns(rows, len(start)), Columns(rows, longest)
    output = model.hidden(
        ids.to(model.device),
        None if bool(mask.all()) else mask.to(model.device),
        adapters=Routing.of_rows(stacks, len(start)),
        decoder_input_ids=torch.tensor(start, device=model.device).expand(rows, -1),
        past_key_values=EncoderDecoderCache(own, cross),
        use_cache=True,
    )
    own.finish(len(start), [len(start)] * rows)
    cross.finish(longest, [longest] * rows)
    pieces = [
        SourcePiece(cross.piece(number).cut(len(source)).layers, own.piece(number))
        for number, source in enumerate(sources)
    ]
    return output.last_hidden_state, pieces


@torch.no_grad()
def source_token_bytes(model: AdaptedModel, start: Sequence[int]) -> int:
    """How many bytes the keys and values of one token take, of a source or of the decoder, whichever are more."""
    _, pieces = _read(model, [[0]], [()], start[:1])
    return max(pieces[0].bytes, pieces[0].own.bytes)
