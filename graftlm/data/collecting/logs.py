"""Rows of query logs, and which of their columns hold the prompt, the user and the consent."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from graftlm.data.readers import Row, find_sources, read_rows
from graftlm.errors import UserError

SAMPLE = 100  # rows in which columns are looked for
SQLITE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
NAMES = {
    "prompt": ("prompt", "query", "text", "input", "question", "message", "content", "request"),
    "user": ("user", "user_id", "userid", "uid", "account", "account_id", "customer", "customer_id"),
    "consent": (
        "consent",
        "consented",
        "user_consent",
        "consent_given",
        "training_consent",
        "opt_in",
        "allow_training",
    ),
}
_YES = frozenset(
    ("true", "yes", "y", "t", "1", "granted", "given", "opt-in", "ja", "oui", "sí", "si", "是", "同意", "已同意")
)
_NO = frozenset(
    ("false", "no", "n", "f", "0", "denied", "refused", "withdrawn", "opt-out", "nein", "non", "否", "不同意", "未同意")
)


@dataclass(frozen=True, slots=True)
class Columns:
    """The names of the columns."""

    prompt: str
    user: str
    consent: str


def find_logs(logs: Sequence[str | Path]) -> list[Path]:
    """The files of all logs; folders are looked through for data files."""
    return [Path(source) for log in logs for source in _sources(Path(log).expanduser())]


def _sources(path: Path) -> list[str]:
    if path.is_dir():
        databases = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in SQLITE_SUFFIXES)
        if databases:
            others = [str(p) for p in path.rglob("*.jsonl*")]
            return sorted(databases + others)
    sources = find_sources(path)
    if not Path(sources[0]).exists():
        raise UserError(f"{path}: there is no such file or folder", hint="A log is a file: JSONL or SQLite.")
    return sources


def read_log(path: Path, *, table: str | None) -> Iterator[tuple[int, Row]]:
    """The rows of a log with their numbers from 1, streamed. ``table`` names the table of an SQLite file.

    Raises:
        UserError: the file cannot be read; the table is not there, or not named where there are several.
    """
    with path.open("rb") as file:
        is_database = file.read(16) == b"SQLite format 3\x00"
    if is_database:
        return _read_table(path, table)
    if path.suffix.lower() in SQLITE_SUFFIXES:
        raise UserError(f"{path}: this is no SQLite file", hint="A log is JSONL or SQLite.")
    return read_rows(path)


def _read_table(path: Path, table: str | None) -> Iterator[tuple[int, Row]]:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = bytes
            listed = (
                "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%' ORDER BY 1"
            )
            tables = [name.decode() for (name,) in database.execute(listed)]
            if table is None and len(tables) != 1:
                raise UserError(
                    f"{path}: the database holds {len(tables)} tables: {', '.join(tables) or 'none'}",
                    hint="Name the one to read: --table NAME",
                )
            name = table or tables[0]
            if name not in tables:
                raise UserError(f"{path}: there is no table '{name}'; there are: {', '.join(tables) or 'none'}")
            quoted = name.replace('"', '""')
            cursor = database.execute(f'SELECT * FROM "{quoted}"')
            names = [str(column[0]) for column in cursor.description]
            for number, values in enumerate(cursor, 1):
                yield number, {key: _text(value, path, number, key) for key, value in zip(names, values, strict=True)}
    except sqlite3.Error as error:
        raise UserError(f"{path}: the database cannot be read: {error}") from error


def _text(value: Any, path: Path, row: int, column: str) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: row {row}, column '{column}' is not UTF-8: {error.reason}") from error


def with_columns(
    rows: Iterator[tuple[int, Row]], path: Path, prompt: str | None, user: str | None, consent: str | None
) -> tuple[Columns, Iterator[tuple[int, Row]]]:
    """The columns, as named or by their usual names in the first rows, and all rows again.

    Raises:
        UserError: a column is not there. Without a column of consent, a log is refused as a whole.
    """
    sample = list(islice(rows, SAMPLE))
    if not sample:
        raise UserError(f"{path}: the log holds no rows")
    there = list(dict.fromkeys(key for _, row in sample for key in row))
    lower = {key.lower(): key for key in reversed(there)}

    def choose(kind: str, named: str | None, why: str) -> str:
        if named is not None and named in there:
            return named
        found = None if named is not None else next((lower[name] for name in NAMES[kind] if name in lower), None)
        if found is None:
            what = f"no column '{named}'" if named is not None else f"no column of the {kind}"
            raise UserError(f"{path}: {what}; there are: {', '.join(there)}", hint=f"{why} --{kind} COLUMN names it.")
        return found

    columns = Columns(
        choose("prompt", prompt, "The prompt is what the user asked."),
        choose("user", user, "Splits, limits and names need to know whose a prompt is."),
        choose("consent", consent, "Only prompts whose users agreed are collected."),
    )
    return columns, chain(sample, rows)


def consent_problem(value: Any, accepted: frozenset[str]) -> str | None:
    """Why a mark of consent does not let the row in, or None if it does. ``accepted``: other values that mean yes."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "no consent mark"
    mark = str(value).strip().lower()
    if isinstance(value, float) and value in (0.0, 1.0):
        mark = str(int(value))
    if accepted:
        return None if mark in accepted else "consent not given"
    if mark in _YES:
        return None
    return "consent not given" if mark in _NO else "consent mark not understood"


def user_of(value: Any) -> str | None:
    """The user's id as text, or None where there is none."""
    if value is None or isinstance(value, bool | list | dict):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column with gaps makes 12 a 12.0
    return str(value).strip() or None
