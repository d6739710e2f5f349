"""Answers of one model that outlive a killed run: JSON lines, a header that says whose they are, then an answer each.

Lines are added as answers come. A last line that was cut off is taken away; where the header does not fit, the file
begins anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors


class Kept:
    """Answers by their keys; without a path, in memory only."""

    def __init__(self, path: Path | None = None, header: Mapping[str, Any] | None = None) -> None:
        self.path, self.header = path, dict(header or {})
        self.answers: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        if path is not None:
            self._read(path)

    def _read(self, path: Path) -> None:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes() if path.exists() else b""
        good = 0
        for number, line in enumerate(data.splitlines(keepends=True)):
            try:
                value = json.loads(line) if line.endswith(b"\n") else []
                if number == 0 and value != self.header:
                    break
                if number:
                    key, answer = value
                    self.answers[key] = answer
            except (ValueError, TypeError):
                break
            good += len(line)
        if good < len(data):
            with disk_errors(path):
                os.truncate(path, good)

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer; :meth:`write` puts it on the disk."""
        self.answers[key] = self._new[key] = answer

    def write(self) -> None:
        """What is new is on the disk when this returns."""
        if self.path is not None and self._new:
            with disk_errors(self.path), self.path.open("ab") as file:
                if file.tell() == 0:
                    file.write(_line(self.header))
                file.writelines(_line([key, answer]) for key, answer in self._new.items())
                file.flush()
                os.fsync(file.fileno())
        self._new.clear()


def _line(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace")
