from __future__ import annotations

import torch

from graftlm import AdaptedModel, LoRA
from graftlm.generation import Engine, Request, SamplingSettings
from graftlm.training.optimizers import build_optimizer
from graftlm.training.settings import AdapterTraining
from tests.families import make_base, randomise


def test_a_step_of_training_is_a_new_version_for_an_engine() -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    adapter = randomise(model.add("a", LoRA(rank=2)))
    parameters = list(adapter.parameters())
    optimizer = build_optimizer(parameters, AdapterTraining(learning_rate=0.1))
    engine, request = Engine(model), Request(tuple(range(3, 43)), "a", SamplingSettings(max_new_tokens=8, stop_ids=()))
    engine.run([request])
    before = model.version("a")
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert model.version("a") != before
    assert engine.run([request])[0].log_probs == Engine(model).run([request])[0].log_probs
    assert engine.statistics.reused == 0
