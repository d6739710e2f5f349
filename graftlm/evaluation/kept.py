"""Answers that took long or cost money, kept by a key as they come, so that a run that was killed does not ask again.

A file is JSON lines: a header that says whose values they are, then [key, value] each. Lines are added as values come.
A last line that was cut off is taken away; where the header is another, the file begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors

Key = str | int


class Kept:
    """Values by key, in a file, or without a path in memory only. Threads may share it.

    ``begun_anew``: there was a file whose header is another; nothing of it is taken, and its lines are gone.
    """

    def __init__(self, path: Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.values: dict[Key, Any] = {}
        self.begun_anew = False
        self._header = _line(dict(header or {}))
        self._lock = threading.Lock()
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
        good = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            if number == 0 and line != self._header:
                self.begun_anew = line.endswith(b"\n")
                break
            try:
                if number:
                    key, value = json.loads(line if line.endswith(b"\n") else b"")
                    self.values[key] = value
            except (ValueError, TypeError):
                break
            good += len(line)
        if good < len(data):
            with disk_errors(path):
                os.truncate(path, good)

    def __contains__(self, key: Key) -> bool:
        return key in self.values

    def __getitem__(self, key: Key) -> Any:
        return self.values[key]

    def add(self, values: Mapping[Key, Any]) -> None:
        """Keep values; they are on the disk when this returns.

        Raises:
            UserError: the disk is full; nothing of these values is kept.
        """
        with self._lock:
            if self.path is not None and values:
                with disk_errors(self.path):
                    _append(self.path, self._header, b"".join(map(_line, values.items())))
            self.values |= values


def _append(path: Path, header: bytes, lines: bytes) -> None:
    """Add lines to a file, behind its header; all of them or none."""
    with path.open("ab") as file:
        before = file.tell()
        try:
            file.write(lines if before else header + lines)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(file.fileno(), before)
            raise


def _line(value: Any) -> bytes:
    try:
        return (json.dumps(value, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a character, which only an escape can write
        return (json.dumps(value) + "\n").encode()


def key_of(*parts: Any) -> str:
    """A key for whatever decides a value."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
