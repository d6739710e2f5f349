"""Tiny random models of every family that graftlm supports, and small helpers around them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from graftlm import AdaptedModel
from graftlm.adapters.method import Adapter
from graftlm.base.loading import model_class
from graftlm.base.products import foreign_forward

VOCABULARY = 67
LAYERS = 2
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = ["sliding_attention", "full_attention"]

#: config class and settings on top of the common ones, by family
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": False}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {"head_dim": 8, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", {"sliding_window": 4, "tie_word_embeddings": False}),
    "gemma2": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "sliding_window": 4,
            "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 8, "sliding_window": 4, "layer_types": _SLIDING, "query_pre_attn_scalar": 8},
    ),
    "phi": ("PhiConfig", {"num_key_value_heads": 4}),
    "phi3": ("Phi3Config", {"tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", {"n_inner": 48}),
    "gpt_neox": ("GPTNeoXConfig", {"tie_word_embeddings": False}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.15}),
    "falcon": ("FalconConfig", {"alibi": False, "parallel_attn": True, "multi_query": True}),
    "falcon_alibi": ("FalconConfig", {"alibi": True, "parallel_attn": False, "multi_query": False}),
    "granite": ("GraniteConfig", {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "cohere": ("CohereConfig", {"logit_scale": 0.25}),
}


_ENCODER = {"initializer_range": 0.15, "max_position_embeddings": 64}
#: encoders: with a language head, but for the last
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertConfig", {**_ENCODER, "architectures": ["BertForMaskedLM"]}),
    "roberta": ("RobertaConfig", {**_ENCODER, "pad_token_id": 1, "architectures": ["RobertaForMaskedLM"]}),
    "bare_bert": ("BertConfig", {**_ENCODER, "architectures": ["BertModel"]}),
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": (
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4, "decoder_start_token_id": 0},
    ),
    "bart": (
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "init_std": 0.15,
            "decoder_start_token_id": 2,
        },
    ),
}
_TWO_SEQUENCES = ("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")


def family_config(family: str) -> Any:
    """A tiny config of a family."""
    if family in ENCODER_DECODERS:
        name, settings = ENCODER_DECODERS[family]
        return getattr(transformers, name)(**({key: _COMMON[key] for key in _TWO_SEQUENCES} | settings))
    name, settings = (FAMILIES | ENCODERS)[family]
    return getattr(transformers, name)(**(_COMMON | settings))


@cache
def _original(family: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = family_config(family)
    model = model_class(config).from_config(config, dtype=torch.float32)
    # Biases start at 0 and norms at 1: a fault in either would not show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_base(family: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A fresh model of a family with random weights, equal for equal seeds."""
    return copy.deepcopy(_original(family, seed)).to(dtype)


@torch.no_grad()
def randomise(adapter: Adapter, *, seed: int = 0, std: float = 0.1) -> Adapter:
    """Random values in every parameter: a fresh LoRA is the identity and would hide faults."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * std)
    return adapter


def add_random(model: AdaptedModel, configs: dict[str, Any]) -> None:
    """Add adapters and randomise them, each from its own seed."""
    for number, (name, config) in enumerate(configs.items()):
        model.add(name, config)
        randomise(model.adapters[name], seed=number + 1)


def gradients(modules: Iterable[nn.Module]) -> dict[str, torch.Tensor]:
    """The gradients of some modules, by number and name; those that are missing are left out."""
    return {
        f"{number}.{name}": parameter.grad.clone()
        for number, module in enumerate(modules)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference over the norm of what was expected."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


def overridden(model: nn.Module) -> list[str]:
    """The modules whose ``forward`` is neither their class's nor the same product by a faster library."""
    return [path for path, module in model.named_modules() if foreign_forward(module) is not None]
