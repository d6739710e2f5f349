"""Prefix tuning: trained keys and values before a row's own, in every attention module.

Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", equation 2 and section 4.3: while
training, an MLP over a small embedding gives the prefix, P[i, :] = MLP(P'[i, :]); afterwards only P is kept. Without
the MLP and with a head of its own it is P-tuning v2 (Liu et al. 2021, "P-Tuning v2: Prompt Tuning Can Be Comparable
to Fine-tuning Universally Across Scales and Tasks").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.attention import check_attention
from graftlm.adapters.method import Adapter, KeyValues, MethodConfig, register_method
from graftlm.adapters.stored import Stored, fill
from graftlm.base.attentions import AttentionPlace
from graftlm.base.loading import context_length
from graftlm.base.places import Places
from graftlm.base.products import Linear
from graftlm.errors import UserError

Where = Literal["encoder", "decoder", "cross"]


@register_method
class Prefix(MethodConfig):
    """Keys and values before a row's own in every attention layer (prefix tuning, P-tuning v2)."""

    method: Literal["prefix"] = "prefix"
    length: int = Field(20, ge=1, description="How many keys and values stand before a row's own.")
    projection: bool = Field(
        True, description="Train the prefix through an MLP, which is dropped when the adapter is saved for use."
    )
    projection_size: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Hidden size of the MLP. Left out: the width of one layer's keys."
    )
    window: Literal["visible", "peft"] = Field(
        "visible",
        description="In layers with a sliding window the prefix stays visible, or leaves the window as in peft.",
    )
    where: Annotated[list[Where], Field(min_length=1)] | None = Field(
        None,
        description="In an encoder-decoder: encoder, decoder and cross (what the decoder sees of the encoder). Left "
        "out: all three; peft does decoder alone.",
    )
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="Numbers of the blocks that get a prefix, from 0. Left out: all."
    )

    @model_validator(mode="after")
    def _projection_size_alone(self) -> Prefix:
        if self.projection_size is not None and not self.projection:
            raise ValueError("projection_size is of the MLP, which projection: false leaves out; remove one of them")
        return self

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Make the prefix, with its MLP.

        Raises:
            UserError: the base's attention takes no prefix, the prefix is longer than the context, or ``where`` or
                ``layers`` names what the base does not have.
        """
        chosen = self.places(places)
        prefix = PrefixTable(self, chosen, shifts=any(place.kind == "self" and not place.source for place in chosen))
        prefix.draw(seed)
        return Adapter(self, prefix=prefix.to(device, dtype))

    def places(self, places: Places) -> list[AttentionPlace]:
        """The attention modules that get a prefix, in the order in which they run."""
        check_attention(places)
        context = context_length(places.model.config)
        if self.length >= context:
            raise UserError(
                f"a prefix of {self.length} leaves no room in the context of {context}",
                hint=f"Use a length well below {context}, such as {min(20, context // 4)}.",
            )
        both = places.model.config.is_encoder_decoder
        if self.where is not None and not both:
            raise UserError(
                f"where: {type(places.model).__name__} has one stack of blocks, so there is nothing to choose",
                hint="Leave where out; it is for encoder-decoders.",
            )
        most = len(places.blocks)
        if self.layers is not None and max(self.layers) >= most:
            raise UserError(f"layers: {max(self.layers)} is no block of this base, which has 0 to {most - 1}")
        where = self.where if self.where is not None else ("encoder", "decoder", "cross")
        return [
            place
            for place in places.attentions
            if (not both or side(place) in where) and (self.layers is None or place.block in self.layers)
        ]

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """The prefix itself, without the MLP; as peft has it, where it has such a one."""
        from graftlm.adapters.prefix_files import store_prefix

        return store_prefix(adapter, places, source)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """The prefix without an MLP: its settings say projection: false."""
        from graftlm.adapters.prefix_files import restore_prefix

        return restore_prefix(self, stored, places, device=device)

    def plain(self, table: torch.Tensor, places: Places, *, device: torch.device, stored: Stored) -> Adapter:
        """An adapter without an MLP whose prefix is ``table`` (length, width of all layers' keys and values)."""
        settings = self.model_copy(update={"projection": False, "projection_size": None})
        dtype = torch.promote_types(table.dtype, torch.float32)
        adapter = settings.build(places, seed=0, dtype=dtype, device=device)
        fill(adapter, {"prefix.embedding": table.to(device)}, stored.folder)
        return adapter


def side(place: AttentionPlace) -> Where:
    """Which part of an encoder-decoder a place is in."""
    return "cross" if place.kind == "cross" else "encoder" if place.source else "decoder"


class PrefixTable(KeyValues):
    """The prefix of some attention modules.

    ``embedding`` (length, width) is the table of all of their keys and values, or goes through an MLP (``inner``,
    ``outer``) to give it. A module's columns are those of its keys, head by head, then of its values.
    """

    inner: nn.Linear | None
    outer: nn.Linear | None

    def __init__(self, config: Prefix, places: list[AttentionPlace], *, shifts: bool) -> None:
        super().__init__()
        self.length = config.length
        self.paths = tuple(place.path for place in places)
        self.shift = config.length if shifts else 0
        self.windowed = config.window == "peft"
        self.heads = [heads for place in places for heads in (place.heads, place.heads)]
        self.widths = [width for place in places for width in (place.key_width, place.value_width)]
        self.columns = [heads * width for heads, width in zip(self.heads, self.widths, strict=True)]
        small = self.columns[0] if config.projection else sum(self.columns)
        hidden = config.projection_size or small
        self.embedding = nn.Parameter(torch.empty(config.length, small))
        self.inner = Linear(small, hidden) if config.projection else None
        self.outer = Linear(hidden, sum(self.columns)) if config.projection else None
        self._kept: tuple[Any, Mapping[str, tuple[torch.Tensor, torch.Tensor]]] | None = None

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Fresh parameters from a seed alone: a standard normal embedding, linear layers as torch starts them."""
        generator = torch.Generator().manual_seed(seed)
        self.embedding.normal_(generator=generator)
        for layer in (self.inner, self.outer):
            if layer is not None:
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    def table(self) -> torch.Tensor:
        """All keys and values, (length, width)."""
        if self.inner is None or self.outer is None:
            return self.embedding
        table: torch.Tensor = self.outer(torch.tanh(self.inner(self.embedding)))
        return table

    def forward(self) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values by path. Without gradients they are made once, until a parameter changes."""
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            self._kept = None
            return self._split(self.table())
        state = tuple((id(p), p.data_ptr(), p._version, p.dtype) for p in self.parameters())
        kept = self._kept  # once: another thread may change it
        if kept is None or kept[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = (state, self._split(self.table()))
        return kept[1]

    def _split(self, table: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        parts = [
            part.view(self.length, heads, width).transpose(0, 1)
            for part, heads, width in zip(torch.split(table, self.columns, dim=1), self.heads, self.widths, strict=True)
        ]
        return dict(zip(self.paths, zip(parts[::2], parts[1::2], strict=True), strict=True))
