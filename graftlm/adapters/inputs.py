"""What goes into a call beside the routing: virtual tokens put in, positions counted, outputs lined up again."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from graftlm.adapters.routing import Routing
from graftlm.adapters.virtual import expand, unknown_id
from graftlm.base.places import Places
from graftlm.errors import UserError

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Inputs:
    """Ids (rows, length), mask (rows, cached + length) or None, and what else goes to the base.

    ``columns`` (rows, given length): where each column that was given stands, if virtual tokens were put in.
    """

    ids: torch.Tensor
    mask: torch.Tensor | None
    kwargs: dict[str, Any]
    columns: torch.Tensor | None = None

    @property
    def cached(self) -> int:
        """How many positions a cache of keys and values holds already."""
        cache = self.kwargs.get("past_key_values")
        return 0 if cache is None else int(cache.get_seq_length())

    @property
    def read(self) -> torch.Tensor:
        """The ids (rows, length) that the decoder, or the only stack, reads."""
        return self.ids if self.target is None else self.target

    @property
    def target(self) -> torch.Tensor | None:
        """The ids (rows, length) that the decoder of an encoder-decoder reads, or None."""
        ids: torch.Tensor | None = self.kwargs.get("decoder_input_ids")
        return ids

    @property
    def target_mask(self) -> torch.Tensor | None:
        """The mask (rows, cached + length) of the decoder's tokens in an encoder-decoder, or None."""
        mask: torch.Tensor | None = self.kwargs.get("decoder_attention_mask")
        return mask

    def positions(self) -> torch.Tensor:
        """The position (rows, length) of every token in its own row, which begins with its first real token."""
        if self.mask is not None:
            return (self.mask.long().cumsum(1) - 1).clamp(min=0)[:, -self.ids.shape[1] :]
        cached = self.cached if self.target is None else 0
        return counted(self.ids, cached)

    def target_positions(self) -> torch.Tensor:
        """The positions (rows, length) of the decoder's tokens in an encoder-decoder, or of the only ones."""
        if self.target is None:
            return self.positions()
        if self.target_mask is not None:
            return (self.target_mask.long().cumsum(1) - 1).clamp(min=0)[:, -self.target.shape[1] :]
        return counted(self.target, self.cached)


def counted(ids: torch.Tensor, first: int) -> torch.Tensor:
    """Positions (rows, length) that count on from ``first`` in every row."""
    return (torch.arange(ids.shape[1], device=ids.device) + first).expand(len(ids), -1)


def with_virtual_tokens(given: Inputs, counts: Sequence[int], places: Places) -> Inputs:
    """Put each row's virtual tokens in front, where it has any and its ids hold none.

    With a cache they went in with the first ids, and only the mask grows. Labels grow by ignored ones.

    Raises:
        UserError: an id is no token; or ``position_ids`` are given too, or a cache without a mask.
    """
    if places.embedding is None or not (any(counts) or given.ids.device.type == "cpu"):  # looking costs a GPU a wait
        return given
    if not any(counts) and (not given.ids.numel() or int(given.ids.max()) < places.embedding.vocabulary):
        return given
    virtual = given.ids >= places.embedding.vocabulary
    holding = virtual.any(dim=1).tolist()
    for row, count in enumerate(counts):
        if holding[row] and not count:
            raise unknown_id(int(given.ids[row].max()), places.embedding.vocabulary, 0)
    counts = [0 if holds else count for count, holds in zip(counts, holding, strict=True)]
    if not any(counts):
        return given
    if given.kwargs.get("position_ids") is not None:
        raise UserError(
            "position_ids beside adapters with virtual tokens, which shift them",
            hint="Leave them out, or put the virtual tokens into the ids yourself.",
        )
    if given.cached:
        if given.mask is None:
            raise UserError("a cache beside virtual tokens needs the attention_mask of all tokens so far")
        if "decoder_input_ids" not in given.kwargs and given.mask.shape[1] == given.cached + given.ids.shape[1]:
            return given  # they were in the first ids as they were given
        grown = expand(torch.zeros_like(given.mask), given.mask, counts, places.embedding.vocabulary)
        return Inputs(given.ids, grown.mask, given.kwargs)
    expansion = expand(given.ids, given.mask, counts, places.embedding.vocabulary)
    kwargs = dict(given.kwargs)
    labels = kwargs.get("labels")
    if labels is not None and "decoder_input_ids" not in kwargs:
        empty = labels.new_full(expansion.ids.shape, IGNORED_LABEL)
        kwargs["labels"] = empty.scatter(1, expansion.columns, labels)
    return Inputs(expansion.ids, expansion.mask, kwargs, expansion.columns)


def check_length(
    inputs: Inputs, virtual: Sequence[int], prefixes: Sequence[int] | None, routing: Routing, context: int
) -> None:
    """See that each row's tokens, the virtual ones put in among them, and its prefix fit into the context together.

    Raises:
        UserError: they do not.
    """
    shifts = list(prefixes) if prefixes is not None else [0] * len(inputs.read)
    columns = inputs.cached + inputs.read.shape[1]
    if (not any(shifts) and not any(virtual)) or columns + max(shifts) <= context:
        return
    lengths = [segment.length for segment in routing.segments]
    mask = inputs.mask if inputs.target is None else inputs.target_mask
    if mask is not None:
        lengths = list(mask.sum(1).tolist())
    elif None in lengths or len(lengths) != len(shifts):
        lengths = [columns] * len(shifts)
    for tokens, added, shift in zip(lengths, virtual, shifts, strict=True):
        if tokens is not None and tokens + shift > context:
            raise UserError(
                f"{tokens - added} tokens, {added} virtual tokens and a prefix of {shift} do not fit into the context "
                f"of {context} together",
                hint="Shorten the rows, or use fewer virtual tokens or a shorter prefix.",
            )


@dataclass(frozen=True)
class PositionIds:
    """How a base takes positions: whether as ``position_ids``, and which is the first."""

    taken: bool
    first: int

    @staticmethod
    def of(backbone: nn.Module) -> PositionIds:
        """RoBERTa counts on from its padding index, all others from nought."""
        first = 0
        for path, embedding in backbone.named_modules():
            if path.endswith("position_embeddings") and isinstance(embedding, nn.Embedding):
                first = 0 if embedding.padding_idx is None else embedding.padding_idx + 1
        return PositionIds("position_ids" in inspect.signature(backbone.forward).parameters, first)

    def __call__(self, inputs: Inputs, prefixes: Sequence[int] | None, context: int) -> dict[str, torch.Tensor]:
        """``position_ids`` (rows, length), where the base would not count them so by itself; else nothing.

        A row's positions begin with its first real token, wherever padding puts it, and a prefix shifts them.
        """
        if not self.taken:
            return {}
        count = inputs.kwargs.get("position_ids")
        if count is None:
            if inputs.mask is None and prefixes is None:
                return {}
            count = inputs.positions() + self.first
        if prefixes is not None:
            shifted = count + torch.tensor(prefixes, device=count.device)[:, None]
            count = shifted.clamp(max=context + self.first - 1)  # past it is but padding
        return {"position_ids": count}


def realigned(output: Any, inputs: Inputs) -> Any:
    """The output with its columns those of the ids that were given."""
    if inputs.columns is None:
        return output
    if "encoder_last_hidden_state" in output:
        if output.encoder_last_hidden_state is not None:
            output["encoder_last_hidden_state"] = _columns(output.encoder_last_hidden_state, inputs.columns)
        return output
    full = inputs.ids.shape[1]
    for key, value in list(output.items()):
        if key in ("logits", "last_hidden_state") and value.shape[1] == full:
            output[key] = _columns(value, inputs.columns)
        elif key == "hidden_states" and value is not None:
            output[key] = tuple(_columns(state, inputs.columns) for state in value)
    return output


def _columns(value: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return value.gather(1, columns[:, :, None].expand(-1, -1, value.shape[-1]))
