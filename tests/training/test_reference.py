"""A step against what anyone would write by hand, and ten steps against peft and torch's AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import peft
import pytest
import torch
from torch import nn

from graftlm import LoRA
from graftlm.data.batches import EncodedRow
from graftlm.training import loop
from graftlm.training.events import Stepped
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.families import make_base, relative
from tests.training.work import make_rows, model_with, run, weights

FAMILIES = ["llama", "gpt2", "gemma2"]
STEPS = 10
SETTINGS = AdapterTraining(
    learning_rate=1e-2, warmup=3, batch_rows=4, max_grad_norm=0.5, weight_decay=0.05, epochs=9, max_steps=STEPS, seed=5
)
MANY_MICRO_BATCHES = RunSettings(micro_batch_tokens=20)


def mean_loss(logits_of: Callable[[torch.Tensor], torch.Tensor], rows: Sequence[EncodedRow]) -> torch.Tensor:
    """Cross-entropy of the learnt tokens of all rows, summed, over their number; each row by itself."""
    losses = []
    for row in rows:
        logits = logits_of(torch.tensor([row.ids]))[0]
        for place in range(1, len(row.ids)):
            if row.supervised[place]:
                losses.append(nn.functional.cross_entropy(logits[place - 1], torch.tensor(row.ids[place])))
    return torch.stack(losses).sum() / len(losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradient_of_a_step(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full logits, row by row; ours from several padded micro-batches, beside a neighbour, logits in chunks."""
    configs = {"a": LoRA(rank=3), "b": LoRA(rank=2)}
    model, reference = model_with(configs, family), model_with(configs, family)
    task = Task("a", make_rows(8, seed=1), AdapterTraining(batch_rows=8, epochs=1))
    expected = mean_loss(lambda ids: reference(ids, adapters="a").logits, task.rows)
    expected.backward()
    wanted = {name: parameter.grad for name, parameter in reference.adapter("a").named_parameters()}
    seen: list[dict[str, torch.Tensor]] = []

    def keep(parameters: Any, norm: float, limit: float) -> None:
        if parameters[0] is next(model.adapter("a").parameters()):
            seen.append(
                {name: p.grad.clone() for name, p in model.adapter("a").named_parameters() if p.grad is not None}
            )

    monkeypatch.setattr(loop, "clip_gradients", keep)
    _, recorder = run(model, [task, Task("b", make_rows(5, seed=2))], MANY_MICRO_BATCHES)
    (stepped,) = recorder.of(Stepped, "a")
    assert stepped.loss == pytest.approx(float(expected.detach()), rel=1e-12)
    assert seen[0].keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient is not None
        assert relative(seen[0][name], gradient) < 1e-12, name
    norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in wanted.values() if gradient is not None))
    assert stepped.gradient_norm == pytest.approx(norm, rel=1e-12)
    assert stepped.tokens == sum(len(row.ids) for row in task.rows)
    assert stepped.learnt_tokens == sum(sum(row.supervised[1:]) for row in task.rows)


def peft_weights(model: Any) -> dict[str, torch.Tensor]:
    """Under our names: path with slashes, lora_A or lora_B."""
    found = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            path, letter = name.removeprefix("base_model.model.").removesuffix(".default.weight").rsplit(".", 1)
            found[f"{path.replace('.', '/')}.{letter}"] = parameter
    return found


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_ten_steps_of_peft_with_torch_adamw(family: str) -> None:
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear")
    theirs = peft.get_peft_model(make_base(family, dtype=torch.float64), config).double().eval()
    model = model_with({"a": LoRA(rank=3, alpha=6), "b": LoRA(rank=2)}, family)
    parameters = peft_weights(theirs)
    with torch.no_grad():
        for name, value in weights(model, "a").items():
            parameters[name].copy_(value)
    task = Task("a", make_rows(14, seed=1), SETTINGS)

    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2, weight_decay=0.05, foreach=False)
    # Up to the peak in three steps, then half a cosine over the other seven.
    factors = [1 / 3, 2 / 3, 1.0, *(0.5 * (1 + math.cos(math.pi * step / 7)) for step in range(7))]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, STEPS - 1)])
    losses = []
    for step in task.steps:
        loss = mean_loss(lambda ids: theirs(input_ids=ids).logits, [task.rows[index] for index in step])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 0.5)
        optimizer.step()
        scheduler.step()
        losses.append(float(loss.detach()))

    start = weights(model, "a")
    _, recorder = run(model, [task, Task("b", make_rows(9, seed=2))], MANY_MICRO_BATCHES)
    assert [event.loss for event in recorder.of(Stepped, "a")] == pytest.approx(losses, rel=1e-8)
    ours = weights(model, "a")
    assert ours.keys() == parameters.keys()
    for name, value in ours.items():
        assert float((value - start[name]).abs().max()) > 1e-3
        assert float((value - parameters[name]).abs().max()) < 1e-6, name


def test_gradients_left_over_from_before_do_not_count() -> None:
    """Someone looked at a gradient before training, or stacked another adapter on this one."""
    results = []
    for left_over in (False, True):
        model = model_with({"a": LoRA(rank=2)})
        if left_over:
            for parameter in model.adapter("a").parameters():
                parameter.grad = torch.full_like(parameter, 0.5)
        _, recorder = run(model, [Task("a", make_rows(4))])
        results.append([event.gradient_norm for event in recorder.of(Stepped)])
    assert results[0] == results[1]
