"""Where the numbers of a run go: metrics.jsonl always, and trackers if asked."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors, write_text
from graftlm.errors import UserError, unknown_name
from graftlm.training.events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Event,
    Phased,
    Rested,
    RoundDone,
    Stepped,
    Tried,
    Watcher,
)

KINDS = {
    Stepped: "step",
    Evaluated: "evaluation",
    Phased: "phase",
    Tried: "trial",
    Rested: "rest",
    RoundDone: "round",
    Ended: "end",
}


class MetricsFile:
    """Appends every event to a JSONL file, with the round it belongs to.

    A resumed run first cuts the file back to the checkpoint's round, so that it ends as if it had not been stopped
    (but for the seconds).
    """

    def __init__(self, path: Path, *, rounds: int = 0) -> None:
        self._path = path
        self._round = rounds
        kept = [line for line in _lines(path) if json.loads(line)["round"] <= rounds] if rounds else []
        write_text(path, "".join(kept))

    def __call__(self, event: Event) -> None:
        if isinstance(event, CheckpointSaved):
            return
        # Step 0 is evaluated before any round; all else belongs to the round that is being made.
        before_training = isinstance(event, Evaluated | Tried) and event.step == 0
        number = 0 if before_training else self._round + 1
        values = {"kind": KINDS[type(event)], "round": number, **asdict(event)}
        values |= values.pop("measures", {})
        if isinstance(event, RoundDone):
            self._round = event.number
            values["round"] = event.number
            del values["number"]
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({key: _or_null(value) for key, value in values.items()}) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every complete line of a metrics file. A loss that was not finite is NaN."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in _lines(path)]
    return [line | {"loss": math.nan} if line.get("loss", 0) is None else line for line in lines]


def _or_null(value: Any) -> Any:
    """JSON has no NaN and no infinity, and most of its readers refuse them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("}\n")]


def open_trackers(names: Sequence[str], folder: Path, run_name: str) -> list[Watcher]:
    """Watchers that send the numbers to tensorboard, wandb or mlflow.

    Raises:
        UserError: an unknown tracker, or one that is not installed.
    """
    makers: dict[str, Callable[[Path, str], Callable[[str, float, int], None]]] = {
        "tensorboard": _tensorboard,
        "wandb": _wandb,
        "mlflow": _mlflow,
    }
    watchers = []
    for name in names:
        if name not in makers:
            raise unknown_name("tracker", name, list(makers))
        try:
            send = makers[name](folder, run_name)
        except ImportError as error:
            raise UserError(
                f"{name} is not installed ({error})", hint=f"Install it: pip install 'graftlm[{name}]'"
            ) from error
        watchers.append(_forward(send))
    return watchers


def _forward(send: Callable[[str, float, int], None]) -> Watcher:
    def watch(event: Event) -> None:
        if isinstance(event, Stepped):
            for key in ("loss", "learning_rate", "gradient_norm"):
                send(f"{event.adapter}/train/{key}", getattr(event, key), event.step)
            for key, value in event.measures.items():
                send(f"{event.adapter}/train/{key}", value, event.step)
        elif isinstance(event, Evaluated):
            send(f"{event.adapter}/held_out/loss", event.loss, event.step)
            send(f"{event.adapter}/held_out/accuracy", event.accuracy, event.step)
            for key, value in event.measures.items():
                send(f"{event.adapter}/held_out/{key}", value, event.step)
        elif isinstance(event, Tried):
            for key, value in event.measures.items():
                send(f"{event.adapter}/held_out/{key}", value, event.step)
        elif isinstance(event, Phased):
            for key, value in event.measures.items():
                send(f"{event.adapter}/phase/{key}", value, event.step)
        elif isinstance(event, RoundDone):
            send("run/tokens_per_second", event.tokens / event.seconds, event.number)

    return watch


def _tensorboard(folder: Path, _run_name: str) -> Callable[[str, float, int], None]:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder / "tensorboard"))

    def send(key: str, value: float, step: int) -> None:
        writer.add_scalar(key, value, step)
        writer.flush()

    return send


def _wandb(folder: Path, run_name: str) -> Callable[[str, float, int], None]:
    wandb = importlib.import_module("wandb")
    run = wandb.init(project="graftlm", name=run_name, dir=str(folder))
    # Adapters step at their own pace: each has its own axis instead of wandb's one growing step.
    run.define_metric("*", step_metric="step")
    return lambda key, value, step: run.log({key: value, "step": step})


def _mlflow(_folder: Path, run_name: str) -> Callable[[str, float, int], None]:
    mlflow = importlib.import_module("mlflow")
    mlflow.start_run(run_name=run_name)
    return lambda key, value, step: mlflow.log_metric(key, value, step=step)
