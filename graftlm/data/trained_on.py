"""What an adapter was trained on: files, families, languages, and hashes of the words of the texts.

The hashes tell later whether a text was among those learnt from, where the data itself is gone. They do not give the
texts back, but whoever has a text can tell whether it was among them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from graftlm.data.grams import Grams, Hasher
from graftlm.data.instances import Instance
from graftlm.data.readers import find_sources
from graftlm.data.sets import hash_file, is_set, read_card

#: Words in a row that are looked for, and the shortest text that is looked for as a whole; 5 MB at most.
EMPTY = (Grams(13, most=1 << 19), Grams(8, most=1 << 17))
TABLES = ("tasks", "templates", "languages")


class BrokenRecord(Exception):
    """A record that is not what was written, and why."""


@dataclass(frozen=True)
class DataFile:
    """A file or set that was read; ``name`` without the folder that it lay in, ``sha256`` empty for one of the Hub."""

    name: str
    sha256: str


@dataclass(frozen=True)
class TrainedOn:
    """``tasks`` (families), ``templates`` and ``languages`` count the ``rows`` that name one; ``grams`` by width.

    ``gaps``: what is known to be missing, such as the data of an adapter that this one was begun from.
    """

    rows: int = 0
    files: tuple[DataFile, ...] = ()
    tasks: Mapping[str, int] = field(default_factory=dict)
    templates: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    grams: tuple[Grams, ...] = EMPTY
    gaps: tuple[str, ...] = ()

    def joined(self, other: TrainedOn) -> TrainedOn:
        """What was trained on one, then on the other."""
        return TrainedOn(
            self.rows + other.rows,
            tuple(dict.fromkeys((*self.files, *other.files))),
            _table(Counter(self.tasks) + Counter(other.tasks)),
            _table(Counter(self.templates) + Counter(other.templates)),
            _table(Counter(self.languages) + Counter(other.languages)),
            tuple(one.joined(two) for one, two in zip(self.grams, other.grams, strict=True)),
            tuple(dict.fromkeys((*self.gaps, *other.gaps))),
        )

    def to_files(self) -> tuple[dict[str, Any], bytes]:
        """The part that people read, as JSON, and a safetensors file with the hashes. Equal data, equal bytes."""
        content = save({f"grams_{each.width}": each.hashes for each in self.grams})
        values = {
            "rows": self.rows,
            "files": [asdict(each) for each in self.files],
            **{name: dict(getattr(self, name)) for name in TABLES},
            "grams": {str(each.width): {"kept": len(each.hashes), "one_in": each.one_in} for each in self.grams},
            "gaps": list(self.gaps),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        return {**values, "hash": _hash(values)}, content

    @classmethod
    def from_files(cls, values: Any, content: bytes) -> TrainedOn:
        """What :meth:`to_files` gave.

        Raises:
            BrokenRecord: either was changed since.
        """
        if not isinstance(values, dict) or values.get("hash") != _hash({k: values[k] for k in values if k != "hash"}):
            raise BrokenRecord("its summary was changed")
        if values.get("sha256") != hashlib.sha256(content).hexdigest():
            raise BrokenRecord("its hashes were changed, or are those of another adapter")
        try:
            tensors = load(content)
            grams = []
            for empty in EMPTY:
                hashes = tensors[f"grams_{empty.width}"].astype(np.uint64)
                one_in = int(values["grams"][str(empty.width)]["one_in"])
                grams.append(replace(empty, hashes=hashes, one_in=one_in))
            return cls(
                int(values["rows"]),
                tuple(DataFile(each["name"], each["sha256"]) for each in values["files"]),
                dict(values["tasks"]),
                dict(values["templates"]),
                dict(values["languages"]),
                tuple(grams),
                tuple(values["gaps"]),
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BrokenRecord(f"it is of a form that this graftlm does not know ({error!r})") from error


def trained_on(
    instances: Iterable[Instance], files: Iterable[DataFile], *, empty: Sequence[Grams] = EMPTY
) -> TrainedOn:
    """The record of instances that are learnt from. It does not depend on their order."""
    rows = 0
    tables: dict[str, Counter[str]] = {name: Counter() for name in TABLES}

    def texts() -> Iterator[str]:
        nonlocal rows
        for instance in instances:
            rows += 1
            origin = instance.provenance
            for name, value in zip(TABLES, (origin.task, origin.template, origin.language), strict=True):
                if value:
                    tables[name][value.encode("utf-8", "replace").decode()] += 1
            for message in instance.conversation:
                yield message.content

    grams = tuple(Hasher().collect(texts(), empty))
    tasks, templates, languages = (_table(counter) for counter in tables.values())
    return TrainedOn(rows, tuple(dict.fromkeys(files)), tasks, templates, languages, grams)


def describe_files(paths: Sequence[str | Path]) -> tuple[DataFile, ...]:
    """The files that a data set's paths stand for, with their hashes.

    Raises:
        UserError: a path does not exist, or a file cannot be read.
    """
    return tuple(_describe(Path(path).expanduser(), source) for path in paths for source in find_sources(path))


def _describe(given: Path, source: str) -> DataFile:
    place = Path(source)
    if not place.exists():
        return DataFile(source, "")  # of the Hub
    inside = place.relative_to(given) if place != given and place.is_relative_to(given) else Path()
    name = (Path(given.name) / inside).as_posix()
    if place.is_file():
        return DataFile(name, hash_file(place))
    return DataFile(name, read_card(place).sha256 if is_set(place) else "")


def _table(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _hash(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
