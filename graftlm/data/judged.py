"""What people said of an answer, beside other answers to the same prompt or on its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from graftlm.data.instances import Instance, Message


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of one answer. All answers to one prompt that were compared stand in one group.

    ``ranks``: its place in the group by criterion, the lowest is the best and equal ones are ties; NaN where it was not
    judged by that criterion. Without criteria there is one rank. ``margin``: by how much the better one is better, of
    the worse one of a pair. ``desirable``: whether it is good, whatever the others are. ``mismatched``: this is no answer to
    the prompt before it, but another prompt's; it is scored and not learnt (KTO).
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


def answers_of(instance: Instance, criteria: int = 1) -> list[Answer]:
    """The answers that an instance has to its prompt, the first as the instance itself tells it.

    A pair gives two answers, ranked 0 and 1 by all of ``criteria``, the first desirable and the second not; other
    instances give one, of which nothing is said.
    """
    rejected = instance.rejected
    if rejected is None:
        return [Answer(instance, Judgement(ranks=(math.nan,) * criteria))]
    chosen = instance.chosen
    worse = replace(chosen, messages=(*chosen.messages[:-1], Message("assistant", rejected.content)))
    return [
        Answer(chosen, Judgement(ranks=(0.0,) * criteria, desirable=True)),
        Answer(worse, Judgement(ranks=(1.0,) * criteria, desirable=False)),
    ]


def compared(judged: list[Judgement], criterion: int = 0) -> list[tuple[int, int]]:
    """All (better, worse) of a group by one criterion, as places in it; ties and what was not judged are left out."""
    ranks = [each.ranks[criterion] if criterion < len(each.ranks) else math.nan for each in judged]
    return [(one, other) for one, first in enumerate(ranks) for other, second in enumerate(ranks) if first < second]
