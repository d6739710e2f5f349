"""Work on a stream in several processes, chunk by chunk, with the results in the order of the stream.

Processes are forked, so that the work may be any function and needs no copy of what it knows. Where there is no
fork, all is done in this process: the results are the same.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, TypeVar

from graftlm.errors import UserError

RARELY = 100_000  # objects made between two runs of the collector, instead of 700
Item = TypeVar("Item")
Result = TypeVar("Result")
_work: Callable[[list[Any]], Any] | None = None  # of a worker process


def processes_here() -> int:
    """How many processes make sense: one for each core that this one may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def in_chunks(
    work: Callable[[list[Item]], Result],
    stream: Iterable[Item],
    *,
    chunk: int,
    processes: int,
    begin: Callable[[], object] = lambda: None,
) -> Iterator[Result]:
    """``work`` of every ``chunk`` items of a stream, in order. Never more than a few chunks are in memory.

    ``begin`` is called once in each process.

    Raises:
        UserError: what the stream or the work raises, or a process ended from outside (for want of memory).
    """
    items = iter(stream)
    chunks: Iterator[list[Item]] = iter(lambda: list(islice(items, chunk)), [])
    first = list(islice(chunks, 2))
    chunks = chain(first, chunks)
    if processes < 2 or len(first) < 2 or sys.platform != "linux":
        yield from map(work, chunks)
        return
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, context, _begin, (work, begin)) as pool:
        waiting = deque(pool.submit(_do, each) for each in islice(chunks, 2 * processes))
        try:
            while waiting:
                result, error = waiting.popleft().result()
                if error is not None:
                    raise error
                waiting.extend(pool.submit(_do, each) for each in islice(chunks, 1))
                yield result
        except BrokenProcessPool as error:
            raise UserError(
                "a process that worked on the rows was ended from outside", hint="Is there enough memory?"
            ) from error
        finally:
            for each in waiting:
                each.cancel()


def _begin(work: Callable[[list[Any]], Any], begin: Callable[[], object]) -> None:
    global _work
    _work = work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have processes of their own
    begin()
    gc.freeze()  # what the parent has made is not looked through again
    gc.set_threshold(RARELY, *gc.get_threshold()[1:])


def _do(items: list[Any]) -> tuple[Any, UserError | None]:
    assert _work is not None
    try:
        return _work(items), None
    except UserError as error:  # its hint would be lost on the way
        return None, UserError(error.message, hint=error.hint)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Rows hold no cycles, and Python's collector would look at each of them again and again: it runs rarely."""
    often, *others = gc.get_threshold()
    gc.set_threshold(max(often, RARELY), *others)
    try:
        yield
    finally:
        gc.set_threshold(often, *others)
