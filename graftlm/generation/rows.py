"""Rows: requests as they run, what they have got so far, and the choice of their next tokens."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from graftlm.adapters.routing import Stack
from graftlm.generation.constraints import Constraint
from graftlm.generation.requests import Completion, FinishReason, RequestId, SamplingSettings, TokenEvent
from graftlm.generation.sampling import Allowed, RowSettings, choose_and_tell, top_log_probs, uniform
from graftlm.generation.text import TextStream

if TYPE_CHECKING:
    from graftlm.generation.beams import Search


@dataclass(eq=False)
class Row:
    """A running request, or one of its samples (``index``).

    ``prompt``: with the virtual tokens of its adapters, ``added`` of which were put in front. ``start``: what the
    decoder of an encoder-decoder begins with, whose encoder reads the prompt. ``room``: how many tokens the context has
    left. ``search``: the beam search that it is a beam of; those beyond the number of answers give no events.
    ``key``: its adapters and their versions when its prompt was begun.
    """

    id: RequestId
    index: int
    prompt: tuple[int, ...]
    added: int
    stack: Stack
    sampling: SamplingSettings
    seed: int
    stop_ids: frozenset[int]
    room: int
    stream: TextStream | None
    start: tuple[int, ...] = ()
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    drawn_log_probs: list[float] = field(default_factory=list)
    top_log_probs: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    prompt_log_probs: list[float | None] | None = None
    search: Search | None = field(default=None, repr=False)
    key: Hashable = None

    @property
    def limit(self) -> int:
        """The most new tokens that it can get."""
        return min(self.sampling.max_new_tokens, self.room)

    @property
    def places(self) -> int:
        """How many tokens its keys and values may take."""
        return len(self.prompt) + len(self.start) + self.limit

    @property
    def columns(self) -> int:
        """How many of them stand in the table that new tokens go to."""
        return self.places - len(self.prompt) if self.start else self.places

    @property
    def history(self) -> tuple[int, ...]:
        """The tokens that it goes on from, as penalties count them: in an encoder-decoder, the decoder's."""
        return (*(self.start or self.prompt), *self.tokens)

    @property
    def together(self) -> list[Row]:
        """The rows that come and go with it: all beams of its search, or itself."""
        return [self] if self.search is None else self.search.rows

    @property
    def position(self) -> int:
        """That of its newest token."""
        return len(self.prompt) + len(self.tokens) - 1

    def add(
        self, token: int, log_prob: float, top: tuple[tuple[int, float], ...] = (), drawn: float = 0.0
    ) -> TokenEvent:
        """Take a new token in. ``drawn``: its log-probability under what it was drawn from, 0 if nothing is drawn."""
        if not math.isfinite(log_prob):
            return self.fail(f"{_whose(self.stack)} gives logits that are not finite")
        if token < 0:
            bound = self.constraint
            return self.fail(bound.error if bound is not None and bound.error else "its settings allow no token at all")
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        self.drawn_log_probs.append(drawn)
        if top:
            self.top_log_probs.append(top)
        if self.constraint is not None:
            self.constraint.accept(token)
        text = ""
        reason: FinishReason | None = None
        if token in self.stop_ids:
            reason = "stop"
        elif self.stream is not None:
            text = self.stream.push(token)
        if self.constraint is not None and self.constraint.done:
            reason = "stop"
        if reason is None and len(self.tokens) >= self.limit:
            reason = "length" if self.sampling.max_new_tokens <= self.room else "context"
        if self.stream is not None:
            if reason is not None:
                text += self.stream.finish()
            if self.stream.stopped:
                reason = "stop"
        completion = None if reason is None else self._completion(reason)
        return TokenEvent(self.id, token, log_prob, text, completion, self.index, top)

    def cancel(self) -> TokenEvent:
        """The last event of a request that is stopped from outside."""
        return self._end("cancelled")

    def fail(self, error: str) -> TokenEvent:
        """The last event of a request that cannot go on, and why."""
        return self._end("error", error)

    def _end(self, reason: FinishReason, error: str | None = None) -> TokenEvent:
        text = ""
        if self.stream is not None:
            beam = self.tokens if self.search is not None else ()  # its text was not read as it came: it might change
            text = "".join(map(self.stream.push, beam)) + self.stream.finish()
        return TokenEvent(self.id, None, None, text, self._completion(reason, error), self.index)

    def _completion(self, reason: FinishReason, error: str | None = None) -> Completion:
        prompt = self.prompt_log_probs
        return Completion(
            self.id,
            tuple(self.tokens),
            self.stream.text if self.stream is not None else None,
            reason,
            tuple(self.log_probs),
            index=self.index,
            top_log_probs=tuple(self.top_log_probs),
            prompt_log_probs=None if prompt is None else tuple(prompt[self.added :]),
            error=error,
            drawn_log_probs=tuple(self.drawn_log_probs),
        )


def _whose(stack: Stack) -> str:
    return "the base alone" if not stack else f"the adapter {' + '.join(stack)}"


def choose_tokens(rows: Sequence[Row], settings: RowSettings, logits: torch.Tensor) -> list[TokenEvent]:
    """The next token of every row; logits (rows, vocabulary) → an event for each."""
    uniforms = torch.zeros(len(rows), dtype=torch.float64)
    for number, row in enumerate(rows):
        if row.sampling.temperature > 0:
            uniforms[number] = uniform(row.seed, len(row.tokens))
    history = generated = None
    if settings.penalised:
        history = _padded([row.history for row in rows], logits.shape[1]).to(logits.device)
    if settings.counted:
        generated = _padded([row.tokens for row in rows], logits.shape[1]).to(logits.device)
    uniforms = uniforms.to(logits.device)
    chosen = choose_and_tell(logits, settings, uniforms, history, generated, _allowed(rows, logits))
    tokens, log_probs, drawn = (each.tolist() for each in chosen)
    top = top_log_probs(logits, settings)
    return [
        row.add(tokens[number], log_probs[number], top.get(number, ()), drawn[number])
        for number, row in enumerate(rows)
    ]


def _allowed(rows: Sequence[Row], logits: torch.Tensor) -> Allowed | None:
    """What the constraints of the rows allow now."""
    bound = {number: row.constraint for number, row in enumerate(rows) if row.constraint is not None}
    if not bound:
        return None
    bits = torch.zeros(len(bound), -(-logits.shape[1] // 32), dtype=torch.int32)
    for constraint, own in zip(bound.values(), bits, strict=True):
        constraint.mask_into(own)
    return Allowed(list(bound), bits.to(logits.device))


def _padded(ids: Sequence[Sequence[int]], padding: int) -> torch.Tensor:
    """Ids of unequal number as (rows, most), filled up with ``padding``."""
    most = max(len(own) for own in ids)
    return torch.tensor([[*own, *[padding] * (most - len(own))] for own in ids], dtype=torch.int64)
