"""Run rows of any adapters through the base together, and score their learnt tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.data.batches import EncodedRow, Padded, micro_batches, pad
from graftlm.objectives.log_probs import token_log_probs, token_log_probs_and_hits


@dataclass(frozen=True)
class RoutedRow:
    """A row, the adapters that serve it, and the dropout seed of the one that is being trained."""

    row: EncodedRow
    stack: Stack
    seeds: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class RowScore:
    """What a model makes of one row: summed log-probability, learnt tokens, how many were its first choice."""

    log_prob: float
    tokens: int
    hits: int

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives this very answer, its end included."""
        return self.hits == self.tokens


@dataclass(frozen=True)
class MicroBatch:
    """Rows that run together, ordered by routing, with their routing value."""

    order: list[int]
    padded: Padded
    routing: Routing


def plan_micro_batches(rows: Sequence[RoutedRow], max_tokens: int) -> list[list[int]]:
    """Which rows run together, as indices; rows of one routing stand together."""
    batches = micro_batches([len(row.row.ids) for row in rows], max_tokens)
    return [sorted(batch, key=lambda index: (rows[index].stack, index)) for batch in batches]


def build_micro_batch(model: AdaptedModel, rows: Sequence[RoutedRow], order: list[int]) -> MicroBatch:
    """Pad the rows at ``order`` and make their routing."""
    chosen = [rows[index] for index in order]
    padded = pad([row.row for row in chosen], pad_id=0, device=model.device)
    routing = Routing.of_rows(
        [row.stack for row in chosen],
        padded.input_ids.shape[1],
        seeds=[dict(row.seeds) for row in chosen],
        lengths=padded.lengths,
    )
    return MicroBatch(order, padded, routing)


def micro_batch_log_probs(model: AdaptedModel, batch: MicroBatch) -> torch.Tensor:
    """log p of every learnt token (n,), rows in the batch's order, with gradients."""
    hidden, routing = _learnt_states(model, batch)
    return token_log_probs(
        model.score,
        hidden,
        batch.padded.targets,
        vocabulary=model.vocabulary,
        routing=routing,
        head_is_trained=model.head_is_adapted,
    )


@torch.no_grad()
def score_rows(model: AdaptedModel, rows: Sequence[RoutedRow], max_tokens: int) -> list[RowScore]:
    """Score every row under its own routing; results in the order of ``rows``."""
    scores: list[RowScore | None] = [None] * len(rows)
    for order in plan_micro_batches(rows, max_tokens):
        batch = build_micro_batch(model, rows, order)
        hidden, routing = _learnt_states(model, batch)
        log_probs, hits = token_log_probs_and_hits(
            model.score, hidden, batch.padded.targets, vocabulary=model.vocabulary, routing=routing
        )
        start = 0
        for index, count in zip(order, batch.padded.counts, strict=True):
            part = slice(start, start + count)
            scores[index] = RowScore(float(log_probs[part].double().sum()), count, int(hits[part].sum()))
            start += count
    return [score for score in scores if score is not None]


def _learnt_states(model: AdaptedModel, batch: MicroBatch) -> tuple[torch.Tensor, Routing | None]:
    # No attention mask: the padding is on the right, where a causal model's real tokens never look, and attention
    # without a mask is the fast one. Padded positions compute garbage that nothing reads.
    output = model.hidden(batch.padded.input_ids, adapters=batch.routing, use_cache=False)
    states = output.last_hidden_state.flatten(0, 1)[batch.padded.positions]
    routing = batch.routing.select(batch.padded.positions) if model.head_is_adapted else None
    return states, routing
