"""Run rows of any adapters through the base together, and score their learnt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.data.batches import EncodedRow, Padded, micro_batches, pad
from graftlm.objectives.log_probs import token_log_probs, token_log_probs_and_hits
from graftlm.training.virtual_rows import with_virtual_tokens


@dataclass(frozen=True)
class RoutedRow:
    """A row, the adapters that serve it, and the dropout seed of the one that is being trained."""

    row: EncodedRow
    stack: Stack
    seeds: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class RowScore:
    """What a model makes of one row: summed log-probability, predictions learnt, how many were its first choice.

    ``predicted``: the likeliest class at each of them, where the adapter has a head of its own.
    """

    log_prob: float
    tokens: int
    hits: int
    predicted: tuple[int, ...] = ()

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
    sources = [len(row.row.source_ids or ()) for row in rows]
    batches = micro_batches([len(row.row.ids) for row in rows], max_tokens, source_lengths=sources)
    return [sorted(batch, key=lambda index: (rows[index].stack, index)) for batch in batches]


def padded_size(rows: Sequence[RoutedRow]) -> int:
    """Tokens that these rows take side by side, padding included."""
    longest = max(len(row.row.ids) for row in rows) + max(len(row.row.source_ids or ()) for row in rows)
    return len(rows) * longest


def build_micro_batch(model: AdaptedModel, rows: Sequence[RoutedRow], order: list[int]) -> MicroBatch:
    """Pad the rows at ``order`` and make their routing."""
    chosen = with_virtual_tokens(model, [rows[index] for index in order])
    padded = pad([row.row for row in chosen], pad_id=0, device=model.device)
    stacks, seeds = [row.stack for row in chosen], [dict(row.seeds) for row in chosen]
    routing = Routing.of_rows(stacks, padded.input_ids.shape[1], seeds=seeds, lengths=padded.lengths)
    if padded.source_ids is not None:
        source = Routing.of_rows(stacks, padded.source_ids.shape[1], seeds=seeds, lengths=padded.source_lengths)
        routing = replace(routing, source=source)
    return MicroBatch(order, padded, routing)


def micro_batch_log_probs(model: AdaptedModel, batch: MicroBatch) -> torch.Tensor:
    """log p of everything learnt (n,), rows in the batch's order, with gradients.

    Tokens are scored by the language head, classes by the head of the row's adapter.
    """
    hidden = learnt_states(model, batch)
    parts: list[torch.Tensor] = []
    by_head = _by_head(model, batch)
    for name, where in by_head.items():
        own, targets = hidden[where], batch.padded.targets[where]
        if name is None:
            found = token_log_probs(
                model.score,
                own,
                targets,
                vocabulary=model.vocabulary,
                routing=_head_routing(model, batch, where),
                head_is_trained=model.head_is_adapted,
            )
        else:
            found = _chosen(_class_log_probs(model, name, own), targets)
        parts.append(found)
    return _in_order(parts, by_head)


@torch.no_grad()
def score_rows(model: AdaptedModel, rows: Sequence[RoutedRow], max_tokens: int) -> list[RowScore]:
    """Score every row under its own routing; results in the order of ``rows``."""
    rows = with_virtual_tokens(model, rows)
    scores: list[RowScore | None] = [None] * len(rows)
    for order in plan_micro_batches(rows, max_tokens):
        batch = build_micro_batch(model, rows, order)
        log_probs, hits, predicted = _scores(model, batch)
        start = 0
        for index, count in zip(order, batch.padded.counts, strict=True):
            part = slice(start, start + count)
            classes = tuple(number for number in predicted[part].tolist() if number >= 0)
            scores[index] = RowScore(float(log_probs[part].double().sum()), count, int(hits[part].sum()), classes)
            start += count
    return [score for score in scores if score is not None]


@torch.no_grad()
def class_log_probs(
    model: AdaptedModel, rows: Sequence[RoutedRow], max_tokens: int, words: Mapping[Stack, Sequence[int]]
) -> list[torch.Tensor]:
    """log p of every class at each place where a row learns something, (places, classes); in the order of ``rows``.

    The classes are those of the adapter's own head. Where a stack has none, ``words`` are the tokens of the language
    head that stand for the classes, and p is a word's share of what they have together.
    """
    rows = with_virtual_tokens(model, rows)
    found = [torch.empty(0)] * len(rows)
    for order in plan_micro_batches(rows, max_tokens):
        batch = build_micro_batch(model, rows, order)
        hidden = learnt_states(model, batch)
        start = 0
        for index, count in zip(order, batch.padded.counts, strict=True):
            where = torch.arange(start, start + count, device=hidden.device)
            start += count
            stack = rows[index].stack
            name = model.head_of(stack)
            if name is None:
                found[index] = _word_log_probs(model, batch, hidden, where, words[stack])
            else:
                found[index] = _class_log_probs(model, name, hidden[where])
    return found


def _word_log_probs(
    model: AdaptedModel, batch: MicroBatch, hidden: torch.Tensor, where: torch.Tensor, words: Sequence[int]
) -> torch.Tensor:
    """log p of each of some tokens among them all, at the learnt places ``where``: (places, words)."""
    each = where.repeat_interleave(len(words))
    targets = torch.tensor(words, device=hidden.device).repeat(len(where))
    routing = _head_routing(model, batch, each)
    found = token_log_probs(model.score, hidden[each], targets, vocabulary=model.vocabulary, routing=routing)
    return torch.log_softmax(found.view(len(where), len(words)), dim=-1)


def _scores(model: AdaptedModel, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """log p of everything learnt (n,), whether it is the likeliest, and the likeliest class (−1 for tokens)."""
    hidden = learnt_states(model, batch)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    by_head = _by_head(model, batch)
    for name, where in by_head.items():
        own, targets = hidden[where], batch.padded.targets[where]
        if name is None:
            routing = _head_routing(model, batch, where)
            found, hits = token_log_probs_and_hits(
                model.score, own, targets, vocabulary=model.vocabulary, routing=routing
            )
            parts.append((found, hits, torch.full_like(targets, -1)))
        else:
            every = _class_log_probs(model, name, own)
            predicted = every.argmax(-1)
            parts.append((_chosen(every, targets), predicted == targets, predicted))
    found, hits, predicted = (_in_order(list(kind), by_head) for kind in zip(*parts, strict=True))
    return found, hits, predicted


def learnt_states(model: AdaptedModel, batch: MicroBatch) -> torch.Tensor:
    """The final hidden states at the positions where something is learnt, (n, hidden)."""
    padded = batch.padded
    if padded.source_ids is not None:
        output = model.hidden(
            padded.source_ids,
            padded.source_mask,
            adapters=batch.routing,
            decoder_input_ids=padded.input_ids,
            use_cache=False,
        )
    elif model.kind == "encoder":
        output = model.hidden(padded.input_ids, padded.mask, adapters=batch.routing)
    else:
        # No attention mask: the padding is on the right, where a causal model's real tokens never look, and attention
        # without a mask is the fast one. Padded positions compute garbage that nothing reads.
        output = model.hidden(padded.input_ids, adapters=batch.routing, use_cache=False)
    states: torch.Tensor = output.last_hidden_state.flatten(0, 1)[padded.positions]
    return states


def _by_head(model: AdaptedModel, batch: MicroBatch) -> dict[str | None, torch.Tensor]:
    """Which of the learnt positions each head scores: that of an adapter by its name, the language head by None."""
    places: dict[str | None, list[int]] = {}
    start = 0
    for segment, count in zip(batch.routing.segments, batch.padded.counts, strict=True):
        name = model.head_of(segment.stack)
        places.setdefault(name, []).extend(range(start, start + count))
        start += count
    device = batch.padded.targets.device
    return {name: torch.tensor(where, device=device) for name, where in places.items()}


def _head_routing(model: AdaptedModel, batch: MicroBatch, where: torch.Tensor) -> Routing | None:
    """The routing of the positions that the language head scores, where an adapter changes it."""
    return batch.routing.select(batch.padded.positions[where]) if model.head_is_adapted else None


def _class_log_probs(model: AdaptedModel, name: str, hidden: torch.Tensor) -> torch.Tensor:
    """log p of every class, (n, classes), in float32 at least."""
    head = model.adapter(name).head
    assert head is not None
    logits: torch.Tensor = head(hidden)
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _chosen(every: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return every.gather(1, targets[:, None]).squeeze(1)


def _in_order(parts: list[torch.Tensor], by_head: Mapping[str | None, torch.Tensor]) -> torch.Tensor:
    """What each head gave, put together in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    dtype = torch.promote_types(parts[0].dtype, parts[-1].dtype)
    joined = torch.cat([part.to(dtype) for part in parts])
    return joined[torch.cat(list(by_head.values())).argsort()]
