"""Preference runs that are killed go on to the same bits, wherever it happens, the reference's pass included."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm.training.checkpoints import latest_checkpoint
from graftlm.training.loop import train
from graftlm.training.metrics import MetricsFile
from graftlm.training.settings import RunSettings
from graftlm.training.task import Task
from tests.training.preferred import model_for, preference_task
from tests.training.work import after_round

SETTINGS = RunSettings(eval_every=2, save_every=1, keep_checkpoints=2, micro_batch_tokens=48)
KINDS = {"r": "reward", "d": "dpo", "k": "kto", "s": "sft"}


def tasks() -> list[Task]:
    return [
        preference_task(name, kind, seed=number, max_steps=8 - number, batch_rows=3, patience=2)
        for number, (name, kind) in enumerate(KINDS.items())
    ]


def go_on(folder: Path, *, should_stop: Callable[[], bool] = lambda: False) -> bool:
    """One process's life; True where the run came to its end."""
    own = tasks()
    model = model_for(own, dropout=0.3, dtype=torch.float32)
    saved = latest_checkpoint(folder / "checkpoints")
    metrics = MetricsFile(folder / "metrics.jsonl", rounds=saved.state["counters"]["rounds"] if saved else 0)
    outcome = train(
        model,
        own,
        SETTINGS,
        checkpoints=folder / "checkpoints",
        resume=True,
        watch=metrics,
        should_stop=should_stop,
        references=folder / "references",
    )
    if outcome.interrupted:
        return False
    for name in KINDS:
        model.save(name, folder / "adapters" / name)
    (folder / "done").touch()
    return True


def results(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = sorted(path for path in (folder / "adapters").rglob("*") if path.is_file())
    return {
        "adapters": {str(path.relative_to(folder)): path.read_bytes() for path in files},
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
    }


def live(folder: Path, started: Any) -> None:
    torch.set_num_threads(1)
    started.set()
    go_on(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert go_on(folder)
    return results(folder)


@pytest.mark.parametrize("number", [1, 3, 5])
def test_stopped_after_a_round(number: int, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    assert not go_on(tmp_path, should_stop=after_round(number))
    assert go_on(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_killed_at_random_moments(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "graftlm", "graftlm.training.loop"])
    draw = random.Random(5)
    killed, patience = 0, 0.2
    while not (tmp_path / "done").exists():
        started = context.Event()
        process = context.Process(target=live, args=(tmp_path, started), daemon=True)
        process.start()
        assert started.wait(120)
        process.join(draw.uniform(0.0, patience))
        process.kill()
        process.join(120)
        killed += not (tmp_path / "done").exists()
        patience *= 1.25
    assert killed >= 2
    assert results(tmp_path) == uninterrupted
