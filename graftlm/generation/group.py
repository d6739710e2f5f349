"""Requests that are decoded together: their state, their key/value cache, and one step of the model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import DynamicCache

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.errors import UserError
from graftlm.generation.requests import Completion, FinishReason, RequestId, SamplingSettings, TokenEvent
from graftlm.generation.sampling import RowSettings, choose, uniform
from graftlm.generation.text import TextStream


@dataclass
class Row:
    """A running request. ``room``: how many tokens the context has left after the prompt."""

    id: RequestId
    prompt: tuple[int, ...]
    stack: Stack
    sampling: SamplingSettings
    seed: int
    stop_ids: frozenset[int]
    room: int
    stream: TextStream | None
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """The most new tokens that it can get."""
        return min(self.sampling.max_new_tokens, self.room)

    def add(self, token: int, log_prob: float) -> TokenEvent:
        """Take a new token in."""
        self.tokens.append(token)
        self.log_probs.append(log_prob)
        text = ""
        reason: FinishReason | None = None
        if token in self.stop_ids:
            reason = "stop"
        elif self.stream is not None:
            text = self.stream.push(token)
        if reason is None and len(self.tokens) >= self.limit:
            reason = "length" if self.sampling.max_new_tokens <= self.room else "context"
        if self.stream is not None:
            if reason is not None:
                text += self.stream.finish()
            if self.stream.stopped:
                reason = "stop"
        completion = None if reason is None else self._completion(reason)
        return TokenEvent(self.id, token, log_prob, text, completion)

    def cancel(self) -> TokenEvent:
        """The last event of a request that is stopped from outside."""
        text = self.stream.finish() if self.stream is not None else ""
        return TokenEvent(self.id, None, None, text, self._completion("cancelled"))

    def _completion(self, reason: FinishReason) -> Completion:
        text = self.stream.text if self.stream is not None else None
        return Completion(self.id, tuple(self.tokens), text, reason, tuple(self.log_probs))


class Group:
    """Rows that run together. Left-padded, so that the newest token of every row is in the last column."""

    def __init__(self, rows: list[Row], model: AdaptedModel) -> None:
        device = model.device
        self.rows = rows
        self._cache = DynamicCache(config=model.base.config)
        self._width = max(len(row.prompt) for row in rows)  # columns, those of the next step included
        columns = self._width + max(row.limit for row in rows)
        lengths = torch.tensor([len(row.prompt) for row in rows])
        padding = self._width - lengths
        #: What the next step reads, (rows, n): the prompts first, then one token a row.
        self._input = torch.zeros(len(rows), self._width, dtype=torch.int64)
        for number, row in enumerate(rows):
            self._input[number, int(padding[number]) :] = torch.tensor(row.prompt)
        self._positions = (torch.arange(self._width) - padding[:, None]).clamp(min=0)
        # Without padding no mask is needed, and attention without one is the fast one.
        self._mask: torch.Tensor | None = None
        if bool(padding.any()):
            self._mask = (torch.arange(columns) >= padding[:, None]).to(torch.int64).to(device)
        self._seen: torch.Tensor | None = None
        if any(row.sampling.repetition_penalty != 1.0 for row in rows):
            # Columns that hold no token of the row yet hold none that the model writes: it is penalised nowhere.
            self._seen = torch.full((len(rows), columns), model.vocabulary)
            self._seen[:, : self._width] = torch.where(
                torch.arange(self._width) >= padding[:, None], self._input, model.vocabulary
            )
            self._seen = self._seen.to(device)
        self._input, self._positions = self._input.to(device), self._positions.to(device)
        self._settings = RowSettings.of([row.sampling for row in rows], device)

    def advance(self, model: AdaptedModel) -> list[TokenEvent]:
        """Run the model on what is new, choose a token for every row, and let finished rows go."""
        logits = self._next_logits(model)
        uniforms = torch.zeros(len(self.rows), dtype=torch.float64)
        for number, row in enumerate(self.rows):
            if row.sampling.temperature > 0:
                uniforms[number] = uniform(row.seed, len(row.tokens))
        seen = None if self._seen is None else self._seen[:, : self._width]
        tokens, log_probs = choose(logits, self._settings, uniforms.to(logits.device), seen)
        if not bool(log_probs.isfinite().all()):
            bad = self.rows[int((~log_probs.isfinite()).nonzero()[0])]
            who = f"adapter {' + '.join(bad.stack)}" if bad.stack else "the base"
            raise UserError(
                f"{who} gives logits that are not finite (request {bad.id!r}, new token {len(bad.tokens) + 1})",
                hint="Its weights probably hold NaN or are far too large.",
            )
        events = [
            row.add(token, log_prob)
            for row, token, log_prob in zip(self.rows, tokens.tolist(), log_probs.tolist(), strict=True)
        ]
        if self._seen is not None:
            self._seen[:, self._width] = tokens
        self._input, self._positions = tokens[:, None], self._positions[:, -1:] + 1
        self._width += 1
        if any(event.completion is not None for event in events):
            self.keep([number for number, event in enumerate(events) if event.completion is None])
        return events

    def keep(self, numbers: list[int]) -> None:
        """Go on with these rows only."""
        self.rows = [self.rows[number] for number in numbers]
        if not self.rows:
            return
        index = torch.tensor(numbers, device=self._input.device)
        if self._cache.get_seq_length():
            self._cache.batch_select_indices(index)
        self._input, self._positions = self._input[index], self._positions[index]
        self._mask = None if self._mask is None else self._mask[index]
        self._seen = None if self._seen is None else self._seen[index]
        self._settings = RowSettings.of([row.sampling for row in self.rows], self._input.device)

    def _next_logits(self, model: AdaptedModel) -> torch.Tensor:
        """Logits (rows, vocabulary) of every row's next token, in float32 or wider."""
        stacks = [row.stack for row in self.rows]
        states = model.hidden(
            self._input,
            None if self._mask is None else self._mask[:, : self._width],
            adapters=Routing.of_rows(stacks, self._input.shape[1]),
            past_key_values=self._cache,
            position_ids=self._positions,
            use_cache=True,
        ).last_hidden_state
        logits = model.score(states[:, -1], Routing.of_rows(stacks, 1))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
