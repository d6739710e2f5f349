"""The recorded bottleneck adapters: the base outputs, and the formulas of the json computed here once more.

scripts/record_bottleneck_fixtures.py made them. Nothing of graftlm takes part: the formulas are applied by hooks on
paths written down below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

FOLDER = Path(__file__).parent / "fixtures"
ABOUT: dict[str, Any] = json.loads((FOLDER / "bottleneck.json").read_text(encoding="utf-8"))
#: the stacks' blocks; then by sublayer: the module that gives h, the norm of x + h (post-norm) or of x (pre-norm)
_BERT = {
    "attention": ("attention.output.dense", "attention.output.LayerNorm"),
    "feed_forward": ("output.dense", "output.LayerNorm"),
}
_BART = {
    "attention": ("self_attn.out_proj", "self_attn_layer_norm"),
    "cross_attention": ("encoder_attn.out_proj", "encoder_attn_layer_norm"),
    "feed_forward": ("fc2", "final_layer_norm"),
}
_T5 = {"attention": ("layer.0.SelfAttention.o", "layer.0.layer_norm")}
_T5_ENCODER = {**_T5, "feed_forward": ("layer.1.DenseReluDense.wo", "layer.1.layer_norm")}
_T5_DECODER = {
    **_T5,
    "cross_attention": ("layer.1.EncDecAttention.o", "layer.1.layer_norm"),
    "feed_forward": ("layer.2.DenseReluDense.wo", "layer.2.layer_norm"),
}
_LLAMA = {
    "attention": ("self_attn.o_proj", "input_layernorm"),
    "feed_forward": ("mlp.down_proj", "post_attention_layernorm"),
}
_GPT2 = {"attention": ("attn.c_proj", "ln_1"), "feed_forward": ("mlp.c_proj", "ln_2")}
STACKS: dict[str, list[tuple[str, dict[str, tuple[str, str]]]]] = {
    "bert": [("bert.encoder.layer", _BERT)],
    "roberta": [("roberta.encoder.layer", _BERT)],
    "llama": [("model.layers", _LLAMA)],
    "gpt2": [("transformer.h", _GPT2)],
    "t5": [("encoder.block", _T5_ENCODER), ("decoder.block", _T5_DECODER)],
    "bart": [("model.encoder.layers", _BART), ("model.decoder.layers", _BART)],
}
POST_NORM = ("bert", "roberta", "bart")
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "swish": functional.silu,
    "tanh": torch.tanh,
}
Tensors = dict[str, torch.Tensor]


@cache
def recorded() -> Tensors:
    return load_file(FOLDER / "bottleneck.safetensors")


def below(prefix: str) -> Tensors:
    """The tensors whose names begin with a prefix, under the rest of their names."""
    return {key[len(prefix) :]: value for key, value in recorded().items() if key.startswith(prefix)}


def base_model(name: str) -> PreTrainedModel:
    """The recorded base in this version of transformers, float64."""
    about = ABOUT["models"][name]
    kind = getattr(transformers, about["class"])
    model: PreTrainedModel = kind(kind.config_class(**about["config"])).double().eval()
    base = below(f"{name}/base/")
    missing, unexpected = model.load_state_dict(base, strict=False)
    assert not unexpected
    storages = {value.data_ptr() for key, value in model.state_dict().items() if key in base}
    assert all(model.state_dict()[key].data_ptr() in storages for key in missing), "only tied weights may be missing"
    return model.requires_grad_(False)


def places(name: str) -> Iterator[tuple[str, str, str]]:
    """(place, path of what gives h, path of the norm), an encoder's blocks before its decoder's."""
    block = 0
    for prefix, sublayers in STACKS[name]:
        for number in range(2):
            for kind, (output, norm) in sublayers.items():
                if kind != "cross_attention" or "decoder" in prefix:
                    yield f"{block}.{kind}", f"{prefix}.{number}.{output}", f"{prefix}.{number}.{norm}"
            block += 1


def layer_norm(u: torch.Tensor, own: Tensors, name: str) -> torch.Tensor:
    """The adapter's own norm, where it has it."""
    if f"{name}.weight" not in own:
        return u
    return functional.layer_norm(u, u.shape[-1:], own[f"{name}.weight"], own[f"{name}.bias"])


def formula(
    config: dict[str, Any],
    own: Tensors,
    x: torch.Tensor,
    h: torch.Tensor,
    norm: Callable[[torch.Tensor], torch.Tensor] | None,
) -> torch.Tensor:
    """What takes the place of norm(x + h), or of x + h where there is no norm."""

    def bottleneck(u: torch.Tensor) -> torch.Tensor:
        down = functional.linear(layer_norm(u, own, "norm_before"), own["down.weight"], own["down.bias"])
        up = functional.linear(ACTIVATIONS[config["non_linearity"]](down), own["up.weight"], own["up.bias"])
        return up * own.get("scaling", config["scaling"])

    closed = norm or (lambda stream: stream)
    if config["is_parallel"]:
        return closed(x + h + layer_norm(bottleneck(x), own, "norm_after"))
    u = r = h
    if config["original_ln_before"]:
        u = closed(x + h)
        r = {True: h, False: u, "post_add": x + h}[config["residual_before_ln"]]
    if config["adapter_residual_before_ln"]:
        z = layer_norm(bottleneck(u) + r, own, "norm_after")
    else:
        z = layer_norm(bottleneck(u), own, "norm_after") + r
    return closed(z + x) if config["original_ln_after"] else z


@contextmanager
def adapted(name: str, model: nn.Module, config: dict[str, Any], parameters: Tensors) -> Iterator[None]:
    """The formula at every place that has parameters."""
    handles = []
    for place, output, norm in places(name):
        own = {key[len(place) + 1 :]: value for key, value in parameters.items() if key.startswith(place + ".")}
        if own:
            hook = _post_norm if name in POST_NORM else _pre_norm
            handles += hook(model.get_submodule(output), model.get_submodule(norm), config, own)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _post_norm(output: nn.Module, norm: nn.Module, config: dict[str, Any], own: Tensors) -> list[Any]:
    kept: Tensors = {}

    def keep(_module: nn.Module, _args: Any, h: torch.Tensor) -> None:
        kept["h"] = h

    def replace(_module: nn.Module, args: Any, _out: torch.Tensor) -> torch.Tensor:
        return formula(config, own, args[0] - kept["h"], kept["h"], norm.forward)

    return [output.register_forward_hook(keep), norm.register_forward_hook(replace)]


def _pre_norm(output: nn.Module, norm: nn.Module, config: dict[str, Any], own: Tensors) -> list[Any]:
    kept: Tensors = {}

    def keep(_module: nn.Module, args: Any) -> None:
        kept["x"] = args[0]

    def replace(_module: nn.Module, _args: Any, h: torch.Tensor) -> torch.Tensor:
        return formula(config, own, kept["x"], h, None) - kept["x"]  # the model adds x

    return [norm.register_forward_pre_hook(keep), output.register_forward_hook(replace)]


def logits(name: str, model: nn.Module) -> torch.Tensor:
    """The logits, 0 for padding."""
    tokens = recorded()[f"{name}/probe"].abs().sum(-1, keepdim=True) > 0
    output: torch.Tensor = model(**below(f"{name}/input/"), use_cache=False).logits * tokens
    return output


def expected(name: str, key: str) -> torch.Tensor:
    """Recorded logits, 0 for padding."""
    tokens = recorded()[f"{name}/probe"].abs().sum(-1, keepdim=True) > 0
    return (recorded()[key] * tokens).double()


@pytest.mark.parametrize("name", ABOUT["models"])
def test_the_base_computes_what_was_recorded(name: str) -> None:
    with torch.no_grad():
        output = logits(name, base_model(name))
    torch.testing.assert_close(output, expected(name, f"{name}/output"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ABOUT["models"])
def test_the_formulas_are_what_was_recorded(name: str) -> None:
    model = base_model(name)
    probe = recorded()[f"{name}/probe"].double()
    labels = [label for label in ABOUT["configs"] if f"{name}/{label}/output" in recorded()]
    assert len(labels) >= 12
    for label in labels:
        stored = below(f"{name}/{label}/parameter/")
        assert {key.split(".")[1] for key in stored} <= {"attention", "cross_attention", "feed_forward"}
        assert {".".join(key.split(".")[:2]) for key in stored} <= {place for place, _, _ in places(name)}
        parameters = {key: value.double().requires_grad_() for key, value in stored.items()}
        with adapted(name, model, ABOUT["configs"][label], parameters):
            output = logits(name, model)
        gradients = torch.autograd.grad((output * probe).sum(), list(parameters.values()))
        wrong = f"{name} {label}: {{}}".format
        torch.testing.assert_close(output, expected(name, f"{name}/{label}/output"), rtol=1e-5, atol=2e-6, msg=wrong)
        for key, gradient in zip(parameters, gradients, strict=True):
            want = recorded()[f"{name}/{label}/gradient/{key}"].double()
            torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-5, msg=wrong)
