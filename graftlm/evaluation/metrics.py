"""Scores of a task, each as a function of sums over rows.

A metric says what each row adds (``sums``) and what the totals are worth (``value``). Drawing rows again is then one
product of counts with ``sums``, for accuracy and for Matthews correlation alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graftlm.errors import unknown_name

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Outcomes:
    """What a model made of the rows of a task; all arrays are (rows,).

    ``truth`` and ``predicted``: the right class and the chosen one, below ``classes``. ``loss``: −log p of the right
    answer, in nats, and ``tokens`` how many tokens it has.
    """

    truth: Integers
    predicted: Integers
    classes: int
    loss: Floats
    tokens: Floats

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which rows were answered right."""
        return np.equal(self.truth, self.predicted)

    def select(self, rows: Integers) -> Outcomes:
        """Those of some rows."""
        return Outcomes(self.truth[rows], self.predicted[rows], self.classes, self.loss[rows], self.tokens[rows])


def joined(parts: Sequence[Outcomes]) -> Outcomes:
    """The rows of several tasks, one after the other; a class number means another class in each."""
    names = ("truth", "predicted", "loss", "tokens")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Outcomes(classes=max(part.classes for part in parts), **arrays)


@dataclass(frozen=True)
class Metric:
    """A score. ``sums``: outcomes → (rows, features); ``value``: totals (…, features) → (…)."""

    name: str
    label: str
    sums: Callable[[Outcomes], Floats]
    value: Callable[[Floats], Floats]
    higher_is_better: bool = True
    is_share: bool = False
    needs_classes: bool = False

    def of(self, outcomes: Outcomes) -> float:
        """The score over all rows; NaN without rows."""
        return float(self.value(self.sums(outcomes).sum(axis=0)))


def accuracy(outcomes: Outcomes) -> float:
    """The share of rows whose chosen class is the right one."""
    return METRICS["accuracy"].of(outcomes)


def exact_match(outcomes: Outcomes) -> float:
    """The share of rows answered exactly: accuracy over the classes "not the answer" and "the answer"."""
    return METRICS["exact"].of(outcomes)


def matthews(outcomes: Outcomes) -> float:
    """Matthews correlation, for any number of classes: Gorodkin 2004, R_K; 0 where one side is constant."""
    return METRICS["matthews"].of(outcomes)


def macro_f1(outcomes: Outcomes) -> float:
    """F1 of each class, averaged over the classes that occur on either side."""
    return METRICS["f1"].of(outcomes)


def perplexity(outcomes: Outcomes) -> float:
    """exp of the mean loss a token."""
    return METRICS["perplexity"].of(outcomes)


def metric_named(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UserError: there is none; it names those that there are.
    """
    if name not in METRICS:
        raise unknown_name("metric", name, list(METRICS))
    return METRICS[name]


def _right(outcomes: Outcomes) -> Floats:
    return np.stack([outcomes.correct, np.ones(len(outcomes.truth))], axis=1).astype(np.float64)


def _losses(outcomes: Outcomes) -> Floats:
    return np.stack([outcomes.loss, outcomes.tokens], axis=1)


def _cells(outcomes: Outcomes) -> Floats:
    """Which cell of the confusion matrix (truth, predicted) each row is in: (rows, classes²), one-hot."""
    cells = np.zeros((len(outcomes.truth), outcomes.classes**2))
    cells[np.arange(len(cells)), outcomes.truth * outcomes.classes + outcomes.predicted] = 1
    return cells


def _ratio(sums: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Floats = sums[..., 0] / sums[..., 1]
    return ratio


def _exp_ratio(sums: Floats) -> Floats:
    with np.errstate(over="ignore"):
        return np.exp(_ratio(sums))


def _square(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Of confusion matrices: right answers, rows of each class, choices of each class; (…, classes) each."""
    classes = round(sums.shape[-1] ** 0.5)
    matrix = sums.reshape(*sums.shape[:-1], classes, classes)
    return np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2)


def _matthews(sums: Floats) -> Floats:
    right, truth, predicted = _square(sums)
    rows = truth.sum(axis=-1)
    covariance = right.sum(axis=-1) * rows - (truth * predicted).sum(axis=-1)
    spread = (rows**2 - (truth**2).sum(axis=-1)) * (rows**2 - (predicted**2).sum(axis=-1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), np.where(rows > 0, 0, np.nan))


def _macro_f1(sums: Floats) -> Floats:
    right, truth, predicted = _square(sums)
    both = truth + predicted
    each = np.where(both > 0, 2 * right / np.where(both > 0, both, 1.0), 0.0)
    return _ratio(np.stack([each.sum(axis=-1), (both > 0).sum(axis=-1)], axis=-1))


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", _right, _ratio, is_share=True, needs_classes=True),
        Metric("exact", "exact answers", _right, _ratio, is_share=True),
        Metric("matthews", "Matthews correlation", _cells, _matthews, needs_classes=True),
        Metric("f1", "macro F1", _cells, _macro_f1, needs_classes=True),
        Metric("loss", "loss a token", _losses, _ratio, higher_is_better=False),
        Metric("perplexity", "perplexity", _losses, _exp_ratio, higher_is_better=False),
    )
}
