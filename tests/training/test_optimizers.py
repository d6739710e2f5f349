"""Schedules, clipping and weight decay, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from graftlm import LoRA
from graftlm.training.events import Stepped
from graftlm.training.optimizers import build_optimizer, clip_gradients, gradient_norm, learning_rate
from graftlm.training.settings import AdapterTraining
from graftlm.training.task import Task
from tests.training.work import make_rows, model_with, rates, run, same_bits, train_one, weights

HALF = math.sqrt(0.5)

# settings, total steps, the rate of each step
SCHEDULES: list[tuple[dict[str, object], list[float]]] = [
    ({"schedule": "constant", "warmup": 0}, [1, 1, 1]),
    ({"schedule": "constant", "warmup": 2}, [0.5, 1, 1, 1]),
    ({"schedule": "constant", "warmup": 0.5}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ({"schedule": "constant", "warmup": 0.1}, [1, 1, 1]),  # a third of a step is one step, at the peak
    ({"schedule": "constant", "warmup": 1}, [1, 1, 1]),  # one step, not all of them
    ({"schedule": "constant", "warmup": 8}, [0.125, 0.25, 0.375]),  # longer than the training
    ({"schedule": "linear", "warmup": 0}, [1, 0.8, 0.6, 0.4, 0.2]),
    ({"schedule": "linear", "warmup": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25]),
    ({"schedule": "linear", "warmup": 0, "min_learning_rate": 0.5}, [1, 0.875, 0.75, 0.625]),
    ({"schedule": "cosine", "warmup": 0}, [1, 0.5 + HALF / 2, 0.5, 0.5 - HALF / 2]),
    ({"schedule": "cosine", "warmup": 1}, [1, 1, 0.75, 0.25]),
    ({"schedule": "cosine", "warmup": 0, "min_learning_rate": 0.1}, [1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25]),
    ({"schedule": "cosine", "warmup": 0}, [1]),
]


@pytest.mark.parametrize(("given", "factors"), SCHEDULES)
def test_schedules(given: dict[str, object], factors: list[float]) -> None:
    settings = AdapterTraining.model_validate({"learning_rate": 0.02, **given})
    found = [learning_rate(settings, step, len(factors)) for step in range(len(factors))]
    assert found == pytest.approx([0.02 * factor for factor in factors], rel=1e-12)


def test_the_loop_uses_the_schedule() -> None:
    settings = AdapterTraining(learning_rate=0.02, schedule="linear", warmup=2, batch_rows=1)
    _, _, recorder = train_one(settings, make_rows(6))
    assert rates(recorder) == pytest.approx([0.01, 0.02, 0.02, 0.015, 0.01, 0.005], rel=1e-12)


def parameters_with(*gradients: list[float]) -> list[nn.Parameter]:
    parameters = [nn.Parameter(torch.ones(len(gradient), dtype=torch.float64)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
    return parameters


def test_the_norm_is_of_all_gradients_together() -> None:
    parameters = parameters_with([3.0, 0.0], [0.0, 4.0], [12.0])
    assert gradient_norm(parameters) == 13.0
    parameters[2].grad = None
    assert gradient_norm(parameters) == 5.0
    assert gradient_norm([nn.Parameter(torch.ones(2))]) == 0.0


@pytest.mark.parametrize(("limit", "factor"), [(1.0, 0.2), (5.0, 1.0), (7.0, 1.0), (0.0, 1.0)])
def test_clipping(limit: float, factor: float) -> None:
    parameters = parameters_with([3.0], [0.0, 4.0])
    clip_gradients(parameters, gradient_norm(parameters), limit)
    clipped = [parameter.grad for parameter in parameters]
    assert torch.cat([gradient for gradient in clipped if gradient is not None]).tolist() == pytest.approx(
        [3 * factor, 0, 4 * factor], rel=1e-6
    )


def test_each_adapter_is_clipped_by_its_own_norm() -> None:
    """And the norm that is told is the one before clipping."""
    configs = {"a": LoRA(rank=2), "b": LoRA(rank=2)}
    norms = []
    for limit in (0, 0.01):
        settings = AdapterTraining(max_grad_norm=limit, max_steps=1)
        _, recorder = run(model_with(configs), [Task("a", make_rows(4), settings), Task("b", make_rows(9, seed=1))])
        norms.append([recorder.of(Stepped, name)[0].gradient_norm for name in "ab"])
    assert norms[0] == norms[1]
    assert min(norms[0]) > 0.01


def test_weight_decay_is_decoupled() -> None:
    """Without a gradient a parameter shrinks by rate · decay a step; the moments know nothing of it."""
    (parameter,) = parameters_with([0.0])
    optimizer = build_optimizer([parameter], AdapterTraining(learning_rate=0.1, weight_decay=0.5))
    for _ in range(3):
        optimizer.step()
    assert parameter.item() == pytest.approx(0.95**3, rel=1e-12)
    assert float(optimizer.state[parameter]["exp_avg_sq"]) == 0.0


def test_two_steps_of_adamw_by_hand() -> None:
    """β = (0.5, 0.8), ε = 0.1, rate 0.1, decay 0.2, gradients 2 and −1, from 1."""
    (parameter,) = parameters_with([2.0])
    settings = AdapterTraining(learning_rate=0.1, betas=(0.5, 0.8), epsilon=0.1, weight_decay=0.2)
    optimizer = build_optimizer([parameter], settings)
    optimizer.step()
    first = 0.98 - 0.1 * 2 / (2 + 0.1)  # m = 1 / 0.5, v = 0.8 / 0.2
    assert parameter.item() == pytest.approx(first, rel=1e-12)
    parameter.grad = torch.tensor([-1.0], dtype=torch.float64)
    optimizer.step()
    m, v = (0.5 * 1 + 0.5 * -1) / 0.75, (0.8 * 0.8 + 0.2 * 1) / 0.36
    assert parameter.item() == pytest.approx(first * 0.98 - 0.1 * m / (math.sqrt(v) + 0.1), rel=1e-12)


def test_weight_decay_reaches_the_loop() -> None:
    rows = make_rows(6)
    results = [
        train_one(AdapterTraining(batch_rows=2, learning_rate=1e-2, weight_decay=decay), rows)[0]
        for decay in (0.0, 0.9)
    ]
    assert not same_bits(weights(results[0], "a"), weights(results[1], "a"))
