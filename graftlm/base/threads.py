"""Which operations take all threads while text is made.

A step of decoding has few tokens. Most of its operations take microseconds on one thread, less than it takes to wake
another; the wide products and attention are worth all threads.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext

import torch

#: From how many multiplications on all threads are taken: some 100 µs of one.
WORTH_WAKING = 2**23
#: What a number of keys and values counts for: they are read for few multiplications each, and reading is what takes.
READ = 16


class _Held(threading.local):
    threads = 0  # how many are held back in this thread


_held = _Held()
_nothing = nullcontext()


class few_threads(AbstractContextManager[None]):
    """A context in which operations take one thread, unless :func:`threads_for` says that they are worth all."""

    def __enter__(self) -> None:
        self._before = _held.threads
        _held.threads = _held.threads or torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if not self._before:
            torch.set_num_threads(_held.threads)
        _held.threads = self._before


class _All(AbstractContextManager[None]):
    def __enter__(self) -> None:
        torch.set_num_threads(_held.threads)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(1)


_all = _All()


def threads_for(multiplications: int) -> AbstractContextManager[None]:
    """All threads for an operation that is large enough, inside :class:`few_threads`; nothing elsewhere."""
    return _all if _held.threads > 1 and multiplications >= WORTH_WAKING else _nothing
