"""Attention modules of a base, and which function computes their attention.

They are found by one run of a few tokens in which transformers' attention interface hands every attention over to a
function that takes notes. Families that do not go through the interface have no places here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from graftlm.base.probe import SOURCE_TOKENS, probe_inputs

PROBE = "graftlm_probe"


@dataclass(frozen=True)
class AttentionPlace:
    """A module that computes attention.

    ``kind``: of a sequence to itself, or of the decoder's to the encoder's. ``source``: its queries are the encoder's
    tokens, in an encoder-decoder. ``key_width`` and ``value_width`` are those of one head; ``window``: how many
    tokens back a query sees, where that is limited.
    """

    path: str
    module: nn.Module
    block: int | None
    kind: Literal["self", "cross"]
    source: bool
    heads: int
    key_width: int
    value_width: int
    window: int | None


@torch.no_grad()
def find_attentions(model: PreTrainedModel, blocks: tuple[str, ...]) -> tuple[AttentionPlace, ...]:
    """The attention modules in the order in which they run; none where the family computes attention by itself."""
    if not model._can_set_attn_implementation():
        return ()
    paths = {module: path for path, module in model.named_modules()}
    found: dict[str, AttentionPlace] = {}

    def note(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> None:
        path = paths[module]
        queries, keys = query.shape[2], key.shape[2]
        found[path] = AttentionPlace(
            path,
            module,
            next((number for number, block in enumerate(blocks) if path.startswith(block + ".")), None),
            "self" if queries == keys else "cross",
            queries == SOURCE_TOKENS,
            key.shape[1],
            key.shape[3],
            value.shape[3],
            window,
        )

    _probing.note = note
    try:
        with attention_computed_by(model, PROBE):
            model(**probe_inputs(model))
    finally:
        del _probing.note
    return tuple(found.values())


_probing = threading.local()  # transformers keeps the function for good: it must not hold a model


def _attend_and_note(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    note = getattr(_probing, "note", None)  # none in another thread that uses the model just now
    if note is not None:
        note(module, query, key, value, kwargs.get("sliding_window"))
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(PROBE, _attend_and_note)
AttentionMaskInterface.register(PROBE, sdpa_mask)


@contextmanager
def attention_computed_by(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, attention is computed by the function that is registered as ``name``."""
    before = set_attention(model, name)
    try:
        yield
    finally:
        restore_attention(before)


#: Configurations of a model, each with the name of its attention function.
Chosen = list[tuple[Any, str | None]]


def set_attention(model: PreTrainedModel, name: str) -> Chosen:
    """Let the function that is registered as ``name`` compute a model's attention; gives what was set before."""
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    before = [
        (config, config._attn_implementation_internal)
        for config in configs.values()
        if hasattr(config, "_attn_implementation_internal")
    ]
    model.set_attn_implementation(name)
    return before


def restore_attention(before: Chosen) -> None:
    """Undo :func:`set_attention`."""
    for config, name in before:
        config._attn_implementation_internal = name
