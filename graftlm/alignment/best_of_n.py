"""The best of several answers as data to tune on: best-of-n and rejection sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.alignment.rewards import Rewarded
from graftlm.alignment.rollouts import Rollout, Rollouts
from graftlm.data.instances import Instance, Message
from graftlm.errors import UserError

NO_END, NO_REWARD, EMPTY = "cut off", "without a reward", "empty"
EQUAL, BELOW, NOT_BEST = "all rewards of the prompt equal", "reward below the least", "not among the best of its prompt"


@dataclass(frozen=True)
class Selection:
    """Chosen answers: their ``instances``, their ``places`` in the rollouts; how many were ``dropped``, by reason."""

    instances: tuple[Instance, ...]
    places: tuple[int, ...]
    dropped: Mapping[str, int]


def best_of_n(rollouts: Rollouts, rewarded: Rewarded, policy: str, *, equal: bool = False) -> Selection:
    """The best answer to each prompt, the first of equal ones.

    Answers that are empty or were cut off are no candidates: to learn from one is to learn to end there. Where all
    rewards of a prompt are equal there is no best, and none is taken, unless ``equal``.

    Raises:
        UserError: the policy has no answers.
    """
    dropped: dict[str, int] = {}
    chosen: list[int] = []
    for places in _groups(rollouts, policy):
        good = _candidates(rollouts, rewarded, places, dropped)
        values = [float(rewarded.totals[place]) for place in good]
        if len(values) > 1 and min(values) == max(values) and not equal:
            _count(dropped, EQUAL, len(good))
        elif values:
            chosen.append(good[values.index(max(values))])
            _count(dropped, NOT_BEST, len(good) - 1)
    return _selection(rollouts, chosen, dropped)


def rejection_sampling(
    rollouts: Rollouts, rewarded: Rewarded, policy: str, *, least: float, most: int | None = None
) -> Selection:
    """All answers with a reward of at least ``least``; of each prompt the ``most`` best. Equal answers are taken once.

    Raises:
        UserError: the policy has no answers, or ``most`` is below 1.
    """
    if most is not None and most < 1:
        raise UserError(f"most is {most}; it must be at least 1")
    dropped: dict[str, int] = {}
    chosen: list[int] = []
    for places in _groups(rollouts, policy):
        good = _candidates(rollouts, rewarded, places, dropped)
        enough = [place for place in good if float(rewarded.totals[place]) >= least]
        _count(dropped, BELOW, len(good) - len(enough))
        once = list({rollouts.answers[place].text.strip(): place for place in reversed(enough)}.values())
        _count(dropped, "the same answer again", len(enough) - len(once))
        ordered = sorted(once, key=lambda place: (-float(rewarded.totals[place]), place))
        chosen += sorted(ordered[:most])
        _count(dropped, NOT_BEST, len(ordered) - len(ordered[:most]))
    return _selection(rollouts, chosen, dropped)


def best_of_n_kl(n: int) -> float:
    """log n − (n − 1) / n: how many nats the best of n answers are from the policy at most.

    Stiennon et al. 2020, appendix G.3; that it is a bound, reached where no two answers are alike: Beirami et al. 2024.

    Raises:
        UserError: n is below 1.
    """
    if n < 1:
        raise UserError(f"n is {n}; it must be at least 1")
    return math.log(n) - (n - 1) / n


def _groups(rollouts: Rollouts, policy: str) -> list[list[int]]:
    """The places of the answers to each prompt."""
    places = rollouts.of(policy)
    if not places:
        raise UserError(f"'{policy}' has no answers; there are those of: {', '.join(rollouts.policies)}")
    groups: dict[int, list[int]] = {}
    for place, group in zip(places, rollouts.groups(places), strict=True):
        groups.setdefault(group, []).append(place)
    return list(groups.values())


def _candidates(rollouts: Rollouts, rewarded: Rewarded, places: Sequence[int], dropped: dict[str, int]) -> list[int]:
    good = []
    for place in places:
        reason = _why_not(rollouts.answers[place], bool(rewarded.good[place]))
        if reason is None:
            good.append(place)
        else:
            _count(dropped, reason, 1)
    return good


def _why_not(answer: Rollout, rewarded: bool) -> str | None:
    if not rewarded:
        return NO_REWARD
    if not answer.ended:
        return NO_END
    return None if answer.text.strip() else EMPTY


def _count(dropped: dict[str, int], reason: str, number: int) -> None:
    if number:
        dropped[reason] = dropped.get(reason, 0) + number


def _selection(rollouts: Rollouts, chosen: Sequence[int], dropped: Mapping[str, int]) -> Selection:
    instances = []
    for place in chosen:
        answer = rollouts.answers[place]
        messages = (*answer.prompt.messages, Message("assistant", answer.text.strip()))
        instances.append(Instance(messages, answer.prompt.source, answer.prompt.row))
    return Selection(tuple(instances), tuple(chosen), dict(dropped))
