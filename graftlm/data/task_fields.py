"""The fields of a labelled row: which columns serve them, their texts, the label, the alternatives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftlm.data.formats import RowProblem
from graftlm.data.keys import digest, group_key, values_key
from graftlm.data.task_template import LETTERS, TaskTemplate, as_word, pattern
from graftlm.errors import UserError, nearest

Row = dict[str, Any]
TRAINING = ("train", "training")
_TURN = ("text", "content", "value", "utterance", "answer")
_AT = re.compile(r"(.+)\[(.+)\]")


@dataclass(frozen=True, slots=True)
class Fields:
    """A row as a template sees it.

    ``values``: texts and lists of texts by field; ``options`` in the order of the data, ``right`` is the index of the
    right one. ``identity`` is of all that is in it; ``keys`` are of what is asked, and of what is asked when inverted;
    ``input`` is the first of them, or nothing where the input shows nothing of the row.
    """

    values: Mapping[str, Any]
    label: str | None
    options: tuple[str, ...]
    right: int
    identity: bytes
    keys: tuple[bytes, ...]
    input: bytes = b""


def expand_row(row: Row) -> list[Row]:
    """The rows in a row: the questions of a SQuAD article, or the row itself."""
    paragraphs = row.get("paragraphs")
    if not isinstance(paragraphs, list) or not all(isinstance(p, dict) and "qas" in p for p in paragraphs):
        return [row]
    title = row.get("title")
    return [
        {"title": title, "context": paragraph.get("context"), **question}
        for paragraph in paragraphs
        for question in paragraph["qas"]
        if isinstance(question, dict)
    ]


def columns_of(rows: Iterable[Row]) -> list[str]:
    """The columns of rows, and of the objects in them as ``translation.en``."""
    names: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            names[name] = None
            if isinstance(value, dict):
                names.update(dict.fromkeys(f"{name}.{inner}" for inner in value))
    return list(names)


@dataclass(frozen=True)
class Columns:
    """The column of each field, and the column or columns of the alternatives."""

    fields: Mapping[str, str]
    options: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line a field: "text ← sentence"."""
        shown = [f"{field} ← {column}" for field, column in self.fields.items()]
        return [*shown, f"options ← {', '.join(self.options)}"] if self.options else shown


def choose_columns(
    present: Sequence[str], template: TaskTemplate, given: Mapping[str, str] | None = None, *, source: str = "the rows"
) -> Columns:
    """The columns to use: those that are ``given`` by field, else the first of the template's that exists.

    Raises:
        UserError: a field has no column (it lists the file's columns and what would be used for each field), or a
            given field or column does not exist.
    """
    given = dict(given or {})
    known = [*template.columns, *(["options"] if template.options else [])]
    for field, column in given.items():
        if field not in known:
            guess = nearest(field, known)
            raise UserError(
                f"--column {field}={column}: '{template.name}' has no field '{field}'; it has: {', '.join(known)}",
                hint=f"Did you mean '{guess}'?" if guess else None,
            )
        for name in column.split(",") if field == "options" else [column]:
            if not all(part in present for part in _parts(name)):
                raise UserError(
                    f"--column {field}={column}: {source} has no column '{name}'; its columns are: {', '.join(present)}"
                )
    by_lower = {name.lower().replace("-", "_"): name for name in reversed(present)}
    found: dict[str, str | None] = {}
    for field, names in template.columns.items():
        exact = next((name for name in names if name in present), None)
        close = next((by_lower[name.lower()] for name in names if name.lower() in by_lower), None)
        found[field] = given.get(field) or exact or close
    options: tuple[str, ...] = ()
    if template.options:
        alternatives = template.options.columns
        options = next((names for names in alternatives if all(name in present for name in names)), ())
        options = tuple(given["options"].split(",")) if "options" in given else options
    missing = [field for field in found if found[field] is None and field not in template.optional]
    if missing or (template.options and not options):
        raise _unclear(present, template, found, options, source)
    return Columns({field: column for field, column in found.items() if column is not None}, options)


def same_columns(chosen: Mapping[str, Columns], template: TaskTemplate) -> Columns:
    """The one choice of columns of several files that are read as one.

    Raises:
        UserError: two files have different ones, with the difference.
    """
    (first, columns), *others = chosen.items()
    for name, theirs in others:
        if theirs == columns:
            continue
        fields = [field for field in template.columns if theirs.fields.get(field) != columns.fields.get(field)]
        pairs = [(field, columns.fields.get(field), theirs.fields.get(field)) for field in fields]
        pairs += [("options", ", ".join(columns.options), ", ".join(theirs.options))] if not fields else []
        told = "; ".join(f"{field} ← {one or 'nothing'} and {other or 'nothing'}" for field, one, other in pairs)
        raise UserError(
            f"{first} and {name} have different columns for '{template.name}': {told}",
            hint="Give the files one by one, or columns with the same names.",
        )
    return columns


def _unclear(
    present: Sequence[str],
    template: TaskTemplate,
    found: Mapping[str, str | None],
    options: tuple[str, ...],
    source: str,
) -> UserError:
    lines = [f"{source}: not every field of '{template.name}' has a column; its columns are: {', '.join(present)}"]
    asked: list[str] = []
    free = [name for name in present if name not in found.values()]
    for field, column in found.items():
        if column is not None:
            lines.append(f"  {field} ← {column}")
        elif field in template.optional:
            lines.append(f"  {field} ← nothing (it may be left out)")
        else:
            lines.append(f"  {field} ← ?  (looked for: {', '.join(template.columns[field])})")
            likely = nearest(field, free) or (free[0] if len(free) == 1 else "COLUMN")
            asked.append(f"--column {field}={likely}")
    if template.options:
        looked = "; ".join(", ".join(names) for names in template.options.columns)
        lines.append(f"  options ← {', '.join(options)}" if options else f"  options ← ?  (looked for: {looked})")
        asked += [] if options else ["--column options=COLUMN,COLUMN"]
    return UserError("\n".join(lines), hint=f"Say which column serves: {' '.join(asked)}")


def _parts(column: str) -> list[str]:
    """``sections[numbers]`` as its two columns."""
    match = _AT.fullmatch(column)
    return [match.group(1), match.group(2)] if match else [column]


def _value(row: Row, column: str) -> Any:
    """What stands in a column; ``a.b`` looks into an object, ``a[b]`` takes the entries of ``a`` that ``b`` numbers."""
    if column in row:
        return row[column]
    if match := _AT.fullmatch(column):
        entries, numbers = _value(row, match.group(1)), _value(row, match.group(2))
        numbers = numbers if isinstance(numbers, list) else [numbers]
        try:
            return "\n\n".join(str(entries[int(number)]) for number in numbers)
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise RowProblem(f"'{column}' is not in the row") from error
    outer, dot, inner = column.partition(".")
    if dot and isinstance(row.get(outer), dict):
        return row[outer].get(inner)
    raise RowProblem(f"missing column '{column}'")


def _text(value: Any, column: str) -> str:
    """A field's text: of a list its first entry, of an object what it says."""
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = next((value[key] for key in _TURN if key in value), value)
        if isinstance(value, list):
            value = value[0] if value else None
    if value is None:
        raise RowProblem(f"nothing in column '{column}'")
    if isinstance(value, dict | list):
        raise RowProblem(f"column '{column}' holds no text")
    text = as_word(value)
    if not text:
        raise RowProblem(f"nothing in column '{column}'")
    return text


def _texts(value: Any, column: str) -> list[str]:
    if isinstance(value, dict):
        value = next((value[key] for key in _TURN if isinstance(value.get(key), list)), value)
    entries = value if isinstance(value, list | tuple) else [value]
    if not entries:
        raise RowProblem(f"nothing in column '{column}'")
    return [_text(entry, column) for entry in entries]


class FieldReader:
    """Reads rows as a template's fields. Built once for a file, since most of the work is the same for every row."""

    def __init__(self, template: TaskTemplate, columns: Columns, spellings: Mapping[str, str] | None = None) -> None:
        self.template, self.columns = template, columns
        self.spelled = {**template.spelled, **{k.lower(): v for k, v in (spellings or {}).items()}}
        for spelling, label in (spellings or {}).items():
            if template.labels is None or label not in template.labels:
                raise UserError(
                    f"--label {spelling}={label}: '{template.name}' has no label '{label}'; it has:"
                    f" {', '.join(template.labels or ('none',))}"
                )
        self.asked = tuple(self._asked(part) for part in (template, template.inverted) if part is not None)
        self._strange: set[str] = set()
        self.kinds = len(self.asked)  # how many of them Fields gets keys of: only demonstrations need all

    def _asked(self, part: Any) -> tuple[str, ...]:
        """The fields that descriptions and input show, without the label and the number of the right alternative."""
        sources = [*part.input.values(), *(text for texts in part.descriptions.values() for text in texts)]
        names = frozenset[str]().union(*(pattern(source).names for source in sources))
        answer = self.template.options.answer if self.template.options else None
        return tuple(sorted(n for n in names if n in self.template.columns and n not in ("label", answer)))

    def read(self, row: Row) -> Fields:
        """The fields of a row.

        Raises:
            RowProblem: a column is missing or empty, the label is not in the template's list.
        """
        values = {field: self._field(row, field) for field in self.template.columns}
        label = self._label(values["label"]) if self.template.labels is not None else None
        options, marks = self._alternatives(row)
        right = self._right(row, values, options, marks)
        identity = digest([*(f"{k}={v}" for k, v in sorted(values.items())), *options])
        keys = tuple(
            values_key(place, [values[name] for name in self.asked[place]], options) for place in range(self.kinds)
        )
        return Fields(values, label, options, right, identity, tuple(filter(None, keys)), keys[0] if keys else b"")

    def keys(self, row: Row) -> list[bytes]:
        """What a row asks, as in :class:`Fields`, whether or not its label or answer is of use."""
        keys: list[bytes] = []
        for place, names in enumerate(self.asked):
            try:
                values, options = [self._field(row, name) for name in names], self._alternatives(row)[0]
            except RowProblem:
                continue
            keys += [key for key in (values_key(place, values, options),) if key]
        return keys

    def _field(self, row: Row, field: str) -> str | list[str]:
        column = self.columns.fields.get(field)
        try:
            if column is None:
                raise RowProblem("no column")
            value = _value(row, column)
            return _texts(value, column) if field in self.template.lists else _text(value, column)
        except RowProblem:
            if field not in self.template.optional:
                raise
            return [] if field in self.template.lists else ""

    def _label(self, text: Any) -> str:
        label = self.spelled.get(str(text).lower())
        if label is None:
            self._strange.update({text} if len(self._strange) < 20 and len(text) <= 40 else ())
            named = f"label '{text}' is" if text in self._strange else "label is"
            raise RowProblem(f"{named} not in the template's list")
        return label

    def _alternatives(self, row: Row) -> tuple[tuple[str, ...], list[str]]:
        """The alternatives of a choice and what marks each of them in the data."""
        if self.template.options is None:
            return (), []
        marks = list(LETTERS)
        if len(self.columns.options) > 1:
            options = [_text(_value(row, name), name) for name in self.columns.options]
        else:
            column = self.columns.options[0]
            value = _value(row, column)
            options = _texts(value, column)
            if isinstance(value, dict) and isinstance(value.get("label"), list):
                marks = [as_word(mark) for mark in value["label"]]
        if not 2 <= len(options) <= len(LETTERS):
            raise RowProblem(f"a choice of {len(options)} alternatives (2 to {len(LETTERS)} are allowed)")
        if len(set(options)) < len(options):
            raise RowProblem("two alternatives are the same")
        return tuple(options), marks[: len(options)]

    def _right(self, row: Row, values: Mapping[str, Any], options: Sequence[str], marks: Sequence[str]) -> int:
        """The index of the right alternative: named by a number, its text, or its mark."""
        rule = self.template.options
        if rule is None:
            return 0
        number, answer = _value(row, self.columns.fields[rule.answer]), values[rule.answer]
        if isinstance(number, int) and not isinstance(number, bool):
            return _numbered(number - rule.count_from, options)
        for known in (options, marks):
            if answer in known:
                return known.index(answer)
        if answer.upper() in marks:
            return marks.index(answer.upper())
        if answer.isascii() and answer.isdigit():
            return _numbered(int(answer) - rule.count_from, options)
        raise RowProblem("the answer is none of the alternatives")


def _numbered(number: int, options: Sequence[str]) -> int:
    if not 0 <= number < len(options):
        raise RowProblem("the answer is none of the alternatives")
    return number


def is_training(row: Row) -> bool:
    """Whether a row may serve as a demonstration: it is not marked as one of another split."""
    split = row.get("split")
    return split is None or str(split).strip().lower() in TRAINING


def group_of(row: Row, column: str) -> str:
    """The key of the group that a row belongs to, by the value of a column; "" where it has none.

    ``column`` as in :func:`choose_columns`: ``a.b``, ``a[b]``.
    """
    try:
        value = _value(row, column)
    except RowProblem:
        return ""
    return "" if value is None or value == "" else group_key(value)


def check_group(column: str, present: Sequence[str], source: str) -> None:
    """Raises UserError where rows have no column to group them by."""
    if all(part in present for part in _parts(column)):
        return
    guess = nearest(column, list(present))
    raise UserError(
        f"group: {source} has no column '{column}'; its columns are: {', '.join(present)}",
        hint=f"Did you mean '{guess}'?" if guess else None,
    )


def rows_to_join(rows: Iterable[tuple[int, Row]], on: str, source: str) -> dict[str, Row]:
    """The rows of another file by their value in the column ``on``; all of them are held in memory.

    Raises:
        UserError: they have no such column.
    """
    return {as_word(row[on]): row for _, row in _with_column(rows, on, source) if on in row}


def join_rows(
    rows: Iterable[tuple[int, Row]], others: Mapping[str, Row], on: str, source: str
) -> Iterator[tuple[int, Row]]:
    """Rows with the one of ``others`` that has the same value in the column ``on``, as the object ``joined``.

    Raises:
        UserError: the rows have no such column.
    """
    for number, row in _with_column(rows, on, source):
        yield number, {**row, "joined": others.get(as_word(row[on]), {}) if on in row else {}}


def _with_column(rows: Iterable[tuple[int, Row]], on: str, source: str) -> Iterator[tuple[int, Row]]:
    """All of the rows, if the first has the column."""
    for place, (number, row) in enumerate(rows):
        if not place and on not in row:
            guess = nearest(on, list(row))
            raise UserError(
                f"{source} has no column '{on}' to join on; its columns are: {', '.join(row)}",
                hint=f"Did you mean '{guess}'?" if guess else None,
            )
        yield number, row
