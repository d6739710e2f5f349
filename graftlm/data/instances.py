"""An instance: one conversation or text to learn from, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant", "text", "tools", "calls", "tool", "rejected"]
TOOL_ROLES: tuple[Role, ...] = ("tools", "calls", "tool")


class RowProblem(Exception):
    """Why a row cannot be learnt from; rows are dropped and counted by it."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, or a part of one. ``train`` overrides the choice by role: True is always learnt, False never.

    ``tools``: what the assistant may call, as a JSON list, before all else. ``calls``: the tool calls of an assistant's
    turn, as a JSON list of OpenAI's form, after what it says if it says something. ``tool``: the result of a call, in
    the order of the calls. ``rejected``: another answer to the same, at the very end, that was liked no better than the
    one before it; a ranked list has several.
    """

    role: Role
    content: str
    train: bool | None = None


Kind = Literal["ranks", "ratings", "labels"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one annotator said of the answers of an instance, by one criterion.

    ``values``: one for each of ``Instance.answers``, None where it was not judged. Of ``ranks`` the lowest is the best
    and equal ones are a tie; of ``ratings`` the highest is the best; ``labels`` are 1 (good) or 0 (bad).
    ``criterion``: such as helpful; empty is as a whole. ``annotator``: who said so, as a number or name that identifies
    nobody. ``margin``: by how much the better one is better, where that was said.
    """

    kind: Kind
    values: tuple[float | None, ...]
    criterion: str = ""
    annotator: str = ""
    margin: float = 0.0

    @property
    def scores(self) -> tuple[float | None, ...]:
        """The values, the highest is the best."""
        if self.kind != "ranks":
            return self.values
        return tuple(None if value is None else -value for value in self.values)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an instance comes from beside its file and row; empty where nothing is known.

    ``task``: the family of tasks, such as sentiment; ``template``: what made an instance of the row; ``language``: as a
    code, such as en; ``licence`` of the source; ``user``: who wrote it, as a number or name that identifies nobody.
    ``input_key`` is equal in rows with the same input, whatever words stand around it, ``answer_key`` in those that
    are asked and answer the same about it, ``group_key`` in those that belong together (see ``keys``).
    """

    task: str = ""
    template: str = ""
    language: str = ""
    licence: str = ""
    user: str = ""
    input_key: str = ""
    answer_key: str = ""
    group_key: str = ""


ORIGINS = tuple(Provenance.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Instance:
    """A conversation, or a plain text as a single message of role ``text``.

    ``row`` counts from 1: the array index in JSON, the line in JSONL and text, the data row in CSV. ``verdicts``: what
    was said of its answers; where there are several answers and no verdict, they stand best first.
    """

    messages: tuple[Message, ...]
    source: str
    row: int
    provenance: Provenance = Provenance()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """All up to the first answer of a preference row, which is the best."""
        return self.messages[: len(self.messages) - len(self.others)]

    @property
    def asked(self) -> tuple[Message, ...]:
        """What stands before the last answer: all of it where nothing is answered yet, nothing in a plain text."""
        messages = self.conversation
        return messages if messages[-1].role in ("user", "tool") else messages[:-1]

    @property
    def others(self) -> tuple[Message, ...]:
        """Of a preference row, the answers that were liked no better than the first, best first."""
        begin = len(self.messages)
        while begin and self.messages[begin - 1].role == "rejected":
            begin -= 1
        return self.messages[begin:]

    @property
    def rejected(self) -> Message | None:
        """Of a preference row, the last of its answers: the one that was liked least."""
        return self.others[-1] if self.others else None

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers of a preference row, the best first; of any other instance the last message alone."""
        first = self.conversation[-1:]
        return tuple(message.content for message in (*first, *self.others))

    @property
    def is_preference(self) -> bool:
        """Whether there are several answers, or something was said of the one."""
        return bool(self.verdicts or self.others)

    @property
    def chosen(self) -> Instance:
        """The instance with its first answer alone, and nothing said of it."""
        return replace(self, messages=self.conversation, verdicts=()) if self.is_preference else self

    def with_answer(self, number: int) -> Instance:
        """The instance with one of its answers alone, and nothing said of it."""
        if number == 0:
            return self.chosen
        first = self.conversation
        own = Message("assistant", self.answers[number], first[-1].train)
        return replace(self, messages=(*first[:-1], own), verdicts=())
