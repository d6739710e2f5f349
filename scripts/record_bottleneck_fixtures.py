"""Record what the library ``adapters`` computes with bottleneck adapters, as fixtures of the tests.

The library pins an older transformers, so it has an environment of its own, outside the repository:

    python3.11 -m venv ENV
    ENV/bin/pip install torch==2.13.0
    ENV/bin/pip install adapters==1.3.0        # brings transformers 4.57.6
    ENV/bin/python scripts/record_bottleneck_fixtures.py

It writes bottleneck.safetensors and bottleneck.json to tests/adapters/fixtures (another folder: ``--out``). All
random numbers come from seeds. The products are computed in float64 on float32 values and stored as float32. (The RMS
norms of transformers and its rotary embedding are float32 whatever the model is.)

Tensors, by name (``MODEL`` and ``CONFIG`` as in the json, ``PLACE`` a block's number and a sublayer, such as
``1.feed_forward``; an encoder's blocks are counted before its decoder's):

- ``MODEL/base/KEY``: the model's parameters and buffers, tied ones once;
- ``MODEL/input/NAME``: the model's arguments (int64), rows of unequal length, padded on the right;
- ``MODEL/probe``: what the logits are weighted with to give the loss, their shape, 0 for padding;
- ``MODEL/output``: the logits of the base alone;
- ``MODEL/CONFIG/output``: the logits with the adapter;
- ``MODEL/CONFIG/parameter/PLACE.TENSOR``: the adapter, with TENSOR among ``norm_before.weight``,
  ``norm_before.bias``, ``down.weight`` (width, hidden), ``down.bias``, ``up.weight`` (hidden, width), ``up.bias``,
  ``scaling`` (1 or hidden), ``norm_after.weight``, ``norm_after.bias``;
- ``MODEL/CONFIG/gradient/PLACE.TENSOR``: the gradient of (logits · probe).sum() by it.

The json holds the settings of models and configs and, in words, what they compute. tests/adapters/
test_bottleneck_fixtures.py computes the same from these formulas.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters.methods.bottleneck import BottleneckLayer
from safetensors.torch import save_file
from torch import nn

OUT = Path(__file__).parents[1] / "tests" / "adapters" / "fixtures"
VOCABULARY, HIDDEN = 40, 16
_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_ONE = {
    **_TOKENS,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}
_BART: dict[str, Any] = {"decoder_start_token_id": 3, "d_model": HIDDEN, "max_position_embeddings": 24}
for _side in ("encoder", "decoder"):
    _BART |= {f"{_side}_layers": 2, f"{_side}_attention_heads": 2, f"{_side}_ffn_dim": 24}

#: class of the model, settings of its config
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", _ONE),
    "roberta": ("RobertaForMaskedLM", _ONE),
    "llama": ("LlamaForCausalLM", {**_ONE, "num_key_value_heads": 1, "tie_word_embeddings": False}),
    "gpt2": (
        "GPT2LMHeadModel",
        {**_TOKENS, "n_embd": HIDDEN, "n_inner": 24, "n_layer": 2, "n_head": 2, "n_positions": 24},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {
            **_TOKENS,
            "decoder_start_token_id": 1,
            "d_model": HIDDEN,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_heads": 2,
        },
    ),
    "bart": ("BartForConditionalGeneration", {**_TOKENS, **_BART}),
}
PRE_NORM = ("llama", "gpt2", "t5")
TWO_STACKS = ("t5", "bart")

_BOTH: dict[str, Any] = {"mh_adapter": True, "output_adapter": True, "reduction_factor": 4}
_EVERYWHERE = {**_BOTH, "cross_adapter": True}
#: the library's name or class, settings on top
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "seq_bn": ("seq_bn", {}),
    "double_seq_bn": ("double_seq_bn", {}),
    "par_bn": ("par_bn", {}),
    "seq_without_first_norm": ("seq_bn", {"original_ln_before": False, "reduction_factor": 4}),
    "seq_everywhere": ("double_seq_bn", {"cross_adapter": True, "original_ln_before": True, "reduction_factor": 8}),
    "seq_own_norms": ("double_seq_bn", {"cross_adapter": True, "ln_before": True, "ln_after": True, **_BOTH}),
    "seq_norm_after_residual": (
        "double_seq_bn",
        {**_BOTH, "non_linearity": "tanh", "ln_after": True, "adapter_residual_before_ln": True},
    ),
    "seq_residual_normed": (
        "double_seq_bn",
        {**_BOTH, "original_ln_before": True, "residual_before_ln": False, "scaling": "learned"},
    ),
    "seq_instead_of_second_norm": (
        "seq_bn",
        {**_EVERYWHERE, "original_ln_after": False, "residual_before_ln": False, "scaling": "channel"},
    ),
    "seq_post_add": ("seq_bn", {"residual_before_ln": "post_add", "reduction_factor": 4, "non_linearity": "gelu"}),
    "seq_some_blocks": ("double_seq_bn", {"leave_out": [0, 3], "reduction_factor": {"1": 4, "default": 8}}),
    "par_everywhere": ("par_bn", {**_EVERYWHERE, "non_linearity": "gelu", "scaling": 2.0}),
    "par_own_norms": ("par_bn", {"ln_before": True, "ln_after": True, "non_linearity": "tanh", "scaling": "learned"}),
}
RECORDED_SETTINGS = (
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "reduction_factor",
    "non_linearity",
    "is_parallel",
    "scaling",
    "ln_before",
    "ln_after",
    "original_ln_before",
    "original_ln_after",
    "residual_before_ln",
    "adapter_residual_before_ln",
    "leave_out",
)

FORMULAS = {
    "symbols": (
        "x: the residual stream where the sublayer branches off. In a post-norm model it is the sublayer's input; in "
        "a pre-norm model it is the input of the norm before the sublayer, not normed. h: the output of the "
        "sublayer's last linear layer, before the residual is added. N: in a post-norm model, the base's norm of "
        "x + h; a pre-norm model has none here, and the norm before the sublayer plays no part. out: what goes on to "
        "the next sublayer in place of N(x + h) (post-norm) or x + h (pre-norm). s: scaling, a number, one learned "
        "number, or a learned vector over the hidden dimension ('channel')."
    ),
    "bottleneck": (
        "B(u) = s · (up(f(down(P(u))))), down and up linear with biases, f the non-linearity, P the adapter's own "
        "LayerNorm where ln_before, else the identity; width = int(hidden // reduction_factor), at least 1. A is the "
        "adapter's own LayerNorm where ln_after, else the identity; s lies within A. Both have eps 1e-5, weight and "
        "bias, also in models with RMS norms. swish = SiLU, gelu is the exact one."
    ),
    "sequential, post-norm (bert, roberta, bart)": (
        "u = N(x + h) where original_ln_before, else h. r = h where original_ln_before is off or residual_before_ln is "
        "True; N(x + h) where it is False; x + h where it is 'post_add'. z = A(B(u)) + r, or A(B(u) + r) where "
        "adapter_residual_before_ln. out = N(z + x) where original_ln_after, else z. N is one module used twice."
    ),
    "sequential, pre-norm (llama, gpt2, t5)": (
        "u = x + h where original_ln_before (no norm takes part), else h. r = h where original_ln_before is off or "
        "residual_before_ln is True; x + h where it is False; 'post_add' is an error. z as for post-norm. out = z + x "
        "where original_ln_after, else z. With residual_before_ln False and original_ln_after True, x counts twice."
    ),
    "parallel, post-norm (bert, roberta, bart)": "out = N(x + h + A(B(x))).",
    "parallel, pre-norm (llama, gpt2, t5)": "out = x + h + A(B(x)), x not normed.",
    "parallel, what has no effect": "original_ln_before, residual_before_ln, adapter_residual_before_ln.",
    "named configs": (
        "seq_bn: post-norm out = N(x + h + B(N(x + h))), pre-norm out = x + h + B(x + h); after the feed-forward only; "
        "relu, factor 16. double_seq_bn: post-norm out = N(x + h + B(h)), pre-norm out = x + h + B(h); after attention "
        "and feed-forward; swish, factor 16. par_bn: post-norm out = N(x + h + B(x)), pre-norm out = x + h + B(x); "
        "beside the feed-forward only; relu, factor 2, s = 4.0."
    ),
    "places": (
        "mh_adapter: self-attention ('attention'), of encoder and decoder; output_adapter: 'feed_forward', of encoder "
        "and decoder; cross_adapter: 'cross_attention' of the decoder, off in all named configs. leave_out and the "
        "keys of a reduction_factor mapping count blocks from 0, an encoder's before its decoder's."
    ),
}


def draw(model: nn.Module, seed: int, std: float) -> None:
    """Random values, rounded to float32, in every parameter; those of norms and scalings lie around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = std * torch.randn(parameter.shape, generator=generator)
            factor = "scaling" in name or (name.endswith("weight") and parameter.dim() == 1)
            parameter.copy_(values + 1 if factor else values)


def make_inputs(name: str, seed: int) -> dict[str, torch.Tensor]:
    """The arguments of a model: ids above the special ones, rows of unequal length."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {}
    for prefix, lengths in {"": (7, 4, 5), "decoder_": (3, 6, 2)}.items():
        if prefix and name not in TWO_STACKS:
            continue
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(5, VOCABULARY, mask.shape, generator=generator)
        arguments[f"{prefix}input_ids"] = torch.where(mask.bool(), ids, _TOKENS["pad_token_id"])
        arguments[f"{prefix}attention_mask"] = mask
    return arguments


def adapter_modules(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of an adapter by place."""
    kinds = {"mh_adapter": "attention", "cross_adapter": "cross_attention", "output_adapter": "feed_forward"}
    for block, layer in model.iter_layers():
        for module in layer.modules():
            if isinstance(module, BottleneckLayer) and name in module.adapters:
                yield f"{block}.{kinds[module.location_key]}", module.adapters[name]


def plain_parameters(adapter: nn.Module) -> dict[str, nn.Parameter]:
    """An adapter's parameters under names of our own, each once."""
    found = {}
    owners = {"up": adapter.adapter_up, "down": next(m for m in adapter.adapter_down if isinstance(m, nn.Linear))}
    for end in ("before", "after"):
        if (norm := getattr(adapter, f"adapter_norm_{end}", None)) is not None:
            owners[f"norm_{end}"] = norm
    for owner, module in owners.items():
        found |= {f"{owner}.{name}": parameter for name, parameter in module.named_parameters()}
    if isinstance(adapter.scaling, nn.Parameter):
        found["scaling"] = adapter.scaling
    assert {id(parameter) for parameter in found.values()} == {id(parameter) for parameter in adapter.parameters()}
    return found


def run_adapter(
    model: nn.Module, name: str, arguments: dict[str, torch.Tensor], probe: torch.Tensor, seed: int
) -> tuple[dict[str, nn.Parameter], torch.Tensor, tuple[torch.Tensor, ...]]:
    """Parameters, logits and gradients of the active adapter, drawn until no gradient is 0 throughout.

    A bottleneck of one relu is dead for some draws.
    """
    for attempt in range(1000):
        parameters: dict[str, nn.Parameter] = {}
        for place, adapter in adapter_modules(model, name):
            draw(adapter, 100_000 * attempt + seed + len(parameters), 0.3)
            parameters |= {f"{place}.{key}": value for key, value in plain_parameters(adapter).items()}
        logits = model(**arguments).logits
        gradients = torch.autograd.grad((logits * probe).sum(), list(parameters.values()))
        if all(gradient.any() for gradient in gradients):
            return parameters, logits, gradients
    raise RuntimeError(f"{name}: every draw leaves a gradient at 0")


def record_model(name: str, seed: int, tensors: dict[str, torch.Tensor], configs: dict[str, Any]) -> None:
    """Record one model with every config it takes."""
    class_name, settings = MODELS[name]
    kind = getattr(transformers, class_name)
    model = kind(kind.config_class(**settings)).double().eval()
    draw(model, seed, 0.15)
    if (bias := getattr(model, "final_logits_bias", None)) is not None:
        bias.normal_(std=0.15, generator=torch.Generator().manual_seed(seed)).copy_(bias.float())
    arguments = make_inputs(name, seed)
    base = dict(model.named_parameters()) | ({"final_logits_bias": bias} if bias is not None else {})
    tensors |= {f"{name}/base/{key}": value.detach().clone() for key, value in base.items()}
    tensors |= {f"{name}/input/{key}": value for key, value in arguments.items()}
    with torch.no_grad():
        output = model(**arguments).logits
    mask = arguments["decoder_attention_mask" if name in TWO_STACKS else "attention_mask"]
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed + 1)).double() * mask[..., None]
    tensors |= {f"{name}/output": output, f"{name}/probe": probe}

    adapters.init(model)
    for number, (label, (preset, changes)) in enumerate(CONFIGS.items()):
        config = adapters.AdapterConfig.load(preset, **changes)
        configs[label] = {key: config[key] for key in RECORDED_SETTINGS}
        if label == "seq_post_add" and name in PRE_NORM:
            continue
        model.add_adapter(label, config=config)
        model.set_active_adapters(label)
        model.double().eval()
        parameters, changed, gradients = run_adapter(model, label, arguments, probe, 1000 * seed + 60 * number)
        assert not torch.allclose(changed, output, atol=1e-2)
        tensors[f"{name}/{label}/output"] = changed
        tensors |= {f"{name}/{label}/parameter/{key}": value for key, value in parameters.items()}
        tensors |= {f"{name}/{label}/gradient/{key}": value for key, value in zip(parameters, gradients, strict=True)}
        model.delete_adapter(label)
    with torch.no_grad():
        torch.testing.assert_close(model(**arguments).logits, output)


def main() -> None:
    """Record all models."""
    parser = argparse.ArgumentParser(description="Record what the library `adapters` computes.")
    parser.add_argument("--out", type=Path, default=OUT)
    folder: Path = parser.parse_args().out
    tensors: dict[str, torch.Tensor] = {}
    configs: dict[str, Any] = {}
    for seed, name in enumerate(MODELS, start=1):
        record_model(name, seed, tensors, configs)
    stored = {
        key: (value.detach().float() if value.is_floating_point() else value).clone().contiguous()
        for key, value in tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "bottleneck.safetensors")
    about = {
        "versions": {module.__name__: module.__version__ for module in (adapters, transformers, torch)},
        "models": {name: {"class": kind, "config": settings} for name, (kind, settings) in MODELS.items()},
        "configs": configs,
        "formulas": FORMULAS,
    }
    (folder / "bottleneck.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
