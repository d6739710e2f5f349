"""Write files so that a crash, a kill or a full disk leaves either the old content or the new, never a part."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from graftlm.errors import UserError


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Make or replace ``folder`` with what ``fill(new_folder)`` writes; it appears whole or not at all.

    A link to a folder stays a link; the folder that it leads to is replaced.

    Raises:
        UserError: the disk is full or the place may not be written; what was there stays.
    """
    with disk_errors(folder):
        folder = Path(os.path.realpath(folder))
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is a file, where a folder is to be written", hint="Choose another folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            fresh.chmod(0o755)
            fill(fresh)
            for path in fresh.rglob("*"):
                if path.is_file():
                    path.chmod(0o644)  # safetensors makes files that nobody else may read
                    _sync(path)
            _sync(fresh)
            if folder.exists():
                _swap(fresh, folder)  # the old content is now in fresh, and goes with it
            else:
                fresh.rename(folder)
            _sync(folder.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Make or replace a file; it appears whole or not at all.

    Raises:
        UserError: as for :func:`write_folder`.
    """
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Make or replace files that belong together: none takes its place before all are on the disk.

    Raises:
        UserError: as for :func:`write_folder`.
    """
    fresh = {path: path.with_name(f".{path.name}.part") for path in texts}
    try:
        for path, text in texts.items():
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh[path].write_text(text, encoding="utf-8")
                _sync(fresh[path])
        for path in texts:
            with disk_errors(path):
                fresh[path].replace(path)
    finally:
        for part in fresh.values():
            with suppress(OSError):
                part.unlink()


def write_json(path: Path, value: Any) -> None:
    """Make or replace a JSON file, like :func:`write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            free = shutil.disk_usage(_existing(path)).free
            raise UserError(
                f"the disk is full: {path} could not be written ({free / 1e6:.0f} MB free)",
                hint="Earlier results are intact. Free some space and run the same command again.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path} may not be written: {error.strerror}", hint="Choose another folder.") from error
        raise UserError(f"{path} could not be written: {error}", hint="Choose another folder.") from error
    except Exception as error:  # safetensors wraps the system's error in one of its own
        if re.search(r"No space left|os error (28|122|27)\b", str(error)):  # full, over quota, over the size limit
            raise UserError(
                f"the disk is full: {path} could not be written",
                hint="Earlier results are intact. Free some space and run the same command again.",
            ) from error
        raise


def _swap(fresh: Path, folder: Path) -> None:
    """Exchange two folders: at one stroke on Linux, elsewhere in three renames that are undone if one fails."""
    if sys.platform == "linux":
        rename = getattr(ctypes.CDLL(None), "renameat2", None)
        if rename and rename(_HERE, os.fsencode(fresh), _HERE, os.fsencode(folder), _EXCHANGE) == 0:
            return
    old = fresh.with_suffix(".old")
    folder.rename(old)
    try:
        fresh.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    old.rename(fresh)


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of linux/fcntl.h and linux/fs.h


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
