"""What a model made of the items of a task, and the file that it is kept in while an evaluation runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graftlm.evaluation.kept import Kept


@dataclass(frozen=True)
class ItemResult:
    """What a model made of one item.

    ``item``: the item's hash. ``log_probs``: log p of each candidate in nats (None: no room for it in the context),
    with the ``tokens`` and ``sizes`` (bytes) of each. ``text``: the written answer, ``ended`` whether the model ended
    it itself. ``predicted``: the label of a head. ``scores``: of the written answer, by scorer. ``error``: why there
    is no result.
    """

    item: str
    log_probs: tuple[float | None, ...] = ()
    tokens: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()
    text: str | None = None
    ended: bool = True
    predicted: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is as it is by default is left out."""
        values: dict[str, Any] = {"item": self.item}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                values[name] = list(value) if isinstance(value, tuple) else value
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ItemResult:
        """Those that :meth:`to_dict` gave."""
        tuples = {key: tuple(values[key]) for key in ("log_probs", "tokens", "sizes") if key in values}
        return cls(**{**values, **tuples})


_DEFAULTS: dict[str, Any] = {
    "log_probs": (),
    "tokens": (),
    "sizes": (),
    "text": None,
    "ended": True,
    "predicted": None,
    "scores": {},
    "error": None,
}


class ResultFile:
    """The results of one model on one task, kept in a file. ``results``: by the place of their item, in any order."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self._kept = path, Kept(path, header)
        self.results = {int(place): ItemResult.from_dict(value) for place, value in self._kept.values.items()}

    @property
    def begun_anew(self) -> bool:
        """Whether there were results of other rows, settings or weights, which are not taken."""
        return self._kept.begun_anew

    def missing(self, items: int) -> list[int]:
        """The places that have no result yet."""
        return [place for place in range(items) if place not in self.results]

    def in_order(self, items: int) -> list[ItemResult]:
        """The results of all items; each must have one."""
        return [self.results[place] for place in range(items)]

    def add(self, results: Mapping[int, ItemResult]) -> None:
        """Keep results, by place; they are on the disk when this returns."""
        self._kept.add({place: result.to_dict() for place, result in results.items()})
        self.results |= results
