"""Rows to token rows in one go: made into instances, filtered, rendered and tokenised, on several cores.

For data that is trained on as it comes. What has to be mixed, split or freed of duplicates becomes a set first.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy

from graftlm.base.memory import tune_allocator
from graftlm.data.batches import EncodedRow
from graftlm.data.filters import Filter, LateFilter
from graftlm.data.instances import Instance
from graftlm.data.parallel import in_chunks, processes_here
from graftlm.data.prepare import RowCounts
from graftlm.data.rendering import Conversations
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.formatting import FormatSettings
    from graftlm.data.task_template import TaskTemplate

CHUNK = 1000  # rows that a process is given at once
Numbered = tuple[int, dict[str, Any]]
Make = Callable[[Iterable[Numbered], RowCounts], Iterator[Instance]]


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows of one source in little memory: five bytes a token, where a list of numbers takes 36.

    ``ids`` (tokens,) int32 and ``supervised`` (tokens,) one byte each, one row behind the other; ``lengths`` (rows,)
    and ``rows`` (rows,) the number of each row in its source.
    """

    ids: array[int]
    supervised: bytes
    lengths: array[int]
    rows: array[int]
    source: str

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[EncodedRow]:
        begin, learnt = 0, numpy.frombuffer(self.supervised, bool)
        for length, row in zip(self.lengths, self.rows, strict=True):
            end = begin + length
            yield EncodedRow(self.ids[begin:end].tolist(), learnt[begin:end].tolist(), self.source, row)
            begin = end


def encode_labelled(
    rows: Iterable[Numbered],
    template: TaskTemplate,
    settings: FormatSettings,
    seed: int,
    rendering: Conversations,
    *,
    filters: Sequence[Filter] = (),
    counts: RowCounts | None = None,
    processes: int | None = None,
) -> Iterator[EncodedRows]:
    """Labelled rows as a task template words them, as tokens, chunk by chunk and in order.

    The result does not depend on ``processes`` (None: as many as there are cores).

    Raises:
        UserError: the settings do not go with the template or the rows, or a filter has to see other rows too.
    """
    from graftlm.data.formatting import format_rows, with_columns

    settings.check(template)
    known, stream = with_columns(rows, template, replace(settings, keys=False))

    def make(part: Iterable[Numbered], own: RowCounts) -> Iterator[Instance]:
        return format_rows(part, template, known, seed, counts=own)

    return encode_rows(stream, make, rendering, settings.source, filters=filters, counts=counts, processes=processes)


def encode_rows(
    rows: Iterable[Numbered],
    make: Make,
    rendering: Conversations,
    source: str,
    *,
    filters: Sequence[Filter] = (),
    counts: RowCounts | None = None,
    processes: int | None = None,
) -> Iterator[EncodedRows]:
    """Rows that ``make`` turns into instances, as tokens; see :func:`encode_labelled`."""
    for each in filters:
        if isinstance(each, LateFilter) or getattr(each, "remembers", False):
            raise UserError(
                f"{type(each).__name__} looks at other rows too, and cannot work on parts of them",
                hint="Build a set: graftlm data build.",
            )
    total = counts if counts is not None else RowCounts()

    def work(part: list[Numbered]) -> tuple[EncodedRows, RowCounts]:
        own = RowCounts()
        kept: list[Instance] = []
        for instance in make(part, own):
            reason = next((why for each in filters if (why := each.judge("", instance)) is not None), None)
            if reason is None:
                kept.append(instance)
            else:
                own.drop(reason, instance.source, instance.row)
        found = [row for _, row in rendering.rows(kept, own)]
        own.kept = len(found)
        ids, supervised = array("i"), bytearray()
        for row in found:
            ids.extend(row.ids)
            supervised.extend(row.supervised)
        lengths, numbers = array("q", [len(row.ids) for row in found]), array("q", [row.row for row in found])
        return EncodedRows(ids, bytes(supervised), lengths, numbers, source), own

    workers = processes_here() if processes is None else processes
    for result, own in in_chunks(work, rows, chunk=CHUNK, processes=workers, begin=tune_allocator):
        total.add(own)
        yield result
