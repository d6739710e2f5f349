"""Answers that took long or cost money, kept by a key as they come, so that a killed run does not ask again."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors


class Kept:
    """A file of JSON lines, each a key with its value; a line that was cut off is taken away. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
        good = 0
        for line in data.splitlines(keepends=True):
            try:
                entry = json.loads(line) if line.endswith(b"\n") else {}
                self._values[entry["key"]] = entry["value"]
            except (ValueError, KeyError, TypeError):
                break
            good += len(line)
        if good < len(data):
            with disk_errors(path):
                os.truncate(path, good)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def add(self, key: str, value: Any) -> None:
        """Keep a value; it is on the disk when this returns."""
        line = json.dumps({"key": key, "value": value}) + "\n"
        with self._lock, disk_errors(self.path), self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
            self._values[key] = value


def key_of(*parts: Any) -> str:
    """A key for whatever decides a value."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
