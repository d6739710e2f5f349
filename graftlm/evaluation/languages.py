"""The same task in two languages: what an adapter gains in each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from graftlm.evaluation.evaluation import LanguagePair, TaskResult


def language_pairs(tasks: Sequence[TaskResult]) -> tuple[LanguagePair, ...]:
    """The gains over the base of every adapter, for tasks of one family and name that differ in their language.

    A name ends in its language: reading-en and reading-zh are one task. The order of languages is that of the tasks.
    """
    return tuple(
        LanguagePair(
            score.model, _stem(first), (first.language, second.language), (score.over_base.change, other.change)
        )
        for first, second in combinations(tasks, 2)
        if _same(first, second)
        for score in first.scores
        if score.over_base is not None
        for other in [each.over_base for each in second.scores if each.model == score.model]
        if other is not None
    )


def _same(first: TaskResult, second: TaskResult) -> bool:
    return (
        first.language != second.language
        and bool(first.language and second.language)
        and _stem(first) == _stem(second)
        and first.family == second.family
        and (first.kind, first.primary) == (second.kind, second.primary)
    )


def _stem(task: TaskResult) -> str:
    """The name without its language."""
    return task.name.removesuffix(f"-{task.language}") if task.language else task.name
