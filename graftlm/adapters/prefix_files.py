"""Prefixes as peft writes and reads them: one tensor, each layer's keys and then its values.

In an encoder-decoder peft gives a prefix to the decoder's self-attention alone, and takes the keys and values of
layer i from the slots 4i and 4i + 1, counted modulo 2 · layers: with an even number of layers two of them share.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, Field

from graftlm.adapters.method import Adapter
from graftlm.adapters.prefix import Prefix, PrefixTable, side
from graftlm.adapters.stored import (
    CONFIG,
    COPY_AGAIN,
    WEIGHTS,
    Stored,
    checked,
    does_not_fit,
    missing_tensor,
    peft_task_type,
    register_peft_kind,
)
from graftlm.base.attentions import AttentionPlace
from graftlm.base.loading import context_length
from graftlm.base.places import Places
from graftlm.errors import UserError

KEY = "prompt_embeddings"


class PeftPrefix(BaseModel):
    """What is read of peft's adapter_config.json."""

    num_virtual_tokens: int = Field(ge=1)


def store_prefix(adapter: Adapter, places: Places, source: str) -> Stored:
    """The derived prefix. It has peft's configuration beside it where peft can express it."""
    config, prefix = adapter.config, adapter.prefix
    assert isinstance(config, Prefix)
    assert isinstance(prefix, PrefixTable)
    table = prefix.table().detach()
    theirs = _as_peft(table, config, places)
    if isinstance(theirs, str):
        return Stored({KEY: table}, None, not_peft=theirs)
    place = _decoder(places)[0]
    both = places.model.config.is_encoder_decoder
    settings: dict[str, Any] = {
        "peft_type": "PREFIX_TUNING",
        "task_type": peft_task_type(places),
        "base_model_name_or_path": source,
        "inference_mode": True,
        "num_virtual_tokens": config.length,
        "num_layers": len(_decoder(places)),
        "num_attention_heads": place.heads,
        "token_dim": place.heads * place.key_width,
        "num_transformer_submodules": 2 if both else 1,
        "prefix_projection": False,
    }
    return Stored({KEY: theirs}, settings)


def restore_prefix(config: Prefix, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """The adapter that :func:`store_prefix` wrote.

    Raises:
        UserError: the tensor is missing or does not fit the base.
    """
    table = _table(stored)
    if stored.peft is not None and places.model.config.is_encoder_decoder:
        table = _from_slots(table, len(_decoder(places)), stored)
    return config.plain(table, places, device=device, stored=stored)


@register_peft_kind("PREFIX_TUNING")
def read_prefix(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """An adapter that peft wrote; in layers with a sliding window it keeps peft's rule."""
    settings = checked(PeftPrefix, stored.peft or {}, stored.folder / CONFIG)
    where = ["decoder"] if places.model.config.is_encoder_decoder else None
    config = Prefix.model_validate(
        {"length": settings.num_virtual_tokens, "projection": False, "window": "peft", "where": where}
    )
    return restore_prefix(config, stored, places, device=device)


def _decoder(places: Places) -> list[AttentionPlace]:
    """The places that peft gives a prefix to."""
    if not places.model.config.is_encoder_decoder:
        return list(places.attentions)
    return [place for place in places.attentions if side(place) == "decoder"]


def _as_peft(table: torch.Tensor, config: Prefix, places: Places) -> torch.Tensor | str:
    """The table as peft has it, or why it has no such."""
    theirs, both = _decoder(places), places.model.config.is_encoder_decoder
    if config.places(places) != theirs:
        return "it puts a prefix before all keys and values of " + ("the decoder" if both else "all layers") + " alone"
    widths = {(place.heads, place.key_width) for place in theirs} | {(p.heads, p.value_width) for p in theirs}
    if len(widths) != 1:
        return "it takes keys and values of one width alone"
    context = context_length(places.model.config)
    slides = any(place.window is not None and place.window < context for place in theirs)
    if slides and config.window != "peft":
        return "there its prefix would leave the sliding window of some layers, and here it stays (window: visible)"
    if not both:
        return table
    slots = _to_slots(table, len(theirs))
    return "there some of the decoder's layers share one prefix" if slots is None else slots


def _slots(layers: int) -> list[int]:
    """Which slot of peft's the keys and the values of each layer are in, in an encoder-decoder."""
    return [(4 * layer + number) % (2 * layers) for layer in range(layers) for number in (0, 1)]


def _to_slots(table: torch.Tensor, layers: int) -> torch.Tensor | None:
    """Peft's order of an encoder-decoder's table; None where layers that share a slot differ."""
    ours = table.reshape(len(table), 2 * layers, -1)
    theirs = torch.zeros_like(ours)
    for number, slot in enumerate(_slots(layers)):
        theirs[:, slot] = ours[:, number]
    return theirs.flatten(1) if torch.equal(theirs[:, _slots(layers)], ours) else None


def _from_slots(table: torch.Tensor, layers: int, stored: Stored) -> torch.Tensor:
    if table.shape[1] % (2 * layers):
        raise does_not_fit(
            stored.folder,
            f"{KEY} is {tuple(table.shape)}, and its width is no multiple of twice the {layers} layers",
        )
    return table.reshape(len(table), 2 * layers, -1)[:, _slots(layers)].flatten(1)


def _table(stored: Stored) -> torch.Tensor:
    """The one tensor of a folder."""
    if KEY not in stored.tensors:
        raise missing_tensor(stored.folder, KEY)
    for key in sorted(stored.tensors.keys() - {KEY}):
        raise UserError(f"{stored.folder / WEIGHTS}: the key '{key}' is not of a prefix", hint=COPY_AGAIN)
    return stored.tensors[KEY]
