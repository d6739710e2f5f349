"""Every method through the training loop: beside others as alone, stopped and resumed as never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.training.loop import train
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.adapters.grid import add_random
from tests.families import make_base, randomise
from tests.methods import METHODS
from tests.training.work import Weights, after_round, difference, make_rows, same_bits, weights

STEPS = 20
SETTINGS = RunSettings(micro_batch_tokens=60, eval_every=5, save_every=3)


def task(name: str, number: int, *, evaluated: bool = False) -> Task:
    settings = AdapterTraining(learning_rate=0.01, max_steps=STEPS, epochs=20, batch_rows=3, seed=number)
    held_out = make_rows(2, seed=100 + number) if evaluated else ()
    return Task(name, make_rows(9, seed=number), settings, held_out=held_out)


def model_of(names: list[str], *, dtype: torch.dtype, family: str = "gpt2") -> AdaptedModel:
    model = AdaptedModel(make_base(family, dtype=dtype), name=family)
    for name in names:
        if not add_random(model, name, METHODS[name], std=0.05):
            pytest.skip(f"{family} lacks the place of {name}")
    return model


def usable(family: str = "gpt2") -> list[str]:
    model = AdaptedModel(make_base(family))
    return [name for name, config in METHODS.items() if add_random(model, name, config)]


@pytest.fixture(scope="module")
def together() -> dict[str, Weights]:
    """All methods trained in one run, in float64."""
    names = usable()
    model = model_of(names, dtype=torch.float64)
    train(model, [task(name, number) for number, name in enumerate(names)], SETTINGS)
    return {name: weights(model, name) for name in names}


@pytest.mark.parametrize("name", usable())
def test_twenty_steps_beside_all_others_are_those_alone(name: str, together: dict[str, Weights]) -> None:
    model = model_of([name], dtype=torch.float64)
    start = weights(model, name)
    train(model, [task(name, usable().index(name))], SETTINGS)
    alone = weights(model, name)
    assert difference(together[name], alone) <= 1e-7
    if all(alone[key].shape == start[key].shape for key in start):
        assert difference(alone, start) > 1e-3


@pytest.mark.parametrize("stop", [2, 11, 16])
@pytest.mark.parametrize("name", usable())
def test_a_stopped_run_ends_with_the_same_bits(name: str, stop: int, tmp_path: Path) -> None:
    whole = model_of([name], dtype=torch.float32)
    train(whole, [task(name, 1, evaluated=True)], SETTINGS)

    first = model_of([name], dtype=torch.float32)
    outcome = train(
        first, [task(name, 1, evaluated=True)], SETTINGS, checkpoints=tmp_path, should_stop=after_round(stop)
    )
    assert outcome.interrupted
    second = model_of([name], dtype=torch.float32)
    train(second, [task(name, 1, evaluated=True)], SETTINGS, checkpoints=tmp_path, resume=True)
    assert same_bits(weights(whole, name), weights(second, name))


def test_an_adapter_over_another_kind(tmp_path: Path) -> None:
    """A LoRA that is trained over each other method leaves it as it is."""
    names = [name for name in usable() if name != "lora"]
    model = model_of(names, dtype=torch.float32)
    before = {name: weights(model, name) for name in names}
    tasks, start = [], {}
    for number, name in enumerate(names):
        randomise(model.add(f"over-{name}", LoRA(rank=2)), seed=number, std=0.02)
        start[name] = weights(model, f"over-{name}")
        one = task(f"over-{name}", number)
        tasks.append(Task(one.adapter, one.rows, one.settings, one.held_out, under=(name,)))
    train(model, tasks, SETTINGS)
    for name in names:
        assert same_bits(weights(model, name), before[name])
        assert difference(weights(model, f"over-{name}"), start[name]) > 1e-3
