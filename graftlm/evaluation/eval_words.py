"""The values of an evaluation in words: scores, changes, p-values, and whether a change is a gain or a loss."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graftlm.evaluation import wording
from graftlm.evaluation.evaluation import Evaluation, Model, TaskResult, TaskScore, Versus
from graftlm.evaluation.statistics import Change, Interval, holm

ALPHA = 0.05
UNKNOWN = "unknown"
GROUPS = ("capability", "helpfulness", "honesty", "harmlessness")
Mark = Literal["gain", "loss", "", "unknown"]
SIGNS: dict[str, str] = {"gain": "▲", "loss": "▼", "": "", "unknown": "?"}  # not by colour alone
FULL = 0.3  # a change of 30 points, or of 30% of a score that is no share, has the full colour
SHADE, PALE = 42, 14  # percent of the colour in it, where it is sure and where it may be chance


def score_text(value: float, *, share: bool, decimals: int | None = None) -> str:
    """78.2%, 0.532, 18.4 or 1,240; three digits, if no number of decimals is given."""
    if not math.isfinite(value):
        return UNKNOWN
    return f"{100 * value:.1f}%".replace("-", wording.MINUS) if share else _number(value, decimals)


def decimals_of(interval: Interval) -> int | None:
    """Decimals that show an interval's width with two digits; None where it has none."""
    width = interval.high - interval.low
    return min(5, max(0, 1 - math.floor(math.log10(width)))) if interval.known and width > 0 else None


def value_text(interval: Interval, *, share: bool) -> str:
    """The value of an interval, with the decimals of its ends."""
    return score_text(interval.value, share=share, decimals=decimals_of(interval))


def interval_text(interval: Interval, *, share: bool) -> str:
    """78.2% [72.0, 84.1]."""
    return f"{value_text(interval, share=share)} {ends_text(interval, share=share)}".strip()


def ends_text(interval: Interval, *, share: bool) -> str:
    """[72.0, 84.1], or that it is not known; nothing where the value is not known either."""
    if not math.isfinite(interval.value):
        return ""
    if not interval.known:
        return f"[{UNKNOWN}]"
    ends, decimals = (interval.low, interval.high), decimals_of(interval)
    low, high = (score_text(end, share=share, decimals=decimals).removesuffix("%") for end in ends)
    return f"[{low}, {high}]"


def signed(value: float, *, share: bool, decimals: int | None = None) -> str:
    """+12.1 (points) or −0.031."""
    if not math.isfinite(value):
        return UNKNOWN
    text = f"{100 * value:.1f}" if share else _number(value, decimals)
    if not any(sign in text for sign in "123456789"):
        return "0"
    return ("+" if value > 0 else "") + text.replace("-", wording.MINUS)


def change_text(change: Change | None, *, share: bool) -> str:
    """+12.1 [+5.0, +19.2]."""
    if change is None or not math.isfinite(change.value):
        return UNKNOWN
    if not change.known:
        return f"{signed(change.value, share=share)} [{UNKNOWN}]"
    return f"{signed(change.value, share=share, decimals=decimals_of(change))} [{_pair(change, share, ', ')}]"


def change_sentence(change: Change, *, share: bool) -> str:
    """52.0% → 66.1% (+8.0 to +20.2 points)."""
    unit = " points" if share else ""
    told = f"{_pair(change, share, ' to ')}{unit}" if change.known else f"interval {UNKNOWN}"
    decimals = decimals_of(change)
    before, after = (score_text(end, share=share, decimals=decimals) for end in (change.before, change.after))
    return f"{before} → {after} ({told})"


def p_text(p: float) -> str:
    """< 0.001, 0.032 or unknown."""
    if not math.isfinite(p):
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def mark_of(versus: Versus | None, *, lower: bool) -> Mark:
    """Whether a change is a gain or a loss: by its corrected p, or by its interval where there is no p."""
    if versus is None or not math.isfinite(versus.change.value):
        return "unknown"
    if math.isfinite(versus.p):
        certain = versus.p < ALPHA
    elif versus.change.known:
        certain = versus.change.significant
    else:
        return "unknown"
    if not certain or versus.change.value == 0:
        return ""
    return "gain" if (versus.change.value < 0) == lower else "loss"


def effect(change: Change, *, share: bool, lower: bool) -> float:
    """How large a change is, above 0 if for the better: of scores up to 1 as it is, else a part of the score."""
    small = share or max(abs(change.before), abs(change.after)) <= 1
    size = change.value if small else change.value / abs(change.before) if change.before else math.nan
    return (-size if lower else size) if math.isfinite(size) else 0.0


def shade(size: float, mark: Mark) -> int:
    """How much of its colour an effect is given, in percent; pale where it is not sure."""
    return round((SHADE if mark in ("gain", "loss") else PALE) * min(1.0, abs(size) / FULL))


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The mean of scores of different rows, which are independent: the distances to each end add up in squares."""
    number = len(intervals)
    if not number:
        return Interval(math.nan, math.nan, math.nan)
    value = sum(each.value for each in intervals) / number
    below = math.sqrt(sum((each.value - each.low) ** 2 for each in intervals)) / number
    above = math.sqrt(sum((each.high - each.value) ** 2 for each in intervals)) / number
    return Interval(value, value - below, value + above)


def mean_change(changes: Sequence[Change]) -> Change:
    """The mean of changes on different tasks, as :func:`mean_interval`."""
    mean = mean_interval(changes)
    number = len(changes) or 1
    before, after = (sum(ends) / number for ends in ([c.before for c in changes], [c.after for c in changes]))
    return Change(mean.value, mean.low, mean.high, before=before, after=after)


def corrected(before: str, after: Sequence[str], changes: Sequence[Change]) -> list[Versus]:
    """Mean changes as comparisons: p by the normal law, corrected after Holm for their number."""
    p_values = []
    for change in changes:
        half = (change.high - change.low) / 2
        known = math.isfinite(half) and half > 0
        p_values.append(math.erfc(1.959964 * abs(change.value) / half / math.sqrt(2)) if known else math.nan)
    return [
        Versus(before, name, change, p, family=len(changes))
        for name, change, p in zip(after, changes, holm(p_values), strict=True)
    ]


@dataclass(frozen=True)
class Primary:
    """The score of a task that is compared: its name, and how it is read."""

    name: str
    label: str
    share: bool
    lower: bool

    @classmethod
    def of(cls, task: TaskResult) -> Primary:
        name = task.primary
        return cls(name, task.labels.get(name, name), name in task.shares, name in task.lower_is_better)

    def interval(self, score: TaskScore | None) -> Interval:
        """A model's score; not a number where there is none."""
        found = score.measures.get(self.name) if score is not None else None
        return found or Interval(math.nan, math.nan, math.nan)


def score_of(task: TaskResult, model: str) -> TaskScore | None:
    """A model's scores on a task, if it was scored on it."""
    return next((each for each in task.scores if each.model == model), None)


def over_base(task: TaskResult, model: str) -> Versus | None:
    """An adapter's comparison with the base on a task, if there is one."""
    score = score_of(task, model)
    return score.over_base if score is not None else None


def drift_of(evaluation: Evaluation, model: str) -> Interval | None:
    """KL from the base on neutral text, nats a token, if it was measured."""
    return next((tax.drift.kl for tax in evaluation.tax if tax.model == model and tax.drift is not None), None)


def drift_text(kl: Interval | None) -> str:
    """0.031 [0.027, 0.036]."""
    return UNKNOWN if kl is None else interval_text(kl, share=False)


def pass_text(model: Model) -> str:
    """Time of a forward pass: 41 ms."""
    seconds = model.pass_seconds
    if seconds is None or not math.isfinite(seconds):
        return UNKNOWN
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else wording.duration(seconds)


def titles(evaluation: Evaluation) -> dict[str, str]:
    """Task → what people call it; with its language, or its name, where two would be called the same."""
    found = {task.name: task.title or task.name for task in evaluation.tasks}
    for extra in ("language", "name"):
        often = Counter(found.values())
        for task in evaluation.tasks:
            if often[found[task.name]] > 1 and getattr(task, extra):
                found[task.name] = f"{found[task.name]} ({getattr(task, extra)})"
    return found


def groups(evaluation: Evaluation) -> dict[str, list[TaskResult]]:
    """The tasks of each group: the four that graftlm ships first, then others in the order in which they come."""
    found: dict[str, list[TaskResult]] = {group: [] for group in GROUPS}
    for task in evaluation.tasks:
        found.setdefault(task.group, []).append(task)
    return {group: tasks for group, tasks in found.items() if tasks}


def averaged(evaluation: Evaluation, tasks: Sequence[TaskResult]) -> list[TaskResult]:
    """Those of some tasks that a mean is taken of: their score is a share, more is better, and all models have it."""
    return [
        task
        for task in tasks
        for primary in (Primary.of(task),)
        if primary.share and not primary.lower
        if all(math.isfinite(primary.interval(score_of(task, model.name)).value) for model in evaluation.models)
    ]


def group_means(evaluation: Evaluation, tasks: Sequence[TaskResult]) -> dict[str, Interval]:
    """Model → mean score over the tasks of which a mean is taken."""
    return {
        model.name: mean_interval([Primary.of(task).interval(score_of(task, model.name)) for task in tasks])
        for model in evaluation.models
    }


def group_changes(evaluation: Evaluation, tasks: Sequence[TaskResult]) -> dict[str, Versus]:
    """Adapter → mean change over the base; those that are compared on all of the tasks."""
    changes: dict[str, Change] = {}
    for model in evaluation.adapters:
        found = [over_base(task, model.name) for task in tasks]
        known = [each.change for each in found if each is not None]
        if found and len(known) == len(found):
            changes[model.name] = mean_change(known)
    return dict(zip(changes, corrected("base", list(changes), list(changes.values())), strict=True))


def _pair(change: Change, share: bool, between: str) -> str:
    decimals = decimals_of(change)
    return between.join(signed(end, share=share, decimals=decimals) for end in (change.low, change.high))


def _number(value: float, decimals: int | None) -> str:
    if abs(value) >= 1e5:
        return (wording.MINUS if value < 0 else "") + wording.short_count(round(abs(value)))
    if decimals is None:
        decimals = 0 if abs(value) >= 1000 else None
    text = f"{value:.3g}" if decimals is None else f"{value:,.{decimals}f}"
    return text.replace("-", wording.MINUS)
