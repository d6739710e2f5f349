"""Small work for the training loop: rows, tasks, and what to compare afterwards."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from graftlm import AdaptedModel, LoRA
from graftlm.data.batches import EncodedRow
from graftlm.training.events import Event, RoundDone, Stepped
from graftlm.training.loop import Outcome, train
from graftlm.training.metrics import MetricsFile
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.families import VOCABULARY, make_base, randomise

Weights = dict[str, torch.Tensor]


def make_rows(count: int, *, seed: int = 0, shortest: int = 4, longest: int = 14) -> tuple[EncodedRow, ...]:
    """Random ids with a random share of them learnt, the last one always."""
    draw = random.Random(seed)
    rows = []
    for number in range(1, count + 1):
        length = draw.randint(shortest, longest)
        ids = [draw.randrange(3, VOCABULARY) for _ in range(length)]
        learnt = [False, *(draw.random() < 0.5 for _ in range(length - 2)), True]
        rows.append(EncodedRow(ids, learnt, f"rows-{seed}", number))
    return tuple(rows)


def model_with(configs: dict[str, LoRA], family: str = "llama", *, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    """A tiny base with adapters whose parameters are random, each from its own name alone."""
    model = AdaptedModel(make_base(family, dtype=dtype), name=f"random-{family}")
    for name, config in configs.items():
        randomise(model.add(name, config), seed=sum(name.encode()))
    return model


def weights(model: AdaptedModel, name: str) -> Weights:
    """A copy of an adapter's parameters."""
    return {key: value.detach().clone() for key, value in model.adapter(name).named_parameters()}


def difference(one: Weights, other: Weights) -> float:
    """The largest difference of any two numbers; NaN where there is a NaN."""
    assert one.keys() == other.keys()
    return float(torch.stack([(one[key] - other[key]).abs().max() for key in one if one[key].numel()]).max())


def same_bits(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Recorder:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type[Any], adapter: str | None = None) -> list[Any]:
        found = [event for event in self.events if isinstance(event, kind)]
        return [event for event in found if adapter is None or event.adapter == adapter]

    def numbers(self, adapter: str) -> list[dict[str, Any]]:
        """All that was told of one adapter."""
        return [asdict(event) for event in self.events if getattr(event, "adapter", None) == adapter]


def run(
    model: AdaptedModel, tasks: Sequence[Task], settings: RunSettings | None = None, **options: Any
) -> tuple[Outcome, Recorder]:
    """Train, and keep what was told."""
    recorder = Recorder()
    return train(model, tasks, settings, watch=recorder, **options), recorder


def train_one(
    settings: AdapterTraining, rows: Sequence[EncodedRow], run_settings: RunSettings | None = None, **task: Any
) -> tuple[AdaptedModel, Outcome, Recorder]:
    """Train adapter "a" of rank 2 on a fresh model."""
    model = model_with({"a": LoRA(rank=2)})
    outcome, recorder = run(model, [Task("a", tuple(rows), settings, **task)], run_settings)
    return model, outcome, recorder


def rates(recorder: Recorder, adapter: str = "a") -> list[float]:
    return [event.learning_rate for event in recorder.of(Stepped, adapter)]


# --- a run that is stopped, killed and resumed ---

INTERRUPTED = {"a": LoRA(rank=3, dropout=0.3), "b": LoRA(rank=2, dropout=0.2)}
INTERRUPTED_SETTINGS = RunSettings(eval_every=2, save_every=3, keep_checkpoints=2, micro_batch_tokens=48)


def interrupted_tasks() -> list[Task]:
    """Adapter a stops early, at step 10 of 20, its best at step 6; b ends at 7. Both with dropout and held-out rows."""
    a = AdapterTraining(learning_rate=0.02, epochs=5, batch_rows=3, patience=2, seed=1, schedule="constant")
    b = AdapterTraining(learning_rate=3e-3, epochs=1.4, batch_tokens=24, seed=2, warmup=0.3, weight_decay=0.1)
    rows = make_rows(12, seed=1)
    return [
        Task("a", rows, a, held_out=(rows[0], *make_rows(3, seed=11))),
        Task("b", make_rows(14, seed=2), b, held_out=make_rows(3, seed=12)),
    ]


def go_on(folder: Path, *, should_stop: Callable[[], bool] = lambda: False) -> bool:
    """One process's life: start or go on in ``folder``; True where the run came to its end, adapters saved."""
    from graftlm.training.checkpoints import latest_checkpoint

    model = model_with(INTERRUPTED, dtype=torch.float32)
    checkpoints = folder / "checkpoints"
    saved = latest_checkpoint(checkpoints)
    metrics = MetricsFile(folder / "metrics.jsonl", rounds=saved.state["counters"]["rounds"] if saved else 0)
    outcome = train(
        model,
        interrupted_tasks(),
        INTERRUPTED_SETTINGS,
        checkpoints=checkpoints,
        resume=True,
        watch=metrics,
        should_stop=should_stop,
    )
    if outcome.interrupted:
        return False
    for name in INTERRUPTED:
        model.save(name, folder / "adapters" / name)
    best = {name: [progress.best_step, progress.reason] for name, progress in outcome.progress.items()}
    totals = [outcome.rounds, outcome.tokens, outcome.padded_tokens]
    (folder / "outcome.json").write_text(json.dumps([best, totals]))
    return True


def results(folder: Path) -> dict[str, Any]:
    """All that must be equal, however often the run was stopped: bytes, metrics but for the seconds, best steps."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    adapters = {
        name: {path.name: path.read_bytes() for path in sorted((folder / "adapters" / name).iterdir())}
        for name in INTERRUPTED
    }
    return {
        "adapters": adapters,
        "metrics": [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        "outcome": json.loads((folder / "outcome.json").read_text()),
    }


def after_round(number: int) -> Callable[[], bool]:
    """A ``should_stop`` that says yes when it is asked for the ``number``-th time."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == number

    return should_stop


def round_numbers(recorder: Recorder) -> list[int]:
    return [event.number for event in recorder.of(RoundDone)]
