"""What a model made of the items of a task, and the file that it is kept in while an evaluation runs.

A file is JSON lines: a header that says whose results they are, then one line an item. Lines are added as they come, so
a run that is killed goes on behind the last whole line; a header that does not fit makes the file begin anew.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors


@dataclass(frozen=True)
class ItemResult:
    """What a model made of one item.

    ``item``: the item's hash. ``log_probs``: log p of each candidate in nats (None: no room for it in the context),
    with the ``tokens`` and ``sizes`` (bytes) of each. ``text``: the written answer, ``ended`` whether the model ended
    it itself. ``predicted``: the label of a head. ``scores``: of the written answer, by scorer. ``error``: why there
    is no result.
    """

    item: str
    log_probs: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    text: str | None = None
    ended: bool = True
    predicted: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is as it is by default is left out."""
        values: dict[str, Any] = {"item": self.item}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ItemResult:
        """Those that :meth:`to_dict` gave."""
        tuples = {key: tuple(values[key]) for key in ("log_probs", "tokens", "sizes") if key in values}
        return cls(**{**values, **tuples})


_DEFAULTS: dict[str, Any] = {
    "log_probs": (),
    "tokens": (),
    "sizes": (),
    "text": None,
    "ended": True,
    "predicted": None,
    "scores": {},
    "error": None,
}


class ResultFile:
    """The results of one model on one task. ``results``: by the place of their item, from 0; in any order."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, dict(header)
        self.results = self._read()

    def _read(self) -> dict[int, ItemResult]:
        """What an earlier run left; a line that is cut off is taken away, and all that has another header."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            data = self.path.read_bytes() if self.path.exists() else b""
        found: dict[int, ItemResult] = {}
        good = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            try:
                value = json.loads(line) if line.endswith(b"\n") else None
                if number == 0 and value != self.header:
                    break
                if value is None:
                    break
                if number:
                    place = value.pop("place")
                    found[place] = ItemResult.from_dict(value)
            except (ValueError, TypeError, KeyError):
                break
            good += len(line)
        if good < len(data):
            with disk_errors(self.path):
                os.truncate(self.path, good)
        return found

    def missing(self, items: int) -> list[int]:
        """The places that have no result yet."""
        return [place for place in range(items) if place not in self.results]

    def in_order(self, items: int) -> list[ItemResult]:
        """The results of all items; each must have one."""
        return [self.results[place] for place in range(items)]

    def add(self, results: Mapping[int, ItemResult]) -> None:
        """Write results, by place, behind the others; they are on the disk when this returns."""
        with disk_errors(self.path), self.path.open("ab") as file:
            if file.tell() == 0:
                file.write(_line(self.header))
            file.writelines(_line({"place": place, **result.to_dict()}) for place, result in results.items())
            file.flush()
            os.fsync(file.fileno())
        self.results |= results


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def finite(values: Iterable[float | None]) -> tuple[float | None, ...]:
    """None in the place of what is no number."""
    return tuple(value if value is not None and math.isfinite(value) else None for value in values)
