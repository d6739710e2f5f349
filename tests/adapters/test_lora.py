"""LoRA by itself: targets, patterns, starts, and errors that name what exists."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from graftlm import AdaptedModel, LoRA
from graftlm.errors import UserError
from tests.families import FAMILIES, randomise, relative


def names(model: AdaptedModel, config: LoRA) -> list[str]:
    return list(model.add("a", config).linear)


BLOCK_0 = "model.layers.0."
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [f"self_attn.{n}" for n in ATTENTION] + [f"mlp.{n}" for n in MLP]),
        ({"targets": "v_proj"}, ["self_attn.v_proj"]),
        ({"targets": ["v_proj", "q_proj"]}, ["self_attn.q_proj", "self_attn.v_proj"]),
        ({"targets": ["mlp.up_proj"]}, ["mlp.up_proj"]),
        ({"targets": "*.mlp.*"}, [f"mlp.{n}" for n in MLP]),
        (
            {"targets": ["*.self_attn.[kv]_proj", "down_proj"]},
            ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"],
        ),
        ({"exclude": ["*.mlp.*", "o_proj"]}, [f"self_attn.{n}" for n in ATTENTION[:3]]),
        (
            {"targets": ["*.self_attn.*"], "exclude": [BLOCK_0 + "self_attn.q_proj"]},
            ["self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
        ),
    ],
)
def test_targets(llama: AdaptedModel, settings: dict[str, Any], expected: list[str]) -> None:
    found = names(llama, LoRA(rank=2, **settings))
    assert [path.removeprefix(BLOCK_0) for path in found if path.startswith(BLOCK_0)] == expected
    assert "lm_head" not in found


def test_one_path_and_the_head(llama: AdaptedModel) -> None:
    assert names(llama, LoRA(rank=2, targets=["lm_head", BLOCK_0 + "mlp.up_proj"])) == [
        BLOCK_0 + "mlp.up_proj",
        "lm_head",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_all_linear_is_every_linear_layer_in_the_blocks(family: str, make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model(family)
    assert names(model, LoRA(rank=2)) == list(model.places.linears)[:-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": ["q_prj"]}, "'q_prj' matches no linear layer.*q_proj, k_proj(.|\n)*Did you mean 'q_proj'"),
        ({"targets": ["c_attn", "q_proj"]}, "'c_attn' matches no linear layer"),
        ({"targets": "*.experts.*"}, r"'\*\.experts\.\*' matches no linear layer"),
        ({"targets": []}, "no linear layer is left"),
        ({"exclude": ["*"]}, "no linear layer is left"),
        ({"exclude": ["q_prj"]}, "exclude: 'q_prj' matches no linear layer"),
        ({"rank_pattern": {"q_prj": 3}}, "rank_pattern: 'q_prj' matches no linear layer"),
        ({"targets": ["q_proj"], "alpha_pattern": {"k_proj": 3}}, "alpha_pattern: 'k_proj' matches no"),
        ({"rank": 33}, r"rank 33 is larger than model\.layers\.0\.self_attn\.q_proj allows: its matrix is 32 × 32"),
        ({"rank_pattern": {"*.1.*.up_proj": 40}}, r"rank 40 is larger than model\.layers\.1\.mlp\.up_proj"),
    ],
)
def test_what_does_not_fit_the_base(llama: AdaptedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        llama.add("a", LoRA(**settings))
    assert not llama.adapters


@pytest.mark.parametrize(
    "settings",
    [
        {"rank": 0},
        {"alpha": 0},
        {"alpha": -1},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"init": "zeros"},
        {"rnak": 4},
        {"rank_pattern": {"q_proj": 0}},
        {"init": "pissa", "dropout": 0.1},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoRA(**settings)


def test_patterns_and_scales(llama: AdaptedModel) -> None:
    config = LoRA(rank=4, alpha=6, rank_pattern={"*.0.*": 2, "q_proj": 3}, alpha_pattern={"down_proj": 10.0})
    linear = llama.add("a", config).linear
    assert {path: update.rank for path, update in linear.items() if "q_proj" in path or "up_proj" in path} == {
        "model.layers.0.self_attn.q_proj": 3,  # the later pattern wins
        "model.layers.0.mlp.up_proj": 2,
        "model.layers.1.self_attn.q_proj": 3,
        "model.layers.1.mlp.up_proj": 4,
    }
    assert linear["model.layers.0.mlp.up_proj"].scale == 6 / 2
    assert linear["model.layers.1.mlp.down_proj"].scale == 10 / 4
    squared = llama.add("b", config.model_copy(update={"rslora": True})).linear
    assert squared["model.layers.1.mlp.down_proj"].scale == pytest.approx(10 / math.sqrt(4))
    assert squared["model.layers.0.self_attn.q_proj"].scale == pytest.approx(6 / math.sqrt(3))
    assert llama.add("c", LoRA(rank=5)).linear["model.layers.0.mlp.up_proj"].scale == 2.0


@pytest.mark.parametrize("init", ["default", "gaussian", "pissa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gemma2"])
def test_a_fresh_adapter_changes_nothing(family: str, init: str, make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model(family)
    model.add("a", LoRA(rank=4, init=init, targets=["all-linear", "lm_head"]))
    ids = torch.arange(3, 15).view(2, 6)
    with torch.no_grad():
        assert relative(model(ids, adapters="a").logits, model(ids).logits) < 1e-5


def test_a_start_depends_on_name_and_seed_alone(make_model: Callable[..., AdaptedModel]) -> None:
    def start(name: str = "a", others: int = 0, **kwargs: Any) -> torch.Tensor:
        model = make_model("llama")
        for number in range(others):
            model.add(f"other-{number}", LoRA())
        torch.manual_seed(others)
        return model.add(name, LoRA(), **kwargs).linear[BLOCK_0 + "mlp.up_proj"].lora_A.detach()

    assert torch.equal(start(), start(others=2))
    assert torch.equal(start().double(), start(dtype=torch.float64))
    assert torch.equal(start().bfloat16(), start(dtype=torch.bfloat16))
    assert not torch.equal(start(), start(name="b"))
    assert not torch.equal(start(), start(seed=1))


def test_layers_of_one_shape_start_differently(llama: AdaptedModel) -> None:
    linear = llama.add("a", LoRA()).linear
    assert not torch.equal(linear[BLOCK_0 + "mlp.up_proj"].lora_A, linear[BLOCK_0 + "mlp.gate_proj"].lora_A)


def test_default_start_is_uniform_within_the_bound_of_peft(llama: AdaptedModel) -> None:
    """Kaiming uniform with a = √5: bound = √(6 / ((1 + 5) · in)) = 1 / √in."""
    for update in llama.add("a", LoRA(rank=16)).linear.values():
        A, bound = update.lora_A.detach(), 1 / math.sqrt(update.lora_A.shape[1])
        assert float(A.abs().max()) <= bound
        assert float(A.abs().max()) > 0.97 * bound
        assert float(A.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert abs(float(A.mean())) < 4 * bound / math.sqrt(3 * A.numel())
        assert not update.lora_B.any()


def test_gaussian_start(llama: AdaptedModel) -> None:
    """As in peft: A normal with deviation 1 / rank, B zero."""
    for update in llama.add("a", LoRA(rank=16, init="gaussian")).linear.values():
        assert float(update.lora_A.detach().std()) == pytest.approx(1 / 16, rel=0.1)
        assert not update.lora_B.any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("rslora", [False, True])
def test_pissa_starts_from_the_best_approximation(
    family: str, rslora: bool, make_model: Callable[..., AdaptedModel]
) -> None:
    model = make_model(family)
    adapter = model.add("a", LoRA(rank=5, alpha=7, init="pissa", rslora=rslora))
    for path, update in adapter.linear.items():
        weight = model.places.linears[path].dense_weight()
        assert weight is not None
        U, S, Vh = torch.linalg.svd(weight.double())
        best = U[:, :5] @ S[:5].diag() @ Vh[:5]
        product = update.scale * (update.lora_B.double() @ update.lora_A.double())
        assert relative(product, best) < 1e-5
        assert (weight - product).norm().item() == pytest.approx(S[5:].norm().item(), rel=1e-5)
        assert update.lora_A.norm().item() == pytest.approx(update.lora_B.norm().item(), rel=1e-4), "root on both sides"
        assert update.delta().norm() < 1e-5 * best.norm()
        assert {name for name, _ in update.named_parameters()} == {"lora_A", "lora_B"}


def test_delta_is_the_dense_update(llama: AdaptedModel) -> None:
    llama.add("a", LoRA(rank=3, alpha=5, init="pissa"))
    path = BLOCK_0 + "mlp.up_proj"
    update = randomise(llama.adapters["a"]).linear[path]
    place = llama.places.linears[path]
    assert update.start_A is not None
    assert update.start_B is not None
    expected = 5 / 3 * (update.lora_B @ update.lora_A - update.start_B @ update.start_A)
    assert relative(update.delta(), expected.detach()) < 1e-5
    assert update.delta().shape == (place.out_features, place.in_features)


def test_number_of_trained_parameters(llama: AdaptedModel) -> None:
    adapter = llama.add("a", LoRA(rank=3, targets=["q_proj", "up_proj"]))
    assert adapter.trained_parameters == 2 * 3 * ((32 + 32) + (32 + 48))


def test_precision_of_adapters(make_model: Callable[..., AdaptedModel]) -> None:
    for base, kept in [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ]:
        model = make_model("llama", dtype=base)
        adapter = randomise(model.add("a", LoRA()))
        assert {parameter.dtype for parameter in adapter.parameters()} == {kept}
        logits = model(torch.tensor([[3, 4, 5]]), adapters="a").logits
        assert logits.dtype is base
        logits.float().sum().backward()
        assert {parameter.grad.dtype for parameter in adapter.parameters() if parameter.grad is not None} == {kept}


# --- names, copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "a:b", "a*", "a\0"])
def test_names_that_cannot_be_folders(llama: AdaptedModel, name: str) -> None:
    with pytest.raises(UserError, match="cannot be an adapter's name"):
        llama.add(name, LoRA())


def test_a_name_that_is_taken(llama: AdaptedModel) -> None:
    llama.add("a", LoRA())
    llama.add("b", LoRA())
    for action in (lambda: llama.add("a", LoRA()), lambda: llama.copy("a", "b"), lambda: llama.rename("a", "b")):
        with pytest.raises(UserError, match=r"already an adapter '[ab]'; there are: a, b"):
            action()
    assert set(llama.adapters) == {"a", "b"}


def test_rename_copy_and_remove(llama: AdaptedModel) -> None:
    ids = torch.tensor([[3, 4, 5]])
    randomise(llama.add("a", LoRA()))
    llama.notes["a"] = {"template": {"name": "plain"}}
    logits, bare = llama(ids, adapters="a").logits, llama(ids).logits
    llama.rename("a", "b")
    assert list(llama.adapters) == ["b"]
    assert llama.notes == {"b": {"template": {"name": "plain"}}}
    torch.testing.assert_close(llama(ids, adapters="b").logits, logits)

    duplicate = llama.copy("b", "c")
    llama.notes["c"]["template"]["name"] = "other"
    assert llama.notes["b"]["template"]["name"] == "plain"
    with torch.no_grad():
        for parameter in duplicate.parameters():
            parameter.zero_()
    torch.testing.assert_close(llama(ids, adapters="b").logits, logits)
    torch.testing.assert_close(llama(ids, adapters="c").logits, bare)
    removed = llama.remove("b")
    llama.attach("again", removed)
    torch.testing.assert_close(llama(ids, adapters="again").logits, logits)
    with pytest.raises(UserError, match="unknown adapter 'b'; there are: again, c"):
        llama.rename("b", "d")
