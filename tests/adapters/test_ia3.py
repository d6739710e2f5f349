"""(IA)³ against peft: outputs, gradients, and files that both read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from graftlm import IA3, AdaptedModel, LoRA
from graftlm.adapters.ia3 import InputScale, OutputScale
from graftlm.adapters.merge import export_merged
from graftlm.errors import UserError
from tests.adapters.oracle import assert_as_plain, batch, result, run
from tests.families import ENCODERS, make_base, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
#: the layers whose output is scaled and those whose input is, in the words of peft
_LLAMA = (["k_proj", "v_proj"], ["down_proj"])
PLACES: dict[str, tuple[list[str] | str, list[str] | str]] = {
    **dict.fromkeys(["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "granite", "cohere"], _LLAMA),
    "phi": (["k_proj", "v_proj"], ["fc2"]),
    "opt": (["k_proj", "v_proj"], ["fc2"]),
    "bart": (["k_proj", "v_proj"], ["fc2"]),
    "t5": (["k", "v"], ["wo"]),
    **dict.fromkeys(ENCODERS, (["key", "value"], r".*layer\.\d+\.output\.dense")),
}
#: queries, keys and values are one layer here, which peft scales as a whole
FUSED: dict[str, tuple[list[str], list[str]]] = {
    "gpt2": (["c_attn"], ["mlp.c_proj"]),
    "gpt_neox": (["query_key_value"], ["dense_4h_to_h"]),
    "phi3": (["qkv_proj"], ["down_proj"]),
    "falcon": (["query_key_value"], ["dense_4h_to_h"]),
}


def peft_config(outputs: list[str] | str, inputs: list[str] | str) -> peft.IA3Config:
    if isinstance(outputs, list) and isinstance(inputs, list):
        return peft.IA3Config(target_modules=outputs + inputs, feedforward_modules=inputs)
    names = "|".join(rf".*layer\.\d+\..*\.{name}" for name in outputs)
    return peft.IA3Config(target_modules=f"{names}|{inputs}", feedforward_modules=inputs)


@torch.no_grad()
def peft_model(family: str, config: peft.IA3Config) -> Any:
    """A peft model on the same base, its vectors random around 1."""
    model = peft.get_peft_model(make_base(family), config).eval()
    generator = torch.Generator().manual_seed(0)
    for _, parameter in peft_vectors(model):
        parameter.copy_(1 + 0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def peft_vectors(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if ".ia3_l." in name:
            yield name.removeprefix("base_model.model.").removesuffix(".ia3_l.default"), parameter


def pairs_of(model: AdaptedModel, theirs: Any) -> dict[str, tuple[nn.Parameter, nn.Parameter]]:
    """Our vectors beside peft's, in the same shape, by path; ours get peft's values."""
    wanted = dict(peft_vectors(theirs))
    ours = model.adapters["a"].linear
    assert set(ours) == set(wanted)
    pairs = {}
    for path, update in ours.items():
        assert isinstance(update, (InputScale, OutputScale))
        with torch.no_grad():
            update.scale.copy_(wanted[path].view(-1))
        pairs[path] = (update.scale, wanted[path])
    return pairs


def assert_as_peft(model: AdaptedModel, theirs: Any, family: str) -> None:
    pairs = pairs_of(model, theirs)
    ours, expected = run(model, family), result(theirs(**batch(family)))
    assert relative(ours, expected) < 1e-5
    flat: dict[str, Any] = {key: (mine, _Flat(vector)) for key, (mine, vector) in pairs.items()}
    assert_as_plain(model, theirs, family, flat)


class _Flat:
    """A parameter of peft whose gradient is read as one dimension, or some numbers of it."""

    def __init__(self, parameter: nn.Parameter, units: list[int] | None = None) -> None:
        self.parameter, self.units = parameter, slice(None) if units is None else units

    @property
    def grad(self) -> torch.Tensor | None:
        return None if self.parameter.grad is None else self.parameter.grad.view(-1)[self.units]


@pytest.mark.parametrize("family", PLACES)
def test_outputs_and_gradients(family: str) -> None:
    """What is scaled by default are keys, values and the last feed-forward layer's input, in every family."""
    model = AdaptedModel(make_base(family))
    model.add("a", IA3())
    assert_as_peft(model, peft_model(family, peft_config(*PLACES[family])), family)


@pytest.mark.parametrize("family", FUSED)
def test_named_layers_are_scaled_as_a_whole(family: str) -> None:
    outputs, inputs = FUSED[family]
    model = AdaptedModel(make_base(family))
    model.add("a", IA3(targets=outputs, feed_forward=inputs))
    assert_as_peft(model, peft_model(family, peft_config(outputs, inputs)), family)


#: the outputs that are keys and values where queries come from the same layer; 4 heads, 8 wide
_BY_HEAD = [unit for head in range(4) for unit in range(24 * head + 8, 24 * head + 24)]
KEYS_AND_VALUES: dict[str, list[int]] = {
    "gpt2": list(range(32, 96)),
    "gpt_neox": _BY_HEAD,  # by head: query, key, value
    "phi3": list(range(32, 64)),  # two key/value heads
    "falcon": list(range(32, 48)),  # one
    "falcon_alibi": _BY_HEAD,
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", KEYS_AND_VALUES)
def test_keys_and_values_of_a_fused_layer(family: str, checkpointing: bool) -> None:
    """The queries are left alone: peft's vector over the whole layer is 1 there, and only its other gradients count."""
    outputs, inputs = FUSED["gpt_neox" if family == "falcon_alibi" else family]
    model = AdaptedModel(make_base(family))
    model.gradient_checkpointing = checkpointing
    adapter = model.add("a", IA3())
    theirs = peft_model(family, peft_config(outputs, inputs))
    pairs: dict[str, tuple[nn.Parameter, Any]] = {}
    for path, vector in peft_vectors(theirs):
        update = adapter.linear[path]
        assert isinstance(update, (InputScale, OutputScale))
        units = list(range(vector.numel()))
        if isinstance(update, OutputScale):
            units = KEYS_AND_VALUES[family]
            assert update.units is not None
            assert update.units.tolist() == units
        with torch.no_grad():
            queries = [unit for unit in range(vector.numel()) if unit not in units]
            vector.view(-1)[queries] = 1.0
            update.scale.copy_(vector.view(-1)[units])
        pairs[path] = (update.scale, _Flat(vector, units))
    assert_as_plain(model, theirs, family, pairs)


@pytest.mark.parametrize("family", KEYS_AND_VALUES)
def test_a_part_of_a_fused_layer_in_files_and_merged(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family), name="random")
    randomise(model.add("a", IA3()), std=0.5)
    model.save("a", tmp_path / "a")
    with torch.no_grad():
        expected = run(model, family)
        assert relative(result(load_in_peft(family, tmp_path / "a")(**batch(family))), expected) < 1e-5
    again = AdaptedModel(make_base(family), name="random")
    again.load(tmp_path / "a")
    assert relative(run(again, family), expected) == 0
    assert again.adapters["a"].trained_parameters == model.adapters["a"].trained_parameters
    assert export_merged(model, ["a"], tmp_path / "merged").relative < 1e-5


def test_by_hand() -> None:
    """l = (2, 0.5) over outputs (3, 4) gives (6, 2); over inputs (1, 4), W = [[1, 1]] gives 2 + 2."""
    output = OutputScale(torch.tensor([2.0, 0.5]))
    y = torch.tensor([[3.0, 4.0]])
    assert (y + output(torch.zeros(1, 5), y)).tolist() == [[6.0, 2.0]]
    layer = nn.Linear(2, 1, bias=False)
    nn.init.ones_(layer.weight)
    prepared = InputScale(torch.tensor([2.0, 0.5])).prepare(torch.tensor([[1.0, 4.0]]))
    assert layer(prepared).tolist() == [[4.0]]


def test_it_starts_as_the_base() -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", IA3())
    assert torch.equal(run(model, "llama"), run(model, "llama", None))


def test_no_feed_forward_and_named_targets() -> None:
    model = AdaptedModel(make_base("llama"))
    adapter = model.add("a", IA3(targets=["v_proj"], feed_forward=[]))
    assert [path.rpartition(".")[2] for path in adapter.linear] == ["v_proj", "v_proj"]
    with pytest.raises(UserError, match="'w_proj' matches no linear layer"):
        model.add("b", IA3(targets=["w_proj"]))


# --- merging ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_merged(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family))
    randomise(model.add("a", IA3()), std=0.5)
    assert export_merged(model, ["a"], tmp_path / "merged").relative < 1e-5


@pytest.mark.parametrize("stack", [("a", "lora"), ("lora", "a"), ("a", "b"), ("b", "lora", "a")])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_stack_is_merged_as_it_works(family: str, stack: tuple[str, ...], tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    for number, (name, config) in enumerate({"a": IA3(), "b": IA3(), "lora": LoRA(rank=3)}.items()):
        randomise(model.add(name, config), seed=number, std=0.4)
    assert export_merged(model, stack, tmp_path / "merged").relative < 1e-5


# --- files ------------------------------------------------------------------------------------------------------


def load_in_peft(family: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return peft.PeftModel.from_pretrained(make_base(family), folder).eval()


@pytest.mark.parametrize("family", [*PLACES, *FUSED])
def test_peft_reads_ours_and_we_read_pefts(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family), name="random")
    outputs, inputs = FUSED.get(family, ("auto", "auto"))
    randomise(model.add("a", IA3(targets=outputs, feed_forward=inputs)), std=0.5)
    model.save("a", tmp_path / "a")
    theirs = load_in_peft(family, tmp_path / "a")
    with torch.no_grad():
        expected = run(model, family)
        assert relative(result(theirs(**batch(family))), expected) < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    again = AdaptedModel(make_base(family), name="random")
    again.load(tmp_path / "theirs", "a")
    assert relative(run(again, family), expected) < 1e-6
    again.save("a", tmp_path / "again")
    last = AdaptedModel(make_base(family), name="random")
    last.load(tmp_path / "again", "a")
    last.load(tmp_path / "a", "first")
    assert relative(run(last, family, "a"), expected) < 1e-6
    assert relative(run(last, family, "first"), expected) < 1e-6
    assert last.adapters["first"].config == model.adapters["a"].config


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_folders_that_peft_wrote(family: str, tmp_path: Path) -> None:
    theirs = peft_model(family, peft_config(*PLACES[family]))
    theirs.save_pretrained(tmp_path)
    model = AdaptedModel(make_base(family))
    model.load(tmp_path, "a")
    with torch.no_grad():
        assert relative(run(model, family), result(theirs(**batch(family)))) < 1e-5


def test_a_folder_of_another_base(tmp_path: Path) -> None:
    peft_model("llama", peft_config(*_LLAMA)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which this base does not have"):
        AdaptedModel(make_base("gpt2")).load(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    key = next(key for key in weights if "v_proj" in key)
    save_file(weights | {key: torch.ones(20, 1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"v_proj.ia3_l is \(20, 1\), and \(16, 1\) is needed"):
        AdaptedModel(make_base("llama")).load(tmp_path)


def test_more_than_vectors_is_refused(tmp_path: Path) -> None:
    config = peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], modules_to_save=["lm_head"]
    )
    peft_model("llama", config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="modules_to_save"):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


@pytest.mark.parametrize("ours", [False, True])
def test_a_missing_vector_is_named(ours: bool, tmp_path: Path) -> None:
    if ours:
        model = AdaptedModel(make_base("llama"), name="random")
        model.add("a", IA3())
        model.save("a", tmp_path / "a")
    else:
        peft_model("llama", peft_config(*_LLAMA)).save_pretrained(tmp_path / "a")
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    key = next(key for key in weights if "1.mlp.down_proj" in key)
    del weights[key]
    save_file(weights, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"1.mlp.down_proj.ia3_l is missing"):
        AdaptedModel(make_base("llama"), name="random").load(tmp_path / "a")
