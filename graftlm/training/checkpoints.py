"""Checkpoints of a whole run: every adapter's parameters, optimizer and progress, in one atomic folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from graftlm.base.files import write_folder
from graftlm.base.tensors import unshared
from graftlm.errors import UserError

PREFIX = "round-"


@dataclass(frozen=True)
class Checkpoint:
    """``state`` is JSON; ``tensors`` are keyed by adapter and purpose."""

    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def save_checkpoint(
    folder: Path, number: int, state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], keep: int
) -> Path:
    """Write checkpoint ``number`` under ``folder`` and remove all but the ``keep`` newest."""

    def fill(fresh: Path) -> None:
        save_file(unshared(tensors), fresh / "tensors.safetensors")
        (fresh / "state.json").write_text(json.dumps(state), encoding="utf-8")

    target = folder / f"{PREFIX}{number:08d}"
    for abandoned in folder.glob(f".{PREFIX}*"):  # of a process that was killed while it wrote
        shutil.rmtree(abandoned, ignore_errors=True)
    write_folder(target, fill)
    for old in _existing(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint under ``folder``, or None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    found = _existing(folder)
    if not found:
        return None
    newest = found[-1]
    try:
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(state, load_file(newest / "tensors.safetensors"))
    except Exception as error:
        raise UserError(
            f"the checkpoint {newest} cannot be read: {error}",
            hint="Delete that folder to go on from the one before it, or start anew with --overwrite.",
        ) from error


def _existing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir()) if folder.is_dir() else []
