"""Mixtures of many tasks: how many rows each gives, and which.

The counts are pure functions. Which rows are taken follows from a hash of the seed and each row alone, so neither
the order of the sources nor what else is mixed in changes the choice among a task's rows.
"""

from __future__ import annotations

import hashlib
import marshal
import math
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy

from graftlm.data.instances import ORIGINS, Instance, Message, Provenance, Verdict
from graftlm.errors import UserError, unknown_name

BUCKETS = 128  # files that a stream is sorted by; one at a time is in memory
_origin = attrgetter(*ORIGINS)
_said = attrgetter(*Verdict.__dataclass_fields__)


@dataclass(frozen=True)
class Mixture:
    """How much of each task is taken.

    ``method``: ``proportional`` to what a task has, where nothing over ``cap`` counts (FLAN's examples-proportional
    mixing); ``temperature``: that to the power of 1/``temperature``, so that 1 is proportional and large values
    tend to equal shares; ``fixed``: ``shares`` by task. ``total`` is the size of the mixture, in the unit of the
    counts (rows or tokens); None means as much as the shares allow without a repeated row. ``repeat``: a task that
    has too few gives its rows more than once; without it the others fill the gap.
    """

    method: Literal["proportional", "temperature", "fixed"] = "proportional"
    cap: int | None = None
    temperature: float = 1.0
    shares: Mapping[str, float] = field(default_factory=dict)
    total: int | None = None
    repeat: bool = False

    def weights(self, counts: Mapping[str, int]) -> dict[str, float]:
        """The share of every task, before it is known whether there are enough rows.

        Raises:
            UserError: ``shares`` name a task that there is not.
        """
        if self.method == "fixed":
            return fixed(counts, self.shares)
        return tempered(counts, 1.0 if self.method == "proportional" else self.temperature, self.cap)

    def quotas(self, counts: Mapping[str, int]) -> dict[str, int]:
        """How much of every task is taken, by what each has."""
        weights = self.weights(counts)
        total = self.total
        if total is None and self.method == "proportional":
            return {name: _capped(count, self.cap) for name, count in counts.items()}
        if total is None:
            total = largest_total(weights, counts)
        return allot(weights, total, None if self.repeat else counts)


def tempered(counts: Mapping[str, int], temperature: float, cap: int | None = None) -> dict[str, float]:
    """Shares that go with min(count, cap) ** (1 / temperature)."""
    powers = {name: _capped(count, cap) ** (1.0 / temperature) for name, count in counts.items() if count}
    return _normalised(powers, counts)


def fixed(counts: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, float]:
    """The given shares, brought to a sum of 1; a task without one gets none.

    Raises:
        UserError: a share of a task that there is not.
    """
    for name in shares:
        if name not in counts:
            raise unknown_name("task of the mixture", name, list(counts))
    return _normalised({name: share for name, share in shares.items() if counts[name]}, counts)


def largest_total(weights: Mapping[str, float], available: Mapping[str, int]) -> int:
    """The most that can be taken in these shares without taking anything twice."""
    limits = [available[name] / weight for name, weight in weights.items() if weight]
    return math.floor(min(limits) + 1e-9) if limits else 0


def allot(weights: Mapping[str, float], total: int, available: Mapping[str, int] | None = None) -> dict[str, int]:
    """Whole numbers in the shares of ``weights`` whose sum is ``total``, by largest remainders (ties by name).

    With ``available`` nobody gets more than it has: what is over goes to the others in their shares. The sum is less
    than ``total`` only if there is less.
    """
    given = dict.fromkeys(weights, 0)
    open_ = {name: weights[name] for name in sorted(weights) if weights[name] > 0}
    while open_:
        left = total - sum(given.values())
        whole = math.fsum(open_.values())
        ideal = {name: left * weight / whole for name, weight in open_.items()}
        full = [name for name in open_ if available is not None and ideal[name] >= available[name]]
        if not full:
            given |= {name: math.floor(value) for name, value in ideal.items()}
            rest = total - sum(given.values())
            by_remainder = sorted(open_, key=lambda name: (given[name] - ideal[name], name))
            for name in by_remainder[:rest]:
                given[name] += 1
            break
        for name in full:
            assert available is not None
            given[name] = available[name]
            del open_[name]
    return given


def _capped(count: int, cap: int | None) -> int:
    return count if cap is None else min(count, cap)


def _normalised(values: Mapping[str, float], names: Mapping[str, int]) -> dict[str, float]:
    whole = math.fsum(values.values())  # exact, so that the order does not matter
    return {name: values.get(name, 0.0) / whole if whole else 0.0 for name in names}


def row_key(instance: Instance, seed: int) -> int:
    """64 bits that follow from the seed and the instance: its content and where it comes from."""
    digest = hashlib.blake2b(f"{seed}\0{instance.source}\0{instance.row}\0{instance.provenance.template}".encode())
    for message in instance.messages:
        digest.update(f"\0{message.role}\0{message.content}".encode("utf-8", "surrogatepass"))
    for verdict in instance.verdicts:
        digest.update(f"\0{verdict}".encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest()[:8], "big")


class Spool:
    """A stream of (key, task, instance) sorted by key on disk, in memory that does not grow with it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="graftlm-", dir=folder)
        place = Path(self.folder.name)
        self.files: list[IO[bytes]] = [open(place / str(n), "w+b") for n in range(BUCKETS)]  # noqa: SIM115 (__exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        for file in self.files:
            file.close()
        self.folder.cleanup()

    def add(self, key: int, task: str, instance: Instance) -> None:
        messages = [(message.role, message.content, message.train) for message in instance.messages]
        # Plain values by marshal: several times as fast as pickled objects, and only this process reads them.
        verdicts = [_said(verdict) for verdict in instance.verdicts]
        place = (instance.source, instance.row, _origin(instance.provenance))
        entry = marshal.dumps((key, task, messages, verdicts, *place))
        self.files[key * BUCKETS >> 64].write(len(entry).to_bytes(8, "big") + entry)

    def sorted(self) -> Iterator[tuple[int, str, Instance]]:
        """All of it in the order of the keys; equal keys in the order in which they came."""
        for file in self.files:
            file.seek(0)
            for entry in sorted(_entries(file.read()), key=lambda entry: entry[0]):
                key, task, messages, verdicts, source, row, origin = entry
                said = tuple(Message(*message) for message in messages)
                judged = tuple(Verdict(*verdict) for verdict in verdicts)
                yield key, task, Instance(said, source, row, Provenance(*origin), judged)


def _entries(data: bytes) -> Iterator[tuple[Any, ...]]:
    place = 0
    while place < len(data):
        end = place + 8 + int.from_bytes(data[place : place + 8], "big")
        yield marshal.loads(data[place + 8 : end])
        place = end


@dataclass(frozen=True)
class Taken:
    """What a mixture took of a task, in the unit of the mixture; ``rows`` counts repeated rows each time."""

    available: int
    quota: int
    rows: int


class Sampler:
    """Collects a stream of instances by task, then gives the mixture in an order drawn by the seed.

    ``size`` measures an instance in the unit of the mixture, such as its tokens (16 bytes are kept for each then);
    None counts rows, and keeps nothing.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        seed: int = 0,
        size: Callable[[Instance], int] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.mixture = mixture
        self.seed = seed
        self.size = size
        self.spool = Spool(folder)
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.keys: dict[str, array[int]] = {}
        self.sizes: dict[str, array[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.spool.__exit__(*error)

    def add(self, task: str, instance: Instance) -> None:
        """One more instance of a task."""
        key = row_key(instance, self.seed)
        self.spool.add(key, task, instance)
        self.counts[task] += 1
        if self.size is not None:
            self.keys.setdefault(task, array("Q")).append(key)
            self.sizes.setdefault(task, array("Q")).append(self.size(instance))

    def rows(self, task: str) -> int:
        """How many instances of a task there are."""
        return self.counts[task]

    def plan(self) -> dict[str, Taken]:
        """What is taken of every task.

        Raises:
            UserError: the mixture does not fit the tasks, or takes nothing.
        """
        counts = {
            task: self.counts[task] if self.size is None else sum(self.sizes[task]) for task in sorted(self.counts)
        }
        quotas = self.mixture.quotas(counts)
        taken = {task: Taken(counts[task], quotas[task], self._fitting(task, quotas[task])) for task in counts}
        if counts and not any(each.rows for each in taken.values()):
            raise UserError("the mixture takes no row", hint="Raise its total, or give a task a larger share.")
        return taken

    def take(self) -> Iterator[Instance]:
        """The instances of the mixture, in an order drawn by the seed."""
        plan = self.plan()
        copies = {task: self._copies(task, taken.rows) for task, taken in plan.items()}
        if plan and all(taken.rows == self.counts[task] for task, taken in plan.items()):
            for _key, _task, instance in self.spool.sorted():
                yield instance
            return
        # Those that are taken have the smallest keys of their task: in their order, small shares would come first.
        with Spool(self.folder) as chosen:
            for key, task, instance in self.spool.sorted():
                for copy in range(next(copies[task])):
                    chosen.add(_mixed(key, copy + 1), task, instance)
            for _key, _task, instance in chosen.sorted():
                yield instance

    def _fitting(self, task: str, quota: int) -> int:
        """How many rows, repeats counted, fit the quota when they are taken in the order of their keys."""
        if self.size is None:
            return quota
        order = numpy.argsort(numpy.frombuffer(self.keys[task], numpy.uint64), kind="stable")
        sums = numpy.cumsum(numpy.frombuffer(self.sizes[task], numpy.uint64)[order])
        rounds, left = divmod(quota, max(int(sums[-1]), 1))
        return rounds * len(order) + int(numpy.searchsorted(sums, left, side="right"))

    def _copies(self, task: str, rows: int) -> Iterator[int]:
        """How often each row is taken, in the order of the keys."""
        total = self.counts[task]
        rounds, left = divmod(rows, total)
        return (rounds + (place < left) for place in range(total))


def _mixed(key: int, copy: int) -> int:
    """Another 64 bits for a copy: a step of splitmix64."""
    value = (key + copy * 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
    return value ^ value >> 31
