"""DyLoRA against plain LoRAs of each rank and against a loop written by hand; its ranks in calls, files, generation."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

from graftlm import AdaptedModel, DyLoRA, LoRA
from graftlm.adapters.merge import export_merged
from graftlm.adapters.method import LowRank
from graftlm.adapters.routing import RowAdapters
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.adapters.grid import (
    add_up,
    assert_gradients_close,
    assert_states_close,
    make_row,
    model_with_all,
    states,
    states_and_gradients,
)
from tests.families import ENCODER_DECODERS, make_base, overridden, randomise, relative
from tests.training.work import difference, make_rows, model_with, run, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.arange(3, 19).view(2, 8)
CONFIG = DyLoRA(rank=5, min_rank=2, alpha=6)


def model_of(config: DyLoRA = CONFIG, family: str = "llama", dtype: torch.dtype = torch.float64) -> AdaptedModel:
    return model_with({"dy": config}, family, dtype=dtype)  # type: ignore[dict-item]


@torch.no_grad()
def add_plain(model: AdaptedModel, rank: int, name: str = "plain") -> None:
    """A plain LoRA with the first rows and columns of "dy"."""
    plain = model.add(name, LoRA(rank=rank, alpha=6))
    for path, update in model.adapter("dy").linear.items():
        assert isinstance(update, LowRank)
        plain.linear[path].lora_A.copy_(update.lora_A[:rank])  # type: ignore[union-attr, operator]
        plain.linear[path].lora_B.copy_(update.lora_B[:, :rank])  # type: ignore[union-attr, operator]


def loss(logits: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), ((IDS * 7 + 5) % logits.shape[-1]).flatten())


def gradients_of(model: AdaptedModel, routing: str) -> dict[str, torch.Tensor]:
    """The gradients of the parameters of "dy" or "plain" when rows run under ``routing``; zeros where there is none."""
    owner = model.adapter(routing.partition("@")[0])
    owner.zero_grad()
    loss(model(IDS, adapters=routing).logits).backward()  # type: ignore[no-untyped-call]
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in owner.named_parameters()
    }


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("rank", [2, 3, 5])
def test_a_rank_is_the_plain_lora_of_that_rank(rank: int, family: str) -> None:
    model = model_of(family=family)
    add_plain(model, rank)
    outputs = model(IDS, adapters=f"dy@{rank}").logits
    torch.testing.assert_close(outputs, model(IDS, adapters="plain").logits, rtol=1e-12, atol=1e-12)
    assert relative(outputs, model(IDS).logits) > 1e-3
    found, wanted = gradients_of(model, f"dy@{rank}"), gradients_of(model, "plain")
    for name, gradient in found.items():
        own, above = (
            (gradient[:rank], gradient[rank:]) if name.endswith("A") else (gradient[:, :rank], gradient[:, rank:])
        )
        assert relative(own, wanted[name]) < 1e-12, name
        assert not above.any(), name


def test_the_name_alone_is_the_largest_rank() -> None:
    model = model_of()
    assert torch.equal(model(IDS, adapters="dy").logits, model(IDS, adapters="dy@5").logits)


def test_rows_of_several_ranks_beside_each_other() -> None:
    model = model_of()
    routings = ["dy@3", None, "dy", "dy@2"]
    ids = torch.cat([IDS, IDS.flip(1)])
    together = model(ids, adapters=routings).logits
    for number, routing in enumerate(routings):
        alone = model(ids[number : number + 1], adapters=routing).logits
        assert relative(together[number : number + 1], alone) < 1e-12


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_ranks_beside_other_kinds_and_in_stacks_are_each_alone(family: str, checkpointing: bool) -> None:
    """Outputs of each row, and gradients of the parameters that the ranks share, added up."""
    model = model_with_all(family, methods=["dylora", "lora", "adalora", "seq_bn"])
    model.gradient_checkpointing = checkpointing
    draw = random.Random(2)
    routings: list[RowAdapters] = [
        "dylora@2", "lora", "dylora@3!", None, ("lora", "dylora@2"), "dylora", ("dylora@3", "seq_bn"), "adalora",
    ]  # fmt: skip
    rows = [make_row(draw, two_sequences=family in ENCODER_DECODERS) for _ in routings]
    found, found_gradients = states_and_gradients(model, rows, routings)
    for number, (row, routing) in enumerate(zip(rows, routings, strict=True)):
        assert_states_close([found[number]], states(model, [row], [routing]), 1e-5)
    parts = [
        states_and_gradients(model, [row], [routing], [number])[1]
        for number, (row, routing) in enumerate(zip(rows, routings, strict=True))
    ]
    assert_gradients_close(found_gradients, add_up(parts), 1e-5)


def test_only_the_last_row_and_column_are_trained_with_freeze_lower() -> None:
    model = model_of(CONFIG.model_copy(update={"freeze_lower": True}))
    whole, last = gradients_of(model, "dy@4"), gradients_of(model, "dy@4!")
    assert torch.equal(model(IDS, adapters="dy@4").logits, model(IDS, adapters="dy@4!").logits)
    for name, gradient in last.items():
        mask = torch.zeros_like(gradient)
        mask[(3,) if name.endswith("A") else (slice(None), 3)] = 1
        torch.testing.assert_close(gradient, whole[name] * mask, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("freeze_lower", [False, True])
def test_the_rank_of_a_step_is_drawn_evenly_from_seed_and_step_alone(freeze_lower: bool) -> None:
    config = CONFIG.model_copy(update={"freeze_lower": freeze_lower})
    one, other = model_of(config).adapter("dy"), model_with({"dy": config, "b": LoRA(rank=2)}, "gpt2").adapter("dy")  # type: ignore[dict-item]
    drawn = [one.training_view(3, step) for step in range(2000)]
    assert drawn == [other.training_view(3, step) for step in range(2000)]
    assert drawn != [other.training_view(4, step) for step in range(2000)]
    assert drawn[::-1] == [one.training_view(3, step) for step in reversed(range(2000))]
    counts = Counter(drawn)
    assert set(counts) == {f"{rank}{'!' if freeze_lower else ''}" for rank in (2, 3, 4, 5)}
    assert all(abs(count - 500) < 5 * math.sqrt(2000 * 0.25 * 0.75) for count in counts.values())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1, 4, "1 2 3 4"), (3, 3, "3"), (1, 8, "1 2 3 4 5 6 7 8"), (2, 32, "2 4 8 16 32"), (3, 20, "3 4 8 16 20")],
)
def test_the_ranks_of_the_curve(low: int, high: int, expected: str) -> None:
    model = model_of(DyLoRA(rank=high, min_rank=low, targets="up_proj"))
    assert list(model.adapter("dy").forms) == expected.split()
    assert all(model.adapter(f"dy@{form}") for form in model.adapter("dy").forms)


SETTINGS = AdapterTraining(
    learning_rate=1e-2, batch_rows=3, epochs=9, max_steps=20, schedule="constant", warmup=0, weight_decay=0.1, seed=6
)


def train_by_hand(config: DyLoRA, start: dict[str, torch.Tensor], task: Task, family: str) -> dict[str, torch.Tensor]:
    """Weights are changed by hand for each step's rank, and AdamW moves all rows and columns, drawn or not."""
    base = make_base(family, dtype=torch.float64).eval()
    own = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = torch.optim.AdamW(own.values(), lr=1e-2, weight_decay=0.1, foreach=False)
    adapter = model_of(config, family).adapter("dy")
    for step, indices in enumerate(task.steps):
        rank = int((adapter.training_view(SETTINGS.seed, step) or "").rstrip("!"))
        changed = {}
        for path in adapter.linear:
            key = path.replace(".", "/")
            A, B = own[f"{key}.lora_A"], own[f"{key}.lora_B"]
            if config.freeze_lower:
                delta = B[:, : rank - 1].detach() @ A[: rank - 1].detach() + B[:, rank - 1 : rank] @ A[rank - 1 : rank]
            else:
                delta = B[:, :rank] @ A[:rank]
            weight = base.get_submodule(path).weight.detach()
            delta = 6 / rank * delta
            changed[f"{path}.weight"] = weight + (delta.T if family == "gpt2" else delta)
        losses = []
        for row in (task.rows[index] for index in indices):
            logits = torch.func.functional_call(base, changed, (torch.tensor([row.ids]),)).logits[0]
            places = [place for place in range(1, len(row.ids)) if row.supervised[place]]
            targets = torch.tensor(row.ids)[places]
            losses.append(nn.functional.cross_entropy(logits[[p - 1 for p in places]], targets, reduction="none"))
        for parameter in own.values():
            parameter.grad = torch.zeros_like(parameter)
        torch.cat(losses).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(own.values(), 1.0)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in own.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("freeze_lower", [False, True])
def test_training_equals_a_loop_by_hand(freeze_lower: bool, family: str) -> None:
    config = CONFIG.model_copy(update={"freeze_lower": freeze_lower})
    model = model_with({"dy": config, "b": LoRA(rank=2)}, family)  # type: ignore[dict-item]
    start = weights(model, "dy")
    task = Task("dy", make_rows(14, seed=1), SETTINGS)
    expected = train_by_hand(config, start, task, family)
    run(model, [task, Task("b", make_rows(9, seed=2), SETTINGS)], RunSettings(micro_batch_tokens=20))
    assert difference(weights(model, "dy"), start) > 1e-2
    assert difference(weights(model, "dy"), expected) < 1e-9


# --- files, merging, generation -----------------------------------------------------------------------------------


def test_the_folder_is_a_lora_that_peft_loads_and_a_dylora_again(tmp_path: Path) -> None:
    model = model_of(dtype=torch.float32)
    model.save("dy", tmp_path / "dy")
    theirs = peft.PeftModel.from_pretrained(make_base("llama"), tmp_path / "dy").eval()
    with torch.no_grad():
        assert relative(theirs(input_ids=IDS).logits, model(IDS, adapters="dy").logits) < 1e-5
    again = AdaptedModel(make_base("llama"), name="random-llama")
    again.load(tmp_path / "dy", name="x")
    assert again.adapter("x").config == CONFIG
    for rank in (2, 4, 5):
        assert torch.equal(again(IDS, adapters=f"x@{rank}").logits, model(IDS, adapters=f"dy@{rank}").logits)


@pytest.mark.parametrize("rank", [2, 4])
def test_a_rank_is_saved_as_a_plain_lora(rank: int, tmp_path: Path) -> None:
    model = model_of(dtype=torch.float32)
    model.notes["dy"] = {"template_hash": "of training"}
    model.save(f"dy@{rank}", tmp_path / "cut")
    notes = json.loads((tmp_path / "cut" / "graftlm.json").read_text())
    assert (notes["method"]["method"], notes["method"]["rank"]) == ("lora", rank)
    assert notes["template_hash"] == "of training"
    theirs = peft.PeftModel.from_pretrained(make_base("llama"), tmp_path / "cut").eval()
    again = AdaptedModel(make_base("llama"), name="random-llama")
    again.load(tmp_path / "cut", name="x")
    expected = model(IDS, adapters=f"dy@{rank}").logits
    assert torch.equal(again(IDS, adapters="x").logits, expected)
    assert relative(theirs(input_ids=IDS).logits, expected) < 1e-5
    parameters = sum(parameter.numel() for parameter in again.adapter("x").parameters())
    assert parameters * 5 == model.adapter("dy").trained_parameters * rank


def test_a_rank_is_merged(tmp_path: Path) -> None:
    model = model_of(dtype=torch.float32)
    assert export_merged(model, ["dy@3"], tmp_path / "merged").relative < 1e-5


def test_requests_choose_their_rank() -> None:
    model = model_of()
    sampling = SamplingSettings(max_new_tokens=9, stop_ids=())
    requests = [Request((4, 9, 22, 7), routing, sampling) for routing in ("dy@2", "dy", None, "dy@4")]
    together = Engine(model).run(requests)
    for request, completion in zip(requests, together, strict=True):
        (alone,) = Engine(model).run([request])
        assert completion.token_ids == alone.token_ids
        assert completion.log_probs == pytest.approx(alone.log_probs, abs=1e-9)
    assert len({completion.log_probs for completion in together}) == 4


def test_a_rank_shares_the_parameters_and_follows_them() -> None:
    model = model_of()
    before = model(IDS, adapters="dy@3").logits
    randomise(model.adapter("dy"), seed=99)
    assert relative(model(IDS, adapters="dy@3").logits, before) > 1e-3
    model.rename("dy", "other")
    assert model(IDS, adapters="other@3").logits.isfinite().all()
    with pytest.raises(UserError, match="dy"):
        model(IDS, adapters="dy@3")


@pytest.mark.parametrize("suffix", ["1", "6", "0", "-2", "x", "", "3.0", "٣"])
def test_ranks_out_of_range_are_refused(suffix: str) -> None:
    model = model_of()
    with pytest.raises(UserError, match="2 to 5"):
        model(IDS, adapters=f"dy@{suffix}")
    assert list(model.adapters) == ["dy"]


def test_only_a_dylora_has_ranks_to_choose() -> None:
    with pytest.raises(UserError, match="lora has no form '@2'"):
        model_with({"a": LoRA(rank=3)}).adapter("a@2")


@pytest.mark.parametrize(
    ("settings", "said"), [({"rank": 2, "min_rank": 3}, "min_rank 3"), ({"rank": 0}, "rank"), ({"min_rank": 0}, "rank")]
)
def test_settings_that_make_no_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DyLoRA(**settings)


def test_a_rank_above_the_matrix_is_refused() -> None:
    with pytest.raises(UserError, match="rank 40"):
        AdaptedModel(make_base("llama")).add("dy", DyLoRA(rank=40))


def test_a_view_that_is_removed_leaves_its_places() -> None:
    base = make_base("llama")
    model = AdaptedModel(base)
    model.add("dy", DyLoRA(rank=4))
    view = model.adapter("dy@2")
    assert model.remove("dy@2") is view
    assert model.adapter("dy@2") is not view
    model.remove("dy@2")
    model.remove("dy")
    assert overridden(base) == []


def test_every_rank_has_the_head_of_the_adapter() -> None:
    model = AdaptedModel(make_base("llama"))
    adapter = model.add("dy", DyLoRA(rank=4), classes=3)
    assert adapter.head is not None
    assert model.adapter("dy@2").head is adapter.head
    assert model.head_of(("dy@2",)) == "dy@2"
