"""The rows of a task as items: what is asked, which answers there are and which of them are right."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graftlm.data.instances import Message
from graftlm.data.readers import read_rows
from graftlm.data.task_pattern import CannotFill, Pattern
from graftlm.data.task_template import as_word, pattern
from graftlm.errors import UserError, nearest
from graftlm.evaluation.tasks.task import EvalTask

MARKS = ("stereotyped", "unknown")  # choices that a measure of bias tells apart
_EXPRESSION = re.compile(r"\s*\{\{(?P<inner>(?:(?!\}\}).)*)\}\}\s*", re.DOTALL)


@dataclass(frozen=True)
class Item:
    """One row of a task.

    ``messages``: what is asked; none for texts that are judged as a whole. ``candidates``: the answers to choose from
    (of pairs: the good text, the bad one; of preferences: the chosen answer, the rejected one; of perplexity: the
    text). ``right``: which of them are right. ``references``: what a written answer is compared with.
    ``row`` counts from 1 in ``source``; ``values`` are the columns.
    """

    source: str
    row: int
    messages: tuple[Message, ...] = ()
    candidates: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    references: tuple[str, ...] = ()
    stereotyped: int | None = None
    unknown: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def hash(self) -> str:
        """Of all that is asked and expected."""
        parts = [
            [(message.role, message.content) for message in self.messages],
            self.candidates,
            self.right,
            self.references,
        ]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:16]


def read_items(task: EvalTask) -> list[Item]:
    """The items of a task, in the order of its rows.

    Raises:
        UserError: there are no rows, or one does not go with the task: file, row and key are named.
    """
    rows = [
        (str(path), number, part)
        for path in task.paths
        for number, row in read_rows(path, split=task.keys.split)
        for part in _unfolded(task, str(path), number, row)
    ]
    if task.keys.where is not None:
        rows = [each for each in rows if _truth(_Row(task, *each).text("where"))]
    if not rows:
        which = " that `where` keeps" if task.keys.where is not None else ""
        raise UserError(f"task {task.name}: {', '.join(map(str, task.paths))} has no rows{which}")
    most = task.keys.max_rows
    drawn = rows
    if most is not None and most < len(rows):
        drawn = [rows[at] for at in sorted(random.Random(f"{task.keys.seed} rows").sample(range(len(rows)), most))]
    shots = _Shots(task, rows) if task.keys.shots else None
    return [_item(_Row(task, *each), shots) for each in drawn]


def _unfolded(task: EvalTask, source: str, number: int, row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A row for each entry of the lists inside it; it has the keys of all that it lies in."""
    found: list[Mapping[str, Any]] = [row]
    for key in task.keys.unfold:
        inside: list[Mapping[str, Any]] = []
        for part in found:
            entries = part.get(key)
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                there = ", ".join(map(str, part))
                raise UserError(f"task {task.name}: {source}, row {number}: no list of objects in '{key}' of: {there}")
            inside += [{**part, **entry} for entry in entries]
        found = inside
    return found


class _Row:
    """A row of a file, with a task's patterns filled in from it; errors name the place."""

    def __init__(self, task: EvalTask, source: str, number: int, values: Mapping[str, Any]) -> None:
        self.task, self.source, self.number = task, source, number
        self.values = {key: "" if value is None else value for key, value in values.items()}
        self.names = {**self.values, "row": self.values}

    def problem(self, key: str, what: str, hint: str | None = None) -> UserError:
        return UserError(f"task {self.task.name}: {self.source}, row {self.number}: {key}: {what}", hint=hint)

    def text(self, key: str) -> str:
        return self._filled(key, pattern(getattr(self.task.keys, key)))

    def value(self, key: str) -> Any:
        """A text; or what a pattern of one expression gives: a number, a list."""
        source = getattr(self.task.keys, key)
        found = _EXPRESSION.fullmatch(source)
        if found is None:
            return self.text(key)
        return json.loads(self._filled(key, pattern("{{ (" + found["inner"] + ") | tojson }}")))

    def _filled(self, key: str, source: Pattern) -> str:
        lacking = sorted(source.names - set(self.names))
        if lacking:
            columns = [str(name) for name in self.values]
            guess = nearest(lacking[0], columns)
            hint = f"Did you mean '{guess}'?" if guess else "A column with blanks in its name is row['the name']."
            raise self.problem(key, f"there is no column '{lacking[0]}'; there are: {', '.join(columns)}", hint)
        try:
            return source.fill(self.names)
        except CannotFill as error:
            raise self.problem(key, str(error)) from error
        except UserError as error:
            raise self.problem(key, error.message, error.hint) from error


def _truth(text: str) -> bool:
    return text.strip().lower() not in ("", "false", "0", "none", "no", "[]")


def _item(row: _Row, shots: _Shots | None) -> Item:
    keys = row.task.keys
    place: dict[str, Any] = {"source": row.source, "row": row.number, "values": row.values}
    if keys.kind == "perplexity":
        return Item(candidates=(_not_empty(row, "text"),), right=(0,), **place)
    if keys.kind == "pairs":
        return Item(candidates=_two(row, "good", "bad"), right=(0,), **place)
    prompt = row.text("prompt")
    if shots is not None:
        prompt = "\n\n".join([*shots.before(row), prompt])
    messages = (
        *((Message("system", row.text("system")),) if keys.system else ()),
        Message("user", prompt),
    )
    if keys.kind == "preference":
        return Item(messages=messages, candidates=_two(row, "chosen", "rejected"), right=(0,), **place)
    if keys.kind == "choice":
        choices = _choices(row)
        marked = {key: _place(row, key, row.value(key), choices) for key in MARKS if getattr(keys, key) is not None}
        return Item(messages=messages, candidates=choices, right=_right(row, choices), **{**place, **marked})
    return Item(messages=messages, references=_references(row), **place)


def _not_empty(row: _Row, key: str) -> str:
    text = row.text(key)
    if not text:
        raise row.problem(key, "is empty")
    return text


def _two(row: _Row, first: str, second: str) -> tuple[str, str]:
    found = _not_empty(row, first), _not_empty(row, second)
    if found[0] == found[1]:
        raise row.problem(first, f"is the same as {second}: {found[0][:60]!r}")
    return found


def _choices(row: _Row) -> tuple[str, ...]:
    given = row.task.keys.choices
    values = list(given) if isinstance(given, tuple) else row.value("choices")
    if not isinstance(values, list):
        raise row.problem("choices", f"must give a list, gives {values!r:.60}", "For example: '{{ options }}'.")
    texts = tuple(as_word(value) for value in values)
    if len(texts) < 2 or not all(texts):
        raise row.problem("choices", f"needs two answers or more, none of them empty; has {list(texts)!r:.80}")
    if len(set(texts)) < len(texts):
        raise row.problem("choices", f"has an answer twice: {list(texts)!r:.80}")
    return texts


def _right(row: _Row, choices: Sequence[str]) -> tuple[int, ...]:
    value = row.value("answer")
    found = tuple(dict.fromkeys(_place(row, "answer", one, choices) for one in _listed(value)))
    if not found:
        raise row.problem("answer", "names no choice")
    return found


def _place(row: _Row, key: str, value: Any, choices: Sequence[str]) -> int:
    """Which choice is meant: by its text, or else by its number from 0."""
    text = as_word(value)
    if not isinstance(value, int) and text in choices:
        return choices.index(text)
    if re.fullmatch(r"\d+", text) and int(text) < len(choices):
        return int(text)
    shown = ", ".join(f"'{choice[:40]}'" for choice in choices)
    raise row.problem(key, f"'{text[:60]}' is none of the choices: {shown}", "A number counts choices from 0.")


def _references(row: _Row) -> tuple[str, ...]:
    texts = tuple(as_word(value) for value in _listed(row.value("answer")))
    if not texts:
        raise row.problem("answer", "is an empty list")
    return texts


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Shots:
    """Solved examples, drawn by the task's seed and the row; never the row itself, nor one that asks the same."""

    def __init__(self, task: EvalTask, rows: Sequence[tuple[str, int, Mapping[str, Any]]]) -> None:
        if task.keys.shots_path is not None:
            path = task.folder / task.keys.shots_path
            rows = [(str(path), number, row) for number, row in read_rows(path)]
        self.task = task
        self.pool = [_Row(task, *each) for each in rows]
        self._solved: dict[int, tuple[str, str]] = {}

    def before(self, row: _Row) -> list[str]:
        order = list(range(len(self.pool)))
        random.Random(f"{self.task.keys.seed} shots {row.source} {row.number}").shuffle(order)
        own, found = row.text("prompt"), []
        for at in order:
            prompt, answer = self._of(at)
            if prompt != own:
                found.append(pattern(self.task.keys.demonstration).fill({"prompt": prompt, "answer": answer}))
            if len(found) == self.task.keys.shots:
                return found
        raise row.problem("shots", f"{self.task.keys.shots} are wanted, and there are {len(found)} other rows")

    def _of(self, at: int) -> tuple[str, str]:
        if at not in self._solved:
            row = self.pool[at]
            if self.task.keys.kind == "choice":
                choices = _choices(row)
                answer = choices[_right(row, choices)[0]]
            else:
                answer = _references(row)[0]
            self._solved[at] = row.text("prompt"), answer
        return self._solved[at]
