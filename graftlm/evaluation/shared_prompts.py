"""Scoring rows that begin alike: what answers to one question share is computed once.

The shared beginning is read once, with its keys and values kept; of it only the last position's logits are made, which
give the first token of every answer. Then each answer's other tokens are read on from there. The numbers are those of
``graftlm.training.forward.score_rows`` but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.base.memory import is_out_of_memory
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.generation.cache import Piece
from graftlm.generation.prefill import go_on
from graftlm.objectives.log_probs import chunk_rows, token_log_probs_and_hits
from graftlm.training.forward import RoutedRow, RowScore, score_rows
from graftlm.training.virtual_rows import with_virtual_tokens

LEAST_SHARED = 8  # tokens; less is not worth two passes


@dataclass(eq=False)
class _Group:
    """Rows of one routing with their ``shared`` first tokens; sums are filled in as they are found."""

    number: int
    rows: list[EncodedRow]
    stack: Stack
    shared: int
    log_probs: list[float] = field(default_factory=list)
    hits: list[int] = field(default_factory=list)

    @property
    def longest(self) -> int:
        return max(len(row.ids) for row in self.rows)

    @property
    def size(self) -> int:
        """Tokens whose keys and values are held, when all rows are read on side by side."""
        return len(self.rows) * self.longest


def score_groups(
    model: AdaptedModel, groups: Sequence[Sequence[RoutedRow]], max_tokens: int
) -> Iterator[list[tuple[int, list[RowScore]]]]:
    """Score groups of rows, the rows of each with one routing and most often one prompt, batch by batch.

    ``max_tokens``: of keys and values and of logits' positions that are held at a time.

    Yields:
        (number of a group, scores of its rows), for the groups of a batch; the longest come first.
    """
    shared: list[_Group] = []
    plain: list[int] = []
    for number, rows in enumerate(groups):
        group = _grouped(model, number, rows)
        if group is None:
            plain.append(number)
        else:
            shared.append(group)
    for batch in _batches(shared, max_tokens):
        _score_in_parts(model, batch)
        yield [(group.number, _scores(group)) for group in batch]
    for numbers in _plain_batches(groups, plain, max_tokens):
        scores = iter(score_rows(model, [row for number in numbers for row in groups[number]], max_tokens))
        yield [(number, [next(scores) for _ in groups[number]]) for number in numbers]


def _grouped(model: AdaptedModel, number: int, rows: Sequence[RoutedRow]) -> _Group | None:
    """The group if its rows share enough to be read together, and are scored by the language head."""
    if len(rows) < 2 or model.kind != "decoder" or len({row.stack for row in rows}) > 1:
        return None
    stack = rows[0].stack
    if model.head_of(stack) is not None:
        return None
    own = [row.row for row in with_virtual_tokens(model, rows)]
    if any(row.targets is not None or row.source_ids is not None for row in own):
        return None
    learnt = min(_first_learnt(row) for row in own)
    shared = _common([row.ids for row in own], learnt)
    if shared < LEAST_SHARED:
        return None
    return _Group(number, own, stack, shared)


def _first_learnt(row: EncodedRow) -> int:
    return next(place for place, learnt in enumerate(row.supervised) if learnt and place)


def _common(sequences: Sequence[Sequence[int]], most: int) -> int:
    """How many first tokens all sequences share, at most ``most``."""
    first, rest = sequences[0], sequences[1:]
    for place in range(min(most, *(len(each) for each in sequences))):
        if any(each[place] != first[place] for each in rest):
            return place
    return min(most, *(len(each) for each in sequences))


def _batches(groups: Sequence[_Group], max_tokens: int) -> Iterator[list[_Group]]:
    """Groups of like length together, the longest first; rows of one routing stand together."""
    batch: list[_Group] = []
    size = 0
    for group in sorted(groups, key=lambda group: (-group.shared, -group.size)):
        if batch and size + group.size > max_tokens:
            yield sorted(batch, key=lambda group: group.stack)
            batch, size = [], 0
        batch.append(group)
        size += group.size
    if batch:
        yield sorted(batch, key=lambda group: group.stack)


def _plain_batches(
    groups: Sequence[Sequence[RoutedRow]], numbers: Sequence[int], max_tokens: int
) -> Iterator[list[int]]:
    """Whole groups, some sixteen micro-batches at a time: within them rows of like length can stand together."""
    order = sorted(numbers, key=lambda number: -max((row.row.tokens for row in groups[number]), default=0))
    batch: list[int] = []
    size = 0
    for number in order:
        batch.append(number)
        size += sum(row.row.tokens for row in groups[number])
        if size > 16 * max_tokens:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _score_in_parts(model: AdaptedModel, batch: Sequence[_Group]) -> None:
    """Score groups together; in halves where there is not memory enough for all."""
    try:
        _score(model, batch)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            raise UserError(
                f"there is not enough memory for {len(batch[0].rows)} answers to a question of {batch[0].shared:,} "
                f"tokens: {str(error).splitlines()[0]}",
                hint="Close other programs, or take a smaller base.",
            ) from error
        half = len(batch) // 2
        _score_in_parts(model, batch[:half])
        _score_in_parts(model, batch[half:])


@torch.no_grad()
def _score(model: AdaptedModel, batch: Sequence[_Group]) -> None:
    """Fill in the sums of all rows of the groups."""
    prompts = [group.rows[0].ids for group in batch]
    totals = [group.shared for group in batch]
    states, table = go_on(model, prompts, totals, [group.stack for group in batch], [None] * len(batch))
    for group in batch:
        group.log_probs, group.hits = [0.0] * len(group.rows), [0] * len(group.rows)
    _first_tokens(model, batch, states[:, -1])
    pieces = [table.piece(number) for number in range(len(batch))]
    _other_tokens(model, batch, pieces)


def _first_tokens(model: AdaptedModel, batch: Sequence[_Group], states: torch.Tensor) -> None:
    """Score what stands right behind the shared tokens: the logits of a group serve all its rows."""
    step = chunk_rows(model.vocabulary, states.element_size())
    for start in range(0, len(batch), step):
        part = batch[start : start + step]
        logits = model.score(states[start : start + step], Routing.of_rows([group.stack for group in part], 1))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total, best = logits.logsumexp(-1), logits.argmax(-1)
        for number, group in enumerate(part):
            for place, row in enumerate(group.rows):
                if row.supervised[group.shared]:
                    token = row.ids[group.shared]
                    group.log_probs[place] += float(logits[number, token] - total[number])
                    group.hits[place] += int(best[number] == token)


def _other_tokens(model: AdaptedModel, batch: Sequence[_Group], pieces: Sequence[Piece]) -> None:
    """Score what comes later in each row, read on from the shared tokens' keys and values."""
    work = [
        (group, place, piece)
        for group, piece in zip(batch, pieces, strict=True)
        for place, row in enumerate(group.rows)
        if any(row.supervised[group.shared + 1 :])
    ]
    if not work:
        return
    rows = [group.rows[place] for group, place, _ in work]
    totals = [len(row.ids) - 1 - list(reversed(row.supervised)).index(True) for row in rows]  # the last is not read
    stacks = [group.stack for group, _, _ in work]
    states, _ = go_on(model, [row.ids for row in rows], totals, stacks, [piece for _, _, piece in work])
    new = states.shape[1]
    flat, targets, counts = [], [], []
    for number, ((group, _, _), row, total) in enumerate(zip(work, rows, totals, strict=True)):
        places = [place for place in range(group.shared + 1, total + 1) if row.supervised[place]]
        flat += [number * new + place - 1 - (total - new) for place in places]
        targets += [row.ids[place] for place in places]
        counts.append(len(places))
    where = torch.tensor(flat, device=states.device)
    routing = Routing.of_rows(stacks, new).select(where) if model.head_is_adapted else None
    log_probs, hits = token_log_probs_and_hits(
        model.score,
        states.flatten(0, 1)[where],
        torch.tensor(targets, device=states.device),
        vocabulary=model.vocabulary,
        routing=routing,
    )
    start = 0
    for (group, place, _), count in zip(work, counts, strict=True):
        group.log_probs[place] += float(log_probs[start : start + count].double().sum())
        group.hits[place] += int(hits[start : start + count].sum())
        start += count


def _scores(group: _Group) -> list[RowScore]:
    return [
        RowScore(log_prob, sum(row.supervised[1:]), hits)
        for row, log_prob, hits in zip(group.rows, group.log_probs, group.hits, strict=True)
    ]
