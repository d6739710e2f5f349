"""Stop at any point, go on exactly: asked to stop, killed anywhere, disk full; the end is the same bits."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import LoRA
from graftlm.errors import UserError
from graftlm.training import checkpoints as checkpoints_module
from graftlm.training.checkpoints import latest_checkpoint, save_checkpoint
from graftlm.training.events import CheckpointSaved
from graftlm.training.loop import train
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.training.work import after_round, go_on, make_rows, model_with, results, run, same_bits, weights

ROUNDS = 10


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert go_on(folder)
    found = results(folder)
    assert found["outcome"][0] == {"a": [6, "early stop"], "b": [7, "finished"]}
    assert found["outcome"][1][0] == ROUNDS
    return found


# --- asked to stop ---


@pytest.mark.parametrize("number", range(1, ROUNDS))
def test_stopped_after_any_round(number: int, uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    assert not go_on(tmp_path, should_stop=after_round(number))
    assert go_on(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_stopped_after_every_round(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    lives = 1
    while not go_on(tmp_path, should_stop=lambda: True):
        lives += 1
    assert lives == ROUNDS
    assert results(tmp_path) == uninterrupted


def test_resumed_after_the_end(uninterrupted: dict[str, Any], tmp_path: Path) -> None:
    """Killed after the last checkpoint and before the adapters were saved, say."""
    assert go_on(tmp_path)
    assert go_on(tmp_path)
    assert results(tmp_path) == uninterrupted


# --- killed ---

KILL_POINTS = ["before writing", "in a tensor file", "before the rename", "after the rename", "while old ones go"]


def kill_myself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, number: int) -> None:
    """Kill this process at one point of its ``number``-th checkpoint."""
    seen = 0

    def now() -> bool:
        nonlocal seen
        seen += 1
        return seen == number

    save_file, rmtree, rename = checkpoints_module.save_file, shutil.rmtree, Path.rename

    def saving(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if point in KILL_POINTS[:2] and now():
            if point == "in a tensor file":
                save_file(tensors, path)
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            kill_myself()
        save_file(tensors, path)

    def renaming(self: Path, target: Path) -> Path:
        due = self.name.startswith(".round-") and point in KILL_POINTS[2:4] and now()
        if due and point == "before the rename":
            kill_myself()
        result = rename(self, target)
        if due:
            kill_myself()
        return result

    def removing(path: Path, ignore_errors: bool = False) -> None:
        if point == "while old ones go" and path.name.startswith("round-") and now():
            (path / "tensors.safetensors").unlink()
            kill_myself()
        rmtree(path, ignore_errors)

    checkpoints_module.save_file = saving
    shutil.rmtree = removing  # type: ignore[assignment]
    Path.rename = renaming  # type: ignore[method-assign]


def live(folder: Path, started: Any, kill: tuple[str, int] | None) -> None:
    """A process's life, which ends at a kill point where one is given."""
    torch.set_num_threads(1)
    if kill is not None:
        arm(*kill)
    started.set()
    go_on(folder)


@pytest.fixture(scope="module")
def begin_life() -> Callable[..., Any]:
    """Starts processes quickly: forks of one that has imported torch and has not used it yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "peft", "graftlm", "graftlm.training.loop"])

    def begin(folder: Path, kill: tuple[str, int] | None = None) -> Any:
        started = context.Event()
        process = context.Process(target=live, args=(folder, started, kill), daemon=True)
        process.start()
        assert started.wait(120)
        return process

    return begin


@pytest.mark.parametrize("point", KILL_POINTS)
def test_killed_while_a_checkpoint_is_written(
    point: str, uninterrupted: dict[str, Any], tmp_path: Path, begin_life: Callable[..., Any]
) -> None:
    for number in (1, 2):
        process = begin_life(tmp_path, (point, number))
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert go_on(tmp_path)
    assert results(tmp_path) == uninterrupted
    assert not list((tmp_path / "checkpoints").glob(".*")), "half-written checkpoints are cleared away"


def test_killed_at_random_moments(
    uninterrupted: dict[str, Any], tmp_path: Path, begin_life: Callable[..., Any]
) -> None:
    """Again and again, a little later each time, until a process comes to the end."""
    draw = random.Random(7)
    killed, patience = 0, 0.2
    while True:
        process = begin_life(tmp_path)
        process.join(draw.uniform(0.0, patience))
        process.kill()
        process.join(120)
        if process.exitcode == 0:
            break
        killed += 1
        patience *= 1.25
    assert killed >= 2
    assert results(tmp_path) == uninterrupted


# --- checkpoints themselves ---


def task() -> Task:
    return Task("a", make_rows(12, seed=1), AdapterTraining(batch_rows=2, learning_rate=1e-2), make_rows(2, seed=2))


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [5, 6]), (4, [3, 4, 5, 6])])
def test_keep_checkpoints(keep: int, kept: list[int], tmp_path: Path) -> None:
    settings = RunSettings(save_every=1, keep_checkpoints=keep)
    _, recorder = run(model_with({"a": LoRA(rank=2)}), [task()], settings, checkpoints=tmp_path / "checkpoints")
    assert [event.number for event in recorder.of(CheckpointSaved)] == [1, 2, 3, 4, 5, 6]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [f"round-{number:08d}" for number in kept]


def test_no_folder_no_checkpoints() -> None:
    _, recorder = run(model_with({"a": LoRA(rank=2)}), [task()], resume=True)
    assert not recorder.of(CheckpointSaved)


@pytest.mark.parametrize(
    ("file", "keep_bytes"),
    [("tensors.safetensors", 100), ("tensors.safetensors", 0), ("state.json", 20), ("state.json", None)],
)
def test_a_broken_checkpoint_is_named(file: str, keep_bytes: int | None, tmp_path: Path) -> None:
    model = model_with({"a": LoRA(rank=2)})
    run(model, [task()], RunSettings(save_every=2), checkpoints=tmp_path)
    expected = weights(model, "a")
    broken = tmp_path / "round-00000006" / file
    if keep_bytes is None:
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:keep_bytes])
    fresh = model_with({"a": LoRA(rank=2)})
    with pytest.raises(UserError, match=r"round-00000006 cannot be read.*\n.*Delete that folder"):
        train(fresh, [task()], checkpoints=tmp_path, resume=True)
    shutil.rmtree(broken.parent)
    train(fresh, [task()], RunSettings(save_every=2), checkpoints=tmp_path, resume=True)
    assert same_bits(weights(fresh, "a"), expected), "as the hint says, the one before it does"


@pytest.mark.parametrize(
    ("configs", "names"), [({"a": LoRA(rank=3)}, "a"), ({"a": LoRA(rank=2), "b": LoRA(rank=2)}, "ab")]
)
def test_another_runs_checkpoint_is_refused(configs: dict[str, LoRA], names: str, tmp_path: Path) -> None:
    run(model_with({"a": LoRA(rank=2)}), [task()], checkpoints=tmp_path)
    tasks = [Task(name, task().rows, task().settings) for name in names]
    with pytest.raises(UserError, match="another run"):
        train(model_with(configs), tasks, checkpoints=tmp_path, resume=True)


@pytest.mark.parametrize("written", [0, 500])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    written: int, uninterrupted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, calls = checkpoints_module.save_file, 0

    def full_the_second_time(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            path.write_bytes(b"x" * written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoints_module, "save_file", full_the_second_time)
    with pytest.raises(UserError, match=r"disk is full.*checkpoints.round-00000006"):
        go_on(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["round-00000003"]
    assert go_on(tmp_path)
    assert results(tmp_path) == uninterrupted


def test_a_state_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, {"x": 1}, {"t": torch.ones(2)}, keep=1)
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, 2, {"x": object()}, {"t": torch.zeros(2)}, keep=1)
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state == {"x": 1}
    assert torch.equal(saved.tensors["t"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 1


def test_loss_and_infinity_survive_in_the_state(tmp_path: Path) -> None:
    """A best loss comes back to the last bit, and an infinite one of an adapter that diverged too."""
    state = {"losses": [0.1 + 0.2, 1e-320, float("inf")]}
    save_checkpoint(tmp_path, 1, state, {}, keep=1)
    saved = latest_checkpoint(tmp_path)
    assert saved is not None
    assert saved.state == json.loads(json.dumps(state)) == state


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "absent") is None
