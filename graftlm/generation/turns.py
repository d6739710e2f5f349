"""Who may use an engine: one thread. A second one is told so; those that only stop something wait for their turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, get_ident

from graftlm.errors import UserError


class Turn:
    """The turn to change what an engine holds."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._inside: int | None = None  # the thread that works

    @contextmanager
    def work(self) -> Iterator[None]:
        """Make a step or take requests in.

        Raises:
            UserError: another thread does.
        """
        if self._inside not in (None, get_ident()):
            raise UserError(
                "another thread is in this engine, which serves one at a time",
                hint="AsyncEngine(engine) takes requests from any thread.",
            )
        with self._lock:
            self._inside = get_ident()
            try:
                yield
            finally:
                self._inside = None

    @contextmanager
    def stop(self) -> Iterator[None]:
        """Stop something, after what another thread is doing."""
        with self._lock:
            yield
