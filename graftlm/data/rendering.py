"""From instances to rows for each kind of base: conversations, two sequences, classes, masked words, tags.

Every rendering does all that stands between text and tokens, in training and in use. What it cannot render it
drops, and counts with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance
from graftlm.data.jinja import CannotRender
from graftlm.data.jinja_tools import refuse_special_tokens
from graftlm.data.pieces import Piece, Rendered, special_texts
from graftlm.data.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftlm.data.prepare import RowCounts

PROMPT_FILLS = "prompt fills the context"
TRUNCATED = "longer than the context"
Rows = Iterator[tuple[Instance, EncodedRow]]


class Rendering(Protocol):
    """Makes rows of instances, in order; ``counts`` gets what is cut or dropped."""

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows: ...


@dataclass(frozen=True)
class Conversations:
    """Conversations whose answers are learnt token by token: what decoders read.

    A row of more than ``max_length`` tokens is cut there if a learnt token is left before the cut, and dropped if not.
    """

    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    train_on: str | Sequence[str] = "assistant"
    max_length: int | None = None

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        kept: list[Instance] = []
        pieces: list[list[Piece]] = []
        special = special_texts(self.tokenizer)
        for instance in instances:
            try:
                refuse_special_tokens(instance.messages, special)
                pieces.append(self.template.pieces(instance.messages, self.train_on))
            except CannotRender as error:
                counts.drop(error.reason, instance.source, instance.row)
            else:
                kept.append(instance)
        for instance, rendered in zip(kept, self.template.encode(pieces, self.tokenizer), strict=True):
            row = self._fit(instance, rendered, counts)
            if row is not None:
                yield instance, row

    def _fit(self, instance: Instance, rendered: Rendered, counts: RowCounts) -> EncodedRow | None:
        """The row cut to ``max_length``, or None if nothing to learn is left in it."""
        ids, supervised = rendered.ids, rendered.supervised
        learnt = sum(supervised[1:])
        if not learnt:
            counts.drop("no token to learn", instance.source, instance.row)
            return None
        if self.max_length is not None and len(ids) > self.max_length:
            supervised = supervised[: self.max_length]
            left = sum(supervised[1:])
            if not left:
                counts.drop(PROMPT_FILLS, instance.source, instance.row)
                return None
            end = self.max_length - supervised[::-1].index(True)  # nothing is learnt from what follows
            ids, supervised = ids[:end], supervised[:end]
            if left < learnt:
                counts.truncate(TRUNCATED, instance.source, instance.row)
        return EncodedRow(ids, supervised, instance.source, instance.row)


def row_with_targets(instance: Instance, ids: Sequence[int], targets: Mapping[int, int]) -> EncodedRow:
    """A row of which nothing but ``targets`` (by position) is learnt."""
    every = [targets.get(place, -1) for place in range(len(ids))]
    return EncodedRow(ids, [False] * len(ids), instance.source, instance.row, targets=every)
