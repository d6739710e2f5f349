"""metrics.jsonl, cut back on resume, and the trackers."""

from __future__ import annotations

import importlib
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from graftlm import LoRA
from graftlm.errors import UserError
from graftlm.training.events import CheckpointSaved, Ended, Evaluated, Event, RoundDone, Stepped
from graftlm.training.loop import train
from graftlm.training.metrics import MetricsFile, open_trackers, read_metrics
from graftlm.training.settings import AdapterTraining
from graftlm.training.task import Task
from tests.training.work import make_rows, model_with


def stepped(step: int, adapter: str = "a") -> Stepped:
    return Stepped(adapter, step, 9, step / 9, 1.5 / step, 1e-3, 0.5, 100, 40)


def evaluated(step: int) -> Evaluated:
    return Evaluated("a", step, 2.0, 0.25, True)


def round_done(number: int) -> RoundDone:
    return RoundDone(number, 9, 100, 110, 0.5)


def write(metrics: MetricsFile, rounds: range) -> None:
    for number in rounds:
        events: list[Event] = [stepped(number), stepped(number, "b"), evaluated(number), round_done(number)]
        for event in events:
            metrics(event)


def numbers(path: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["round"]) for line in read_metrics(path)]


def test_every_event_with_its_round(tmp_path: Path) -> None:
    path = tmp_path / "new" / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics(evaluated(0))
    metrics(stepped(1))
    metrics(round_done(1))
    metrics(CheckpointSaved(1, "somewhere"))
    metrics(stepped(2))
    metrics(evaluated(2))
    metrics(Ended("a", 2, "finished"))
    metrics(round_done(2))
    assert numbers(path) == [
        ("evaluation", 0),
        ("step", 1),
        ("round", 1),
        ("step", 2),
        ("evaluation", 2),
        ("end", 2),
        ("round", 2),
    ]
    lines = read_metrics(path)
    assert lines[1] == {
        "kind": "step",
        "round": 1,
        "adapter": "a",
        "step": 1,
        "total": 9,
        "epoch": 1 / 9,
        "loss": 1.5,
        "learning_rate": 1e-3,
        "gradient_norm": 0.5,
        "tokens": 100,
        "learnt_tokens": 40,
    }
    assert lines[2] == {"kind": "round", "round": 1, "total": 9, "tokens": 100, "padded_tokens": 110, "seconds": 0.5}


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_cut_back_to_the_checkpoint(rounds: int, tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(MetricsFile(whole), range(1, 8))
    write(MetricsFile(resumed), range(1, 6))
    write(MetricsFile(resumed, rounds=rounds), range(rounds + 1, 8))
    assert resumed.read_text() == whole.read_text()


@pytest.mark.parametrize("kept_characters", [1, 30, -1])
def test_a_line_cut_short_by_a_kill_is_dropped(kept_characters: int, tmp_path: Path) -> None:
    """Also where all is there but the line's end."""
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), range(1, 5))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]) + lines[-1][:kept_characters])
    assert len(read_metrics(path)) == len(lines) - 1
    write(MetricsFile(path, rounds=3), range(4, 5))
    assert path.read_text() == "".join(lines)


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(MetricsFile(path), range(1, 5))
    write(MetricsFile(path), range(1, 2))
    assert [number for _, number in numbers(path)] == [1, 1, 1, 1]


def test_the_file_is_strict_json_even_for_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """NaN and Infinity are no JSON: jq, JavaScript and databases refuse the whole line."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics(Evaluated("a", 3, float("inf"), 0.0, False))
    metrics(Evaluated("a", 4, float("nan"), 0.0, False))

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    losses = [json.loads(line, parse_constant=refuse)["loss"] for line in path.read_text().splitlines()]
    assert losses == [None, None]
    assert all(math.isnan(line["loss"]) for line in read_metrics(path))


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "absent.jsonl") == []


# --- trackers ---


def test_unknown_tracker(tmp_path: Path) -> None:
    wanted = r"unknown tracker 'tensorbord'.*mlflow, tensorboard, wandb\nDid you mean 'tensorboard'"
    with pytest.raises(UserError, match=wanted):
        open_trackers(["tensorbord"], tmp_path, "run")


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")]
)
def test_missing_tracker(name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"{name} is not installed.*\n.*pip install 'graftlm\[{name}\]'"):
        open_trackers([name], tmp_path, "run")


def test_what_trackers_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, float, int]] = []
    fake: Any = types.ModuleType("mlflow")
    fake.start_run = lambda run_name: None
    fake.log_metric = lambda key, value, step: sent.append((key, value, step))
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    (watch,) = open_trackers(["mlflow"], tmp_path, "run")
    for event in (stepped(3), evaluated(4), round_done(5), Ended("a", 5, "finished"), CheckpointSaved(5, "x")):
        watch(event)
    assert sent == [
        ("a/train/loss", 0.5, 3),
        ("a/train/learning_rate", 1e-3, 3),
        ("a/train/gradient_norm", 0.5, 3),
        ("a/held_out/loss", 2.0, 4),
        ("a/held_out/accuracy", 0.25, 4),
        ("run/tokens_per_second", 200.0, 5),
    ]


def test_tensorboard_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    accumulator = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    (watch,) = open_trackers(["tensorboard"], tmp_path, "run")
    settings = AdapterTraining(batch_rows=2)
    train(model_with({"a": LoRA(rank=2)}), [Task("a", make_rows(4), settings)], watch=watch)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("a/train/loss")] == [1, 2]
