"""Prompts kept so far, in a file: is a new one equal to one of them, or nearly, or do both begin alike?

Near duplicates: shingles of three signs (two in Chinese and its like), MinHash, its values cut into bands. A band in
common makes a candidate; the Jaccard index of the shingles decides. Nothing but SQLite's cache stays in memory.
"""

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from datasketch import MinHash

VALUES = 144  # of a MinHash
FOUND = 0.999  # chance that a pair right at the threshold becomes a candidate
_EMPTY = MinHash(num_perm=VALUES, seed=1)
_WIDE = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_MEANT = "#*/%&@\\"  # punctuation that asks for something else: C# is not C
_SAID = re.compile(r"[\d#*/%&@+<>=^$€£]+")
_WIDE_SPACE = re.compile(f"(?<={_WIDE.pattern}) (?={_WIDE.pattern})")


def normal(text: str) -> str:
    """A text without case, punctuation, odd spaces and widths: what is compared."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WIDE_SPACE.sub("", " ".join(plain.translate(_SIGNS).split()))


class _Signs(dict[int, int]):
    """What ``str.translate`` makes of a sign: a space of punctuation, space and control signs, else the sign itself."""

    def __missing__(self, code: int) -> int:
        sign = chr(code)
        kept = unicodedata.category(sign)[0] not in "PZC" or sign in _MEANT
        self[code] = code if kept else 0x20
        return self[code]


_SIGNS = _Signs()


def width(text: str) -> int:
    """Length in letters; a Chinese sign says about as much as three."""
    return len(text) + 2 * len(_WIDE.findall(text))


def beginning(text: str, length: int) -> str | None:
    """The first ``length`` letters of a normal text, or None if it is shorter."""
    if not _WIDE.search(text):
        return text[:length] if len(text) >= length else None
    seen = 0
    for place, sign in enumerate(text):
        seen += 3 if _WIDE.match(sign) else 1
        if seen >= length:
            return text[: place + 1]
    return None


def shingles(text: str) -> frozenset[str]:
    """The pieces of three signs of a normal text, two where they begin with a Chinese one."""
    if len(text) < 3:
        return frozenset((text,))
    if not _WIDE.search(text):
        return frozenset(text[i : i + 3] for i in range(len(text) - 2))
    pieces = (text[i : i + (2 if _WIDE.match(text[i]) else 3)] for i in range(len(text) - 1))
    return frozenset(piece for piece in pieces if len(piece) == 3 or _WIDE.match(piece))


def similarity(a: frozenset[str], b: frozenset[str]) -> float:
    """The Jaccard index: what both have, of what either has."""
    both = len(a & b)
    return both / (len(a) + len(b) - both) if a or b else 1.0


def band_rows(threshold: float) -> int:
    """Values in a band: as many (so few false candidates) as still find FOUND of the pairs at the threshold."""
    for rows in (12, 9, 8, 6, 4, 3, 2):
        if 1 - (1 - threshold**rows) ** (VALUES // rows) >= FOUND:
            return rows
    return 1


class Kept:
    """Kept prompts with their records in an SQLite file, and look-ups among them.

    ``prefix``: letters that two prompts may not have in common at their beginnings, 0 for no limit; ``threshold``: the
    least similarity of near duplicates.
    """

    def __init__(self, path: Path, *, prefix: int, threshold: float) -> None:
        self.prefix, self.threshold, self.rows = prefix, threshold, band_rows(threshold)
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"
            "CREATE TABLE prompts (number INTEGER PRIMARY KEY, same BLOB, begins BLOB, normal TEXT, user TEXT,"
            " split TEXT, record TEXT);"
            "CREATE UNIQUE INDEX by_same ON prompts (same); CREATE INDEX by_begins ON prompts (begins);"
            "CREATE INDEX by_user ON prompts (user);"
            "CREATE TABLE bands (band INTEGER, number INTEGER, PRIMARY KEY (band, number)) WITHOUT ROWID;"
            "BEGIN"
        )

    def close(self) -> None:
        self.database.close()

    def _one(self, query: str, *values: Any) -> Any:
        row = self.database.execute(query, values).fetchone()
        return None if row is None else row[0]

    def of_user(self, user: str) -> int:
        """How many prompts of a user are kept."""
        return int(self._one("SELECT count(*) FROM prompts WHERE user = ?", user))

    def duplicate(self, prompt: Prompt) -> str | None:
        """Why a prompt is a duplicate of a kept one, or None."""
        if self._one("SELECT 1 FROM prompts WHERE same = ?", prompt.same):
            return "duplicate"
        if prompt.begins and self._one("SELECT 1 FROM prompts WHERE begins = ?", prompt.begins):
            return "shares a long beginning"
        marks = ",".join("?" * len(prompt.bands))
        query = f"SELECT DISTINCT normal FROM bands JOIN prompts USING (number) WHERE band IN ({marks})"
        own: frozenset[str] | None = None
        for (other,) in self.database.execute(query, prompt.bands):
            if numbers(other) != prompt.numbers:
                continue
            own = prompt.shingles if own is None else own
            if similarity(own, shingles(other)) >= self.threshold:
                return "near duplicate"
        return None

    def prompt(self, text: str) -> Prompt:
        return Prompt(text, self.prefix, self.rows)

    def add(self, prompt: Prompt, user: str, split: str, record: str) -> None:
        values = (prompt.same, prompt.begins, prompt.normal, user, split, record)
        query = "INSERT INTO prompts (same, begins, normal, user, split, record) VALUES (?, ?, ?, ?, ?, ?)"
        number = self.database.execute(query, values).lastrowid
        self.database.executemany(
            "INSERT OR IGNORE INTO bands VALUES (?, ?)", ((band, number) for band in prompt.bands)
        )

    def records(self) -> Iterator[tuple[str, str]]:
        """Split and record of every kept prompt, in the order of the log."""
        yield from self.database.execute("SELECT split, record FROM prompts ORDER BY number")

    def splits(self) -> dict[str, dict[str, int]]:
        """Prompts and users of each split."""
        query = "SELECT split, count(*), count(DISTINCT user) FROM prompts GROUP BY split"
        return {name: {"prompts": rows, "users": users} for name, rows, users in self.database.execute(query)}


class Prompt:
    """What of a prompt is compared: its normal text, hashes of it and its beginning, shingles, bands and numbers."""

    def __init__(self, text: str, prefix: int, rows: int) -> None:
        self.normal = normal(text)
        self.same = _hash(self.normal)
        begins = beginning(self.normal, prefix) if prefix else None
        self.begins = None if begins is None else _hash(begins)
        self.numbers = numbers(self.normal)
        self.bands = bands(shingles(self.normal), rows)

    @property
    def shingles(self) -> frozenset[str]:
        """Made when they are needed: a prompt comes from another process, and most have no candidates."""
        return shingles(self.normal)


def numbers(text: str) -> list[str]:
    """The numbers and signs of a text: prompts that differ in one ask for another thing, however alike they look."""
    return _SAID.findall(text)


def bands(pieces: frozenset[str], rows: int) -> list[int]:
    """Hashes of the bands of the MinHash of shingles, as SQLite's integers."""
    sketch = _EMPTY.copy()
    sketch.update_batch([piece.encode("utf-8", "surrogatepass") for piece in pieces])
    values = np.asarray(sketch.hashvalues, dtype=np.uint64)
    cut = (values[i * rows : (i + 1) * rows].tobytes() + bytes([i]) for i in range(len(values) // rows))
    return [int.from_bytes(_hash_bytes(part)[:8], "big", signed=True) for part in cut]


def _hash(text: str) -> bytes:
    return _hash_bytes(text.encode("utf-8", "surrogatepass"))


def _hash_bytes(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()
