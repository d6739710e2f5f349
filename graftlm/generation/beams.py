"""Beam search: the likeliest answers as a whole, found by going on from several at a time.

The semantics are those of transformers' ``generate`` with ``early_stopping=False``: an answer's score is the sum of its
log-probabilities over its length to the power ``length_penalty``; the search ends when as many answers as beams have
ended and the best running beam, were it to end now, would be no better than the worst of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from graftlm.errors import UserError
from graftlm.generation.requests import SamplingSettings, TokenEvent
from graftlm.generation.rows import Row, choose_tokens
from graftlm.generation.sampling import RowSettings

_NEVER = -1e9  # added to the scores of what must not be chosen


@dataclass(frozen=True)
class _Answer:
    score: float
    tokens: list[int]
    log_probs: list[float]


@dataclass(eq=False)
class Search:
    """The search of one request. ``rows``: its beams, best first; ``scores``: their log-probabilities so far."""

    rows: list[Row]
    scores: torch.Tensor = field(init=False)
    ended: list[_Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        # All beams begin alike: the first alone counts, or the same tokens would be taken from each.
        self.scores = torch.full((len(self.rows),), _NEVER, dtype=torch.float64)
        self.scores[0] = 0.0
        for row in self.rows:
            row.search = self

    def advance(self, logits: torch.Tensor) -> tuple[list[int], list[TokenEvent]]:
        """Go on from logits (beams, vocabulary): which beam each one goes on from now; or the answers at the end."""
        rows, count, first = self.rows, len(self.rows), self.rows[0]
        log_probs = logits.log_softmax(-1)
        if not bool(torch.isfinite(logits.logsumexp(-1)).all()):
            return [], [row.add(0, float("nan")) for row in rows[: first.sampling.n]]
        totals = (log_probs + self.scores[:, None].to(log_probs)).flatten()
        kept = min(max(2, 1 + len(first.stop_ids)) * count, len(totals))
        best = totals.topk(kept)
        own = log_probs.flatten()[best.indices].tolist()
        vocabulary, length = logits.shape[1], len(first.tokens) + 1
        per = (length + max(len(first.start) - 1, 0)) ** first.sampling.length_penalty  # a forced token counts
        parents = [index // vocabulary for index in best.indices.tolist()]
        tokens = [index % vocabulary for index in best.indices.tolist()]
        ends = [token in first.stop_ids or length >= first.limit for token in tokens]
        scores = best.values.tolist()
        for number in range(min(count, kept)):
            if ends[number]:
                parent = rows[parents[number]]
                self.ended.append(
                    _Answer(
                        scores[number] / per,
                        [*parent.tokens, tokens[number]],
                        [*parent.log_probs, own[number]],
                    )
                )
        self.ended = sorted(self.ended, key=lambda answer: -answer.score)[:count]
        running = [score + _NEVER * end for score, end in zip(scores, ends, strict=True)]
        going_on = torch.tensor(running, dtype=torch.float64).topk(count)
        self.scores = going_on.values
        chosen = going_on.indices.tolist()
        full = len(self.ended) == count
        if all(ends) or (full and float(self.scores[0]) / per <= self.ended[-1].score):
            return [], self._answers()
        before = [(row.tokens, row.log_probs) for row in rows]
        for row, number in zip(rows, chosen, strict=True):
            written, likely = before[parents[number]]
            row.tokens, row.log_probs = [*written, tokens[number]], [*likely, own[number]]
        return [parents[number] for number in chosen], []

    def _answers(self) -> list[TokenEvent]:
        """The last event of each answer, the best first."""
        found = []
        for row, answer in zip(self.rows[: self.rows[0].sampling.n], self.ended, strict=False):
            row.tokens, row.log_probs = [], []
            events = [row.add(*each) for each in zip(answer.tokens, answer.log_probs, strict=True)]
            found.append(replace(events[-1], text="".join(event.text for event in events)))
        return found


def check_beams(sampling: SamplingSettings, most: int) -> None:
    """See that a request's beams go into ``most`` rows.

    Raises:
        UserError: they do not.
    """
    if sampling.num_beams > max(most, 1):
        raise UserError(
            f"num_beams is {sampling.num_beams}, but at most {most} rows are decoded together",
            hint="Lower num_beams, or raise max_batch_rows.",
        )


@dataclass(frozen=True)
class Chosen:
    """What came of a step: events; the numbers of rows that are ``done``; for beams that go on from another row, which.

    ``depth``: in how many of their newest tokens beams may differ.
    """

    events: list[TokenEvent]
    done: list[int]
    moves: dict[int, int]
    depth: int


def choose_or_search(rows: Sequence[Row], settings: RowSettings | None, logits: torch.Tensor) -> Chosen:
    """The next token of every row, or the next step of its search.

    logits (rows, vocabulary). ``settings`` of all rows; None lets them be made.
    """
    numbers: dict[Search, list[int]] = {}
    single = []
    for number, row in enumerate(rows):
        if row.search is None:
            single.append(number)
        else:
            numbers.setdefault(row.search, []).append(number)
    events: list[TokenEvent] = []
    done: list[int] = []
    moves: dict[int, int] = {}
    depth = 0
    if single:
        chosen, own = list(rows), logits
        if numbers or settings is None:
            chosen = [rows[number] for number in single]
            settings = RowSettings.of([row.sampling for row in chosen], logits.device)
            own = logits[single] if numbers else logits
        events = choose_tokens(chosen, settings, own)
        done = [number for number, event in zip(single, events, strict=True) if event.completion is not None]
    for search, found in numbers.items():
        where = {id(rows[number]): number for number in found}
        order = [where[id(row)] for row in search.rows]
        depth = max(depth, len(search.rows[0].tokens))
        parents, last = search.advance(logits[order])
        events += last
        done += order if last else []
        moves |= {order[n]: order[parent] for n, parent in enumerate(parents) if n != parent}
    return Chosen(events, done, moves, depth)
