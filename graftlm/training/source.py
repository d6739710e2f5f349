"""Rows that are made while training goes on, such as answers of the policy that is trained.

A source gives the rows of an adapter's next optimizer steps, a phase, made with the model as it is before the first of
them. What kind of rows they are is none of the loop's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from graftlm.adapters.model import AdaptedModel
from graftlm.data.batches import EncodedRow
from graftlm.data.sampled import Sampled
from graftlm.training.settings import RunSettings


@dataclass(frozen=True)
class Phase:
    """Rows for the steps from ``first`` on; ``steps`` says which rows (by number) each of them learns.

    ``state``: plain JSON that the source wants back at its next phase. What is told of the phase is not kept:
    ``measures``, ``samples`` as JSON, and ``concerns``, sentences that say what to look at and what to do.

    ``exceeded``: a sentence where the model as it is has gone beyond a bound: nothing more is learnt, and the adapter
    goes back to its state at the last phase that was within.
    """

    first: int
    rows: tuple[EncodedRow, ...]
    steps: tuple[tuple[int, ...], ...]
    state: Mapping[str, Any] = field(default_factory=dict)
    measures: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()
    concerns: tuple[str, ...] = ()
    exceeded: str = ""

    @property
    def stop(self) -> int:
        """The first step that it has no rows for."""
        return self.first + len(self.steps)

    def numbered(self, step: int) -> list[tuple[int, EncodedRow]]:
        """The rows of an optimizer step of the run, with their numbers."""
        return [(number, self.rows[number]) for number in self.steps[step - self.first]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON: numbers come back from it to the bit."""
        return {
            "first": self.first,
            "rows": [_row_to_dict(row) for row in self.rows],
            "steps": [list(step) for step in self.steps],
            "state": dict(self.state),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Phase:
        """What :meth:`to_dict` made."""
        rows = tuple(_row_from_dict(row) for row in values["rows"])
        return Phase(values["first"], rows, tuple(tuple(step) for step in values["steps"]), values["state"])


@dataclass(frozen=True)
class Trial:
    """How good the model is as it is, on what is held out: the higher ``value`` is, the better.

    ``eligible``: whether it may be the best state, as one beyond a bound may not. ``measures`` and ``samples``: what is
    told.
    """

    value: float
    eligible: bool
    measures: Mapping[str, float]
    samples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Turn:
    """A source whose adapter is about to do optimizer step ``step``; ``state`` is of its last phase, empty at first."""

    source: Source
    step: int
    state: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Where the rows of one adapter come from; a value that never changes."""

    @property
    def kind(self) -> str:
        """Sources of one kind make their rows together."""
        ...

    @property
    def total(self) -> int:
        """Optimizer steps in all."""
        ...

    @property
    def bounded(self) -> bool:
        """Whether phases may say that a bound is exceeded; the state after the last step is then looked at too."""
        ...

    def enough(self, measures: Mapping[str, float]) -> bool:
        """Whether a step and the rest of its phase are left out, by what the objective tells of the step."""
        ...

    @property
    def digest(self) -> str:
        """Of everything that decides the rows, beside the model: a resumed run must have the same."""
        ...

    def phases(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Phase]:
        """The next phase of each of ``turns``, all of this one's kind, with the model as it is now.

        They depend on nothing but the model, the source, the step and the state; not on who else is there.
        """
        ...

    @property
    def tried(self) -> bool:
        """Whether something is held out that the model is tried on."""
        ...

    def trials(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Trial]:
        """How good the adapter of each of ``turns``, all of this one's kind, is on what is held out, by itself."""
        ...

    def epochs_after(self, step: int) -> float:
        """Passes over the data that ``step`` steps make."""
        ...

    def sketch(self) -> list[EncodedRow]:
        """Rows of the largest shape that an optimizer step may have, for planning."""
        ...


def _row_to_dict(row: EncodedRow) -> dict[str, Any]:
    return {
        "ids": list(row.ids),
        "supervised": [int(learnt) for learnt in row.supervised],
        "source": row.source,
        "row": row.row,
        "source_ids": None if row.source_ids is None else list(row.source_ids),
        "sampled": None if row.sampled is None else asdict(row.sampled),
    }


def _row_from_dict(values: Mapping[str, Any]) -> EncodedRow:
    sampled = values["sampled"]
    return EncodedRow(
        values["ids"],
        [bool(learnt) for learnt in values["supervised"]],
        values["source"],
        values["row"],
        source_ids=values["source_ids"],
        sampled=None if sampled is None else _sampled_from_dict(sampled),
    )


def _sampled_from_dict(values: Mapping[str, Any]) -> Sampled:
    numbers = {key: tuple(each) for key, each in values.items() if key != "temperature"}
    return Sampled(**numbers, temperature=values.get("temperature", 1.0))
