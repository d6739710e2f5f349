"""An instance: one conversation or text to learn from, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "text"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``train`` overrides the choice by role: True is always learnt, False never."""

    role: Role
    content: str
    train: bool | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an instance comes from beside its file and row; empty where nothing is known.

    ``task``: the family of tasks, such as sentiment; ``template``: what made an instance of the row; ``language``: as a
    code, such as en; ``licence`` of the source; ``user``: who wrote it, as a number or name that identifies nobody.
    """

    task: str = ""
    template: str = ""
    language: str = ""
    licence: str = ""
    user: str = ""


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
