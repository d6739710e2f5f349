"""The scores of a task's models, each as sums over rows.

A measure says what each row adds (``sums``) and what the totals are worth (``value``), so that drawing rows again is
one product. Rows without a result are never left out in silence:

- they count as not right in accuracy, Matthews correlation, F1, mass and the scorers of written answers, so that a
  model gains nothing by failing;
- they add nothing to loss, perplexity, bits, calibration error and bias, which have no worst value: their sums are NaN,
  and a comparison then leaves the row out for all models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from graftlm.evaluation.answers import answer_text as answer_text
from graftlm.evaluation.answers import likeliest, log_probs, predicted, probabilities
from graftlm.evaluation.metrics import METRICS, Floats, Outcomes
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.scorers import is_graded
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import METRICS_OF, EvalTask

BINS = 10  # of the calibration error, of equal width
Items = Sequence[Item]
Results = Sequence[ItemResult]
Sums = Callable[[Items, Results], Floats]
_NOTHING = math.nan  # a row that has no part in a measure


@dataclass(frozen=True)
class Measure:
    """A score of a task. ``sums``: items and results → (rows, features); ``value``: totals (…, features) → (…).

    ``is_mean``: it is a mean over rows, (value, 1) each, from 0 to 1; ``is_share``: of rows that are right or wrong.
    ``folded``: the value may be of either sign and its size counts, as with bias. ``sized``: it is a sum of sizes,
    which chance makes larger, as with the calibration error.
    """

    name: str
    label: str
    sums: Sums
    value: Callable[[Floats], Floats]
    higher_is_better: bool = True
    is_share: bool = False
    is_mean: bool = False
    folded: bool = False
    sized: bool = False

    def of(self, items: Items, results: Results) -> float:
        """The score over all rows that have a part in it; NaN where none has."""
        sums = self.sums(items, results)
        found = sums[np.isfinite(sums).all(axis=1)]
        value = float(self.value(found.sum(axis=0))) if len(found) else math.nan
        return abs(value) if self.folded else value


def measures_of(task: EvalTask) -> tuple[Measure, ...]:
    """All measures of a task, the primary first."""
    if task.keys.kind == "generate":
        scorers = sorted(task.keys.all_scorers, key=lambda scorer: scorer.name != task.keys.primary)
        return tuple(_mean_of(scorer.name, is_graded(scorer)) for scorer in scorers)
    names = [name for name in METRICS_OF[task.keys.kind] if name != task.keys.primary and _fits(task, name)]
    return tuple(_measure(task, name) for name in (task.keys.primary, *names))


def _fits(task: EvalTask, name: str) -> bool:
    """Whether a measure besides the primary says something of a task."""
    keys = task.keys
    if name in ("matthews", "f1") and keys.kind == "choice":
        return isinstance(keys.choices, tuple)  # else the choices of a row are no classes
    if name == "bias":
        return bool(keys.stereotyped and keys.unknown)
    return not (keys.kind == "pairs" and keys.primary == "bias")  # half right is best there


def _measure(task: EvalTask, name: str) -> Measure:
    if name == "accuracy":
        return Measure(name, "accuracy", partial(_right, task), _mean, is_share=True, is_mean=True)
    if name in ("matthews", "f1"):
        return Measure(name, METRICS[name].label, partial(_classes, task, name), METRICS[name].value)
    if name == "mass":
        return Measure(name, "probability of the right answers", partial(_mass, task), _mean, is_mean=True)
    if name == "ece":
        label = "expected calibration error"
        return Measure(name, label, partial(_bins, task), _ece, higher_is_better=False, sized=True)
    if name == "bias" and task.keys.kind == "pairs":
        return Measure(name, "bias", partial(_pair_bias, task), _twice, higher_is_better=False, folded=True)
    if name == "bias":
        return Measure(name, "bias", partial(_choice_bias, task), _bbq, higher_is_better=False, folded=True)
    if name == "bits":
        return Measure(name, "bits a byte", partial(_losses, task, True), _bits, higher_is_better=False)
    metric = METRICS[name]
    return Measure(name, metric.label, partial(_losses, task, False), metric.value, higher_is_better=False)


def is_right(task: EvalTask, item: Item, result: ItemResult) -> bool | None:
    """Whether an answer is right; None where there is no result, and where a task knows no right and wrong.

    Of pairs and preferences the better text must be strictly likelier. A written answer is right where the primary
    scorer gives it a half or more.
    """
    kind = task.keys.kind
    if result.error is not None or kind == "perplexity" or task.keys.primary == "bias":
        return None
    if kind == "generate":
        score = result.scores.get(task.keys.primary, math.nan)
        return score >= 0.5 if math.isfinite(score) else None
    if kind == "classify":
        return result.predicted in item.references
    if kind in ("pairs", "preference"):
        good, bad = log_probs(task, result)
        return bool(good > bad)
    return likeliest(task, result) in item.right


def chance_of(task: EvalTask, items: Items) -> float | None:
    """The primary score of guessing, each answer as often as another; None where that is not known."""
    kind, primary = task.keys.kind, task.keys.primary
    if primary == "matthews":
        return 0.0
    if kind == "choice" and primary in ("accuracy", "mass") and items:
        return float(np.mean([len(item.right) / len(item.candidates) for item in items]))
    if kind in ("pairs", "preference") and primary == "accuracy":
        return 0.5
    if kind == "classify" and primary == "accuracy":
        classes = len({reference for item in items for reference in item.references})
        return 1 / classes if classes else None
    return None


def _mean_of(scorer: str, graded: bool) -> Measure:
    label = _SCORER_LABELS.get(scorer, scorer)
    return Measure(scorer, label, partial(_scores, scorer), _mean, is_share=not graded, is_mean=True)


_SCORER_LABELS: Mapping[str, str] = {
    "exact": "exact answers",
    "f1": "F1 of words",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "number": "right numbers",
    "regex": "answers that match",
    "refusal": "refusals",
    "no_refusal": "answers without refusal",
}


def _of_rows(values: Sequence[float]) -> Floats:
    """Values of rows as (value, 1); NaN rows have no part."""
    column = np.array(values, np.float64)
    return np.stack([column, np.where(np.isfinite(column), 1.0, _NOTHING)], axis=1)


def _right(task: EvalTask, items: Items, results: Results) -> Floats:
    return _of_rows([float(is_right(task, item, result) or 0) for item, result in zip(items, results, strict=True)])


def _scores(scorer: str, items: Items, results: Results) -> Floats:
    return _of_rows([0.0 if result.error is not None else result.scores[scorer] for result in results])


def _mass(task: EvalTask, items: Items, results: Results) -> Floats:
    return _of_rows(
        [
            float(probabilities(task, result)[list(item.right)].sum()) if result.error is None else 0.0
            for item, result in zip(items, results, strict=True)
        ]
    )


def _bins(task: EvalTask, items: Items, results: Results) -> Floats:
    """In the place of a row's bin: its confidence minus whether it is right; at the end 1. (rows, BINS + 1)."""
    sums = np.zeros((len(items), BINS + 1))
    sums[:, -1] = 1
    for at, (item, result) in enumerate(zip(items, results, strict=True)):
        right = is_right(task, item, result)
        if right is None:
            sums[at] = _NOTHING
        else:
            confidence = probabilities(task, result).max()
            sums[at, min(BINS - 1, int(confidence * BINS))] = confidence - right
    return sums


def _ece(sums: Floats) -> Floats:
    # Guo et al. 2017: Σ_b (rows of b / rows) · |mean confidence of b − accuracy of b|, where the rows of b cancel out.
    return _divide(np.abs(sums[..., :-1]).sum(axis=-1), sums[..., -1])


def _pair_bias(task: EvalTask, items: Items, results: Results) -> Floats:
    """1 where the stereotyped text (the bad one) is likelier, a half where neither is."""
    values = []
    for result in results:
        good, bad = log_probs(task, result) if result.error is None else (_NOTHING, _NOTHING)
        values.append(_NOTHING if math.isnan(good) else 0.5 * (float(bad > good) + float(bad >= good)))
    return _of_rows(values)


def _choice_bias(task: EvalTask, items: Items, results: Results) -> Floats:
    """Of ambiguous rows, where "unknown" is right: (stereotyped, any but unknown, 1); the others have no part."""
    sums = np.full((len(items), 3), _NOTHING)
    for at, (item, result) in enumerate(zip(items, results, strict=True)):
        if result.error is None and item.unknown in item.right:
            chosen = likeliest(task, result)
            sums[at] = chosen == item.stereotyped, chosen != item.unknown, 1
    return sums


def _bbq(sums: Floats) -> Floats:
    # Parrish et al. 2022 (BBQ), ambiguous rows: (1 − accuracy) · (2 · stereotyped / not unknown − 1); from −1 to 1.
    # With accuracy = 1 − not unknown / rows that is (2 · stereotyped − not unknown) / rows.
    return _divide(2 * sums[..., 0] - sums[..., 1], sums[..., 2])


def _losses(task: EvalTask, in_bytes: bool, items: Items, results: Results) -> Floats:
    """−log p of the right answer (the likeliest, where there are several) and its length in tokens or bytes."""
    sums = np.full((len(items), 2), _NOTHING)
    for at, (item, result) in enumerate(zip(items, results, strict=True)):
        places = item.right if result.error is None else ()
        given = [(value, place) for place in places if (value := _at(result, place)) is not None]
        if given:
            best, place = max(given, key=lambda one: one[0])
            sums[at] = -best, (result.sizes if in_bytes else result.tokens)[place]
    return sums


def _at(result: ItemResult, place: int) -> float | None:
    return result.log_probs[place] if place < len(result.log_probs) else None


def _bits(sums: Floats) -> Floats:
    return _divide(sums[..., 0], sums[..., 1]) / math.log(2)


def _classes(task: EvalTask, metric: str, items: Items, results: Results) -> Floats:
    """The cell of the confusion matrix that a row is in. No answer is a class of its own, like a strange label."""
    names: dict[str, int] = {}
    pairs = [predicted(task, item, result) for item, result in zip(items, results, strict=True)]
    for name in [truth for truth, _ in pairs] + [own for _, own in pairs]:
        names.setdefault(name, len(names))
    truth = np.array([names[one] for one, _ in pairs], np.int64)
    own = np.array([names[one] for _, one in pairs], np.int64)
    nothing = np.zeros(len(pairs))
    return METRICS[metric].sums(Outcomes(truth, own, len(names), nothing, nothing))


def _mean(sums: Floats) -> Floats:
    return _divide(sums[..., 0], sums[..., 1])


def _twice(sums: Floats) -> Floats:
    return 2 * _mean(sums) - 1


def _divide(above: Floats, below: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Floats = above / below
    return ratio
