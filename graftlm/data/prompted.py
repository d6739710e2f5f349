"""Templates with virtual tokens on bases that are no decoders: a masked word, or the source of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from graftlm.data.heads import HeadSettings, with_class
from graftlm.data.instances import Instance, Message
from graftlm.data.jinja import CannotRender
from graftlm.data.pieces import Piece, tokenize, tokenize_alone
from graftlm.data.prompt_template import PromptTemplate
from graftlm.data.rendering import TRUNCATED, Rendering, Rows, row_with_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftlm.data.prepare import RowCounts

Ids = list[int]


@dataclass(frozen=True)
class Frame:
    """A row around its input: all ids before it, all behind it, and where the target stands behind it."""

    before: Ids
    input: Ids
    behind: Ids
    target: int


@dataclass(frozen=True)
class PromptedFrames:
    """Rows of a template between a base's own tokens of begin and end.

    Virtual tokens that begin the template stand before ``begin``, as in front of every other row. ``target``: the
    token in the target's place, or None to end the row there.
    """

    template: PromptTemplate
    tokenizer: PreTrainedTokenizerBase
    begin: Sequence[int]
    end: Sequence[int]
    target: int | None
    max_length: int | None

    @cached_property
    def target_text(self) -> str:
        """What stands before the word in the target's place: a space or nothing."""
        pieces = self.template.pieces([Message("user", "x"), Message("assistant", "x")])
        return next(piece.text for piece in pieces if piece.origin == "assistant")[:-1]

    def frames(self, instances: Sequence[Instance], counts: RowCounts) -> list[tuple[Instance, Frame]]:
        """The row of each instance that the template has a place for, its input cut where it is too long."""
        kept: list[tuple[Instance, list[Piece]]] = []
        for instance in instances:
            try:
                kept.append((instance, self.template.pieces(instance.messages)))
            except CannotRender as error:
                counts.drop(error.reason, instance.source, instance.row)
        tokens = self._tokens([pieces for _, pieces in kept])
        return [(instance, self._frame(instance, pieces, tokens, counts)) for instance, pieces in kept]

    def _tokens(self, rows: Sequence[Sequence[Piece]]) -> dict[tuple[bool, str], Ids]:
        """The tokens of every text, by whether it begins its row."""
        found: dict[tuple[bool, str], Ids] = {}
        for first in (True, False):
            texts = list(dict.fromkeys(text for row in rows for begins, text in _texts(row) if begins == first))
            ids = tokenize_alone(texts, self.tokenizer) if first else tokenize(texts, self.tokenizer, special=False)
            found |= {(first, text): own for text, own in zip(texts, ids, strict=True)}
        return found

    def _frame(
        self, instance: Instance, pieces: Sequence[Piece], tokens: dict[tuple[bool, str], Ids], counts: RowCounts
    ) -> Frame:
        before: Ids = []
        behind: Ids = []
        own: Ids = []
        target, framed, begun, here = 0, False, False, before
        for piece in pieces:
            if piece.ids:
                here += piece.ids
                continue
            if not framed:
                before += self.begin
                framed = True
            if piece.origin == "assistant":
                target = len(behind)
                if self.target is None:
                    break
                behind.append(self.target)
            elif piece.text:
                ids = tokens[(not begun, piece.text)]
                begun = True
                if piece.origin == "user":
                    own, here = ids, behind
                else:
                    here += ids
        behind += self.end
        room = None if self.max_length is None else max(0, self.max_length - len(before) - len(behind))
        if room is not None and len(own) > room:
            counts.truncate(TRUNCATED, instance.source, instance.row)
            own = own[:room]
        return Frame(before, own, behind, len(before) + len(own) + target)


def _texts(pieces: Sequence[Piece]) -> list[tuple[bool, str]]:
    """The texts of a row, each with whether it is the first."""
    texts = [piece.text for piece in pieces if piece.text and piece.origin != "assistant"]
    return [(number == 0, text) for number, text in enumerate(texts)]


@dataclass(frozen=True)
class PromptedWord:
    """An encoder's text in a template; the word of the label is predicted at a mask in the target's place."""

    frames: PromptedFrames
    head: HeadSettings
    words: dict[str, int]

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        labels = {id(instance): label for instance, label in with_class(self.head, instances, counts)}
        labelled = [instance for instance in instances if id(instance) in labels]
        for instance, frame in self.frames.frames(labelled, counts):
            ids = [*frame.before, *frame.input, *frame.behind]
            word = self.words[self.head.labels[labels[id(instance)]]]
            yield instance, row_with_targets(instance, ids, {frame.target: word})


@dataclass(frozen=True)
class PromptedSource:
    """An encoder-decoder's rows, whose source is the template up to its target."""

    frames: PromptedFrames
    plain: Rendering

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        found = list(self.plain.rows(instances, counts))
        by_instance = {id(instance): row for instance, row in found}
        for instance, frame in self.frames.frames([instance for instance, _ in found], counts):
            source = [*frame.before, *frame.input, *frame.behind]
            yield instance, replace(by_instance[id(instance)], source_ids=source)
