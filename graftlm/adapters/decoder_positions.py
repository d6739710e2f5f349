"""Positions in the decoder of an encoder-decoder whose own module numbers them by what is cached (BART).

It counts all rows alike. Here a row's positions are its own: they begin with its first real token, wherever padding
puts it, and a prefix shifts them, as if its keys and values were cached.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from graftlm.adapters.routing import Call
from graftlm.base.loading import context_length

_CACHED = ("cache_length", "past_key_values_length")  # what the argument is called, by version of transformers


def position_embedding(model: PreTrainedModel) -> nn.Module | None:
    """The module that numbers the decoder's positions, in an encoder-decoder that has one and counts what is cached."""
    if not model.config.is_encoder_decoder:
        return None
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    embedding = getattr(decoder, "embed_positions", None)
    return embedding if embedding is not None and _cached_name(embedding) is not None else None


def _cached_name(embedding: nn.Module) -> str | None:
    """The argument that says how many tokens are cached, if there is one."""
    parameters = inspect.signature(type(embedding).forward).parameters
    return next((name for name in _CACHED if name in parameters), None)


def positions_are_unknown(model: PreTrainedModel) -> bool:
    """Whether the decoder of an encoder-decoder numbers positions in a way that cannot be followed row by row."""
    if not model.config.is_encoder_decoder:
        return False
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    return getattr(decoder, "embed_positions", None) is not None and position_embedding(model) is None


class DecoderPositions:
    """Lets rows of a call have positions of their own, where the base's decoder would number all alike."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._embedding = position_embedding(model)
        self._context = context_length(model.config)

    def during(self, call: Call) -> AbstractContextManager[None]:
        """Inside, the decoder's positions are those of ``call``, if it has any."""
        if self._embedding is None or call.positions is None:
            return nullcontext()
        return self._hooked(self._embedding, call.positions, call.shifts)

    @contextmanager
    def _hooked(self, embedding: nn.Module, positions: torch.Tensor, shifts: tuple[int, ...]) -> Iterator[None]:
        if any(shifts):
            positions = positions + torch.tensor(shifts, device=positions.device)[:, None]
        hook = embedding.register_forward_hook(partial(_renumbered, positions, self._context), with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def _renumbered(
    positions: torch.Tensor,
    context: int,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: torch.Tensor,
) -> torch.Tensor:
    """Forward hook: the embeddings (rows, length, width) of ``positions`` (rows, length).

    What lies past the context is but padding.
    """
    given = inspect.signature(type(module).forward).bind(module, *args, **kwargs)
    given.apply_defaults()
    _, first, *rest = given.arguments
    ids, own = given.arguments[first], {name: given.arguments[name] for name in rest}
    rows, length = positions.shape
    if "position_ids" in own:
        own["position_ids"] = positions.clamp(max=context - 1).reshape(-1)
        return module.forward(ids, **own).view(rows, length, -1)  # type: ignore[no-any-return]
    found: dict[int, torch.Tensor] = {}
    starts = (positions[:, -1] - length + 1).clamp(min=0).tolist()
    for start in dict.fromkeys(starts):
        keep = max(min(length, context - start), 1)
        own[_cached_name(module) or ""] = min(start, context - 1)
        part = module.forward(ids[:, :keep] if isinstance(ids, torch.Tensor) else (rows, keep), **own)
        part = nn.functional.pad(part, (0, 0, 0, length - keep))
        found[start] = part.expand(rows, length, -1)
    return torch.stack([found[start][row] for row, start in enumerate(starts)])
