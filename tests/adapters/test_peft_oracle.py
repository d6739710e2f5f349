"""peft as an independent oracle: equal outputs and equal gradients of A and B, and files that both read."""

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

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.method import Adapter
from graftlm.errors import UserError
from tests.families import FAMILIES, make_base, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.arange(3, 19).view(2, 8)


def peft_model(family: str, seed: int = 0, **settings: Any) -> Any:
    """A peft model on the same base, every parameter of its adapter random."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 7, "target_modules": "all-linear", **settings}
    model = peft.get_peft_model(make_base(family), peft.LoraConfig(**settings))
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in peft_parameters(model):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def peft_parameters(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            yield name.removeprefix("base_model.model."), parameter


@torch.no_grad()
def copy_parameters(source: Any, adapter: Adapter) -> None:
    """From a peft model; every layer that it adapts, and no other."""
    theirs = dict(peft_parameters(source))
    for path, update in adapter.linear.items():
        update.lora_A.copy_(theirs.pop(f"{path}.lora_A.default.weight"))
        update.lora_B.copy_(theirs.pop(f"{path}.lora_B.default.weight"))
    assert not theirs, f"peft adapts more: {list(theirs)}"


def loss(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of next tokens that are not the inputs."""
    targets = (IDS * 7 + 5) % logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())


def assert_equal(ours: AdaptedModel, theirs: Any, adapter: Adapter) -> None:
    logits, expected = ours(IDS, adapters="a").logits, theirs(input_ids=IDS).logits
    assert relative(logits.detach(), expected.detach()) < 1e-5
    assert relative(logits.detach(), ours(IDS).logits.detach()) > 1e-3
    loss(logits).backward()
    loss(expected).backward()
    wanted = {name: parameter.grad for name, parameter in peft_parameters(theirs)}
    for path, update in adapter.linear.items():
        for letter in "AB":
            gradient = getattr(update, f"lora_{letter}").grad
            assert relative(gradient, wanted[f"{path}.lora_{letter}.default.weight"]) < 1e-5, path


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients(family: str) -> None:
    ours, theirs = AdaptedModel(make_base(family)), peft_model(family)
    adapter = ours.add("a", LoRA(rank=4, alpha=7))
    copy_parameters(theirs, adapter)
    assert_equal(ours, theirs, adapter)


LLAMA_SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"rslora": True}, {"use_rslora": True}),
    ({"targets": ["q_proj", "down_proj"]}, {"target_modules": ["q_proj", "down_proj"]}),
    ({"targets": ["mlp.up_proj"]}, {"target_modules": ["mlp.up_proj"]}),
    ({"targets": ["*.mlp.*"]}, {"target_modules": r".*\.mlp\..*_proj"}),
    ({"exclude": ["o_proj"]}, {"exclude_modules": ["o_proj"]}),
    ({"rank_pattern": {"q_proj": 2, "up_proj": 9}}, {"rank_pattern": {"q_proj": 2, "up_proj": 9}}),
    ({"alpha_pattern": {"*.1.mlp.*": 3}}, {"alpha_pattern": {r".*\.1\.mlp\..*": 3}}),
    (
        {"rslora": True, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 2, "k_proj": 9}},
        {"use_rslora": True, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 2, "k_proj": 9}},
    ),
    ({"targets": ["all-linear", "lm_head"]}, {"target_modules": r"lm_head|.*\.\w+_proj"}),
]


@pytest.mark.parametrize(("mine", "peers"), LLAMA_SETTINGS)
def test_settings(mine: dict[str, Any], peers: dict[str, Any]) -> None:
    ours, theirs = AdaptedModel(make_base("llama")), peft_model("llama", **peers)
    adapter = ours.add("a", LoRA(rank=4, alpha=7, **mine))
    copy_parameters(theirs, adapter)
    assert_equal(ours, theirs, adapter)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_pissa_start_and_gradients(family: str) -> None:
    """peft moves the start into the base; here it is subtracted, and the base stays. The training is the same."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 7, "target_modules": "all-linear"}
    theirs = peft.get_peft_model(make_base(family), peft.LoraConfig(init_lora_weights="pissa", **settings)).eval()
    ours = AdaptedModel(make_base(family))
    adapter = ours.add("a", LoRA(rank=4, alpha=7, init="pissa"))
    wanted = dict(peft_parameters(theirs))
    for path, update in adapter.linear.items():
        A, B = (wanted[f"{path}.lora_{letter}.default.weight"] for letter in "AB")
        assert relative((update.lora_B @ update.lora_A).detach(), (B @ A).detach()) < 1e-4
    with torch.no_grad():
        copy_parameters(theirs, adapter)  # the signs of singular vectors are free
        for parameters in (dict(adapter.named_parameters()), wanted):
            for number, key in enumerate(
                sorted(parameters, key=lambda key: key.replace("/", ".").replace(".default.weight", ""))
            ):
                noise = torch.randn(parameters[key].shape, generator=torch.Generator().manual_seed(number))
                parameters[key].add_(0.05 * noise)
    logits, expected = ours(IDS, adapters="a").logits, theirs(input_ids=IDS).logits
    assert relative(logits.detach(), expected.detach()) < 1e-5
    assert relative(logits.detach(), ours(IDS).logits.detach()) > 1e-3
    loss(logits).backward()
    loss(expected).backward()
    for path, update in adapter.linear.items():
        for letter in "AB":
            gradient = wanted[f"{path}.lora_{letter}.default.weight"].grad
            assert relative(getattr(update, f"lora_{letter}").grad, gradient) < 1e-5, path


def test_default_start_has_the_distribution_of_peft() -> None:
    settings = {"task_type": "CAUSAL_LM", "r": 16, "target_modules": "all-linear"}
    for init, value in [("default", True), ("gaussian", "gaussian")]:
        theirs = peft.get_peft_model(make_base("llama"), peft.LoraConfig(init_lora_weights=value, **settings))
        ours = AdaptedModel(make_base("llama")).add("a", LoRA(rank=16, init=init))
        wanted = dict(peft_parameters(theirs))
        scaled = [
            torch.cat([A.detach().flatten() * A.shape[1] ** 0.5 for A in several])
            for several in (
                [update.lora_A for update in ours.linear.values()],
                [wanted[f"{path}.lora_A.default.weight"] for path in ours.linear],
            )
        ]
        levels = torch.linspace(0, 1, 11)
        assert torch.allclose(scaled[0].quantile(levels)[1:-1], scaled[1].quantile(levels)[1:-1], atol=0.05)
        assert not any(update.lora_B.any() for update in ours.linear.values())
        assert not any(value.any() for key, value in wanted.items() if "lora_B" in key)


# --- files ------------------------------------------------------------------------------------------------------

SAVED: list[dict[str, Any]] = [
    {},
    {"rslora": True, "rank_pattern": {"*.0.*": 2}, "alpha_pattern": {"*.1.*": 3}},
    {"init": "pissa"},
    {"init": "pissa", "rslora": True, "rank_pattern": {"*.1.*": 3}},
]


def load_in_peft(family: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return peft.PeftModel.from_pretrained(make_base(family), folder).eval()


@pytest.mark.parametrize("settings", SAVED)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt", "falcon"])
def test_peft_reads_ours(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family))
    model.add("a", LoRA(rank=4, alpha=7, **settings))
    randomise(model.adapters["a"])
    model.save("a", tmp_path / "a")
    theirs = load_in_peft(family, tmp_path / "a")
    with torch.no_grad():
        expected = model(IDS, adapters="a").logits
        assert relative(theirs(input_ids=IDS).logits, expected) < 1e-5
        assert relative(model(IDS).logits, expected) > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": ["q_proj", "mlp.up_proj"]},
        {"targets": ["model.layers.1.mlp.up_proj", "v_proj"]},
        {"targets": ["lm_head", "all-linear"], "rank_pattern": {"lm_head": 2}},
        {"targets": "lm_head"},
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # the head of one is its own, of the other tied
def test_peft_reads_our_targets(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family))
    model.add("a", LoRA(rank=3, **settings))
    randomise(model.adapters["a"])
    model.save("a", tmp_path / "a")
    theirs = load_in_peft(family, tmp_path / "a")
    with torch.no_grad():
        assert relative(theirs(input_ids=IDS).logits, model(IDS, adapters="a").logits) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\.up_proj": 6},
            "alpha_pattern": {"layers.0.mlp.down_proj": 3, "k_proj": 20},
            "use_rslora": True,
        },
        {"target_modules": r".*\.1\..*(q|up)_proj"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"lora_dropout": 0.3},
        {"init_lora_weights": "gaussian"},
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_we_read_pefts(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = peft_model(family, **settings)
    theirs.save_pretrained(tmp_path)
    model = AdaptedModel(make_base(family))
    assert model.load(tmp_path, "a") == "a"
    with torch.no_grad():
        assert relative(model(IDS, adapters="a").logits, theirs(input_ids=IDS).logits) < 1e-5
    assert model.adapters["a"].config.dropout == settings.get("lora_dropout", 0.0)
    # and what we make of it, peft reads again
    model.save("a", tmp_path / "again")
    with torch.no_grad():
        again = load_in_peft(family, tmp_path / "again")
        assert relative(again(input_ids=IDS).logits, theirs(input_ids=IDS).logits) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "falcon", "opt", "phi3"])
def test_we_read_pefts_in_other_families(family: str, tmp_path: Path) -> None:
    theirs = peft_model(family)
    theirs.save_pretrained(tmp_path)
    model = AdaptedModel(make_base(family))
    model.load(tmp_path, "a")
    with torch.no_grad():
        assert relative(model(IDS, adapters="a").logits, theirs(input_ids=IDS).logits) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_bias": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"layer_replication": [[0, 2], [0, 2]]},
        {"trainable_token_indices": [3, 4]},
        {"alora_invocation_tokens": [5, 6]},
    ],
)
def test_what_we_cannot_read_is_refused(settings: dict[str, Any], tmp_path: Path) -> None:
    """Each of these means more than what is read: loading it in part would be silently wrong."""
    peft_model("llama", **settings).save_pretrained(tmp_path)
    model = AdaptedModel(make_base("llama"))
    with pytest.raises(UserError, match=next(iter(settings))):
        model.load(tmp_path, "a")
    assert not model.adapters


def test_trained_biases_are_refused(tmp_path: Path) -> None:
    theirs = peft_model("qwen2", bias="all")
    with torch.no_grad():
        theirs.base_model.model.model.layers[0].self_attn.q_proj.base_layer.bias += 1.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"q_proj\.bias"):
        AdaptedModel(make_base("qwen2")).load(tmp_path, "a")


def test_other_methods_of_peft_are_refused_by_name(tmp_path: Path) -> None:
    peft.get_peft_model(make_base("llama"), peft.VeraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="VERA"):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


def test_a_head_saved_with_weights_of_its_own_is_refused(tmp_path: Path) -> None:
    """peft stores the embedding and the head beside a LoRA on the head. Where these were trained, they are needed."""
    theirs = peft_model("llama", target_modules=["lm_head", "v_proj"])
    with torch.no_grad():
        theirs.base_model.model.lm_head.base_layer.weight[3, 3] += 1.0
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="lm_head"):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


def test_the_config_is_one_that_peft_writes(tmp_path: Path) -> None:
    """Every key is a key of peft, with the values of peft."""
    model = AdaptedModel(make_base("llama"))
    model.add("a", LoRA(rank=4, alpha=7, targets=["q_proj", "v_proj"], dropout=0.1))
    model.save("a", tmp_path / "a")
    ours = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    theirs = peft.LoraConfig.from_pretrained(str(tmp_path / "a")).to_dict()
    assert set(ours) <= set(theirs)
    assert {key: theirs[key] for key in ("r", "lora_alpha", "lora_dropout", "bias")} == {
        "r": 4,
        "lora_alpha": 7,
        "lora_dropout": 0.1,
        "bias": "none",
    }
    assert set(theirs["target_modules"]) == {"q_proj", "v_proj"}
