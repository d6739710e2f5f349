"""A whole step of DPO as trl's trainer makes it of a peft model: the loss, and the gradient of every parameter."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graftlm import LoRA
from graftlm.data.batches import EncodedRow
from graftlm.training.events import Stepped
from graftlm.training.loop import gradient_norm
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.families import make_base
from tests.training.preferred import make_groups, preference_task
from tests.training.test_reference import peft_weights
from tests.training.work import model_with, run, weights

peft = pytest.importorskip("peft")
pytest.importorskip("trl", minversion="1.16")

from tests.objectives.test_trl import peer  # noqa: E402  (that file needs trl to be imported)


class WithLogProbs:
    """A peft model whose call gives the log-probabilities of labels, as trl's patched forward does."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.training = True

    def __call__(self, *, labels: torch.Tensor, fused_lm_head: bool, **inputs: Any) -> SimpleNamespace:
        logits = self.model(**inputs).logits[:, :-1]
        targets = labels[:, 1:]
        chosen = torch.log_softmax(logits, -1).gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
        log_probs = chosen.masked_fill(targets == -100, 0.0)
        zeros = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def trl_inputs(leaders: list[EncodedRow]) -> dict[str, torch.Tensor]:
    """Padded as trl has it: all better answers, then all worse ones."""
    rows = [*leaders, *(leader.beside[0] for leader in leaders)]
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    attended, learnt = torch.zeros_like(ids), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        attended[number, : len(row.ids)] = 1
        learnt[number, : len(row.ids)] = torch.tensor(row.supervised, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": attended, "completion_mask": learnt}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("loss", "peers", "smoothing"),
    [("sigmoid", "sigmoid", 0.0), ("hinge", "hinge", 0.0), ("ipo_per_token", "ipo", 0.0), ("robust", "robust", 0.2)],
)
def test_a_whole_step(loss: str, peers: str, smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    config = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear")
    theirs = peft.get_peft_model(make_base("llama", dtype=torch.float64), config).double().eval()
    model = model_with({"a": LoRA(rank=3, alpha=6), "b": LoRA(rank=2)})
    parameters = peft_weights(theirs)
    with torch.no_grad():
        for name, value in weights(model, "a").items():
            parameters[name].copy_(value)
    leaders = list(make_groups(5, seed=3))
    objective: dict[str, Any] = {"type": "dpo", "loss": loss, "beta": 0.3}
    if smoothing:
        objective["label_smoothing"] = smoothing
    settings = AdapterTraining.model_validate({"objective": objective, "batch_rows": 5, "max_grad_norm": 0})

    wrapped = WithLogProbs(theirs)
    inputs = trl_inputs(leaders)
    with torch.no_grad(), theirs.disable_adapter():
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        reference = wrapped(labels=labels, fused_lm_head=True, **given).log_probs.sum(1)
    trainer = peer(
        beta=0.3,
        loss_types=[peers],
        loss_weights=[1.0],
        label_smoothing=smoothing,
        f_divergence_type="reverse_kl",
        precompute_ref_logps=True,
    )
    trainer.model = wrapped
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    scored = inputs | {"ref_chosen_logps": reference[:5], "ref_rejected_logps": reference[5:]}
    expected = DPOTrainer._compute_loss(trainer, wrapped, scored, False)
    expected.backward()

    seen: list[list[torch.Tensor]] = []

    def record(given: list[torch.nn.Parameter]) -> float:
        seen.append([parameter.grad.clone() for parameter in given if parameter.grad is not None])
        return gradient_norm(given)

    monkeypatch.setattr("graftlm.training.loop.gradient_norm", record)
    from graftlm.training.objectives import build_objective

    task = Task("a", tuple(leaders), settings, (), build_objective(settings.objective))
    _, recorder = run(model, [task, preference_task("b", "orpo", groups=4)], RunSettings(micro_batch_tokens=30))
    (step,) = recorder.of(Stepped, "a")
    assert step.loss == pytest.approx(float(expected.detach()), rel=1e-9)
    names = list(weights(model, "a"))
    for name, gradient in zip(names, seen[0], strict=True):
        other = parameters[name].grad
        assert other is not None
        assert float(other.abs().max()) > 0
        assert float((gradient - other).norm() / other.norm()) < 1e-8, name
