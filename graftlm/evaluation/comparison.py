"""Adapters side by side on the same rows: scores with intervals, differences, and the best learning rate of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graftlm.evaluation import statistics
from graftlm.evaluation.metrics import Floats, Metric, Outcomes
from graftlm.evaluation.statistics import Change, Interval


@dataclass(frozen=True)
class Cost:
    """What an adapter takes: bytes of parameters, of optimizer state and of its folder; seconds of a step alone."""

    adapter_bytes: int
    optimizer_bytes: int
    file_bytes: int
    step_seconds: float


@dataclass(frozen=True)
class Contender:
    """One line of a comparison: adapters that differ in their seed only.

    ``tried``: the score on the tuning rows of every learning rate that there was to choose from; empty without choice.
    """

    name: str
    method: str
    members: tuple[str, ...]
    outcomes: tuple[Outcomes, ...]
    learning_rate: float
    trained_parameters: int
    cost: Cost
    tried: Mapping[float, float]


@dataclass(frozen=True)
class Standing:
    """How a contender did. ``score``: the mean over its members; ``each``: the score of each.

    ``over_base`` and ``to_best``: differences on the same rows, of this contender to the base and to the best one
    (None: there is no base's score; it is the best). ``p``: of the difference to the best, after Holm.
    """

    contender: Contender
    score: Interval
    each: tuple[float, ...]
    over_base: Change | None
    over_majority: Change
    to_best: Change | None = None
    p: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """All contenders on one data set, best first.

    ``rows`` are scored; ``tuning_rows`` are others, which the learning rates were chosen on. ``majority`` answers every
    row with the commonest answer of ``majority_of``. ``notes``: what a reader must know to judge the numbers.
    ``part_of``: what the parts of the rows are told apart by (task, source …), where ``data`` is one of them.
    """

    data: str
    metric: Metric
    choices: tuple[str, ...]
    normalise: str
    rows: int
    tuning_rows: int
    base: Interval | None
    majority: float
    standings: tuple[Standing, ...]
    notes: tuple[str, ...] = ()
    majority_of: str = "the training rows"
    part_of: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON; what is not known is null."""
        values: dict[str, Any] = {
            "data": self.data,
            "part_of": self.part_of or None,
            "metric": self.metric.name,
            "choices": list(self.choices),
            "normalise": self.normalise,
            "rows": self.rows,
            "tuning_rows": self.tuning_rows,
            "base": _numbers(self.base),
            "majority": _number(self.majority),
            "majority_of": self.majority_of,
            "notes": list(self.notes),
            "contenders": [_line(standing) for standing in self.standings],
        }
        return values


def stand(
    contenders: Sequence[Contender], base: Outcomes | None, majority: Outcomes, metric: Metric
) -> tuple[Interval | None, list[Standing]]:
    """The base's score, and the contenders from best to worst.

    Intervals are Wilson's and Newcombe's for a share of one adapter, and a paired bootstrap over rows for all else.
    """
    models = [*(outcome for each in contenders for outcome in each.outcomes), majority, *([base] if base else [])]
    draws = statistics.resampled([metric.sums(outcome) for outcome in models], metric.value)
    own: dict[str, Floats] = {}
    start = 0
    for each in contenders:
        own[each.name] = draws[start : start + len(each.outcomes)].mean(axis=0)
        start += len(each.outcomes)
    plain = _Scale(metric)
    majority_side = _Side((majority,), draws[start])
    base_side = _Side((base,), draws[start + 1]) if base else None
    sides = {each.name: _Side(each.outcomes, own[each.name]) for each in contenders}
    standings = [
        Standing(
            each,
            plain.interval(sides[each.name]),
            tuple(metric.of(outcome) for outcome in each.outcomes),
            plain.change(base_side, sides[each.name]) if base_side else None,
            plain.change(majority_side, sides[each.name]),
        )
        for each in contenders
    ]
    sign = -1 if metric.higher_is_better else 1
    standings.sort(key=lambda one: (math.isnan(one.score.value), sign * one.score.value))
    best = sides[standings[0].contender.name]
    rest = [sides[one.contender.name] for one in standings[1:]]
    corrected = statistics.holm([plain.p(best, side) for side in rest])
    judged = [
        Standing(**(vars(one) | {"to_best": plain.change(best, side), "p": p}))
        for one, side, p in zip(standings[1:], rest, corrected, strict=True)
    ]
    return (plain.interval(base_side) if base_side else None), [standings[0], *judged]


@dataclass(frozen=True)
class _Side:
    """The outcomes of one side of a difference, of each seed, and the mean score under every draw of rows."""

    outcomes: tuple[Outcomes, ...]
    draws: Floats


@dataclass(frozen=True)
class _Scale:
    metric: Metric

    def score(self, side: _Side) -> float:
        return float(np.mean([self.metric.of(outcome) for outcome in side.outcomes]))

    def interval(self, side: _Side) -> Interval:
        if self.metric.is_share and len(side.outcomes) == 1:
            right = side.outcomes[0].correct
            return statistics.wilson_interval(int(right.sum()), len(right))
        return statistics.percentile_interval(self.score(side), side.draws)

    def change(self, before: _Side, after: _Side) -> Change:
        if self.plain_shares(before, after):
            return statistics.paired_share_change(*(side.outcomes[0].correct.tolist() for side in (before, after)))
        old, new = self.score(before), self.score(after)
        found = statistics.percentile_interval(new - old, after.draws - before.draws)
        return Change(new - old, found.low, found.high, before=old, after=new)

    def p(self, best: _Side, other: _Side) -> float:
        if self.plain_shares(best, other):
            return statistics.mcnemar_p(best.outcomes[0].correct.tolist(), other.outcomes[0].correct.tolist())
        return statistics.bootstrap_p(best.draws - other.draws)

    def plain_shares(self, one: _Side, other: _Side) -> bool:
        return self.metric.is_share and len(one.outcomes) == len(other.outcomes) == 1


def best_rate(scores: Mapping[float, Sequence[float]], metric: Metric) -> tuple[float, dict[float, float]]:
    """The learning rate with the best mean score over its seeds, and the mean of each; the lowest of equals."""
    means = {rate: float(np.mean(values)) for rate, values in sorted(scores.items())}
    known = {rate: mean for rate, mean in means.items() if math.isfinite(mean)} or means
    choose = max if metric.higher_is_better else min
    return choose(known, key=lambda rate: known[rate]), means


def _line(standing: Standing) -> dict[str, Any]:
    contender = standing.contender
    return {
        "name": contender.name,
        "method": contender.method,
        "adapters": dict(zip(contender.members, map(_number, standing.each), strict=True)),
        "learning_rate": contender.learning_rate,
        "tuning": {f"{rate:g}": _number(score) for rate, score in contender.tried.items()},
        "trained_parameters": contender.trained_parameters,
        **asdict(contender.cost),
        "score": _numbers(standing.score),
        "over_base": _numbers(standing.over_base),
        "over_majority": _numbers(standing.over_majority),
        "to_best": _numbers(standing.to_best),
        "p_to_best_holm": _number(standing.p),
    }


def _numbers(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else {key: _number(value) for key, value in asdict(interval).items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
