"""What people said of an answer, beside other answers to the same prompt or on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from graftlm.data.instances import Instance, Verdict
from graftlm.data.verdicts import margin_of, overall


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of one answer. All answers to one prompt that were compared stand in one group.

    ``ranks``: its place in the group by criterion, the lowest is the best and equal ones are ties; NaN where it was not
    judged by that criterion. Without criteria there is one rank. ``margin``: by how much the better one is better, of
    the worse one of a pair. ``desirable``: whether it is good, whatever the others are. ``mismatched``: this is no
    answer to the prompt before it, but another prompt's; it is scored and not learnt (KTO).
    """

    ranks: tuple[float, ...] = ()
    margin: float = 0.0
    desirable: bool | None = None
    mismatched: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a group as a conversation that ends with it, and what was said of it."""

    instance: Instance
    judged: Judgement


def answers_of(instance: Instance, criteria: Sequence[str] = ("",)) -> list[Answer]:
    """The answers that an instance has to its prompt, the best first, with their ranks by criterion.

    A single criterion takes what is said by its name, or else what is said as a whole, or else the order of the
    answers; several take what is said by their names alone. What several annotators said is averaged.
    """
    count = len(instance.answers)
    ranks = [_ranks(instance, name, alone=len(criteria) == 1) for name in criteria]
    margin = margin_of(instance) if count == 2 else 0.0
    return [
        Answer(
            instance.with_answer(number),
            Judgement(tuple(each[number] for each in ranks), margin if number else 0.0),
        )
        for number in range(count)
    ]


def single_answers(instance: Instance) -> list[Answer]:
    """The answers of an instance that were found good or bad, each by itself.

    By labels where there are some; else the best of several answers is good, and the worst bad.
    """
    count = len(instance.answers)
    labels = [verdict for verdict in instance.verdicts if verdict.kind == "labels"]
    good: list[bool | None] = [None] * count
    if labels:
        good = _found_good(labels, count)
    else:
        ranks = [rank for rank in _ranks(instance, "", alone=True) if not math.isnan(rank)]
        if len(set(ranks)) > 1:
            places = {min(ranks): True, max(ranks): False}
            good = [places.get(rank) for rank in _ranks(instance, "", alone=True)]
    return [
        Answer(instance.with_answer(number), Judgement(desirable=found))
        for number, found in enumerate(good)
        if found is not None
    ]


def labels_of(instance: Instance, criterion: str, *, alone: bool) -> list[bool | None]:
    """Whether each answer was found good by a criterion, by most annotators; None where that is not known.

    None for all where answers were ranked or rated. ``alone``: as in :func:`answers_of` with a single criterion.
    """
    count, used = len(instance.answers), _said(instance, criterion, alone=alone)
    if any(verdict.kind != "labels" for verdict in used):
        return [None] * count
    return _found_good(used, count)


def _found_good(labels: Sequence[Verdict], count: int) -> list[bool | None]:
    """What most annotators say of each answer; None where nobody does, or as many say the other."""
    found: list[bool | None] = []
    for number in range(count):
        balance = sum(2 * value - 1 for verdict in labels if (value := verdict.values[number]) is not None)
        found.append(None if balance == 0 else balance > 0)
    return found


def _said(instance: Instance, criterion: str, *, alone: bool) -> list[Verdict]:
    """What was said by a criterion; where it stands alone and nothing was, whatever was said."""
    own = [verdict for verdict in instance.verdicts if verdict.criterion == criterion and criterion]
    return own or (list(instance.verdicts) if alone else [])


def _ranks(instance: Instance, criterion: str, *, alone: bool) -> list[float]:
    """The ranks of all answers by a criterion, NaN where one was not judged."""
    count, used = len(instance.answers), _said(instance, criterion, alone=alone)
    if not used and alone and not instance.verdicts and count > 1:
        return [float(number) for number in range(count)]
    scores = overall(used, count) or [-math.inf] * count
    return [math.nan if score == -math.inf else -score for score in scores]


def compared(judged: list[Judgement], criterion: int = 0) -> list[tuple[int, int]]:
    """All (better, worse) of a group by one criterion, as places in it; ties and what was not judged are left out."""
    ranks = [each.ranks[criterion] if criterion < len(each.ranks) else math.nan for each in judged]
    return [(one, other) for one, first in enumerate(ranks) for other, second in enumerate(ranks) if first < second]
