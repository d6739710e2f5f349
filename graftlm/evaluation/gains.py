"""What adapters gain on a task: every model's scores with intervals, and differences on the same rows.

Intervals are Wilson's and Newcombe's where a row is right or wrong, else from a paired bootstrap over rows. p-values of
a difference are McNemar's, exact, where a row is right or wrong, else from swapping the two results of rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from graftlm.errors import UserError
from graftlm.evaluation import statistics
from graftlm.evaluation.answers import answer_text
from graftlm.evaluation.evaluation import BASE, Example, TaskResult, TaskScore, Versus
from graftlm.evaluation.measures import chance_of, is_right, measures_of
from graftlm.evaluation.reliability import bins_of
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.scored import Scored, score_measures
from graftlm.evaluation.statistics import RESAMPLES, SEED, Interval
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask

EXAMPLES = 8
_UNKNOWN = Interval(math.nan, math.nan, math.nan)
Results = Mapping[str, Sequence[ItemResult]]


def compare_models(
    task: EvalTask,
    items: Sequence[Item],
    results: Results,
    *,
    examples: int = EXAMPLES,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> TaskResult:
    """A task's result from those of all models, name → results in the order of the items.

    A model without a single result (a base without the head of a task) has no scores and is compared with none. The
    p-values are of this task's comparisons alone: :func:`corrected` does those of an evaluation.

    Raises:
        UserError: a model was scored on other rows.
    """
    check_same_rows(task, items, results)
    alive = [name for name in results if any(result.error is None for result in results[name])]
    measures = measures_of(task)
    sums = [{name: measure.sums(items, results[name]) for name in alive} for measure in measures]
    scored = score_measures(measures, sums, seed, resamples)
    primary = scored[0]
    right = {
        name: [is_right(task, item, result) for item, result in zip(items, results[name], strict=True)]
        for name in results
    }
    adapters = [name for name in alive if name != BASE]
    pairs = [(BASE, name) for name in adapters if BASE in alive] + list(combinations(adapters, 2))
    p_values = primary.p_values(pairs, seed, resamples)
    versus = _all_versus(primary, pairs, p_values, right)
    scores = tuple(
        TaskScore(
            name,
            {each.measure.name: each.interval(name) if name in alive else _UNKNOWN for each in scored},
            sum(result.error is not None for result in results[name]),
            versus.get((BASE, name)),
            bins_of(task, items, results[name]),
        )
        for name in results
    )
    keys = task.keys
    return TaskResult(
        name=task.name,
        title=task.title,
        group=keys.group,
        family=keys.family,
        language=keys.language,
        kind=keys.kind,
        about=keys.about,
        rows=len(items),
        rows_hash=hashlib.sha256(" ".join(item.hash for item in items).encode()).hexdigest()[:16],
        primary=primary.measure.name,
        labels={measure.name: measure.label for measure in measures},
        shares=tuple(each.measure.name for each in scored if each.measure.is_share or each.binary),
        lower_is_better=tuple(measure.name for measure in measures if not measure.higher_is_better),
        scores=scores,
        versus=tuple(each for (before, _), each in versus.items() if before != BASE),
        examples=_examples(task, items, results, right, versus, examples),
        chance=chance_of(task, items),
    )


def check_same_rows(task: EvalTask, items: Sequence[Item], results: Results) -> None:
    """Whether results are of the items at all.

    Raises:
        UserError: they are of other rows; the model and the first row that differs are named.
    """
    hint = "Score all models again on the same rows, into a new folder."
    for name, found in results.items():
        if len(found) != len(items):
            raise UserError(
                f"task {task.name}: different rows compared: there are {len(items)}, and '{name}' was scored "
                f"on {len(found)}",
                hint=hint,
            )
        for item, result in zip(items, found, strict=True):
            if item.hash != result.item:
                raise UserError(
                    f"task {task.name}: different rows compared: '{name}' was scored on another text of "
                    f"{item.source}, row {item.row}",
                    hint=hint,
                )


def corrected(tasks: Sequence[TaskResult]) -> tuple[TaskResult, ...]:
    """The tasks with p-values corrected over the whole evaluation (Holm 1979).

    There are two families, because they answer two questions: all adapters × tasks against the base, and all pairs of
    adapters × tasks.
    """
    over_base = _holm([score.over_base for task in tasks for score in task.scores if score.over_base])
    others = _holm([each for task in tasks for each in task.versus])
    found = []
    for task in tasks:
        scores = tuple(
            replace(score, over_base=next(over_base)) if score.over_base is not None else score for score in task.scores
        )
        found.append(replace(task, scores=scores, versus=tuple(next(others) for _ in task.versus)))
    return tuple(found)


def _holm(given: Sequence[Versus]) -> Iterator[Versus]:
    values = statistics.holm([each.p for each in given])
    family = sum(math.isfinite(value) for value in values)
    return iter([replace(each, p=value, family=max(1, family)) for each, value in zip(given, values, strict=True)])


def _all_versus(
    primary: Scored,
    pairs: Sequence[tuple[str, str]],
    p_values: Sequence[float],
    right: Mapping[str, Sequence[bool | None]],
) -> dict[tuple[str, str], Versus]:
    found = {}
    for (before, after), p in zip(pairs, p_values, strict=True):
        both = list(enumerate(zip(right[before], right[after], strict=True)))
        found[before, after] = Versus(
            before,
            after,
            primary.change(before, after),
            p,
            won=tuple(place for place, (old, new) in both if new and not old),
            lost=tuple(place for place, (old, new) in both if old and not new),
            error=primary.error(before, after),
        )
    return found


def _examples(
    task: EvalTask,
    items: Sequence[Item],
    results: Results,
    right: Mapping[str, Sequence[bool | None]],
    versus: Mapping[tuple[str, str], Versus],
    most: int,
) -> tuple[Example, ...]:
    """Rows that changed over the base (or between adapters, where there is none): lost and won, of each in turn.

    Which of them is decided by the rows' hashes: the same rows always, and not the first ones of a file.
    """
    over_base = [each for (before, _), each in versus.items() if before == BASE] or list(versus.values())
    queues = [
        sorted(places, key=lambda place: items[place].hash) for each in over_base for places in (each.lost, each.won)
    ]
    chosen: dict[int, None] = {}
    for turn in range(max((len(queue) for queue in queues), default=0)):
        for queue in queues:
            if turn < len(queue) and len(chosen) < most:
                chosen[queue[turn]] = None
    return tuple(
        Example(
            place,
            _asked(items[place]),
            " / ".join(items[place].references or [items[place].candidates[at] for at in items[place].right]),
            {name: answer_text(task, items[place], results[name][place]) for name in results},
            {name: bool(right[name][place]) for name in results},
        )
        for place in chosen
    )


def _asked(item: Item) -> str:
    """The prompt; of texts without one, the texts."""
    return "\n\n".join(message.content for message in item.messages) or "\n".join(item.candidates)
