"""The engine: requests in, tokens out; every adapter from one copy of the base.

Simple inside so far: waiting requests are taken in groups; a group is prefilled left-padded and decoded together,
rows of any adapters in one step, and finished rows leave it. Callers see requests, events and completions only.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Generator, Iterable, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import as_stack
from graftlm.errors import UserError
from graftlm.generation.group import Group, Row
from graftlm.generation.requests import Completion, Request, RequestId, TokenEvent
from graftlm.generation.text import TextStream


class Engine:
    """Makes text with a model and any of its adapters.

    ``max_batch_rows``: requests decoded together. ``max_batch_tokens``: bound on the key/value cache, counted as
    rows × (longest prompt + most new tokens); one request may exceed it alone. Neither changes what a request gets.
    Not for several threads at once.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_batch_rows: int = 32,
        max_batch_tokens: int = 16384,
    ) -> None:
        if max_batch_rows < 1 or max_batch_tokens < 1:
            raise UserError("max_batch_rows and max_batch_tokens must be at least 1")
        if model.kind != "decoder":
            raise UserError(
                f"{model.name} is an {model.kind}, and only decoders write text here",
                hint="Its adapters can be trained, scored and compared: graftlm train, graftlm compare."
                if model.kind == "encoder-decoder"
                else "Its adapters predict labels: graftlm generate FILE --adapter FOLDER --out FILE",
            )
        self.model = model
        self.tokenizer = tokenizer if tokenizer is not None else model.tokenizer
        self.max_batch_rows = max_batch_rows
        self.max_batch_tokens = max_batch_tokens
        self._waiting: deque[Row] = deque()
        self._group: Group | None = None
        self._events: list[TokenEvent] = []  # made, but not given to anyone yet
        self._numbered = 0

    @property
    def busy(self) -> bool:
        """Whether a step would do or give anything."""
        return bool(self._waiting or self._group or self._events)

    def submit(self, request: Request) -> RequestId:
        """Take a request in; gives its id. Tokens come from :meth:`step`.

        Raises:
            UserError: an unknown adapter, an empty prompt, one that fills the context, an id that is no token, or a
                request's id in use.
        """
        return self._submit([request])[0]

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """Run the model once and give what came of it: a token for each running request.

        Raises:
            UserError: logits are not finite, or an adapter was removed while it ran. The group that ran is
                dropped then; what waits goes on.
        """
        events, self._events = self._events, []
        group, self._group = self._group, None  # an error (or Ctrl-C) on the way leaves no half-done step
        if group is None and self._waiting:
            group = Group(self._next_rows(), self.model)
        if group is not None:
            events += group.advance(self.model)
            self._group = group if group.rows else None
        return events

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; its last event, with what there is so far, comes next. One that is done stays done."""
        for row in [row for row in self._waiting if row.id == request_id]:
            self._waiting.remove(row)
            self._events.append(row.cancel())
        if self._group is not None and request_id in {row.id for row in self._group.rows}:
            rows = self._group.rows
            self._events += [row.cancel() for row in rows if row.id == request_id]
            self._group.keep([number for number, row in enumerate(rows) if row.id != request_id])
            self._group = self._group if self._group.rows else None

    def stream(self, requests: Request | Iterable[Request]) -> Generator[TokenEvent, None, None]:
        """Run one or more requests and give their events as they come. Leaving the loop cancels what is open.

        Raises:
            UserError: as :meth:`submit` and :meth:`step`.
        """
        open_ids = set(self._submit([requests] if isinstance(requests, Request) else list(requests)))
        try:
            while open_ids:
                if not self.busy:
                    raise UserError("a request was dropped by an error in a step; submit it again")
                events = self.step()
                self._events += [event for event in events if event.request_id not in open_ids]
                for event in [event for event in events if event.request_id in open_ids]:
                    if event.completion is not None:
                        open_ids.discard(event.request_id)
                    yield event
        finally:
            for request_id in open_ids:
                self.cancel(request_id)
            self._events = [event for event in self._events if event.request_id not in open_ids]

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their end. Completions come in the order of the requests.

        Raises:
            UserError: as :meth:`stream`.
        """
        numbered = [self._with_id(request) for request in requests]
        done = {event.request_id: event.completion for event in self.stream(numbered) if event.completion is not None}
        return [done[request.id] for request in numbered if request.id is not None]

    def _with_id(self, request: Request) -> Request:
        if request.id is not None:
            return request
        self._numbered += 1
        return Request(request.prompt_ids, request.adapters, request.sampling, f"#{self._numbered}")

    def _submit(self, requests: Sequence[Request]) -> list[RequestId]:
        """All of them or none. Prompts of like length run together, the longest first: memory peaks early."""
        rows = [self._row(self._with_id(request)) for request in requests]
        running = self._group.rows if self._group is not None else []
        used = {row.id for row in (*self._waiting, *running)}
        for row in rows:
            if row.id in used:
                raise UserError(f"there is already a request with the id {row.id!r}")
            used.add(row.id)
        self._waiting.extend(sorted(rows, key=lambda row: -len(row.prompt)))
        return [row.id for row in rows]

    def _row(self, request: Request) -> Row:
        """Check a request and make its state."""
        self.model.routing(request.adapters, 1, 1)  # an unknown adapter is an error now, not in the middle
        head = self.model.head_of(as_stack(request.adapters))
        if head is not None:
            raise UserError(
                f"the adapter '{head}' has a head of its own: it predicts labels, and writes no text",
                hint="Ask it for labels: graftlm generate FILE --adapter FOLDER --out FILE",
            )
        context = self.model.context_length - self.model.prefix_length(as_stack(request.adapters))
        sampling, tokenizer = request.sampling, self.tokenizer
        if not request.prompt_ids:
            raise UserError("the prompt is empty", hint="Give at least one token, such as the beginning of sequence.")
        prompt = self.model.with_virtual_tokens(request.prompt_ids, request.adapters)
        length, virtual = len(prompt), len(prompt) - len(request.prompt_ids)
        if length >= context:
            beside = f" beside {virtual:,} virtual tokens of its adapters" if virtual else ""
            whose = "of the model" if context == self.model.context_length else "that its prefix leaves"
            raise UserError(
                f"the prompt has {length - virtual:,} tokens{beside}, but the context {whose} is {context:,}: "
                f"there is no room for an answer",
                hint=f"Shorten it to at most {max(0, context - virtual - 1):,} tokens.",
            )
        if sampling.stop and tokenizer is None:
            raise UserError("stop texts need a tokenizer: Engine(model, tokenizer)")
        stop_ids = sampling.stop_ids
        if stop_ids is None:
            end = tokenizer.eos_token_id if tokenizer is not None else None
            stop_ids = (end,) if isinstance(end, int) else ()
        assert request.id is not None
        return Row(
            id=request.id,
            prompt=prompt,
            stack=as_stack(request.adapters),
            sampling=sampling,
            seed=secrets.randbits(63) if sampling.seed is None else sampling.seed,
            stop_ids=frozenset(stop_ids),
            room=context - length,
            stream=TextStream(tokenizer, sampling.stop) if tokenizer is not None else None,
        )

    def _next_rows(self) -> list[Row]:
        """The oldest waiting requests that fit together, those of one routing side by side."""
        rows: list[Row] = []
        longest = most = 0
        while self._waiting and len(rows) < self.max_batch_rows:
            row = self._waiting[0]
            longest, most = max(longest, len(row.prompt)), max(most, row.limit)
            if rows and (len(rows) + 1) * (longest + most) > self.max_batch_tokens:
                break
            rows.append(self._waiting.popleft())
        return sorted(rows, key=lambda row: row.stack)
