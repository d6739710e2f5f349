"""Answers of two models side by side: what a judge says of each pair, and the win rate with how sure it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from scipy import optimize, stats

from graftlm.data.instances import Message
from graftlm.evaluation.evaluation import WinRate
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.statistics import LEVEL, Interval
from graftlm.evaluation.tasks.items import Item

Outcome = Literal["win", "loss", "tie"]  # as seen from ``after``


@dataclass(frozen=True)
class Duel:
    """What was asked, and the answers of two models to it. ``reference``: a right answer, where there is one."""

    messages: tuple[Message, ...]
    before: str
    after: str
    reference: str = ""
    language: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a judge makes of a duel.

    ``consistent``: whether it said the same in both orders; None where that was not asked or cannot be told. ``read``:
    False where an answer of the judge held no verdict; that counts as a tie.
    """

    outcome: Outcome
    consistent: bool | None = None
    read: bool = True


class Judge(Protocol):
    """Whatever tells which of two answers is better."""

    @property
    def name(self) -> str: ...

    def verdicts(self, duels: Sequence[Duel]) -> list[Verdict]:
        """One for each duel, in order."""
        ...


def duels_of(
    items: Sequence[Item], before: Sequence[ItemResult], after: Sequence[ItemResult], *, language: str = ""
) -> dict[int, Duel]:
    """The duels of two models' written answers, by place (from 0) in the items, of the rows that both answer.

    Raises:
        ValueError: the results are of other items.
    """
    hashes = [item.hash for item in items]
    if any([result.item for result in results] != hashes for results in (before, after)):
        raise ValueError("the results are of other items")
    return {
        place: Duel(item.messages, one.text, two.text, next(iter(item.references), ""), language)
        for place, (item, one, two) in enumerate(zip(items, before, after, strict=True))
        if one.text is not None and two.text is not None and one.error is None and two.error is None
    }


def side_by_side(judge: Judge, task: str, before: str, after: str, duels: Sequence[Duel]) -> WinRate:
    """The win rate of ``after`` over ``before``, as a judge sees it."""
    return win_rate(judge.verdicts(duels), judge=judge.name, task=task, before=before, after=after)


def win_rate(verdicts: Sequence[Verdict], *, judge: str, task: str, before: str, after: str) -> WinRate:
    """Verdicts as a win rate: a tie counts half."""
    outcomes = [each.outcome for each in verdicts]
    wins, losses, ties = (outcomes.count(word) for word in ("win", "loss", "tie"))
    told = [each.consistent for each in verdicts if each.consistent is not None]
    return WinRate(
        before,
        after,
        task,
        judge,
        rate=win_rate_interval(wins, losses, ties),
        wins=wins,
        losses=losses,
        ties=ties,
        consistent=sum(told) / len(told) if told else None,
        p=sign_test_p(wins, losses),
        unread=sum(not each.read for each in verdicts),
    )


def win_rate_interval(wins: int, losses: int, ties: int, *, level: float = LEVEL) -> Interval:
    """(wins + ties / 2) / all, with Tango's score interval (1998) of the difference between wins and losses.

    Wilson's interval would take a tie for a coin that was thrown, and is far too wide where ties are many; the plain
    normal interval is a point where all are ties. This one is neither, and agrees with McNemar's test.
    """
    number = wins + losses + ties
    if number == 0:
        return Interval(math.nan, math.nan, math.nan)
    difference, z = (wins - losses) / number, float(stats.norm.isf((1 - level) / 2))

    def distance(delta: float) -> float:
        """By how much what was seen is more than z standard errors from ``delta``, if that were the true difference."""
        b = -wins - losses + (2 * number - wins + losses) * delta
        c = -losses * delta * (1 - delta)
        # The likeliest share of losses, given delta.
        lost = (math.sqrt(max(0.0, b * b - 8 * number * c)) - b) / (4 * number)
        variance = max(0.0, 2 * lost + delta * (1 - delta)) / number
        return abs(difference - delta) - z * math.sqrt(variance)

    low, high = _crossing(distance, difference, -1.0), _crossing(distance, difference, 1.0)
    return Interval((1 + difference) / 2, (1 + low) / 2, (1 + high) / 2)


def _crossing(distance: Callable[[float], float], inside: float, end: float) -> float:
    """Where the distance becomes positive between a value inside of the interval and the end of the scale."""
    if inside == end or distance(end) <= 0:
        return end
    near = inside + 1e-9 * (end - inside)  # where all agree, the distance is 0 at the value itself
    return float(optimize.brentq(distance, near, end, xtol=1e-12)) if distance(near) < 0 else inside


def sign_test_p(wins: int, losses: int) -> float:
    """The exact p-value of "as often better as worse"; ties tell nothing of it."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
