"""Rows of judged answers: every answer of a group rendered as any other, and a place for its reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance
from graftlm.data.judged import Answer, Judgement, answers_of, compared, single_answers
from graftlm.data.labelled import encoder_frame, prompt_text
from graftlm.data.pieces import tokenize_alone
from graftlm.data.prepare import RowCounts, RowFates
from graftlm.data.rendering import PROMPT_FILLS, TRUNCATED, Rendering, Rows, row_with_targets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_COMPARED = "no answers to compare"
NOT_JUDGED = "nobody found the answer good or bad"
EMPTY = "an empty answer"
EQUAL = "the answers are the same as far as they are read"


@dataclass(frozen=True)
class ComparedAnswers:
    """Instances with answers to compare, each answer as ``rendering`` makes it: a row with the others beside it.

    A group that loses an answer is dropped whole, by the reason of the first one that is lost. ``singly``: answers are
    not compared, but each by itself was found good or bad.
    """

    rendering: Rendering
    criteria: tuple[str, ...] = ("",)
    singly: bool = False

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        groups = [
            single_answers(instance) if self.singly else answers_of(instance, self.criteria) for instance in instances
        ]
        flat = [answer for group in groups for answer in group]
        noted = RowFates()
        numbered = [replace(answer.instance, row=number) for number, answer in enumerate(flat)]
        found = {row.row: row for _, row in self.rendering.rows(numbered, noted)}
        start = 0
        for instance, group in zip(instances, groups, strict=True):
            numbers = range(start, start + len(group))
            start += len(group)
            reason = _fault(group, [found.get(number) for number in numbers], self.singly)
            lost = next((noted.reasons[number] for number in numbers if number in noted.reasons), reason)
            if lost is not None:
                counts.drop(reason or lost, instance.source, instance.row)
                continue
            if not noted.cut.isdisjoint(numbers):
                counts.truncate(TRUNCATED, instance.source, instance.row)
            rows = [
                replace(found[number], row=instance.row, judged=answer.judged)
                for number, answer in zip(numbers, group, strict=True)
            ]
            yield instance, replace(rows[0], beside=tuple(rows[1:]))


def _fault(group: Sequence[Answer], rows: Sequence[EncodedRow | None], singly: bool) -> str | None:
    """Why nothing can be learnt from a group, or None. ``rows``: None where an answer was dropped already."""
    judged = [answer.judged for answer in group]
    if not group:
        return NOT_JUDGED
    criteria = max(len(each.ranks) for each in judged)
    if not singly and not any(compared(judged, number) for number in range(criteria)):
        return NOT_COMPARED
    if any(not answer.instance.messages[-1].content.strip() for answer in group):
        return EMPTY
    read = {(tuple(row.ids), tuple(row.source_ids or ())) for row in rows if row is not None}
    return EQUAL if len(rows) > 1 and len(read) == 1 and None not in rows else None


@dataclass(frozen=True)
class RewardedAnswers:
    """Conversations as a decoder reads them; the reward is given at the last token of the answer."""

    rendering: Rendering

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        for instance, row in self.rendering.rows(instances, counts):
            last = len(row.ids) - 1 - [*row.supervised][::-1].index(True)
            yield instance, row_with_targets(instance, row.ids[: last + 1], {last: 0})


@dataclass(frozen=True)
class RewardedText:
    """An encoder's texts, the prompt and the answer, each with the end behind it; the reward is given at the first.

    Where both are too long the prompt is cut at its beginning; an answer that alone is too long is cut at its end.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        begin, end = encoder_frame(self.tokenizer)
        prompts = tokenize_alone([prompt_text(instance) for instance in instances], self.tokenizer)
        answers = tokenize_alone([instance.messages[-1].content for instance in instances], self.tokenizer)
        frame = len(begin) + 2 * len(end)
        for instance, prompt, answer in zip(instances, prompts, answers, strict=True):
            room = len(prompt) + len(answer) if self.max_length is None else self.max_length - frame
            if room < 2:
                counts.drop(PROMPT_FILLS, instance.source, instance.row)
                continue
            if len(prompt) + len(answer) > room:
                counts.truncate(TRUNCATED, instance.source, instance.row)
            own = answer[:room]
            kept = prompt[max(0, len(prompt) - (room - len(own))) :]
            yield instance, row_with_targets(instance, [*begin, *kept, *end, *own, *end], {0: 0})


def with_mismatched(leaders: Sequence[EncodedRow]) -> list[EncodedRow]:
    """Rows of judged answers, each with its prompt and another group's answer beside it, to be scored and not learnt.

    They are what KTO's reference point is estimated from. The answers are those of the next group, and of the first one
    for the last; a single group has no other, and stays as it is.
    """
    if len(leaders) < 2:
        return list(leaders)
    found = []
    for leader, following in zip(leaders, [*leaders[1:], leaders[0]], strict=True):
        theirs = following.group
        strange = tuple(_mismatched(row, theirs[place % len(theirs)]) for place, row in enumerate(leader.group))
        found.append(replace(leader, beside=(*leader.beside, *strange)))
    return found


def _mismatched(row: EncodedRow, other: EncodedRow) -> EncodedRow:
    """The prompt of one row and what is learnt of another; of an encoder-decoder, its source and the other's ids."""
    judged = Judgement(mismatched=True)
    if row.source_ids is not None:
        return replace(row, ids=other.ids, supervised=other.supervised, targets=other.targets, judged=judged, beside=())
    own, theirs = [*row.supervised].index(True), [*other.supervised].index(True)  # where the answers begin
    supervised = [*row.supervised[:own], *other.supervised[theirs:]]
    return replace(row, ids=[*row.ids[:own], *other.ids[theirs:]], supervised=supervised, judged=judged, beside=())
