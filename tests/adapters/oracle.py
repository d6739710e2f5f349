"""A batch for any family, and one scalar of what a model gives: two models are compared by these gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from graftlm import AdaptedModel
from tests.families import ENCODER_DECODERS, relative

IDS = torch.arange(3, 19).view(2, 8)
SOURCE = torch.arange(20, 30).view(2, 5)


def batch(family: str) -> dict[str, torch.Tensor]:
    """The arguments of a transformers model."""
    return {"input_ids": SOURCE, "decoder_input_ids": IDS} if family in ENCODER_DECODERS else {"input_ids": IDS}


def run(model: AdaptedModel, family: str, name: str | None = "a") -> torch.Tensor:
    """Logits, or final hidden states where there is no language head: (rows, length, width)."""
    arguments = batch(family)
    return result(model(arguments.pop("input_ids"), adapters=name, **arguments))


def result(output: Any) -> torch.Tensor:
    """Logits or final hidden states of a transformers output."""
    found: torch.Tensor = output.logits if "logits" in output else output.last_hidden_state
    return found


def loss(found: torch.Tensor) -> torch.Tensor:
    """A scalar to which every number counts differently."""
    weights = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).view(found.shape)
    return (weights * found).sum() + (found.square() * weights.flip(-1)).sum()


def assert_as_plain(
    model: AdaptedModel, plain: nn.Module, family: str, pairs: dict[str, tuple[nn.Parameter, nn.Parameter]]
) -> None:
    """The adapter "a" and a model without graftlm agree: outputs, and gradients of pairs (ours, theirs), to 1e-5."""
    ours, theirs = run(model, family), result(plain(**batch(family)))
    assert relative(ours, theirs) < 1e-5
    assert relative(ours, run(model, family, None)) > 1e-3
    loss(ours).backward()
    loss(theirs).backward()
    largest = max(float(theirs.grad.norm()) for _, theirs in pairs.values() if theirs.grad is not None)
    for key, (mine, peers) in pairs.items():
        assert mine.grad is not None, key
        assert peers.grad is not None, key
        room = 1e-5 * max(float(peers.grad.norm()), 1e-2 * largest)
        assert float((mine.grad - peers.grad).norm()) < room, key
