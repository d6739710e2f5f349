"""Prompts from a file: conversations that wait for an answer. Answers that the rows hold are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from graftlm.data.formats import TAGS, WORDS, Format, RowProblem, check, recognise
from graftlm.data.instances import Message
from graftlm.data.readers import TEXT_SUFFIXES, read_rows
from graftlm.errors import UserError

# Formats are told by prompt and answer; prompts alone are given an answer to be told by, and it is dropped again.
_ANSWERS = dict.fromkeys(("output", "completion", "answer", "response"), "-")


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the user, or what is wrong with its row.

    ``row`` counts from 1 as readers do; ``part`` tells apart the prompts of a row that holds several.
    """

    row: int
    part: int
    messages: tuple[Message, ...]
    problem: str | None = None

    @property
    def shown(self) -> str | list[dict[str, str]] | None:
        """As written to the answers' file: the text of a lone message, all messages, or None without any."""
        if len(self.messages) <= 1:
            return self.messages[0].content if self.messages else None
        return [{"role": message.role, "content": message.content} for message in self.messages]


def read_prompts(
    path: str, *, pattern: str | None = None, system: str | None = None, limit: int | None = None
) -> tuple[list[Prompt], str]:
    """The prompts of a file and the name of its format. In a text file each line is one.

    ``pattern`` makes the prompt of columns: "Review: {text}". ``system`` is put before conversations without one.

    Raises:
        UserError: the file cannot be read, or its rows are of no known format.
    """
    rows = list(islice(_rows(path), limit))
    form = _recognise([row for _, row in rows[:100]], path, pattern)
    name = "lines of text" if _is_text(Path(path).expanduser()) else form.name
    return [prompt for number, row in rows for prompt in _prompts(form, number, row, system)], name


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    place = Path(path).expanduser()
    if not _is_text(place):
        yield from ((number, _with_words(row)) for number, row in read_rows(path))
        return
    try:
        lines = place.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8: byte {error.start}", hint="Save the file as UTF-8.") from error
    found = [(number, {"prompt": line}) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"{path}: the file is empty", hint="Each line is a prompt.")
    yield from found


def _with_words(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a list of words that are still to be tagged, which are then its prompt."""
    words = next((row[key] for key in WORDS if isinstance(row.get(key), list)), None)
    if words is None or "prompt" in row or any(row.get(key) is not None for key in TAGS):
        return row
    return {**row, "prompt": " ".join(map(str, words))}


def _is_text(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in TEXT_SUFFIXES


def _recognise(rows: Sequence[dict[str, Any]], path: str, pattern: str | None) -> Format:
    if pattern is not None:
        return recognise(rows, path, prompt=pattern, answer=pattern)
    try:
        return recognise(rows, path)
    except UserError:
        pass
    try:
        return recognise([{**_ANSWERS, **row} for row in rows], path)
    except UserError as error:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        raise UserError(
            f"{path}: no prompt is known in these rows; their columns are: {', '.join(columns)}",
            hint=f'Say how a prompt is made of them: --prompt "{{{columns[0] if columns else "text"}}}". Known without '
            "that: prompt, instruction (and input), question, messages, conversations, text.",
        ) from error


def _prompts(form: Format, number: int, row: dict[str, Any], system: str | None) -> Iterator[Prompt]:
    try:
        parts = form.expand(row)
    except RowProblem as problem:
        yield Prompt(number, 1, (), problem.reason)
        return
    for part, values in enumerate(parts, 1):
        given = {key: value for key, value in values.items() if value is not None}
        try:
            messages = _question(form.convert({**_ANSWERS, **given}))
        except RowProblem as problem:
            yield Prompt(number, part, (), problem.reason)
            continue
        if system and messages[0].role != "system":
            messages = (Message("system", system), *messages)
        yield Prompt(number, part, messages)


def _question(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A conversation up to its last user turn."""
    messages = [Message("user", m.content) if m.role == "text" else m for m in messages]
    while messages and messages[-1].role == "rejected":
        messages = messages[:-1]
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    return check([*messages, Message("assistant", "-")])[:-1]
