"""Training beside others is training alone: weights, losses, evaluations; and k adapters cost one base forward."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from torch import nn

from graftlm import LoRA
from graftlm.base.fingerprint import exact_digest
from graftlm.training.events import Evaluated, RoundDone, Stepped
from graftlm.training.forward import plan_micro_batches
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.training.work import Weights, difference, make_rows, model_with, run, same_bits, weights

STEPS = 20
CONFIGS = {
    "a": LoRA(rank=4, dropout=0.3),
    "b": LoRA(rank=2, dropout=0.1, targets=["all-linear", "lm_head"]),
    "c": LoRA(rank=5, rslora=True, exclude=["*.0.*"]),
    "d": LoRA(rank=3, dropout=0.5, rank_pattern={"*.1.*": 6}),
}
TASKS = {
    "a": Task(
        "a",
        make_rows(17, seed=1),
        AdapterTraining(learning_rate=1e-2, batch_rows=3, max_grad_norm=0.5, warmup=4, epochs=9, max_steps=STEPS),
        held_out=make_rows(17, seed=1)[:3],  # of its own rows, or the best is where it began
    ),
    "b": Task(
        "b",
        make_rows(23, seed=2, longest=24),
        AdapterTraining(
            learning_rate=5e-3, batch_tokens=40, schedule="linear", weight_decay=0.1, seed=3, epochs=9, max_steps=STEPS
        ),
    ),
    "c": Task(
        "c",
        make_rows(9, seed=3, longest=8),
        AdapterTraining(
            learning_rate=2e-3,
            batch_rows=1,
            schedule="constant",
            max_grad_norm=0,
            betas=(0.8, 0.9),
            epochs=9,
            max_steps=26,
        ),
        held_out=make_rows(9, seed=3, longest=8)[:2],
    ),
    "d": Task(
        "d",
        make_rows(30, seed=4),
        AdapterTraining(learning_rate=3e-2, batch_rows=5, group_by_length=False, seed=9, epochs=9, max_steps=STEPS),
    ),
}
FAMILIES = ["llama", "gpt2", "gemma2"]
OTHER_WAYS = [
    ("dcba", RunSettings()),
    ("cadb", RunSettings(micro_batch_tokens=30)),
    ("abcd", RunSettings(gradient_checkpointing=True)),
    ("bd", RunSettings(micro_batch_tokens=1)),
]


def train_together(
    names: str, family: str, settings: RunSettings | None = None
) -> dict[str, tuple[Weights, list[float]]]:
    """Final weights, and every loss, norm and accuracy in order, of each adapter; trained side by side."""
    model = model_with({name: CONFIGS[name] for name in names}, family)
    _, recorder = run(model, [TASKS[name] for name in names], settings)
    told = {
        name: [
            value
            for event in recorder.of((Stepped, Evaluated), name)  # type: ignore[arg-type]
            for key, value in sorted(vars(event).items())
            if key not in ("adapter", "measures")
        ]
        for name in names
    }
    return {name: (weights(model, name), told[name]) for name in names}


@cache
def train_alone(name: str, family: str) -> tuple[Weights, list[float]]:
    return train_together(name, family)[name]


@pytest.fixture
def double_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's softmax is in float32 whatever the model's precision: its sums then depend on the padding."""
    softmax = nn.functional.softmax

    def kept(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        return softmax(x, dim=dim, dtype=x.dtype if x.dtype == torch.float64 else dtype)

    monkeypatch.setattr(nn.functional, "softmax", kept)


@pytest.mark.usefixtures("double_softmax")
@pytest.mark.parametrize("family", FAMILIES)
def test_beside_others_is_alone(family: str) -> None:
    together = train_together("abcd", family)
    for name in "abcd":
        alone, told = train_alone(name, family)
        assert difference(together[name][0], weights(model_with({name: CONFIGS[name]}, family), name)) > 1e-3
        assert difference(together[name][0], alone) <= 1e-7
        assert together[name][1] == pytest.approx(told, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize(("names", "settings"), OTHER_WAYS)
def test_order_micro_batches_and_recomputation_change_nothing(names: str, settings: RunSettings) -> None:
    together = train_together(names, "llama", settings)
    for name in names:
        alone, told = train_alone(name, "llama")
        assert difference(together[name][0], alone) <= 1e-7
        assert together[name][1] == pytest.approx(told, rel=1e-7, abs=1e-9)


def test_a_long_neighbour_does_not_change_when_an_adapter_is_evaluated() -> None:
    """The cadence decides which parameters are the best ones and when to stop early, so it is the adapter's own."""
    rows, held_out = make_rows(16, seed=1), make_rows(3, seed=2)
    short = Task("a", rows, AdapterTraining(batch_rows=1), held_out)
    long = Task("b", rows, AdapterTraining(batch_rows=1, epochs=6), held_out)
    steps = []
    for tasks in ([short], [short, long]):
        _, recorder = run(model_with({"a": LoRA(rank=2), "b": LoRA(rank=2)}), tasks)
        steps.append([event.step for event in recorder.of(Evaluated, "a")])
    assert steps[0] == steps[1] == [0, 2, 4, 6, 8, 10, 12, 14, 16]


def test_names_decide_the_draw_and_not_the_place() -> None:
    """Two adapters alike but in name see their rows in another order, and drop other inputs."""
    rows = make_rows(12)
    tasks = [Task(name, rows, AdapterTraining(batch_rows=3)) for name in "ab"]
    assert tasks[0].steps != tasks[1].steps
    assert sorted(itertools.chain(*tasks[0].steps)) == sorted(itertools.chain(*tasks[1].steps)) == list(range(12))


def test_any_number_of_adapters_cost_one_base_forward() -> None:
    rows = make_rows(12, shortest=8, longest=8)
    counts = []
    for names in ("a", "abcd"):
        model = model_with({name: LoRA(rank=2) for name in names})
        calls: list[int] = []
        block = model.base.get_submodule(model.places.blocks[0])
        handle = block.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        tasks = [Task(name, rows, AdapterTraining(batch_rows=4)) for name in names]
        _, recorder = run(model, tasks)
        handle.remove()
        assert len(recorder.of(RoundDone)) == 3
        counts.append(len(calls))
    assert counts == [3, 3]


def test_a_micro_batch_is_one_base_forward_however_it_is_mixed() -> None:
    tasks = [TASKS[name] for name in "abcd"]
    model = model_with(CONFIGS)
    calls: list[int] = []
    model.base.get_submodule(model.places.blocks[0]).register_forward_hook(lambda *_: calls.append(1))
    settings = RunSettings(micro_batch_tokens=60, eval_every=1000)
    bare = [Task(task.adapter, task.rows, task.settings) for task in tasks]
    _, recorder = run(model, bare, settings)
    expected = 0
    for number in range(max(len(task.steps) for task in tasks)):
        rows = [row for task in tasks if number < len(task.steps) for row in task.step_rows(number)]
        expected += len(plan_micro_batches(rows, 60))
    assert len(calls) == expected > len(recorder.of(RoundDone))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_never_written_to(family: str) -> None:
    model = model_with(CONFIGS, family, dtype=torch.float32)
    before = exact_digest(model.base)
    run(model, list(TASKS.values()))
    assert exact_digest(model.base) == before
    assert all(parameter.grad is None for parameter in model.base.parameters())


def test_the_same_run_twice_gives_the_same_bits() -> None:
    first, second = (train_together("abcd", "llama") for _ in range(2))
    for name in "abcd":
        assert same_bits(first[name][0], second[name][0])
        assert first[name][1] == second[name][1]
