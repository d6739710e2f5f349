"""peft models with virtual tokens, for tests against them."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import nn

from graftlm import AdaptedModel
from tests.families import ENCODER_DECODERS, ENCODERS, make_base

FAMILIES = ("llama", "gpt2", "gemma3", "opt", "bert", "roberta", "t5", "bart")
IDS = torch.arange(3, 19).view(2, 8)
TARGETS = torch.tensor([[5, 9, 11], [2, 30, 6]])


def task_type(family: str) -> str:
    if family in ENCODER_DECODERS:
        return "SEQ_2_SEQ_LM"
    return "FEATURE_EXTRACTION" if family in ENCODERS else "CAUSAL_LM"


def peft_model(family: str, kind: type[Any], seed: int = 0, **settings: Any) -> Any:
    """A peft model on the same base, every parameter of its adapter random."""
    model = peft.get_peft_model(
        make_base(family), kind(task_type=task_type(family), num_virtual_tokens=4, **settings)
    ).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def peft_logits(family: str, model: Any) -> torch.Tensor:
    """At the positions of the ids that were given."""
    if family in ENCODER_DECODERS:
        mask = torch.ones_like(IDS)  # without one peft lets a mask of ones only
        return model(input_ids=IDS, attention_mask=mask, decoder_input_ids=TARGETS).logits
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]


def our_logits(family: str, model: AdaptedModel, adapters: Any = "a") -> torch.Tensor:
    kwargs = {"decoder_input_ids": TARGETS} if family in ENCODER_DECODERS else {}
    return model(IDS, adapters=adapters, **kwargs).logits


def loss(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with targets that are not the inputs."""
    targets = (torch.arange(logits.shape[0] * logits.shape[1]) * 7 + 5) % logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets)
