"""Rows for heads and for bases that are no decoders: see :mod:`graftlm.data.rendering`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from graftlm.data.batches import EncodedRow
from graftlm.data.heads import NO_ANSWER, NO_LABEL, HeadSettings, with_class
from graftlm.data.instances import Instance, Message
from graftlm.data.jinja import CannotRender
from graftlm.data.jinja_tools import refuse_special_tokens
from graftlm.data.pieces import special_texts, tokenize, tokenize_alone
from graftlm.data.prepare import RowCounts
from graftlm.data.prompt_template import PromptTemplate
from graftlm.data.prompted import PromptedFrames, PromptedSource, PromptedWord
from graftlm.data.rendering import PROMPT_FILLS, TRUNCATED, Conversations, Rendering, Rows, row_with_targets
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


UNEVEN = "not as many labels as words"
Ids = list[int]


def choose_rendering(
    kind: Literal["decoder", "encoder", "encoder-decoder"],
    head: HeadSettings | None,
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    train_on: str | Sequence[str] = "assistant",
    decoder_start: int | None = None,
) -> Rendering:
    """How instances become rows for a kind of base and a head with its labels filled in.

    Raises:
        UserError: the kind of base has no such head, or cannot do without one.
    """
    from graftlm.data.answers import RewardedAnswers, RewardedText

    if kind == "encoder-decoder":
        if head is not None:
            raise UserError(
                f"head: an encoder-decoder writes its labels as text, and takes no {head.type}",
                hint="Leave head out, and the labels are learnt as answers."
                if head.type != "reward"
                else "Put the reward adapter on an encoder or a decoder.",
            )
        return _two_sequences(template, tokenizer, decoder_start, max_length)
    if kind == "encoder":
        if head is None:
            raise UserError(
                "this base is an encoder, which writes no text",
                hint="Say what is predicted, for example head: {type: classifier}.",
            )
        if head.type == "verbalizer":
            return _masked_word(head, template, tokenizer, max_length)
        _refuse_template(head, template)
        if head.type == "reward":
            return RewardedText(tokenizer, max_length)
        begin, end = encoder_frame(tokenizer)
        if head.type == "tagger":
            return WordTags(head, tokenizer, begin, end, max_length)
        return ClassOfText(head, tokenizer, max_length)
    if head is None:
        return Conversations(template, tokenizer, train_on, max_length)
    if head.type == "reward":
        return RewardedAnswers(Conversations(template, tokenizer, "last", max_length))
    if head.type == "verbalizer":
        raise UserError(
            "head: a verbalizer fills in the masked words of an encoder, and this base is a decoder",
            hint="Leave head out: a decoder learns to write the label. Or use head: {type: classifier}.",
        )
    if head.type == "tagger":
        _refuse_template(head, template)
        begin, _ = _natural_frame(tokenizer)
        bos = tokenizer.bos_token_id
        if not begin and isinstance(bos, int):
            begin = [bos]
        return WordTags(head, tokenizer, begin, [], max_length, at_end=True)
    return ClassOfPrompt(head, template, tokenizer, max_length)


@dataclass(frozen=True)
class ClassOfPrompt:
    """A decoder's prompt; the class is predicted at its last token."""

    head: HeadSettings
    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        kept, pieces = [], []
        special = special_texts(self.tokenizer)
        for instance, target in with_class(self.head, instances, counts):
            try:
                refuse_special_tokens(instance.messages, special)
                pieces.append(self.template.prompt_pieces(instance.messages[:-1]))
            except CannotRender as error:
                counts.drop(error.reason, instance.source, instance.row)
            else:
                kept.append((instance, target))
        for (instance, target), rendered in zip(kept, self.template.encode(pieces, self.tokenizer), strict=True):
            ids = rendered.ids
            if self.max_length is not None and len(ids) > self.max_length:
                counts.drop(PROMPT_FILLS, instance.source, instance.row)
                continue
            yield instance, row_with_targets(instance, ids, {len(ids) - 1: target})


@dataclass(frozen=True)
class ClassOfText:
    """An encoder's text between its own tokens of begin and end; the class is predicted at the first."""

    head: HeadSettings
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        begin, end = encoder_frame(self.tokenizer)
        found = with_class(self.head, instances, counts)
        texts = tokenize_alone([prompt_text(instance) for instance, _ in found], self.tokenizer)
        for (instance, target), ids in zip(found, texts, strict=True):
            room = None if self.max_length is None else self.max_length - len(begin) - len(end)
            yield instance, row_with_targets(instance, [*begin, *_cut(ids, room, instance, counts), *end], {0: target})


@dataclass(frozen=True)
class MaskedWord:
    """An encoder's text with a pattern around it; the word of the label is predicted at the pattern's mask.

    Raises:
        UserError: the word of a label is no single token, or two labels have the same.
    """

    head: HeadSettings
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None

    def __post_init__(self) -> None:
        _ = self.words

    @cached_property
    def words(self) -> dict[str, int]:
        """The token of each label's word."""
        _, between, _ = self.head.parts
        return word_tokens(self.head, self.tokenizer, " " if between.endswith(" ") else "")

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        begin, end = encoder_frame(self.tokenizer)
        mask = mask_token(self.tokenizer)
        before, between, behind = self.head.parts
        lead = tokenize_alone([before.rstrip(" ")], self.tokenizer)[0] if before.strip() else []
        gap, tail = tokenize([between.rstrip(" "), behind], self.tokenizer, special=False)
        frame = len(begin) + len(lead) + len(gap) + 1 + len(tail) + len(end)
        found = with_class(self.head, instances, counts)
        texts = [before[len(before.rstrip(" ")) :] + prompt_text(instance) for instance, _ in found]
        for (instance, target), ids in zip(found, tokenize_alone(texts, self.tokenizer), strict=True):
            own = _cut(ids, None if self.max_length is None else self.max_length - frame, instance, counts)
            head = [*begin, *lead, *own, *gap]
            word = self.words[self.head.labels[target]]
            yield instance, row_with_targets(instance, [*head, mask, *tail, *end], {len(head): word})


def word_tokens(head: HeadSettings, tokenizer: PreTrainedTokenizerBase, space: str) -> dict[str, int]:
    """The token of each label's word, with ``space`` before it.

    Raises:
        UserError: a word is no single token, or two labels have the same.
    """
    words = {label: head.word(label) for label in head.labels}
    found = tokenize([space + word for word in words.values()], tokenizer, special=False)
    result: dict[str, int] = {}
    for (label, word), ids in zip(words.items(), found, strict=True):
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            parts = ", ".join(tokenizer.convert_ids_to_tokens(ids))
            raise UserError(
                f"head: the word '{word}' for the label '{label}' is no single token of this base ({parts})",
                hint=f"Give another word for it: head: {{words: {{{label}: …}}}}.",
            )
        if ids[0] in result.values():
            other = next(name for name, token in result.items() if token == ids[0])
            raise UserError(f"head: the labels '{other}' and '{label}' have the same word, '{word}'")
        result[label] = ids[0]
    return result


def mask_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token of a masked word.

    Raises:
        UserError: there is none.
    """
    mask = tokenizer.mask_token_id
    if not isinstance(mask, int):
        raise UserError("head: a verbalizer needs a mask token, and this base's tokenizer has none")
    return mask


def _masked_word(
    head: HeadSettings, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Rendering:
    """The place of the word is the pattern's mask, or the target of a template of the adapter's own."""
    if not isinstance(template, PromptTemplate):
        if head.pattern is None:
            raise UserError(
                "head: pattern: a verbalizer needs one with {mask} in it once",
                hint="Write it like this: pattern: '{text} It was {mask}.'",
            )
        return MaskedWord(head, tokenizer, max_length)
    if head.pattern is not None:
        raise UserError(
            f"head: the adapter has both a pattern and the template '{template.name}'",
            hint="Leave pattern out: the word stands in the place of {target}.",
        )
    begin, end = encoder_frame(tokenizer)
    frames = PromptedFrames(template, tokenizer, begin, end, mask_token(tokenizer), max_length)
    return PromptedWord(frames, head, word_tokens(head, tokenizer, frames.target_text))


def _refuse_template(head: HeadSettings, template: ChatTemplate) -> None:
    """A template with virtual tokens has the place of a word, and not of what these heads predict."""
    if isinstance(template, PromptTemplate):
        raise UserError(
            f"template '{template.name}': the target of a {head.type} is no word that a template has a place for",
            hint="Use head: {type: verbalizer}, or length in the place of template.",
        )


def _two_sequences(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, start: int | None, max_length: int | None
) -> Rendering:
    plain = TwoSequences(tokenizer, start, max_length)
    if not isinstance(template, PromptTemplate):
        return plain
    begin, end = sequence_frame(tokenizer)
    return PromptedSource(PromptedFrames(template, tokenizer, begin, end, None, max_length), plain)


def render_source(
    template: ChatTemplate,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
) -> tuple[int, ...]:
    """The ids that an encoder-decoder reads of a conversation to answer, as in training; cut to ``max_length``.

    Raises:
        UserError: the template has no place for these messages.
    """
    counts = RowCounts()
    instance = Instance((*messages, Message("assistant", "")), "", 1)
    for _, row in _two_sequences(template, tokenizer, 0, max_length).rows([instance], counts):
        return tuple(row.source_ids or ())
    raise UserError(f"the template '{template.name}' cannot render this prompt: {', '.join(counts.dropped)}")


@dataclass(frozen=True)
class WordTags:
    """Words with a label each, which is predicted at a word's first token, or at its last (``at_end``): a decoder
    has read a word only then. Words and labels are the prompt and the answer, apart by spaces."""

    head: HeadSettings
    tokenizer: PreTrainedTokenizerBase
    begin: Sequence[int]
    end: Sequence[int]
    max_length: int | None = None
    at_end: bool = False

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        number = {label: index for index, label in enumerate(self.head.labels)}
        split = [prompt_text(instance).split() for instance in instances]
        tokens = self._tokens(split)
        for instance, words in zip(instances, split, strict=True):
            answer = instance.messages[-1]
            labels = answer.content.split() if answer.role == "assistant" else []
            pieces = [tokens[word if place == 0 else " " + word] for place, word in enumerate(words)]
            if not labels:
                counts.drop(NO_ANSWER, instance.source, instance.row)
            elif len(labels) != len(words):
                counts.drop(UNEVEN, instance.source, instance.row)
            elif any(label not in number for label in labels):
                counts.drop(NO_LABEL, instance.source, instance.row)
            elif not all(pieces):
                counts.drop("a word without a token", instance.source, instance.row)
            else:
                yield instance, self._row(instance, pieces, [number[label] for label in labels], counts)

    def _tokens(self, rows: Sequence[Sequence[str]]) -> Mapping[str, Ids]:
        """The tokens of every word: at the beginning of a row as it is, else with the space before it."""
        firsts = list(dict.fromkeys(words[0] for words in rows if words))
        others = list(dict.fromkeys(" " + word for words in rows for word in words[1:]))
        found = dict(zip(firsts, tokenize_alone(firsts, self.tokenizer), strict=True))
        return found | dict(zip(others, tokenize(others, self.tokenizer, special=False), strict=True))

    def _row(self, instance: Instance, pieces: Sequence[Ids], labels: Sequence[int], counts: RowCounts) -> EncodedRow:
        ids = list(self.begin)
        targets: dict[int, int] = {}
        for piece, label in zip(pieces, labels, strict=True):
            if self.max_length is not None and len(ids) + len(piece) + len(self.end) > self.max_length and targets:
                counts.truncate(TRUNCATED, instance.source, instance.row)
                break
            targets[len(ids) + (len(piece) - 1 if self.at_end else 0)] = label
            ids += piece
        return row_with_targets(instance, [*ids, *self.end], targets)


@dataclass(frozen=True)
class TwoSequences:
    """Prompt and answer for an encoder-decoder. The answer and its end are learnt; each may have ``max_length``."""

    tokenizer: PreTrainedTokenizerBase
    start: int | None
    max_length: int | None = None

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        if self.start is None:
            raise UserError("this encoder-decoder's configuration names no decoder_start_token_id")
        begin, end = sequence_frame(self.tokenizer)
        found = [instance for instance in instances if instance.messages[-1].role == "assistant"]
        for instance in instances:
            if instance.messages[-1].role != "assistant":
                counts.drop(NO_ANSWER, instance.source, instance.row)
        sources = tokenize_alone([prompt_text(instance) for instance in found], self.tokenizer)
        answers = tokenize_alone([instance.messages[-1].content for instance in found], self.tokenizer)
        frame = len(begin) + len(end)
        for instance, source, answer in zip(found, sources, answers, strict=True):
            room = self.max_length
            ids = [self.start, *begin, *answer, *end]
            if room is not None and max(len(source) + frame, len(ids)) > room:
                counts.truncate(TRUNCATED, instance.source, instance.row)
                source = source[: max(0, room - frame)]
                ids = ids[:room]  # an answer that is cut does not end there, so no end is learnt
            supervised = [False, *[True] * (len(ids) - 1)]
            yield (
                instance,
                EncodedRow(ids, supervised, instance.source, instance.row, source_ids=[*begin, *source, *end]),
            )


def prompt_text(instance: Instance) -> str:
    """All that stands before the last answer, as one text: encoders know no roles."""
    messages = instance.messages[:-1] if instance.messages[-1].role == "assistant" else instance.messages
    return "\n\n".join(message.content for message in messages)


def encoder_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """An encoder's tokens of begin and end: those that its tokenizer puts around a text, or its cls and sep."""
    begin, end = _natural_frame(tokenizer)
    if begin:
        return begin, end
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if not isinstance(cls, int) or not isinstance(sep, int):
        raise UserError("this encoder's tokenizer has no cls and sep token, which its rows begin and end with")
    return [cls], [sep]


def sequence_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """What an encoder-decoder's tokenizer puts around a text, or else the end of a sequence behind it."""
    begin, end = _natural_frame(tokenizer)
    if end:
        return begin, end
    if not isinstance(tokenizer.eos_token_id, int):
        raise UserError("this base's tokenizer has no end-of-sequence token, so answers could not end")
    return begin, [tokenizer.eos_token_id]


def _natural_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, Ids]:
    """The special tokens that a tokenizer puts before and after a text by itself."""
    bare: Ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: Ids = tokenizer("a")["input_ids"]
    for place in range(len(whole) - len(bare) + 1):
        if whole[place : place + len(bare)] == bare:
            return whole[:place], whole[place + len(bare) :]
    return [], []


def _cut(ids: Ids, room: int | None, instance: Instance, counts: RowCounts) -> Ids:
    """As much of a text as there is room for."""
    if room is None or len(ids) <= room:
        return ids
    counts.truncate(TRUNCATED, instance.source, instance.row)
    return ids[: max(0, room)]
