"""What a reward is good for, by one criterion: comparisons right beside what is to be beaten, calibration, length.

Every group of answers to a prompt counts the same, however many comparisons it has; groups of one prompt hang together,
so intervals are over prompts. Lengths are characters, as in ``graftlm data preview``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftlm.evaluation import wording
from graftlm.evaluation.evaluation import Bin
from graftlm.evaluation.statistics import Interval, clustered_mean, clustered_share

BINS = 10  # of equal width between 50% and 100%


@dataclass(frozen=True)
class JudgedGroup:
    """Answers to one prompt: ``pairs`` (better, worse) of them by one criterion, and the characters of each.

    ``prompt``: groups of the same one hang together. ``labels``: whether an answer was found good, where answers were
    judged so. ``rewards``: as the head gives them, before they are scaled.
    """

    prompt: Hashable
    pairs: Sequence[tuple[int, int]]
    lengths: Sequence[int]
    labels: Sequence[bool | None] = ()
    rewards: Sequence[float] = ()


@dataclass(frozen=True)
class LabelQuality:
    """Good and bad answers told apart by one limit for all prompts, which fits the learnt answers best.

    ``majority``: what is right if every answer is taken for what most of the learnt ones are.
    """

    answers: int
    accuracy: Interval
    majority: Interval
    limit: float


@dataclass(frozen=True)
class RewardQuality:
    """One criterion of a reward head on held-out groups.

    ``length``: the longer answer is taken for the better one, or the shorter, whichever held among the learnt groups
    (``longer_is_better``); ``over_length``: how much more is right. ``error``: the expected calibration error of
    ``bins``. ``length_correlation``: Pearson's, of rewards and lengths as they differ from the mean of their group;
    None where one does not vary. ``longer_preferred``: the share of comparisons whose longer answer has the higher
    reward, and ``longer_better`` the share in which people liked it better.
    """

    criterion: str
    prompts: int
    groups: int
    comparisons: int
    accuracy: Interval
    length: Interval
    over_length: Interval
    longer_is_better: bool
    bins: tuple[Bin, ...]
    error: float
    length_correlation: float | None
    longer_preferred: float | None
    longer_better: float | None
    labels: LabelQuality | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON; ``coin`` is what a constant reward gets."""
        found: dict[str, Any] = {
            "groups": self.groups,
            "prompts": self.prompts,
            "comparisons": self.comparisons,
            "accuracy": self.accuracy.value,
            "accuracy_interval": _ends(self.accuracy),
            "length": self.length.value,
            "length_interval": _ends(self.length),
            "over_length": self.over_length.value,
            "over_length_interval": _ends(self.over_length),
            "coin": 0.5,
            "longer_is_better": self.longer_is_better,
            "calibration_error": self.error if math.isfinite(self.error) else None,
            "calibration": [[each.confidence, each.right, each.rows] for each in self.bins],
            "length_correlation": self.length_correlation,
            "longer_preferred": self.longer_preferred,
            "longer_better": self.longer_better,
        }
        if self.labels is not None:
            found["labels"] = {
                "answers": self.labels.answers,
                "accuracy": self.labels.accuracy.value,
                "accuracy_interval": _ends(self.labels.accuracy),
                "majority": self.labels.majority.value,
                "majority_interval": _ends(self.labels.majority),
                "limit": self.labels.limit,
            }
        return found

    @property
    def sentence(self) -> str:
        """For people: what is right, what length gives, how sure it is, and whether it goes by length."""
        side = "longer" if self.longer_is_better else "shorter"
        parts = [
            f"{self.criterion}: {_percent(self.accuracy)} of comparisons right in {wording.count(self.groups)} "
            f"held-out groups; taking the {side} answer gives {_percent(self.length)}, a constant reward 50%",
            f"{_points(self.over_length)} more than length",
        ]
        if self.labels is not None:
            parts.append(
                f"as good or bad {_percent(self.labels.accuracy)} of answers, the majority "
                f"{100 * self.labels.majority.value:.1f}%"
            )
        if math.isfinite(self.error):
            parts.append(f"calibration error {100 * self.error:.1f} points")
        if self.longer_preferred is not None and self.longer_better is not None:
            parts.append(
                f"it prefers the longer answer in {100 * self.longer_preferred:.0f}%, people did in "
                f"{100 * self.longer_better:.0f}%"
            )
        return "; ".join(parts) + "."


def reward_quality(
    criterion: str, held_out: Sequence[JudgedGroup], learnt: Sequence[JudgedGroup], scored: Sequence[JudgedGroup] = ()
) -> RewardQuality | None:
    """What the rewards of held-out groups are worth, or None where none of them has a comparison.

    Args:
        learnt: the groups that were learnt; their lengths say which side to take.
        scored: some of them with rewards, for the limit between good and bad answers.
    """
    groups = [group for group in held_out if group.pairs]
    if not groups:
        return None
    longer = longer_is_better(learnt)
    right = [_right(group.rewards, group.pairs) for group in groups]
    by_length = [length_right(group, longer) or 0.0 for group in groups]
    comparisons = sum(len(group.pairs) for group in groups)
    prompts = _clusters(groups)

    def interval(shares: Sequence[float]) -> Interval:
        sums = [sum(shares[number] for number in numbers) for numbers in prompts]
        return clustered_share(sums, [len(numbers) for numbers in prompts], comparisons)

    gains = [sum(right[number] - by_length[number] for number in numbers) for numbers in prompts]
    bins, error = _calibration(groups)
    return RewardQuality(
        criterion,
        len(prompts),
        len(groups),
        comparisons,
        interval(right),
        interval(by_length),
        clustered_mean(gains, [len(numbers) for numbers in prompts]),
        longer,
        bins,
        error,
        _length_correlation(groups),
        *_of_the_longer(groups),
        _labels(held_out, scored),
    )


def length_right(group: JudgedGroup, longer: bool) -> float | None:
    """The share of a group's comparisons that the length of its answers gets right; None where there are none.

    Answers of one length count half.
    """
    values = [length if longer else -length for length in group.lengths]
    return _right(values, group.pairs) if group.pairs else None


def longer_is_better(groups: Sequence[JudgedGroup]) -> bool:
    """Whether the longer answer is better at least as often as the shorter one, every group counting the same."""
    shares = [share for group in groups if (share := length_right(group, True)) is not None]
    return sum(shares) * 2 >= len(shares)


def best_limit(rewards: Sequence[float], labels: Sequence[bool]) -> float:
    """The limit above which rewards are taken for good so that most labels are right; of several the lowest."""
    order = np.argsort(np.asarray(rewards, np.float64), kind="stable")
    values, good = np.asarray(rewards, np.float64)[order], np.asarray(labels, bool)[order]
    right = np.concatenate([[0], np.cumsum(~good)]) + good.sum() - np.concatenate([[0], np.cumsum(good)])
    limits = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1]])
    possible = np.concatenate([[True], values[:-1] < values[1:], [True]])  # equal rewards are on one side
    return float(limits[np.where(possible, right, -1).argmax()])


def _right(values: Sequence[float], pairs: Sequence[Sequence[int]]) -> float:
    """The share of comparisons (better, worse) in which the better one has the higher value; equal ones count half."""
    leads = [values[one] - values[other] for one, other in pairs]
    return sum((lead > 0) + 0.5 * (lead == 0) for lead in leads) / len(leads)


def _clusters(groups: Sequence[JudgedGroup]) -> list[list[int]]:
    """The numbers of the groups of each prompt."""
    found: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group.prompt, []).append(number)
    return list(found.values())


def _calibration(groups: Sequence[JudgedGroup]) -> tuple[tuple[Bin, ...], float]:
    """The bins that hold comparisons, by rising confidence σ(|r − r′|), and the calibration error over them.

    Rewards that are no numbers have no confidence; the error is NaN where there are no others.
    """
    confidence, right, weight = [], [], []
    for group in groups:
        for one, other in group.pairs:
            lead = group.rewards[one] - group.rewards[other]
            if not math.isfinite(lead):
                continue
            confidence.append(1 / (1 + math.exp(-abs(lead))))
            right.append((lead > 0) + 0.5 * (lead == 0))
            weight.append(1 / len(group.pairs))
    sure, hits, weights = (np.asarray(each, np.float64) for each in (confidence, right, weight))
    places = np.minimum(BINS - 1, ((sure - 0.5) * 2 * BINS).astype(int))
    bins, error = [], 0.0 if confidence else math.nan
    for place in range(BINS):
        own = places == place
        if own.any():
            mean, share = (float(np.average(each[own], weights=weights[own])) for each in (sure, hits))
            bins.append(Bin(mean, share, int(own.sum())))
            error += abs(mean - share) * float(weights[own].sum() / weights.sum())
    return tuple(bins), error


def _length_correlation(groups: Sequence[JudgedGroup]) -> float | None:
    parts = []
    for group in groups:
        compared = sorted({place for pair in group.pairs for place in pair})
        own = np.array([(group.rewards[place], group.lengths[place]) for place in compared], np.float64)
        parts.append(own - own.mean(axis=0))
    one, other = np.concatenate(parts).T
    spread = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / spread if math.isfinite(spread) and spread > 0 else None


def _of_the_longer(groups: Sequence[JudgedGroup]) -> tuple[float | None, float | None]:
    """How often the longer answer of a comparison has the higher reward, and how often people liked it better."""
    preferred, better = [], []
    for group in groups:
        pairs = [(one, other) for one, other in group.pairs if group.lengths[one] != group.lengths[other]]
        if pairs:
            by_length = [sorted(pair, key=lambda place: -group.lengths[place]) for pair in pairs]
            preferred.append(_right(group.rewards, by_length))
            better.append(_right(group.lengths, pairs))
    return (sum(preferred) / len(preferred), sum(better) / len(better)) if better else (None, None)


def _labels(held_out: Sequence[JudgedGroup], scored: Sequence[JudgedGroup]) -> LabelQuality | None:
    """How well good and bad answers are told apart; None where there are none to learn the limit from, or to try."""
    known = [(r, label) for group in scored for r, label in _labelled(group)]
    prompts = [[pair for number in numbers for pair in _labelled(held_out[number])] for numbers in _clusters(held_out)]
    prompts = [each for each in prompts if each]
    if not known or not prompts:
        return None
    limit = best_limit([reward for reward, _ in known], [label for _, label in known])
    most = 2 * sum(label for _, label in known) >= len(known)
    sizes = [len(each) for each in prompts]
    right = [sum((reward > limit) == label for reward, label in each) for each in prompts]
    majority = [sum(label == most for _, label in each) for each in prompts]
    return LabelQuality(
        sum(sizes),
        clustered_share(right, sizes, sum(sizes)),
        clustered_share(majority, sizes, sum(sizes)),
        limit,
    )


def _labelled(group: JudgedGroup) -> list[tuple[float, bool]]:
    known = zip(group.rewards, group.labels, strict=True) if group.labels else ()
    return [(reward, label) for reward, label in known if label is not None]


def _ends(interval: Interval) -> list[float] | None:
    return [interval.low, interval.high] if interval.known else None


def _percent(interval: Interval) -> str:
    ends = f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval.known else ""
    return f"{100 * interval.value:.1f}%{ends}"


def _points(interval: Interval) -> str:
    def signed(value: float) -> str:
        return f"{100 * value:+.1f}".replace("-", wording.MINUS)

    ends = f" ({signed(interval.low)} to {signed(interval.high)})" if interval.known else ""
    return f"{signed(interval.value)} points{ends}"
