"""The engine: requests in, tokens out; every adapter of every kind from one copy of the base.

Rows join and leave at any step. A step makes one token for every row that runs, in one pass of the model whatever
their adapters, and reads on in the prompts that wait, at most ``prefill_tokens`` of them, so that others keep
streaming.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedTokenizerBase

from graftlm.adapters.attention import OurAttention
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.base.memory import available_memory, is_out_of_memory
from graftlm.errors import UserError
from graftlm.generation.admission import Admission
from graftlm.generation.beams import choose_or_search
from graftlm.generation.cache import Piece, token_bytes
from graftlm.generation.prefill import Job, Read, plan, read
from graftlm.generation.prefixes import BLOCK, PrefixStore, chain
from graftlm.generation.requests import Completion, Request, RequestId, TokenEvent
from graftlm.generation.rows import Row
from graftlm.generation.shelf import Shelf, owner
from graftlm.generation.slots import Slots
from graftlm.generation.sources import decoder_start, read_sources, source_token_bytes
from graftlm.generation.statistics import Statistics
from graftlm.generation.turns import Turn
from graftlm.generation.waiting import Waiting

_ALONE = 4  # times prefill_tokens are read at once while no row runs that would have to wait
_SHARE = 0.5  # of the free memory, for keys and values
_PREFIX_SHARE = 0.25  # of what keys and values may take, for prompts that were read before


class Engine:
    """Makes text with a model and any of its adapters.

    ``max_batch_rows``: requests decoded together. ``cache_tokens``: how many tokens keys and values are kept for,
    counted as rows × (longest prompt + most new tokens); by default what half of the free memory holds. A request that
    does not fit now waits; one that never would is refused. ``prefill_tokens``: how much of prompts a step reads while
    others run. ``keep_answers``: answers can be gone on from as well as prompts, as in a chat. ``adapter_bytes``: how
    much memory adapters may take (:class:`graftlm.generation.shelf.Shelf`). None of these changes what a request gets.
    For one thread at a time; others may cancel.
    """

    def __init__(
        self,
        model: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_batch_rows: int = 32,
        cache_tokens: int | None = None,
        prefill_tokens: int = 512,
        keep_answers: bool = False,
        adapter_bytes: int | None = None,
    ) -> None:
        if max_batch_rows < 1 or prefill_tokens < 1 or (cache_tokens is not None and cache_tokens < 1):
            raise UserError("max_batch_rows, cache_tokens and prefill_tokens must be at least 1")
        if model.kind == "encoder":
            raise UserError(
                f"{model.name} is an encoder, which writes no text",
                hint="Its adapters predict labels: graftlm generate FILE --adapter FOLDER --out FILE",
            )
        self.model = model
        self.tokenizer = tokenizer if tokenizer is not None else model.tokenizer
        self.max_batch_rows = max_batch_rows
        self.prefill_tokens = prefill_tokens
        self.keep_answers = keep_answers
        self._start = decoder_start(model)
        size = source_token_bytes(model, self._start) if self._start else token_bytes(model)
        free = available_memory(model.device)
        most = max_batch_rows * model.context_length * (2 if self._start else 1)
        self.cache_tokens = cache_tokens or max(min(int(_SHARE * free) // size, most), 1)
        self.prefixes = PrefixStore(int(_PREFIX_SHARE * self.cache_tokens * size))
        self.statistics = Statistics()
        #: The adapters that requests can name: add, replace and remove them here, between steps.
        self.adapters = Shelf(
            model,
            adapter_bytes,
            self.statistics,
            running=lambda: {row.stack for row in self._begun()},
            waiting=lambda: self._waiting.stacks,
            reroute=self._reroute,
            forget=self._forget,
        )
        self._waiting = Waiting()
        self._jobs: list[Job] = []
        self._slots = Slots(model, self.cache_tokens)
        self._events: list[TokenEvent] = []  # made, but not given to anyone yet
        self._numbered = 0
        self._attention = OurAttention(model.places)
        self._turn = Turn()

    @property
    def busy(self) -> bool:
        """Whether a step would do or give anything."""
        return bool(self._waiting or self._jobs or self._slots.running or self._events)

    def submit(self, request: Request) -> RequestId:
        """Take a request in; gives its id. Tokens come from :meth:`step`.

        Raises:
            UserError: an unknown adapter, an empty prompt, one that fills the context, more than there is memory for,
                an id that is no token, or a request's id in use.
        """
        return self._submit([request])[0]

    @torch.no_grad()
    def step(self) -> list[TokenEvent]:
        """Make the next token of every row that runs, and read on in prompts; gives what came of it.

        What goes wrong with one request ends that request, with ``error`` in its completion.
        """
        with self._turn.work():
            events, self._events = self._events, []
            try:
                with self._attention:
                    events += self._end_orphans()
                    self._slots.close_up()
                    if self._slots.rows:
                        events += self._decode()
                    events += self._admit()
                    if self._jobs:
                        events += self._prefill()
                    self._slots.close_up()
                    self.adapters.collect()
            except BaseException as error:  # Ctrl-C for one: rows may be half through the step, and cannot go on
                why = f"the step was broken off: {error or type(error).__name__}"
                self._events = [*events, *self._drop(self._begun(), why)]
                raise
            return events

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; its last event, with what there is so far, comes next. One that is done stays done."""
        with self._turn.stop():
            self._events += self._drop(self._rows_of(request_id))
            self.adapters.collect()

    def abandon(self, request_ids: Collection[RequestId]) -> None:
        """Stop requests whose events nobody wants any more."""
        with self._turn.stop():
            self._drop([row for request_id in request_ids for row in self._rows_of(request_id)])
            self.adapters.collect()
            self._events = [event for event in self._events if event.request_id not in request_ids]

    def end_all(self, error: str | None = None) -> list[TokenEvent]:
        """Stop everything: cancelled, or with an error. Gives the last events, and those that no step has given yet."""
        with self._turn.stop():
            events, self._events = [*self._events, *self._drop(self._all_rows(), error)], []
            self.adapters.collect()
            return events

    def stream(self, requests: Request | Iterable[Request]) -> Generator[TokenEvent, None, None]:
        """Run one or more requests and give their events as they come. Leaving the loop cancels what is open.

        Raises:
            UserError: as :meth:`submit`.
        """
        given = [requests] if isinstance(requests, Request) else list(requests)
        ids = self._submit(given)
        open_ids = {request_id: request.sampling.n for request_id, request in zip(ids, given, strict=True)}
        try:
            while open_ids:
                if not self.busy:
                    raise UserError(
                        f"another caller of step() took the events of the request {next(iter(open_ids))!r}",
                        hint="Take events by stream and run, or by step, not by both; or use AsyncEngine.",
                    )
                events = self.step()
                self._events += [event for event in events if event.request_id not in open_ids]
                for event in [event for event in events if event.request_id in open_ids]:
                    if event.completion is not None:
                        open_ids[event.request_id] -= 1
                        if not open_ids[event.request_id]:
                            del open_ids[event.request_id]
                    yield event
        finally:
            self.abandon(open_ids)

    def run(self, requests: Sequence[Request]) -> list[Completion]:
        """Run requests to their end. Completions come in the order of the requests, ``n`` for each.

        Raises:
            UserError: as :meth:`submit`. What goes wrong later is in the completion's ``error``.
        """
        numbered = [self._with_id(request) for request in requests]
        done = {
            (event.request_id, event.completion.index): event.completion
            for event in self.stream(numbered)
            if event.completion is not None
        }
        return [done[id_, k] for r in numbered if (id_ := r.id) is not None for k in range(r.sampling.n)]

    # --- taking requests in -------------------------------------------------------------------------------------

    def _with_id(self, request: Request) -> Request:
        if request.id is not None:
            return request
        self._numbered += 1
        return replace(request, id=f"#{self._numbered}")

    def _submit(self, requests: Sequence[Request]) -> list[RequestId]:
        """All of them or none. The longest first, so that none is left over at the end and memory peaks early."""
        given = [self._with_id(request) for request in requests]
        with self._turn.work():
            admission = Admission(
                self.model, self.adapters, self.tokenizer, self.cache_tokens, self.max_batch_rows, self._start
            )
            rows = [admission.rows(request) for request in given]
            used = {row.id for row in self._begun()}
            for own in rows:
                if own[0].id in used or self._waiting.of(own[0].id):
                    raise UserError(f"there is already a request with the id {own[0].id!r}")
                used.add(own[0].id)
            rows_first = sorted(rows, key=lambda own: (-own[0].limit, -len(own[0].prompt)))
            self._waiting.extend(row for own in rows_first for row in own)
            return [own[0].id for own in rows]

    def _admit(self) -> list[TokenEvent]:
        """Give waiting requests their slots, in order, as long as they fit; gives the errors of those that cannot."""
        events: list[TokenEvent] = []
        running = self._begun()
        slots, longest = len(running), max((row.places for row in running), default=0)
        while self._waiting and slots < self.max_batch_rows:
            row = self._waiting.first
            widest, together = max(longest, row.places), len(row.together)
            if slots and (slots + together > self.max_batch_rows or (slots + together) * widest > self.cache_tokens):
                break
            try:
                if not self.adapters.bring(row.stack):
                    break
            except Exception as error:
                if not isinstance(error, UserError) and not is_out_of_memory(error):
                    raise
                events += self._drop(row.together, str(error))
                continue
            longest, slots, rows = widest, slots + together, list(row.together)
            self._waiting.remove(rows)
            key = self._key(row.stack)
            for each in rows:
                each.key = key
            same = next((job for job in self._jobs if job.takes(row, key)), None)
            if same is not None:
                same.rows += rows
            else:
                self._jobs.append(Job(rows, key, [] if row.start else chain(key, row.prompt)))
        return events

    def _key(self, stack: Stack) -> Hashable:
        """What decides about the keys and values of tokens: the adapters, and their versions."""
        return tuple((name, self.model.version(name)) for name in stack)

    # --- a step -----------------------------------------------------------------------------------------------------

    def _decode(self) -> list[TokenEvent]:
        """One token for each row that runs."""
        rows = self._slots.rows
        try:
            self._slots.make_room()
            logits = self._slots.forward()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            largest = max(rows, key=lambda row: row.position)
            return self._drop(largest.together, _no_memory((*largest.prompt, *largest.tokens), error))
        self._count(len(rows))
        chosen = choose_or_search(rows, self._slots.settings, logits)
        if self.keep_answers and not self._start:
            for slot in chosen.done:
                if rows[slot].search is None:  # a beam's answer may have ended in another slot
                    self._keep(rows[slot], self._slots.piece(slot))
        self._slots.reorder(chosen.moves, chosen.depth)
        self._slots.leave(chosen.done)
        return chosen.events

    def _keep(self, row: Row, piece: Piece) -> None:
        """Keep what was computed of a row for requests that go on from its answer; nothing if its adapters changed."""
        ids = (*row.prompt, *row.tokens[:-1])
        if row.key == self._key(row.stack):
            self.prefixes.add(row.key, ids, chain(row.key, ids), piece.cut(len(ids)))

    def _count(self, rows: int) -> None:
        self.statistics.steps += 1
        self.statistics.row_steps += rows
        if self._waiting:
            self.statistics.waiting_steps += 1
            self.statistics.waiting_row_steps += rows

    def _prefill(self) -> list[TokenEvent]:
        """Read on in some prompts; those that are through get their first token, and join the table."""
        tokens = self.prefill_tokens * (1 if self._slots.rows else _ALONE)
        for job in self._jobs:
            if job.piece is None and not job.wants_log_probs and not job.whole:
                found = self.prefixes.find(job.key, job.prompt, job.blocks[: (len(job.prompt) - 1) // BLOCK])
                if found is not None:
                    job.piece = found
                    self.statistics.reused += found.length
        jobs = plan(self._jobs, tokens)
        while True:
            before = sum(job.rest for job in jobs)
            try:
                result = read_sources(self.model, jobs) if self._start else read(self.model, jobs, tokens)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(jobs) == 1:
                    return self._drop(list(jobs[0].rows), _no_memory(jobs[0].prompt, error))
                jobs = jobs[: len(jobs) // 2]
        self.statistics.read += before - sum(job.rest for job in jobs)
        events = self._begin(result) if result.done else []
        # What is not through goes behind the others, so that a long prompt does not hold up short ones.
        self._jobs = [job for job in self._jobs if job not in jobs] + [job for job in jobs if job not in result.done]
        return events

    def _begin(self, result: Read) -> list[TokenEvent]:
        """Choose the first tokens of the rows whose prompts are read, and let those that go on join the table."""
        rows = [row for job in result.done for row in job.rows]
        which = torch.tensor([number for number, job in enumerate(result.done) for _ in job.rows])
        chosen = choose_or_search(rows, None, result.logits[which.to(result.logits.device)])
        for job in result.done:
            assert job.piece is not None
            self.prefixes.add(job.key, job.prompt, job.blocks, job.piece)
        joining = [
            (row, piece)
            for place, (row, number) in enumerate(zip(rows, which.tolist(), strict=True))
            if place not in chosen.done and (piece := result.done[number].piece) is not None
        ]
        try:
            self._slots.join(joining)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            largest = max((row for row, _ in joining), key=lambda row: row.places)
            return [*chosen.events, *self._drop([row for row, _ in joining], _no_memory(largest.prompt, error))]
        return chosen.events

    # --- rows come and go -------------------------------------------------------------------------------------------

    def _all_rows(self) -> list[Row]:
        """Those that run, are read and wait."""
        return [*self._begun(), *self._waiting]

    def _rows_of(self, request_id: RequestId) -> list[Row]:
        return [*(row for row in self._begun() if row.id == request_id), *self._waiting.of(request_id)]

    def _begun(self) -> list[Row]:
        """Those that run or are read."""
        return [*self._slots.running, *(row for job in self._jobs for row in job.rows)]

    def _reroute(self, old: str, new: str) -> None:
        """Serve the rows of an adapter under another name of it."""
        for row in self._all_rows():
            row.stack = tuple(new + name.removeprefix(old) if owner(name) == old else name for name in row.stack)
        self._waiting = Waiting(self._waiting)
        for job in self._jobs:
            key = self._key(job.stack)
            if job.key != key:
                job.key, job.blocks = key, []  # nothing will go on from it

    def _forget(self, adapter: str) -> None:
        """Drop what was computed with an adapter."""

        def with_it(key: Hashable) -> bool:
            return isinstance(key, tuple) and any(owner(name) == adapter for name, _ in key)

        self.prefixes.forget(with_it)
        self._slots.forget()

    def _drop(self, rows: Sequence[Row], error: str | None = None) -> list[TokenEvent]:
        """Take rows out wherever they are; gives their last events."""
        gone = {id(row) for row in rows}
        self._waiting.remove(rows)
        for job in self._jobs:
            job.rows = [row for row in job.rows if id(row) not in gone]
        self._jobs = [job for job in self._jobs if job.rows]
        self._slots.remove(gone)
        answers = [row for row in rows if row.index < row.sampling.n]  # there may be more beams than answers
        return [row.cancel() if error is None else row.fail(error) for row in answers]

    def _end_orphans(self) -> list[TokenEvent]:
        """End the requests whose adapters were taken away from the model."""
        events = []
        for stack in sorted({*(row.stack for row in self._begun()), *self._waiting.stacks} - {()}):
            try:
                self.adapters.check_there(stack)
            except UserError as error:
                orphans = [row for row in self._all_rows() if row.stack == stack]
                events += self._drop(orphans, f"its adapter was removed while it ran: {error}")
        return events


def _no_memory(ids: Sequence[int], error: Exception) -> str:
    return f"there is not enough memory for a request of {len(ids):,} tokens: {str(error).splitlines()[0]}"
