"""Rows, routings and states of any base with any mix of methods: what the tests of the invariants are made of."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graftlm import AdaptedModel
from graftlm.adapters.method import MethodConfig
from graftlm.adapters.routing import RowAdapters
from graftlm.errors import UserError
from tests.families import ENCODER_DECODERS, ENCODERS, VOCABULARY, gradients, make_base, randomise
from tests.methods import METHODS

DECODERS = ("llama", "qwen3", "mistral", "gemma3", "gpt2", "gpt_neox", "opt")
ARCHITECTURES = (*DECODERS, *ENCODERS, *ENCODER_DECODERS)


@dataclass(frozen=True)
class Row:
    """Tokens of one row; ``source`` are the encoder's, in an encoder-decoder."""

    ids: tuple[int, ...]
    source: tuple[int, ...] | None = None


def make_row(draw: random.Random, *, two_sequences: bool, longest: int = 9) -> Row:
    """Random tokens."""

    def ids() -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(3, longest)))

    return Row(ids(), ids() if two_sequences else None)


def model_with_all(
    family: str, *, dtype: torch.dtype = torch.float32, methods: Sequence[str] | None = None, std: float = 0.1
) -> AdaptedModel:
    """A tiny base with one random adapter of every method that it has the places for, named after the method."""
    model = AdaptedModel(make_base(family, dtype=dtype), name=f"random-{family}")
    for name in methods or METHODS:
        add_random(model, name, METHODS[name], std=std)
    return model


def add_random(model: AdaptedModel, name: str, config: MethodConfig, *, std: float = 0.1) -> bool:
    """Add an adapter whose parameters are random, from its name alone; False where the base lacks its place."""
    try:
        adapter = model.add(name, config)
    except UserError:
        return False
    randomise(adapter, seed=sum(name.encode()), std=std)
    return True


def pad(sequences: Sequence[Sequence[int]], *, left: bool, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, each (rows, longest)."""
    longest = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), longest), pad_id)
    mask = torch.zeros_like(ids)
    for number, sequence in enumerate(sequences):
        part = slice(longest - len(sequence), None) if left else slice(0, len(sequence))
        ids[number, part] = torch.tensor(sequence)
        mask[number, part] = 1
    return ids, mask


def states(
    model: AdaptedModel, rows: Sequence[Row], routings: Sequence[RowAdapters], *, left: bool = False, **kwargs: Any
) -> list[torch.Tensor]:
    """The final hidden states of each row's own tokens, (tokens, hidden), all rows in one call."""
    targets, target_mask = pad([row.ids for row in rows], left=left)
    if rows[0].source is None:
        output = model.hidden(targets, target_mask, adapters=list(routings), **kwargs)
    else:
        sources, source_mask = pad([row.source or () for row in rows], left=False)
        output = model.hidden(sources, source_mask, adapters=list(routings), decoder_input_ids=targets, **kwargs)
        assert not left
    found = output.last_hidden_state
    return [found[number][target_mask[number].bool()] for number in range(len(rows))]


def loss(found: Sequence[torch.Tensor], numbers: Sequence[int]) -> torch.Tensor:
    """A scalar that weighs each row by its number, and no two of a row's states alike."""
    total = found[0].new_zeros(())
    for state, number in zip(found, numbers, strict=True):
        weights = torch.linspace(-1, 1, state.numel(), dtype=state.dtype).reshape(state.shape)
        total = total + (1 + number) * torch.tanh((weights * state).sum() * 0.1 + 0.3)
    return total


def states_and_gradients(
    model: AdaptedModel,
    rows: Sequence[Row],
    routings: Sequence[RowAdapters],
    numbers: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """States of each row, and what a loss over them gives every parameter of every adapter."""
    for adapter in model.adapters.values():
        adapter.zero_grad()
    found = states(model, rows, routings, **kwargs)
    value = loss(found, numbers or range(len(rows)))
    if value.requires_grad:
        value.backward()  # type: ignore[no-untyped-call]
    given = {
        f"{name}/{key}": value
        for name, adapter in model.adapters.items()
        for key, value in gradients([adapter]).items()
    }
    return [state.detach() for state in found], given


def add_up(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Gradients of several calls together."""
    total: dict[str, torch.Tensor] = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value
    return total


def assert_states_close(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], tolerance: float) -> None:
    """Equal in relative norm, row by row."""
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        difference = float((one - other).double().norm() / other.double().norm())
        assert difference <= tolerance, f"row {number}: {difference:.2e}"


def assert_gradients_close(
    actual: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    tolerance: float = 1e-5,
    *,
    negligible: float = 1e-2,
) -> None:
    """Equal in relative norm, tensor by tensor; none at all counts as zero, and so does what is lost in rounding.

    Gradients below ``negligible`` times the largest one are compared with that instead of with themselves.
    """
    largest = max((float(value.norm()) for value in expected.values()), default=0.0)
    for key in actual.keys() | expected.keys():
        like = actual[key] if key in actual else expected[key]
        wanted = expected.get(key, torch.zeros_like(like))
        difference = float((actual.get(key, torch.zeros_like(like)) - wanted).norm())
        scale = max(float(wanted.norm()), negligible * largest)
        assert difference <= tolerance * scale, f"{key}: {difference:.2e} of {scale:.2e}"
