"""The values of a whole evaluation: what `graftlm eval` finds, prints, writes and draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

from graftlm.evaluation.statistics import Change, Interval

BASE = "base"  # the bare base's name among the models


@dataclass(frozen=True)
class Model:
    """The bare base, or an adapter. ``pass_seconds``: a forward pass over 8 rows of 64 tokens, alone."""

    name: str
    method: str
    trained_parameters: int = 0
    file_bytes: int = 0
    pass_seconds: float | None = None
    folder: str = ""
    template: str = ""
    weights_hash: str = ""
    trained_on: tuple[str, ...] = ()  # families of tasks, where it is recorded

    @property
    def is_base(self) -> bool:
        return self.name == BASE


@dataclass(frozen=True)
class Versus:
    """One model against another on the same rows of a task.

    ``change``: of the primary score, other minus ``before``. ``p``: of "no difference", corrected over ``family``
    comparisons (Holm). ``won`` and ``lost``: places (from 0) in the items that only one of them answers right.
    ``error``: the standard error of the change.
    """

    before: str
    after: str
    change: Change
    p: float
    won: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    family: int = 1
    error: float = math.nan


@dataclass(frozen=True)
class Bin:
    """Rows whose answers a model was about equally sure of: its mean confidence, the share that is right, how many."""

    confidence: float
    right: float
    rows: int


@dataclass(frozen=True)
class TaskScore:
    """One model on one task: each measure with its interval, the primary first. ``failed``: rows without a result.

    ``bins``: for a reliability diagram, by rising confidence; none where confidence is not measured.
    """

    model: str
    measures: Mapping[str, Interval]
    failed: int = 0
    over_base: Versus | None = None
    bins: tuple[Bin, ...] = ()


@dataclass(frozen=True)
class Example:
    """A row as people read it: what was asked, what is right, and what each model answered (name → text)."""

    place: int
    asked: str
    expected: str
    answers: Mapping[str, str]
    right: Mapping[str, bool]


@dataclass(frozen=True)
class TaskResult:
    """A task with all models' scores. ``chance``: the score of guessing, where that is known.

    ``labels``: what each measure is called; ``shares`` names those that are shares, from 0 to 1; ``lower_is_better``
    those where less is better. ``versus``: adapters against each other. ``rows_hash``: of all items.
    """

    name: str
    title: str
    group: str
    family: str
    language: str
    kind: str
    about: str
    rows: int
    rows_hash: str
    primary: str
    labels: Mapping[str, str]
    shares: tuple[str, ...]
    lower_is_better: tuple[str, ...]
    scores: tuple[TaskScore, ...]
    versus: tuple[Versus, ...] = ()
    examples: tuple[Example, ...] = ()
    chance: float | None = None
    unseen: Mapping[str, bool] = field(default_factory=dict)  # adapter → whether its training had no such family

    def score(self, model: str) -> TaskScore:
        return next(each for each in self.scores if each.model == model)


@dataclass(frozen=True)
class Drift:
    """How far a model's next-token distribution is from the base's on neutral text: KL(base ‖ model), nats a token."""

    model: str
    kl: Interval
    tokens: int
    texts: int


@dataclass(frozen=True)
class TaxLine:
    """A capability before and after. ``noticed``: the smallest loss that would have been found with 80 % power."""

    task: str
    versus: Versus
    noticed: float


@dataclass(frozen=True)
class Tax:
    """What an adapter costs elsewhere, and the one line that says it."""

    model: str
    lines: tuple[TaxLine, ...]
    drift: Drift | None
    sentence: str


@dataclass(frozen=True)
class Overlap:
    """Rows of a task that share text with what an adapter was trained on; ``unknown``: why nothing can be said.

    ``rows``: places (from 0) in the items. ``checked``: rows with a text long enough to be looked for. ``without``: the
    primary score on the other rows. ``note``: what the record does not hold, and how surely an overlap is found.
    """

    model: str
    task: str
    rows: tuple[int, ...] = ()
    checked: int = 0
    without: Interval | None = None
    unknown: str = ""
    note: str = ""


@dataclass(frozen=True)
class WinRate:
    """Answers of two models side by side by a judge.

    ``consistent``: of what was asked in both orders, the share with the same verdict in both. ``p``: of "as often
    better as worse", by the sign test. ``unread``: verdicts that could not be read; they count as ties.
    """

    before: str
    after: str
    task: str
    judge: str
    rate: Interval  # of ``after``; a tie counts half
    wins: int
    losses: int
    ties: int
    consistent: float | None = None
    p: float = math.nan
    unread: int = 0


@dataclass(frozen=True)
class LanguagePair:
    """The same task in two languages: gain over the base in each, and what of it carries over."""

    model: str
    task: str
    languages: tuple[str, str]
    gains: tuple[Change, Change]


@dataclass(frozen=True)
class Evaluation:
    """All of it. ``settings`` and ``hashes`` are what is needed to repeat it; ``notes`` what a reader must know."""

    title: str
    created: str
    base: str
    base_parameters: int
    seconds: float
    models: tuple[Model, ...]
    tasks: tuple[TaskResult, ...]
    tax: tuple[Tax, ...] = ()
    overlaps: tuple[Overlap, ...] = ()
    win_rates: tuple[WinRate, ...] = ()
    languages: tuple[LanguagePair, ...] = ()
    harness: Mapping[str, Any] = field(default_factory=dict)  # what lm-evaluation-harness reported, by model
    settings: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def adapters(self) -> tuple[Model, ...]:
        return tuple(model for model in self.models if not model.is_base)

    def task(self, name: str) -> TaskResult:
        return next(each for each in self.tasks if each.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is not a finite number is null."""
        values: dict[str, Any] = {"version": 1, **_plain(self)}
        return values


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
