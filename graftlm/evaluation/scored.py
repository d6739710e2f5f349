"""A measure of several models on the same rows: scores, differences, how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graftlm.evaluation import statistics
from graftlm.evaluation.measures import Measure, measures_of
from graftlm.evaluation.metrics import Floats
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.sizes import size_change, size_interval
from graftlm.evaluation.statistics import RESAMPLES, SEED, Change, Interval
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask


@dataclass(frozen=True)
class Scored:
    """A measure of all models on the same rows.

    ``sums``: what each row adds, of the ``rows`` that have a part in it in all models. ``draws``: the values when rows
    are drawn again, before folding.
    """

    measure: Measure
    sums: Mapping[str, Floats]
    draws: Mapping[str, Floats]
    rows: int

    @property
    def binary(self) -> bool:
        """Whether every row is right or wrong for every model."""
        return bool(self.sums) and all(self._is_binary(name) for name in self.sums)

    def score(self, name: str) -> float:
        """The score of a model; NaN without rows."""
        return float(self._value(self.sums[name].sum(axis=0))) if self.rows else math.nan

    def interval(self, name: str) -> Interval:
        """The score of a model and its interval; unknown for fewer than two rows."""
        value, sums = self.score(name), self.sums[name]
        if self.rows < 2 or not math.isfinite(value):
            return Interval(value, math.nan, math.nan)
        if self._is_binary(name):  # of this model alone: answers that all score 0 tell a bootstrap nothing
            return statistics.wilson_interval(round(sums[:, 0].sum()), self.rows)
        if self.measure.sized:
            return size_interval(sums[:, :-1])
        signed = float(self.measure.value(sums.sum(axis=0)))
        found = statistics.bca_interval(signed, self.draws[name], self.measure.value(sums.sum(axis=0) - sums))
        return _folded(found) if self.measure.folded else found

    def change(self, before: str, after: str) -> Change:
        """The difference of two models, after minus before, and its interval."""
        old, new = self.score(before), self.score(after)
        if self.rows < 2:
            return Change(new - old, math.nan, math.nan, before=old, after=new)
        if self.binary:
            return statistics.paired_share_change(*(self.sums[name][:, 0] == 1 for name in (before, after)))
        if self.measure.sized:
            return size_change(self.sums[before][:, :-1], self.sums[after][:, :-1])
        draws = self._differences(before, after)
        found = statistics.bca_interval(new - old, draws, self._left_out(before, after))
        return Change(new - old, found.low, found.high, before=old, after=new)

    def error(self, before: str, after: str) -> float:
        """The standard error of the difference."""
        if self.rows < 2:
            return math.nan
        if self.binary:
            return float(np.std(self.sums[after][:, 0] - self.sums[before][:, 0]) / math.sqrt(self.rows))
        return float(np.std(self._differences(before, after)))

    def p_values(self, pairs: Sequence[tuple[str, str]], seed: int = SEED, resamples: int = RESAMPLES) -> list[float]:
        """p-values of "no difference", uncorrected: McNemar's where rows are right or wrong, else of swapped rows."""
        if self.rows < 2:
            return [math.nan] * len(pairs)
        if self.binary:
            return [
                statistics.mcnemar_p(self.sums[one][:, 0] == 1, self.sums[other][:, 0] == 1) for one, other in pairs
            ]
        names = list(self.sums)
        places = [(names.index(one), names.index(other)) for one, other in pairs]
        return statistics.swap_p(
            [self.sums[name] for name in names], places, self._value, resamples=resamples, seed=seed
        )

    def _value(self, totals: Floats) -> Floats:
        found = self.measure.value(totals)
        return np.abs(found) if self.measure.folded else found

    def _is_binary(self, name: str) -> bool:
        return self.measure.is_mean and self.rows > 0 and bool(np.isin(self.sums[name][:, 0], (0, 1)).all())

    def _left_out(self, before: str, after: str) -> Floats:
        """The difference without each row."""
        old, new = (self._value(self.sums[name].sum(axis=0) - self.sums[name]) for name in (before, after))
        with np.errstate(invalid="ignore"):  # perplexities without bound
            return new - old

    def _differences(self, before: str, after: str) -> Floats:
        old, new = self.draws[before], self.draws[after]
        with np.errstate(invalid="ignore"):
            return np.abs(new) - np.abs(old) if self.measure.folded else new - old


def score_measures(
    measures: Sequence[Measure], sums: Sequence[Mapping[str, Floats]], seed: int = SEED, resamples: int = RESAMPLES
) -> list[Scored]:
    """Each measure of all models, from what each row adds, name → (rows, features).

    A row that is NaN for one model is left out for all. Measures of the same rows share their draws: to draw takes
    longer than what is made of it.
    """
    present = [_present(each) for each in sums]
    kept = [{name: one[rows] for name, one in each.items()} for each, rows in zip(sums, present, strict=True)]
    drawn: list[dict[str, list[Floats]]] = [{name: [] for name in each} for each in sums]
    alike: dict[bytes, list[int]] = {}  # measures that have the same rows
    for at, rows in enumerate(present):
        alike.setdefault(rows.tobytes(), []).append(at)
    for places in alike.values():
        for counts in statistics.draw_counts(int(present[places[0]].sum()), resamples, seed):
            for at in places:
                for name, one in kept[at].items():
                    drawn[at][name].append(measures[at].value(counts @ one))
    return [
        Scored(
            measure,
            own,
            {name: np.concatenate(parts) if parts else np.zeros(0) for name, parts in into.items()},
            int(rows.sum()),
        )
        for measure, own, into, rows in zip(measures, kept, drawn, present, strict=True)
    ]


def _present(sums: Mapping[str, Floats]) -> NDArray[np.bool_]:
    """The rows that have a part in a measure for all models."""
    if not sums:
        return np.zeros(0, bool)
    whole = [np.isfinite(one).all(axis=1) for one in sums.values()]
    return np.asarray(np.stack(whole).all(axis=0))


def _folded(signed: Interval) -> Interval:
    """The interval of a size, from that of the signed value: from 0 where that may be of either sign."""
    ends = sorted((abs(signed.low), abs(signed.high)))
    low = 0.0 if signed.low <= 0 <= signed.high else ends[0]
    return Interval(abs(signed.value), low, ends[1])


def primary_score(task: EvalTask, items: Sequence[Item], results: Sequence[ItemResult]) -> Interval:
    """The primary score of one model on some items."""
    measure = measures_of(task)[0]
    (scored,) = score_measures([measure], [{"": measure.sums(items, results)}])
    return scored.interval("")
