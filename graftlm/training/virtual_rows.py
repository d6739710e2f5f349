"""Rows with the virtual tokens of the adapters that serve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from graftlm.adapters.model import AdaptedModel
from graftlm.data.batches import EncodedRow

if TYPE_CHECKING:
    from graftlm.training.forward import RoutedRow


def with_virtual_tokens(model: AdaptedModel, rows: Sequence[RoutedRow]) -> list[RoutedRow]:
    """The rows as they are run: virtual tokens in front, or where a template of the adapter's own put them.

    Those of adapters that do not serve a row are taken out of it: the bare base scores what an adapter with a
    template of its own learns.
    """
    place = model.places.embedding
    if place is None:
        return list(rows)
    found = []
    for row in rows:
        fitted = fit(row.row, model.virtual_length(row.stack), place.vocabulary)
        found.append(row if fitted is row.row else replace(row, row=fitted))
    return found


def fit(row: EncodedRow, count: int, vocabulary: int) -> EncodedRow:
    """A row under adapters with ``count`` virtual tokens. What is learnt, and how many tokens, stays the same.

    They belong to what the model reads first: the encoder's tokens of an encoder-decoder.
    """
    ids = row.ids if row.source_ids is None else row.source_ids
    most = max(ids, default=0)
    if most >= vocabulary + count:
        row = _only(row, [number for number, token in enumerate(ids) if token < vocabulary + count])
        most = max(row.ids if row.source_ids is None else row.source_ids, default=0)
    if count and most < vocabulary:
        row = _after(row, range(vocabulary, vocabulary + count))
    return row


def _only(row: EncodedRow, kept: Sequence[int]) -> EncodedRow:
    """The row with some of the tokens that are read first."""
    if row.source_ids is not None:
        return replace(row, source_ids=[row.source_ids[n] for n in kept])
    return replace(
        row,
        ids=[row.ids[n] for n in kept],
        supervised=[row.supervised[n] for n in kept],
        targets=None if row.targets is None else [row.targets[n] for n in kept],
    )


def _after(row: EncodedRow, tokens: Sequence[int]) -> EncodedRow:
    """The row with tokens put before those that are read first."""
    if row.source_ids is not None:
        return replace(row, source_ids=[*tokens, *row.source_ids])
    # The first token stays unlearnt although there is now something to predict it from: rows then have the same
    # learnt tokens under every adapter and under the base.
    return replace(
        row,
        ids=[*tokens, *row.ids],
        supervised=[*[False] * len(tokens), False, *row.supervised[1:]],
        targets=None if row.targets is None else [*[-1] * len(tokens), *row.targets],
    )
