"""NaN or infinity ends one adapter, as it last was in order, with a reason that says where; the others go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from graftlm import AdaptedModel, LoRA
from graftlm.data.batches import EncodedRow
from graftlm.training.events import Ended, Evaluated, RoundDone, Stepped
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.families import VOCABULARY
from tests.training.work import after_round, difference, make_rows, model_with, run, same_bits, weights

CONFIGS = {"a": LoRA(rank=2, dropout=0.2), "bad": LoRA(rank=3), "c": LoRA(rank=4)}
POISON = VOCABULARY - 1
POISONED_MODULE = "model.layers.1.mlp"


def clean_rows(count: int, seed: int) -> tuple[EncodedRow, ...]:
    """Rows without the poison token."""
    rows = make_rows(count, seed=seed)
    return tuple(replace(row, ids=[min(token, POISON - 1) for token in row.ids]) for row in rows)


A = Task("a", clean_rows(12, 1), AdapterTraining(batch_rows=2, learning_rate=1e-2), clean_rows(12, 1)[:2])
C = Task("c", clean_rows(9, 3), AdapterTraining(batch_rows=1, learning_rate=1e-2))


def bad_task(held_out: bool = False, **settings: float) -> Task:
    rows = clean_rows(12, 2)
    given = {"batch_rows": 2, "learning_rate": 1e-2, "warmup": 0, "schedule": "constant", **settings}
    return Task("bad", rows, AdapterTraining.model_validate(given), rows[:2] if held_out else ())


def poisoned(task: Task, step: int) -> tuple[Task, EncodedRow]:
    """The task with the poison token in the second row of a step, and that row."""
    index = task.steps[step][1]
    row = task.rows[index]
    row = replace(row, ids=[*row.ids[:-2], POISON, row.ids[-1]])
    return replace(task, rows=(*task.rows[:index], row, *task.rows[index + 1 :])), row


@contextmanager
def poison(model: AdaptedModel) -> Iterator[None]:
    """One module overflows for the poison token, as float16 does for outliers."""
    seen: list[torch.Tensor] = []

    def overflow(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((seen[-1] == POISON)[..., None], float("inf"))

    handles = [
        model.base.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])),
        model.base.get_submodule(POISONED_MODULE).register_forward_hook(overflow),
    ]
    yield
    for handle in handles:
        handle.remove()


def assert_others_as_without(model: AdaptedModel, settings: RunSettings | None = None) -> None:
    """The other two adapters are what they are without the bad one in the run."""
    alone = model_with(CONFIGS)
    run(alone, [A, C], settings)
    for name in "ac":
        assert difference(weights(model, name), weights(alone, name)) <= 1e-7


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_broken_parameter(value: float) -> None:
    model = model_with(CONFIGS)
    name, parameter = list(model.adapter("bad").named_parameters())[3]
    with torch.no_grad():
        parameter[0, 0] = value
    before = weights(model, "bad")
    outcome, recorder = run(model, [A, bad_task(), C])
    (ended,) = recorder.of(Ended, "bad")
    assert (ended.reason, ended.step) == ("diverged", 0)
    assert name in ended.detail
    assert outcome.progress["bad"].reason == "diverged"
    assert not recorder.of(Stepped, "bad")
    assert all(torch.equal(one.isfinite(), before[key].isfinite()) for key, one in weights(model, "bad").items())
    assert [outcome.progress[name].reason for name in "ac"] == ["finished", "finished"]
    assert_others_as_without(model)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_row_that_overflows(held_out: bool) -> None:
    """At step 4 of 6; steps 0 to 3 were in order. Row and module are named, and the last good state is kept."""
    model = model_with(CONFIGS)
    task, row = poisoned(bad_task(held_out), 4)
    if held_out:
        task = replace(task, held_out=bad_task(held_out).held_out)
    settings = RunSettings(eval_every=3)
    with poison(model):
        outcome, recorder = run(model, [A, task, C], settings)
    (ended,) = recorder.of(Ended, "bad")
    assert (ended.reason, ended.step) == ("diverged", 4)
    assert f"rows-2, row {row.row}: first in {POISONED_MODULE}" in ended.detail
    assert [event.step for event in recorder.of(Stepped, "bad")] == [1, 2, 3, 4]
    assert [event.step for event in recorder.of(Evaluated, "bad")] == ([0, 3] if held_out else [])
    assert len(recorder.of(RoundDone)) == 9
    assert_others_as_without(model, settings)
    # Without held-out rows: as after the last step from which loss and gradient were finite.
    wanted = model_with(CONFIGS)
    run(wanted, [replace(bad_task(), settings=bad_task(max_steps=3).settings)])
    assert difference(weights(model, "bad"), weights(wanted, "bad")) <= 1e-7
    assert outcome.progress["bad"].best_step == (3 if held_out else 0)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize(
    ("rate", "steps", "dtype"),
    [
        (1e30, 3, torch.float32),  # finite parameters that give no finite loss
        (3e38, 1, torch.float32),  # infinite ones in the very last step, which no later loss would show
        (3e38, 3, torch.float32),
        (1e200, 2, torch.float64),
    ],
)
def test_a_rate_that_is_far_too_high(rate: float, steps: int, dtype: torch.dtype, held_out: bool) -> None:
    model = model_with(CONFIGS, dtype=dtype)
    with torch.no_grad():
        for parameter in model.adapter("bad").parameters():
            parameter.mul_(3)
    before = weights(model, "bad")
    # Weight decay multiplies the rate by the parameters: enough to leave the range of the numbers.
    task = bad_task(held_out, learning_rate=rate, max_steps=steps, weight_decay=10)
    outcome, recorder = run(model, [task, A])
    (ended,) = recorder.of(Ended, "bad")
    assert ended.reason == "diverged"
    assert ended.detail
    assert same_bits(weights(model, "bad"), before)
    assert outcome.progress["a"].reason == "finished"


def test_all_diverge_and_the_run_ends() -> None:
    model = model_with(CONFIGS)
    with torch.no_grad():
        for name in ("a", "bad"):
            next(model.adapter(name).parameters()).fill_(float("inf"))
    outcome, recorder = run(model, [A, bad_task()])
    assert not outcome.interrupted
    assert outcome.rounds == 1
    assert [event.reason for event in recorder.of(Ended)] == ["diverged", "diverged"]


def test_only_the_gradient_overflows() -> None:
    """The loss is finite; the detail says that it is the gradient."""
    model = model_with(CONFIGS)

    def backward(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * float("inf"))

    model.base.get_submodule("model.layers.0.mlp").register_forward_hook(backward)
    _, recorder = run(model, [bad_task()])
    (ended,) = recorder.of(Ended)
    assert ended.reason == "diverged"
    assert "came from the gradient" in ended.detail


def test_an_infinite_held_out_loss_is_never_the_best() -> None:
    model = model_with(CONFIGS)
    task = bad_task(held_out=True)
    spoilt = replace(task.held_out[1], ids=[*task.held_out[1].ids[:-2], POISON, task.held_out[1].ids[-1]])
    with poison(model):
        outcome, recorder = run(model, [replace(task, held_out=(task.held_out[0], spoilt))])
    assert not any(event.best for event in recorder.of(Evaluated))
    assert outcome.progress["bad"].reason == "finished"
    assert outcome.progress["bad"].best_loss is None
    assert difference(weights(model, "bad"), weights(model_with(CONFIGS), "bad")) > 1e-3


def test_stopped_just_before_it_diverges(tmp_path: Path) -> None:
    """The last good parameters are part of the checkpoint."""
    task, _ = poisoned(bad_task(), 4)
    ends = []
    for stops in ([], [4], [5]):
        folder = tmp_path / str(stops)
        for stop in [*stops, None]:
            model = model_with(CONFIGS)
            with poison(model):
                options = {"should_stop": after_round(stop)} if stop else {}
                outcome, _ = run(model, [task, C], checkpoints=folder, resume=True, **options)
            assert outcome.interrupted == (stop is not None)
        assert outcome.progress["bad"].reason == "diverged"
        ends.append({**weights(model, "bad"), **{f"c.{key}": value for key, value in weights(model, "c").items()}})
    assert same_bits(ends[0], ends[1])
    assert same_bits(ends[0], ends[2])


def test_float16_overflow() -> None:
    """A real one: the update is too large for the base's float16."""
    model = model_with({"a": LoRA(rank=2), "bad": LoRA(rank=2, targets=["*.1.mlp.up_proj"])}, dtype=torch.float16)
    with torch.no_grad():
        for parameter in model.adapter("bad").parameters():
            parameter.mul_(1e4)
    before = weights(model, "bad")
    outcome, recorder = run(model, [replace(A, held_out=()), bad_task()])
    (ended,) = recorder.of(Ended, "bad")
    assert ended.reason == "diverged"
    assert "row " in ended.detail
    assert "first in model.layers.1.mlp.up_proj" in ended.detail
    assert same_bits(weights(model, "bad"), before)
    assert outcome.progress["a"].reason == "finished"
