"""A plan counts what the run will count, measures a real step, and leaves everything as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, Full, LoRA
from graftlm.base.fingerprint import exact_digest
from graftlm.errors import UserError
from graftlm.training import plan as plan_module
from graftlm.training.events import Evaluated, Stepped
from graftlm.training.forward import RoutedRow
from graftlm.training.plan import plan
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Progress, Task
from tests.training.work import make_rows, model_with, run, same_bits, weights

CONFIGS = {"a": LoRA(rank=2, dropout=0.2), "b": LoRA(rank=4)}
TASKS = [
    Task("a", make_rows(20, seed=1), AdapterTraining(batch_rows=3, epochs=1.5), make_rows(3, seed=3)),
    Task("b", make_rows(30, seed=2, longest=24), AdapterTraining(batch_tokens=60, weight_decay=0.5, learning_rate=0.1)),
]
RUN_SETTINGS = [RunSettings(), RunSettings(micro_batch_tokens=40, gradient_checkpointing=True, eval_every=4)]


@pytest.mark.parametrize("settings", RUN_SETTINGS)
def test_it_leaves_everything_as_it_was(settings: RunSettings) -> None:
    model, fresh = model_with(CONFIGS), model_with(CONFIGS)
    digest = exact_digest(model.base)
    generator = torch.get_rng_state()
    plan(model, TASKS, settings)
    assert exact_digest(model.base) == digest
    assert torch.equal(torch.get_rng_state(), generator)
    for name in CONFIGS:
        assert same_bits(weights(model, name), weights(fresh, name))
        assert all(parameter.grad is None for parameter in model.adapter(name).parameters())
    run(model, TASKS, settings)
    run(fresh, TASKS, settings)
    for name in CONFIGS:
        assert same_bits(weights(model, name), weights(fresh, name)), "a planned run is the run"


@pytest.mark.parametrize("settings", RUN_SETTINGS)
def test_its_counts_are_the_runs(settings: RunSettings) -> None:
    model = model_with(CONFIGS)
    calls: list[int] = []
    planned = plan(model, TASKS, settings)
    model.base.get_submodule(model.places.blocks[0]).register_forward_hook(
        lambda *_: calls.append(1) if torch.is_grad_enabled() else None
    )
    outcome, recorder = run(model, TASKS, settings)
    steps = recorder.of(Stepped)
    assert planned.rounds == outcome.rounds
    assert planned.steps == {name: outcome.progress[name].step for name in CONFIGS}
    assert planned.tokens == outcome.tokens == sum(event.tokens for event in steps)
    assert planned.learnt_tokens == sum(event.learnt_tokens for event in steps)
    assert planned.padding_share == pytest.approx(1 - outcome.tokens / outcome.padded_tokens, rel=1e-12)
    assert len(calls) == planned.micro_batches
    assert planned.trained_parameters == {
        name: sum(value.numel() for value in weights(model, name).values()) for name in CONFIGS
    }
    assert recorder.of(Evaluated)


def test_time_and_memory_are_sane() -> None:
    planned = plan(model_with(CONFIGS), TASKS, RunSettings())
    assert 0 < planned.seconds < 60
    assert 50e6 < planned.peak_memory < planned.available_memory, "a process with torch in it; in bytes"
    assert planned.fits
    assert planned.to_dict()["steps"] == planned.steps
    assert planned.largest_micro_batch_tokens is None or planned.largest_micro_batch_tokens > 10_000


def test_the_peak_is_of_the_step_and_not_of_what_was_before() -> None:
    hoard = torch.zeros(64 * 2**20)  # 256 MB, touched
    del hoard
    planned = plan(model_with(CONFIGS), TASKS, RunSettings())
    assert planned.peak_memory < planned.available_memory
    assert planned.fits


def test_the_peak_is_measured_while_all_gradients_and_moments_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(CONFIGS | {"c": Full()})
    tasks = [*TASKS, Task("c", make_rows(20, seed=4), AdapterTraining(batch_rows=2))]
    made: list[Progress] = []
    real_progress, real_run = plan_module.Progress, plan_module._run
    seen: list[tuple[bool, bool, set[str]]] = []

    def progress(*args: Any) -> Progress:
        made.append(real_progress(*args))
        return made[-1]

    def run_one(model: AdaptedModel, rows: list[RoutedRow], order: list[list[int]]) -> Any:
        parameters = [parameter for each in made for parameter in each.parameters]
        moments = [parameter in each.optimizer.state for each in made for parameter in each.parameters]
        adapters = {name for joint in order for index in joint for name in rows[index].stack}
        seen.append((all(parameter.grad is not None for parameter in parameters), all(moments), adapters))
        return real_run(model, rows, order)

    monkeypatch.setattr(plan_module, "Progress", progress)
    monkeypatch.setattr(plan_module, "_run", run_one)
    plan(model, tasks, RunSettings(micro_batch_tokens=40))
    assert len(seen) > 2
    assert all(gradients and moments for gradients, moments, _ in seen[1:])
    assert any("c" in adapters for _, _, adapters in seen[1:]), "rows of a trained copy weigh most"


@pytest.mark.parametrize("free", [0, 1])
def test_too_large_is_said_before_it_is_run(free: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one small micro-batch; the large one, which would not fit, is not started."""
    model = model_with(CONFIGS)
    large = [Task("b", (*make_rows(6), *make_rows(8, shortest=60, longest=60)), AdapterTraining(batch_rows=2))]
    lengths: list[int] = []
    model.base.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].numel()))
    peaks = iter(range(2**30, 2**40, 2**28))  # a model so small shows in no measurement
    monkeypatch.setattr(plan_module, "used_memory", lambda _device: 2**29)
    monkeypatch.setattr(plan_module, "peak_memory", lambda _device: next(peaks))
    monkeypatch.setattr(plan_module, "available_memory", lambda _device: free)
    with pytest.raises(UserError, match=r"micro-batch of 120 tokens.*\n.*micro_batch_tokens") as raised:
        plan(model, large, RunSettings(micro_batch_tokens=130))
    assert "gradient_checkpointing" in str(raised.value)
    assert len(lengths) == 1
    assert all(parameter.grad is None for parameter in model.adapter("b").parameters())


def test_a_model_so_small_that_no_growth_shows_is_never_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "used_memory", lambda _device: 2**29)
    monkeypatch.setattr(plan_module, "peak_memory", lambda _device: 2**29 + 1000)
    monkeypatch.setattr(plan_module, "available_memory", lambda _device: 0)
    planned = plan(model_with(CONFIGS), TASKS, RunSettings())
    assert planned.largest_micro_batch_tokens is None
    assert not planned.fits


def test_out_of_memory_while_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with(CONFIGS)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.base.get_submodule(model.places.blocks[1]).register_forward_hook(fail)
    with pytest.raises(UserError, match="does not fit into memory"):
        plan(model, TASKS, RunSettings())


def test_stacks_and_impossible_tasks(tmp_path: Path) -> None:
    model = model_with({"lower": LoRA(rank=2), "a": LoRA(rank=2)})
    before = weights(model, "lower")
    plan(model, [Task("a", make_rows(8), under=("lower",))], RunSettings())
    assert same_bits(weights(model, "lower"), before)
    assert all(p.grad is None and p.requires_grad for p in model.adapter("lower").parameters())
    with pytest.raises(UserError, match="nothing to train"):
        plan(model, [], RunSettings())
    with pytest.raises(UserError, match="'a' has no rows"):
        plan(model, [Task("a", ())], RunSettings())
