"""Rows that wait for a slot, in order; found by request and by adapters without walking through all of them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

from graftlm.adapters.routing import Stack
from graftlm.generation.requests import RequestId
from graftlm.generation.rows import Row


class Waiting:
    """A queue of rows. What is asked at every step or for every request costs the same however long it is."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._by_id: dict[RequestId, list[Row]] = {}
        self._stacks: Counter[Stack] = Counter()
        self.extend(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    @property
    def first(self) -> Row:
        return next(iter(self._rows.values()))

    @property
    def stacks(self) -> set[Stack]:
        """The adapters that rows wait for."""
        return set(self._stacks)

    def of(self, request_id: RequestId) -> list[Row]:
        """The rows of a request."""
        return list(self._by_id.get(request_id, ()))

    def extend(self, rows: Iterable[Row]) -> None:
        """Put rows at the end."""
        for row in rows:
            self._rows[id(row)] = row
            self._by_id.setdefault(row.id, []).append(row)
            self._stacks[row.stack] += 1

    def remove(self, rows: Iterable[Row]) -> None:
        """Take rows out; those that do not wait are left alone."""
        for row in rows:
            if self._rows.pop(id(row), None) is None:
                continue
            own = self._by_id[row.id]
            own[:] = [other for other in own if other is not row]
            if not own:
                del self._by_id[row.id]
            self._stacks[row.stack] -= 1
            if not self._stacks[row.stack]:
                del self._stacks[row.stack]
