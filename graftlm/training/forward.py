"""Run rows of any adapters through the base together, and score their learnt tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from graftlm.adapters.heads import RewardHead
from graftlm.adapters.method import Head
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.data.batches import EncodedRow, Padded, micro_batches, pad
from graftlm.errors import UserError
from graftlm.objectives.log_probs import Score, token_log_probs, token_log_probs_and_hits
from graftlm.training.virtual_rows import with_virtual_tokens


@dataclass(frozen=True)
class RoutedRow:
    """A row, the adapters that serve it, and the dropout seed of the one that is being trained.

    ``group``: a number that rows of one group share, where they must be learnt together.
    """

    row: EncodedRow
    stack: Stack
    seeds: tuple[tuple[str, int], ...] = ()
    group: int | None = None


@dataclass(frozen=True)
class RowScore:
    """What a model makes of one row: summed log-probability, predictions learnt, how many were its first choice.

    ``predicted``: the likeliest class at each of them, where the adapter has a head of its own. ``rewards``: what a
    reward head gives, one a criterion, as it comes; there are no log-probabilities then.
    """

    log_prob: float
    tokens: int
    hits: int
    predicted: tuple[int, ...] = ()
    rewards: tuple[float, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives this very answer, its end included."""
        return self.hits == self.tokens


@dataclass(frozen=True)
class MicroBatch:
    """Rows that run together, ordered by routing, with their routing value.

    ``temperatures``: what the language head's logits are divided by, row by row; without any, 1.
    """

    order: list[int]
    padded: Padded
    routing: Routing
    temperatures: tuple[float, ...] = ()


def plan_micro_batches(rows: Sequence[RoutedRow], max_tokens: int) -> list[list[int]]:
    """Which rows run together, as indices; rows of one routing stand together."""
    sources = [len(row.row.source_ids or ()) for row in rows]
    batches = micro_batches([len(row.row.ids) for row in rows], max_tokens, source_lengths=sources)
    return [sorted(batch, key=lambda index: (rows[index].stack, index)) for batch in batches]


def plan_joint(rows: Sequence[RoutedRow], max_tokens: int) -> list[list[list[int]]]:
    """Micro-batches (indices) that are run one after the other and go back together, so that groups stay whole.

    Rows without a group make micro-batches of their own, as in :func:`plan_micro_batches`. Answers of a group that
    differ much in length are padded apart.
    """
    if all(row.group is None for row in rows):
        return [[batch] for batch in plan_micro_batches(rows, max_tokens)]
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(index if row.group is None else (row.stack, row.group), []).append(index)
    members = list(groups.values())
    joint = []
    for chosen in micro_batches(
        [max(len(rows[index].row.ids) for index in group) for group in members],
        max_tokens,
        source_lengths=[max(len(rows[index].row.source_ids or ()) for index in group) for group in members],
        sizes=[len(group) for group in members],
    ):
        together = sorted(index for group in chosen for index in members[group])
        inner = plan_micro_batches([rows[index] for index in together], max_tokens)
        joint.append([[together[index] for index in batch] for batch in inner])
    return joint


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
    heat = tuple(1.0 if row.row.sampled is None else row.row.sampled.temperature for row in chosen)
    return MicroBatch(order, padded, routing, heat if any(each != 1.0 for each in heat) else ())


def micro_batch_values(model: AdaptedModel, batch: MicroBatch) -> list[torch.Tensor]:
    """What each row of the batch gives, in its order, with gradients: log p of everything learnt, or rewards.

    Tokens are scored by the language head, classes by the head of the row's adapter; a reward head gives one reward a
    criterion, as it comes.
    """
    flat = micro_batch_log_probs(model, batch)
    return list(flat.split(value_counts(model, batch)))  # type: ignore[no-untyped-call]


def value_counts(model: AdaptedModel, batch: MicroBatch) -> list[int]:
    """How many values :func:`micro_batch_log_probs` gives for each row: rewards are several a position."""
    widths = [_width(_head_of(model, model.head_of(segment.stack))) for segment in batch.routing.segments]
    return [count * width for count, width in zip(batch.padded.counts, widths, strict=True)]


def micro_batch_log_probs(model: AdaptedModel, batch: MicroBatch) -> torch.Tensor:
    """log p of everything learnt (n,), rows in the batch's order, with gradients; of reward heads, their rewards.

    Tokens are scored by the language head, classes by the head of the row's adapter.
    """
    hidden = learnt_states(model, batch)
    parts: list[torch.Tensor] = []
    by_head = _by_head(model, batch)
    for name, where in by_head.items():
        own, targets = hidden[where], batch.padded.targets[where]
        head = _head_of(model, name)
        if name is None:
            found = _language_log_probs(model, batch, hidden, where)
        elif isinstance(head, RewardHead):
            found = _rewards(head, own)
        else:
            found = _chosen(_class_log_probs(model, name, own), targets)
        parts.append(found)
    return _in_order(model, parts, by_head)


def _language_log_probs(
    model: AdaptedModel, batch: MicroBatch, hidden: torch.Tensor, where: torch.Tensor
) -> torch.Tensor:
    """log p of the tokens at ``where`` among the learnt positions (n,), each at its row's temperature."""
    heats = torch.tensor(batch.temperatures or (1.0,) * len(batch.padded.counts), dtype=torch.float64)
    of_tokens = heats.repeat_interleave(torch.tensor(batch.padded.counts))[where.cpu()]
    found: list[torch.Tensor] = []
    places: list[torch.Tensor] = []
    for heat in sorted(set(of_tokens.tolist())):
        chosen = (of_tokens == heat).nonzero().squeeze(1).to(where.device)
        own = where[chosen]
        found.append(
            token_log_probs(
                heated(model.score, heat),
                hidden[own],
                batch.padded.targets[own],
                vocabulary=model.vocabulary,
                routing=_head_routing(model, batch, own),
                head_is_trained=model.head_is_adapted,
            )
        )
        places.append(chosen)
    return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(places).argsort()]


def heated(score: Score, temperature: float) -> Score:
    """A head whose logits are divided by ``temperature``."""
    if temperature == 1.0:
        return score
    return lambda hidden, routing: score(hidden, routing) / temperature


@torch.no_grad()
def score_rows(model: AdaptedModel, rows: Sequence[RoutedRow], max_tokens: int) -> list[RowScore]:
    """Score every row under its own routing; results in the order of ``rows``."""
    rows = with_virtual_tokens(model, rows)
    scores: list[RowScore | None] = [None] * len(rows)
    for order in plan_micro_batches(rows, max_tokens):
        batch = build_micro_batch(model, rows, order)
        log_probs, hits, predicted = _scores(model, batch)
        start = 0
        for index, count in zip(order, value_counts(model, batch), strict=True):
            part = slice(start, start + count)
            start += count
            if isinstance(_head_of(model, model.head_of(rows[index].stack)), RewardHead):
                scores[index] = RowScore(0.0, 1, 0, rewards=tuple(log_probs[part].double().tolist()))
                continue
            classes = tuple(number for number in predicted[part].tolist() if number >= 0)
            scores[index] = RowScore(float(log_probs[part].double().sum()), count, int(hits[part].sum()), classes)
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
        elif isinstance(head := _head_of(model, name), RewardHead):
            found = _rewards(head, own)
            nothing = torch.full(found.shape, -1, device=found.device)
            parts.append((found, nothing >= 0, nothing))
        else:
            every = _class_log_probs(model, name, own)
            predicted = every.argmax(-1)
            parts.append((_chosen(every, targets), predicted == targets, predicted))
    found, hits, predicted = (_in_order(model, list(kind), by_head) for kind in zip(*parts, strict=True))
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
    if isinstance(head, RewardHead):
        raise UserError(
            f"the adapter '{name}' has a reward head, which predicts no classes",
            hint="Score answers with it: graftlm.evaluation.rewards.",
        )
    logits: torch.Tensor = head(hidden)
    return torch.log_softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _chosen(every: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return every.gather(1, targets[:, None]).squeeze(1)


def _head_of(model: AdaptedModel, name: str | None) -> Head | None:
    return None if name is None else model.adapter(name).head


def _width(head: Head | None) -> int:
    """How many values a head gives for each position."""
    return head.criteria if isinstance(head, RewardHead) else 1


def _rewards(head: RewardHead, hidden: torch.Tensor) -> torch.Tensor:
    """The rewards at each position, position after position: (n × criteria,), in float32 at least."""
    rewards: torch.Tensor = head(hidden)
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32)).flatten()


def _in_order(
    model: AdaptedModel, parts: list[torch.Tensor], by_head: Mapping[str | None, torch.Tensor]
) -> torch.Tensor:
    """What each head gave, put together in the order of the batch."""
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    joined = torch.cat([part.to(dtype) for part in parts])
    widths = [_width(_head_of(model, name)) for name in by_head]
    places = [where.repeat_interleave(width) for where, width in zip(by_head.values(), widths, strict=True)]
    return joined[torch.cat(places).argsort(stable=True)]
