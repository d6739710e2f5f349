"""How far annotators agree: Krippendorff's alpha by criterion, and where they do not.

What is judged is one unit: an answer (ratings, labels), or two answers beside each other (ranks and pairs). Units are
the same where prompt and answers are, whatever rows they stand in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from graftlm.data.instances import Instance, Kind, Verdict
from graftlm.data.texts import prompt_of

Level = Literal["nominal", "ordinal", "interval"]
LEVELS: dict[Kind, Level] = {"ranks": "ordinal", "ratings": "ordinal", "labels": "nominal"}
WHAT: dict[Kind, str] = {"ranks": "which of two", "ratings": "rating", "labels": "label"}
GOOD, FAIR = (
    0.8,
    0.667,
)  # Krippendorff 2004, Content Analysis, section 11.4.2: to rely on, and for tentative conclusions


@dataclass(frozen=True, slots=True)
class Said:
    """What an annotator said of a unit, and where; of two answers 1 is the first, −1 the second, 0 a tie."""

    annotator: str
    value: float
    source: str
    row: int


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A unit of which annotators said different things: one answer, or two."""

    criterion: str
    kind: Kind
    prompt: str
    answers: tuple[str, ...]
    said: tuple[Said, ...]

    @property
    def gap(self) -> float:
        """How far the values are apart."""
        values = [each.value for each in self.said]
        return max(values) - min(values)


@dataclass(frozen=True)
class Agreement:
    """The agreement on one criterion, of one kind of verdict.

    ``alpha``: 1 is agreement, 0 what chance gives; None where ``reason`` says why there is none. ``units`` were judged
    by two annotators or more, ``alone`` by one; ``same``: the share of pairs of annotators that said the same.
    """

    criterion: str
    kind: Kind
    level: Level
    alpha: float | None
    reason: str
    units: int
    alone: int
    annotators: int
    same: float | None
    disagreements: tuple[Disagreement, ...]


@dataclass(frozen=True)
class AgreementReport:
    """Agreement by criterion and kind. ``unnamed`` verdicts name no annotator and do not count; nor do those
    ``repeated``, in which an annotator judges a unit again (the first counts), ``changed`` of them otherwise.
    """

    parts: tuple[Agreement, ...]
    verdicts: int
    unnamed: int
    repeated: int
    changed: int


@dataclass
class _Unit:
    prompt: str
    answers: tuple[str, ...]
    said: dict[str, Said] = field(default_factory=dict)


def agreement(instances: Iterable[Instance], level: Level | None = None) -> AgreementReport:
    """How far the annotators of preference rows agree.

    ``level``: what distance there is between values. Left out, labels are nominal (equal or not), ranks and ratings
    ordinal (their order counts); interval takes ratings as numbers.
    """
    units: dict[tuple[str, Kind], dict[tuple[str, ...], _Unit]] = {}
    total = unnamed = repeated = changed = 0
    for instance in instances:
        verdicts = instance.verdicts or ([Verdict("ranks", ())] if instance.others else [])
        total += len(verdicts)
        for verdict in verdicts:
            if not verdict.annotator:
                unnamed += 1
                continue
            of_kind = units.setdefault((verdict.criterion, verdict.kind), {})
            prompt = prompt_of(instance)
            for answers, value in _judged(instance, verdict):
                unit = of_kind.setdefault((prompt, *answers), _Unit(prompt, answers))
                said = Said(verdict.annotator, value, instance.source, instance.row)
                earlier = unit.said.setdefault(verdict.annotator, said)
                repeated += earlier is not said
                changed += earlier.value != value
    parts = tuple(_agreement(*key, level or LEVELS[key[1]], found) for key, found in sorted(units.items()))
    return AgreementReport(parts, total, unnamed, repeated, changed)


def _judged(instance: Instance, verdict: Verdict) -> Iterator[tuple[tuple[str, ...], float]]:
    """The units that a verdict judges, each with its value."""
    answers, scores = instance.answers, verdict.scores
    if verdict.kind != "ranks":
        for answer, value in zip(answers, verdict.values, strict=True):
            if value is not None:
                yield (answer,), value
        return
    # Two answers stand in the order of their texts, so that the order in a row does not matter.
    for one, other in combinations(sorted(range(len(answers)), key=lambda place: answers[place]), 2):
        first, second = scores[one], scores[other]
        if first is not None and second is not None:
            yield (answers[one], answers[other]), float((first > second) - (first < second))


def _agreement(criterion: str, kind: Kind, level: Level, units: Mapping[tuple[str, ...], _Unit]) -> Agreement:
    several = [unit for unit in units.values() if len(unit.said) > 1]
    pairs = [pair for unit in several for pair in combinations([said.value for said in unit.said.values()], 2)]
    apart = [
        Disagreement(criterion, kind, unit.prompt, unit.answers, tuple(unit.said.values()))
        for unit in several
        if len({said.value for said in unit.said.values()}) > 1
    ]
    alpha, reason = _alpha(several, kind, level)
    return Agreement(
        criterion,
        kind,
        level,
        alpha,
        reason,
        len(several),
        len(units) - len(several),
        len({name for unit in units.values() for name in unit.said}),
        sum(one == other for one, other in pairs) / len(pairs) if pairs else None,
        tuple(sorted(apart, key=lambda each: -each.gap)),
    )


def _alpha(units: list[_Unit], kind: Kind, level: Level) -> tuple[float | None, str]:
    import krippendorff

    if not units:
        return None, "nothing was judged by two annotators"
    rows = [[said.value for said in unit.said.values()] for unit in units]
    if kind == "ranks":  # either of two answers might stand first: both ways count, and alpha depends on neither
        rows += [[-value for value in row] for row in rows]
    domain = sorted({value for row in rows for value in row})
    if len(domain) < 2:
        return None, "all values are the same: nothing shows that annotators can tell answers apart"
    place = {value: number for number, value in enumerate(domain)}
    counts = np.zeros((len(rows), len(domain)), dtype=np.int64)
    for number, row in enumerate(rows):
        for value in row:
            counts[number, place[value]] += 1
    return float(krippendorff.alpha(value_counts=counts, value_domain=domain, level_of_measurement=level)), ""
