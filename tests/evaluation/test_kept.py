"""Values that are kept in a file: what is whole stays, whatever happened to the process that wrote it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import UserError
from graftlm.evaluation.kept import Kept, key_of

HEADER = {"of": "模型"}
VALUES: dict[str | int, Any] = {"a": "half \ud800", "b": 1.5, 3: {"text": "so\u2028much\r\n"}}


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "deep" / "file.jsonl", HEADER)
    kept.add({"a": VALUES["a"]})
    kept.add({key: VALUES[key] for key in ("b", 3)})
    again = Kept(kept.path, HEADER)
    assert again.values == VALUES
    assert "b" in again
    assert again[3] == VALUES[3]
    assert not again.begun_anew


def test_without_a_path_it_is_in_memory() -> None:
    kept = Kept()
    kept.add(VALUES)
    assert kept.values == VALUES


def test_what_is_behind_a_broken_line_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    Kept(path, HEADER).add({"a": 1})
    path.write_bytes(path.read_bytes() + b'["c"]\n["d", 1]\n')
    again = Kept(path, HEADER)
    assert again.values == {"a": 1}
    again.add({"e": 2})
    assert Kept(path, HEADER).values == {"a": 1, "e": 2}


def test_another_header_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    Kept(path, HEADER).add({"a": 1})
    other = Kept(path, {"of": "another"})
    assert other.values == {}
    assert other.begun_anew
    assert not Kept(path, {"of": "another"}).begun_anew


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else what another thread adds afterwards would stand behind a broken line, and be lost."""
    path = tmp_path / "file.jsonl"
    kept = Kept(path, HEADER)
    kept.add({"a": 1})

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            kept.add({"b": 2})
    assert "b" not in kept
    kept.add({"c": 3})
    assert Kept(path, HEADER).values == {"a": 1, "c": 3}


def test_keys_tell_parts_apart() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
