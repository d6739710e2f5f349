"""AdaLoRA step by step beside peft's, the shrinking that peft does not do, schedules, files and merging."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graftlm import AdaLoRA, AdaptedModel, LoRA
from graftlm.adapters.adalora import PARTS, AdaLoRAAdapter
from graftlm.adapters.merge import export_merged
from graftlm.errors import UserError
from graftlm.training.loop import train
from graftlm.training.settings import AdapterTraining
from graftlm.training.task import Progress, Task
from tests.families import VOCABULARY, make_base, randomise, relative
from tests.training.work import difference, make_rows, model_with, run, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.arange(3, 19).view(2, 8)
TOTAL, T_INIT, T_FINAL, DELTA_T = 24, 3, 6, 2
CONFIG = AdaLoRA(
    init_rank=4, target_rank=2, alpha=7, t_init=T_INIT, t_final=T_FINAL, delta_t=DELTA_T, beta1=0.8, beta2=0.9
)


def pefts(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """peft's AdaLoRA on the same base, every parameter random."""
    config = peft.AdaLoraConfig(
        task_type="CAUSAL_LM", init_r=4, target_r=2, lora_alpha=7, tinit=T_INIT, tfinal=T_FINAL, deltaT=DELTA_T,
        beta1=0.8, beta2=0.9, orth_reg_weight=0.5, total_step=TOTAL, target_modules="all-linear", **settings,
    )  # fmt: skip
    model = peft.get_peft_model(make_base(family, dtype=dtype), config).to(dtype).eval()
    # transformers computes the loss in float32, whatever the model's precision.
    model.base_model.model.loss_function = lambda logits, labels, **_: loss(logits, labels)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in own_parameters(model):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def own_parameters(theirs: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Under our names."""
    for name, parameter in theirs.named_parameters():
        if ".lora_" in name:
            path, part = name.removeprefix("base_model.model.").removesuffix(".default").rsplit(".", 1)
            yield f"{path.replace('.', '/')}.{part}", parameter


def ours_like(theirs: Any, family: str, dtype: torch.dtype = torch.float64) -> tuple[AdaptedModel, AdaLoRAAdapter]:
    model = AdaptedModel(make_base(family, dtype=dtype), name=f"random-{family}")
    adapter = model.add("a", CONFIG)
    assert isinstance(adapter, AdaLoRAAdapter)
    wanted = dict(own_parameters(theirs))
    named = dict(adapter.named_parameters())
    assert wanted.keys() == named.keys()
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(wanted[name])
    return model, adapter


def batch(step: int) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(step))


def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_step_is_pefts(family: str) -> None:
    """Outputs, loss with regulariser, gradients, smoothed importance, budgets and masks, up to the final pruning."""
    theirs = pefts(family)
    allocator = theirs.base_model.rankallocator
    model, adapter = ours_like(theirs, family)
    wanted, named = dict(own_parameters(theirs)), dict(adapter.named_parameters())
    optimizers = [torch.optim.AdamW(each.values(), lr=2e-2, foreach=False) for each in (wanted, named)]
    masked: dict[str, torch.Tensor] = {}
    came_back = allocations = 0
    for step in range(1, TOTAL - T_FINAL + 1):
        ids = batch(step)
        expected = theirs(input_ids=ids, labels=ids)
        logits = model(ids, adapters="a").logits
        close(logits, expected.logits)
        penalty = adapter.penalty()
        assert penalty is not None
        found = loss(logits, ids) + penalty
        close(found, expected.loss)
        for optimizer, value in zip(optimizers, (expected.loss, found), strict=True):
            optimizer.zero_grad()
            value.backward()
        for name, parameter in named.items():
            assert parameter.grad is not None
            close(parameter.grad, wanted[name].grad)
        before = {path: update.lora_E.detach().clone() for path, update in adapter.triplets.items()}
        for optimizer in optimizers:
            optimizer.step()
        if step == TOTAL - T_FINAL:
            break
        theirs.base_model.update_and_allocate(step)
        assert not adapter.stepped(step, TOTAL)
        assert adapter.budget(step, TOTAL) == allocator.budget_schedule(step)[0]
        for path, update in adapter.triplets.items():
            for part in PARTS:
                key = f"base_model.model.{path}.{part}.default"
                key = next(k for k in allocator.exp_avg_ipt if k.endswith(key.removeprefix("base_model.model.")))
                close(update.get_buffer(f"sensitivity_{part}"), allocator.exp_avg_ipt[key])
                close(update.get_buffer(f"deviation_{part}"), allocator.exp_avg_unc[key])
        for name, parameter in named.items():
            close(parameter, wanted[name])
        now = {path: update.lora_E.detach() == 0 for path, update in adapter.triplets.items()}
        if step > T_INIT and step % DELTA_T == 0:
            allocations += 1
            left = sum(int((~mask).sum()) for mask in now.values())
            assert left == adapter.budget(step, TOTAL)
            came_back += sum(int((mask & ~now[path]).sum()) for path, mask in masked.items())
            masked = now
        del before
    assert allocations > 4
    assert came_back > 0 or family != "llama", "what was masked once may come back, and in the llama's it did"

    theirs.base_model.update_and_allocate(TOTAL - T_FINAL)
    assert adapter.stepped(TOTAL - T_FINAL, TOTAL)
    pattern = {key.rpartition(".lora_E")[0]: flags for key, flags in theirs.peft_config["default"].rank_pattern.items()}
    pattern = {
        key.removeprefix("base_model.").removeprefix(
            "model.",
        ): flags
        for key, flags in pattern.items()
    }
    for path, update in adapter.triplets.items():
        flags = next(flags for key, flags in pattern.items() if path.endswith(key) or key.endswith(path))
        assert update.kept.tolist() == flags
        assert update.lora_A.shape[0] == adapter.ranks[path] == sum(flags)
        kept = torch.tensor(flags)
        key = path.replace(".", "/")
        close(update.lora_A, wanted[f"{key}.lora_A"][kept])
        close(update.lora_E, wanted[f"{key}.lora_E"][kept])
        close(update.lora_B, wanted[f"{key}.lora_B"][:, kept])
    assert sum(adapter.ranks.values()) == CONFIG.target_rank * len(adapter.ranks)
    close(model(IDS, adapters="a").logits, theirs(input_ids=IDS).logits)


# --- the budget, worked by hand -----------------------------------------------------------------------------------


def adapter_of(config: AdaLoRA, family: str = "llama") -> AdaLoRAAdapter:
    adapter = model_with({"a": config}, family).adapter("a")  # type: ignore[dict-item]
    assert isinstance(adapter, AdaLoRAAdapter)
    return adapter


def test_the_budget_falls_cubically() -> None:
    adapter = adapter_of(AdaLoRA(init_rank=4, target_rank=2, t_init=10, t_final=20, targets=["q_proj", "v_proj"]))
    assert len(adapter.triplets) == 4
    # 16 triplets at first, 8 in the end; between steps 10 and 80 of 100: 8 + 8 (1 − (t − 10) / 70)³
    assert [adapter.budget(step, 100) for step in (1, 10, 24, 45, 66, 79, 80, 99)] == [16, 16, 12, 9, 8, 8, 8, 8]


def test_shares_are_of_all_steps() -> None:
    assert AdaLoRA(t_init=0.1, t_final=0.25).schedule(200) == (20, 150)
    assert AdaLoRA(t_init=7, t_final=30).schedule(200) == (7, 170)


@pytest.mark.parametrize(
    "settings", [{"t_init": 5, "t_final": 20}, {"t_init": 0, "t_final": 20}, {"t_init": 12, "t_final": 8}]
)
def test_a_schedule_that_ends_after_training_is_refused_before_it(settings: dict[str, Any]) -> None:
    model = model_with({"a": AdaLoRA(init_rank=2, target_rank=1, **settings)})  # type: ignore[dict-item]
    task = Task("a", make_rows(10, seed=1), AdapterTraining(batch_rows=1, epochs=2))
    start = weights(model, "a")
    with pytest.raises(UserError, match=r"'a'.*20 steps.*\n?.*"):
        train(model, [task])
    assert difference(start, weights(model, "a")) == 0


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="target_rank 5 is above init_rank 4"):
        AdaLoRA(init_rank=4, target_rank=5)
    with pytest.raises(UserError, match="init_rank 40"):
        AdaptedModel(make_base("llama")).add("a", AdaLoRA(init_rank=40))


# --- really smaller ---------------------------------------------------------------------------------------------

SETTINGS = AdapterTraining(learning_rate=2e-2, batch_rows=2, epochs=9, max_steps=TOTAL, seed=3)


def task(held_out: int = 0, settings: AdapterTraining = SETTINGS) -> Task:
    return Task("a", make_rows(14, seed=1), settings, held_out=make_rows(14, seed=1)[:held_out])


def optimizer_bytes(progress: Progress) -> int:
    return sum(
        moment.numel() * moment.element_size()
        for state in progress.optimizer.state.values()
        for key, moment in state.items()
        if key != "step"
    )


def flops_of_a_step(model: AdaptedModel) -> int:
    with FlopCounterMode(display=False) as counter:
        model(IDS, adapters="a").logits.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def test_parameters_optimizer_and_work_shrink() -> None:
    config = CONFIG.model_copy(update={"init_rank": 8, "target_rank": 2})
    model = model_with({"a": config})  # type: ignore[dict-item]
    adapter = model.adapter("a")
    before, work = adapter.trained_parameters, flops_of_a_step(model)
    bare = model_with({"a": LoRA(rank=1)})
    outcome, _ = run(model, [task()])
    progress = outcome.progress["a"]
    assert sum(adapter.ranks.values()) == 2 * len(adapter.linear)  # type: ignore[union-attr]
    assert adapter.trained_parameters < 0.45 * before
    assert optimizer_bytes(progress) == 2 * 8 * adapter.trained_parameters
    assert {id(p) for p in progress.parameters} == {id(p) for p in adapter.parameters()}
    least = flops_of_a_step(bare)
    assert flops_of_a_step(model) - least < 0.45 * (work - least)
    buffers = sum(b.numel() for name, b in adapter.named_buffers() if not name.endswith("kept"))
    assert buffers == 0, "what the importance was made of is gone too"


def test_the_moments_of_what_is_left_stay() -> None:
    """Training on after the shrink is training on a full adapter whose other triplets are out of reach."""
    model = model_with({"a": CONFIG})  # type: ignore[dict-item]
    progress = Progress(task(), model.adapter("a"))
    for parameter in progress.parameters:
        parameter.grad = torch.randn_like(parameter)
    progress.optimizer.step()
    old = {
        name: {key: value.clone() for key, value in progress.optimizer.state[parameter].items()}
        for name, parameter in progress.adapter.named_parameters()
    }
    kept = {}
    for number, (path, update) in enumerate(progress.adapter.triplets.items()):  # type: ignore[operator]
        kept[path.replace(".", "/")] = torch.arange(4) % 3 != number % 3
        update.shrink(kept[path.replace(".", "/")])
    progress.reshape()
    for name, parameter in progress.adapter.named_parameters():
        path, _, part = name.rpartition(".")
        state = progress.optimizer.state[parameter]
        for key in ("exp_avg", "exp_avg_sq"):
            expected = old[name][key][:, kept[path]] if part == "lora_B" else old[name][key][kept[path]]
            assert torch.equal(state[key], expected)
        assert state["step"] == 1


def starved() -> AdaptedModel:
    """One matrix without any importance: it ends at rank 0."""
    model = model_with({"a": CONFIG.model_copy(update={"target_rank": 1})})  # type: ignore[dict-item]
    with torch.no_grad():
        for path, update in model.adapter("a").linear.items():
            if path.endswith("1.mlp.up_proj"):
                for part in PARTS:
                    update.get_parameter(part).zero_()
    return model


def test_a_matrix_may_end_at_rank_nought(tmp_path: Path) -> None:
    model = starved()
    run(model, [task(held_out=2)])
    ranks = model.adapter("a").ranks
    assert ranks is not None
    assert ranks["model.layers.1.mlp.up_proj"] == 0
    outputs = model(IDS, adapters="a").logits
    outputs.sum().backward()
    assert relative(outputs, model(IDS).logits) > 1e-3
    model.save("a", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "graftlm.json").read_text())["ranks"] == dict(ranks)
    again = AdaptedModel(make_base("llama", dtype=torch.float64), name="random-llama")
    again.load(tmp_path / "a")
    assert again.adapter("a").ranks == ranks
    assert torch.equal(again(IDS, adapters="a").logits, outputs)
    assert export_merged(model, ["a"], tmp_path / "merged").relative < 1e-9


def test_patience_does_not_stop_it_over_its_budget() -> None:
    patient = SETTINGS.model_copy(update={"patience": 1, "learning_rate": 0.5})
    other = Task("a", make_rows(14, seed=1), patient, held_out=make_rows(4, seed=9))
    model = model_with({"a": CONFIG})  # type: ignore[dict-item]
    outcome, _ = run(model, [other])
    assert outcome.progress["a"].step > TOTAL - T_FINAL
    assert sum((model.adapter("a").ranks or {}).values()) == 2 * len(model.adapter("a").linear)


def test_what_was_best_before_the_shrink_does_not_come_back() -> None:
    model = model_with({"a": CONFIG})  # type: ignore[dict-item]
    outcome, _ = run(model, [task(held_out=4)])
    assert outcome.progress["a"].best_step > TOTAL - T_FINAL - 1
    assert sum((model.adapter("a").ranks or {}).values()) == 2 * len(model.adapter("a").linear)


def test_beside_others_is_alone() -> None:
    def trained(names: str) -> dict[str, torch.Tensor]:
        configs = {"a": CONFIG, "b": CONFIG.model_copy(update={"t_final": 9}), "c": LoRA(rank=3)}
        model = model_with({name: configs[name] for name in names})  # type: ignore[misc]
        tasks = [Task(name, make_rows(14, seed=ord(name)), SETTINGS) for name in names]
        run(model, tasks)
        return weights(model, "a")

    alone = trained("a")
    assert difference(alone, trained("cba")) < 1e-7


# --- files ------------------------------------------------------------------------------------------------------


def in_peft(family: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return peft.PeftModel.from_pretrained(make_base(family), folder).eval()


@torch.no_grad()
def shrunken(family: str) -> AdaptedModel:
    model = AdaptedModel(make_base(family), name=f"random-{family}")
    adapter = model.add("a", CONFIG)
    randomise(adapter)
    for number, update in enumerate(adapter.triplets.values()):  # type: ignore[operator]
        update.shrink(torch.arange(4) % 4 >= number % 5)
    assert set((adapter.ranks or {}).values()) >= {0, 1, 2, 3, 4}
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("final", [False, True])
def test_peft_reads_ours(final: bool, family: str, tmp_path: Path) -> None:
    model = shrunken(family) if final else AdaptedModel(make_base(family), name=f"random-{family}")
    if not final:
        randomise(model.add("a", CONFIG))
    model.save("a", tmp_path / "a")
    expected = model(IDS, adapters="a").logits
    assert relative(in_peft(family, tmp_path / "a")(input_ids=IDS).logits, expected) < 1e-5
    assert relative(model(IDS).logits, expected) > 1e-4
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config.keys() <= set(peft.AdaLoraConfig.from_pretrained(str(tmp_path / "a")).to_dict())
    again = AdaptedModel(make_base(family), name=f"random-{family}")
    again.load(tmp_path / "a")
    assert again.adapter("a").config == CONFIG
    assert again.adapter("a").ranks == model.adapter("a").ranks
    assert torch.equal(again(IDS, adapters="a").logits, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("steps", [0, TOTAL])
def test_we_read_pefts(steps: int, family: str, tmp_path: Path) -> None:
    """Fresh, and trained to its end, where peft cuts the file to the ranks that are left."""
    theirs = pefts(family, torch.float32, lora_dropout=0.2)
    optimizer = torch.optim.AdamW([parameter for _, parameter in own_parameters(theirs)], lr=2e-2)
    for step in range(1, steps + 1):
        theirs(input_ids=batch(step), labels=batch(step)).loss.backward()
        optimizer.step()
        theirs.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
    theirs.save_pretrained(tmp_path / "theirs")
    model = AdaptedModel(make_base(family), name=f"random-{family}")
    model.load(tmp_path / "theirs", "a")
    adapter = model.adapter("a")
    assert relative(model(IDS, adapters="a").logits, expected) < 1e-5
    assert (adapter.config.init_rank, adapter.config.target_rank, adapter.config.dropout) == (4, 2, 0.2)  # type: ignore[attr-defined]
    assert sum((adapter.ranks or {}).values()) == (2 if steps else 4) * len(adapter.linear)
    model.save("a", tmp_path / "again")
    assert relative(in_peft(family, tmp_path / "again")(input_ids=IDS).logits, expected) < 1e-5


def broken(folder: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("base_model.model.model.layers.0.mlp.up_proj.lora_E"), "up_proj.lora_E is missing"),
        (lambda t: t.clear(), "no tensors"),
        (lambda t: t.update({"base_model.model.x.lora_C": torch.ones(2)}), "x.lora_C"),
        (
            lambda t: t.update({f"base_model.model.model.layers.9.up_proj.lora_{p}": torch.ones(2, 2) for p in "AEB"}),
            "layers.9.up_proj, which this base does not have",
        ),
        (
            lambda t: t.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A": torch.ones(4, 7)}),
            r"up_proj lora_A.*\(4, 7\)",
        ),
    ],
)
def test_broken_files_are_refused(change: Any, said: str, ours: bool, tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"), name="random-llama")
    randomise(model.add("a", CONFIG))
    model.save("a", tmp_path / "a")
    broken(tmp_path / "a", change)
    if not ours:
        (tmp_path / "a" / "graftlm.json").unlink()
    fresh = AdaptedModel(make_base("llama"), name="random-llama")
    with pytest.raises(UserError, match=said):
        fresh.load(tmp_path / "a")
    assert not fresh.adapters


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"init_r": 0}, "init_r"),
        ({"rank_pattern": {"model.layers.0.mlp.up_proj.lora_E": [True, False]}}, "up_proj"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_broken_settings_are_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"), name="random-llama")
    model.add("a", CONFIG)
    model.save("a", tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    (tmp_path / "a" / "graftlm.json").unlink()
    fresh = AdaptedModel(make_base("llama"), name="random-llama")
    with pytest.raises(UserError, match=said):
        fresh.load(tmp_path / "a")


def test_a_layer_that_does_not_run_loses_its_ranks() -> None:
    model = AdaptedModel(make_base("llama"))
    adapter = model.add("a", AdaLoRA(init_rank=2, target_rank=1, t_init=1, t_final=1, delta_t=1, targets=["q_proj"]))
    randomise(adapter)
    assert isinstance(adapter, AdaLoRAAdapter)
    first, second = adapter.triplets
    for step in range(1, 5):
        for parameter in adapter.triplets[second].parameters():
            parameter.grad = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(step))
        adapter.stepped(step, 5)
    assert adapter.ranks == {first: 0, second: 2}
