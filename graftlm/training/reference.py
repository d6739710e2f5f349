"""Log-probabilities under the reference, found once before training and kept on disk.

The reference of a task is what its adapter starts from: the bare base, the stack beneath, or the adapter itself where
it goes on from a trained one. It is a routing of the one model; nothing is copied.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.stored import parameters_digest
from graftlm.base.files import write_folder
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.training.forward import RoutedRow, score_rows
from graftlm.training.settings import RunSettings
from graftlm.training.task import Task

FILE = "log_probs.safetensors"


def with_references(
    model: AdaptedModel, tasks: Sequence[Task], settings: RunSettings, folder: Path | None = None
) -> list[Task]:
    """The tasks, with the reference's log-probability at every row whose objective needs it and that has none.

    Those of all tasks are found in one pass. ``folder`` keeps them, one folder a task; they are used again where base,
    adapters and rows are the same, and found anew where adapters or rows are not.

    Raises:
        UserError: what is kept is of another base, or the disk is full.
    """
    open_ = [task for task in tasks if task.objective.needs_reference and None in list(_known(task))]
    kept: dict[str, list[float]] = {}
    for task in open_:
        found = None if folder is None else _read(folder / task.adapter, _identity(model, task))
        if found is not None:
            kept[task.adapter] = found
    missing = [task for task in open_ if task.adapter not in kept]
    rows = [RoutedRow(row, task.reference_stack) for task in missing for row in _rows(task)]
    scores = iter(score_rows(model, rows, settings.micro_batch_tokens) if rows else [])
    for task in missing:
        kept[task.adapter] = [next(scores).log_prob for _ in _rows(task)]
        if folder is not None:
            _write(folder / task.adapter, _identity(model, task), kept[task.adapter])
    return [_with(task, kept[task.adapter]) if task.adapter in kept else task for task in tasks]


def _rows(task: Task) -> Iterator[EncodedRow]:
    """All rows of a task's groups, learnt and held out."""
    for leader in (*task.rows, *task.held_out):
        yield from leader.group


def _known(task: Task) -> Iterator[float | None]:
    return (row.reference for row in _rows(task))


def _with(task: Task, log_probs: Sequence[float]) -> Task:
    values = iter(log_probs)

    def filled(leader: EncodedRow) -> EncodedRow:
        first = next(values)
        beside = tuple(replace(row, reference=next(values)) for row in leader.beside)
        return replace(leader, reference=first, beside=beside)

    rows = tuple(filled(row) for row in task.rows)
    return replace(task, rows=rows, held_out=tuple(filled(row) for row in task.held_out))


def _identity(model: AdaptedModel, task: Task) -> dict[str, str]:
    """What the log-probabilities depend on. The rows' ids hold what template and tokenizer made of the data."""
    adapters = [model.adapter(name) for name in task.reference_stack]
    configs = json.dumps([adapter.config.model_dump(mode="json") for adapter in adapters], sort_keys=True)
    digest = hashlib.sha256((configs + parameters_digest(adapters)).encode())
    return {"base": model.fingerprint, "adapters": digest.hexdigest(), "rows": task.digest}


def _write(place: Path, identity: dict[str, str], log_probs: list[float]) -> None:
    tensors = {"log_probs": torch.tensor(log_probs, dtype=torch.float64)}
    write_folder(place, lambda fresh: save_file(tensors, fresh / FILE, metadata=identity))


def _read(place: Path, identity: dict[str, str]) -> list[float] | None:
    """What is kept, or None where there is nothing, or it is of other adapters or rows."""
    if not (place / FILE).exists():
        return None
    try:
        with safe_open(str(place / FILE), framework="pt") as file:
            found = file.metadata() or {}
            log_probs: list[float] = file.get_tensor("log_probs").tolist()
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"the log-probabilities of the reference in {place} cannot be read: {error}",
            hint="Delete that folder; they are then found anew.",
        ) from error
    if found.get("base") != identity["base"]:
        raise UserError(
            f"the reference whose log-probabilities are in {place} is of another base: fingerprint "
            f"{str(found.get('base'))[:12]}, this one {identity['base'][:12]}",
            hint="Start anew with --overwrite, or delete that folder.",
        )
    return log_probs if found == identity else None
