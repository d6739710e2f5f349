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
    the order of the calls. ``rejected``: the answer that somebody liked less than the one before it, at the very end.
    """

    role: Role
    content: str
    train: bool | None = None


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

    ``row`` counts from 1: the array index in JSON, the line in JSONL and text, the data row in CSV.
    """

    messages: tuple[Message, ...]
    source: str
    row: int
    provenance: Provenance = Provenance()

    @property
    def conversation(self) -> tuple[Message, ...]:
        """All but a rejected answer."""
        return self.messages if self.rejected is None else self.messages[:-1]

    @property
    def rejected(self) -> Message | None:
        """Of a preference row, the answer that was liked less."""
        last = self.messages[-1] if self.messages else None
        return last if last is not None and last.role == "rejected" else None

    @property
    def chosen(self) -> Instance:
        """The instance without a rejected answer."""
        return self if self.rejected is None else replace(self, messages=self.conversation)
