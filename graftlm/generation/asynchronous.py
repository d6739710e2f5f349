"""The engine for asyncio and for several threads: a worker thread makes all steps, and sleeps in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from graftlm.errors import UserError
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Completion, Request, RequestId, TokenEvent
from graftlm.generation.shelf import Source

_T = TypeVar("_T")
Listener = Callable[[TokenEvent], None]


@dataclass
class _Open:
    """Who listens to a request, and how many completions are still to come."""

    give: Listener
    left: int


class AsyncEngine:
    """Runs an engine's steps in a thread of its own, which starts with the first request and ends with :meth:`close`.

    Every method may be called from any thread or event loop. What a request gets does not depend on the others. Nobody
    else may use the engine meanwhile, nor its model: :meth:`call` does something with them between two steps.

    Events wait in a queue for each request, as many as its answer has tokens at most: a reader who is slow holds
    nobody up. An exception in a step ends the requests that run with an ``error`` in their completions, and a second
    one right after it those that wait as well; the worker goes on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._calls: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        # A thread begins with as many as torch uses just then, which is one in a step of another engine.
        self._threads = torch.get_num_threads()
        self._open: dict[RequestId, _Open] = {}  # the worker's own, as all of the engine is

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    def submit(self, request: Request, give: Listener) -> Future[RequestId]:
        """Take a request in. The worker calls ``give`` with each event; it must not block, and its errors cancel.

        The future has the request's id, or the UserError of :meth:`Engine.submit`.

        Raises:
            UserError: it is closed.
        """

        def begin() -> RequestId:
            request_id = self.engine.submit(request)
            self._open[request_id] = _Open(give, request.sampling.n)
            return request_id

        return self._between(begin)

    async def stream(self, request: Request) -> AsyncGenerator[TokenEvent, None]:
        """The events of a request as they come. Leaving the loop, or cancelling the task, cancels the request.

        Raises:
            UserError: as :meth:`Engine.submit`. What goes wrong later is in the completion's ``error``.
        """
        loop, events, left = asyncio.get_running_loop(), asyncio.Queue[TokenEvent](), request.sampling.n

        def give(event: TokenEvent) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        submitted = self.submit(request, give)
        try:
            await asyncio.wrap_future(submitted)
            while left:
                event = await events.get()
                left -= event.completion is not None
                yield event
        finally:
            if left:
                self._leave(submitted)

    async def complete(self, request: Request) -> list[Completion]:
        """Run a request to its end; its ``n`` completions in order. Cancelling the task cancels the request.

        Raises:
            UserError: as :meth:`stream`.
        """
        found = [event.completion async for event in self.stream(request) if event.completion is not None]
        return sorted(found, key=lambda completion: completion.index)

    async def cancel(self, request_id: RequestId) -> None:
        """Stop a request; its last event, with what there is so far, comes next. One that is done stays done."""
        await self.call(self.engine.cancel, request_id)

    def _leave(self, submitted: Future[RequestId]) -> None:
        """Cancel a request to which nobody listens any more."""

        def leave() -> None:
            if not submitted.cancelled() and submitted.exception() is None:
                self._abandon(submitted.result())

        submitted.cancel()
        try:
            self._between(leave)
        except UserError:  # closed: it has ended
            return

    def _abandon(self, request_id: RequestId) -> None:
        if self._open.pop(request_id, None) is not None:
            self.engine.abandon([request_id])

    # --- adapters ---------------------------------------------------------------------------------------------------

    async def add_adapter(self, name: str, source: Source) -> None:
        """Take in an adapter between two steps: :meth:`Shelf.add`."""
        await self.call(self.engine.adapters.add, name, source)

    async def replace_adapter(self, name: str, source: Source) -> None:
        """Replace an adapter between two steps: :meth:`Shelf.replace`."""
        await self.call(self.engine.adapters.replace, name, source)

    async def remove_adapter(self, name: str) -> None:
        """Take an adapter away between two steps: :meth:`Shelf.remove`."""
        await self.call(self.engine.adapters.remove, name)

    async def call(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call a function in the worker between two steps, where it may use the engine and its model.

        Raises:
            UserError: it is closed. And what the function raises.
        """
        return await asyncio.wrap_future(self._between(lambda: function(*args)))

    # --- the worker -------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the worker. Requests that are open are cancelled, with what they have so far; no new ones are taken."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _between(self, work: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        with self._wake:
            if self._closed:
                raise UserError("the engine is closed: it takes no more requests")
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="graftlm engine", daemon=True)
                self._thread.start()
            self._calls.append((future, work))
            self._wake.notify()
        return future

    def _work(self) -> None:
        torch.set_num_threads(self._threads)
        failures = 0  # in a row
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._calls or self._open)
                calls, self._calls = self._calls, []
                if self._closed:
                    break
            for future, work in calls:
                if future.set_running_or_notify_cancel():
                    try:
                        future.set_result(work())
                    except BaseException as error:
                        future.set_exception(error)
            if not self._open:
                continue
            try:
                self._hand_out(self.engine.step())
                failures = 0
            except BaseException as error:
                failures += 1  # those that ran have ended by it: their events come with the next step
                if failures > 1:
                    self._hand_out(self.engine.end_all(f"the step was broken off: {error or type(error).__name__}"))
        for future, _ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(UserError("the engine was closed"))
        self._hand_out(self.engine.end_all())

    def _hand_out(self, events: list[TokenEvent]) -> None:
        for event in events:
            listener = self._open.get(event.request_id)
            if listener is None:
                continue
            if event.completion is not None:
                listener.left -= 1
                if not listener.left:
                    del self._open[event.request_id]
            try:
                listener.give(event)
            except Exception:  # its event loop is closed, for one
                self._abandon(event.request_id)
