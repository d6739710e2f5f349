"""The plots of an evaluation, laid out in percent of their boxes.

Every choice that the page offers is laid out here, so its script moves things and computes nothing: what is shown with
a script is what was tested without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from graftlm.evaluation import eval_words as words
from graftlm.evaluation import wording
from graftlm.evaluation.charts import LOG_RATIO, Axis, Tick, linear_axis, log_axis
from graftlm.evaluation.eval_words import UNKNOWN, Mark, Primary
from graftlm.evaluation.evaluation import BASE, Bin, Evaluation, Model, TaskResult, Versus
from graftlm.evaluation.statistics import Interval

MOST_MAIN = 3  # reliability diagrams that are shown at once, where no task is about calibration


@dataclass(frozen=True)
class Across:
    """A choice of what the points stand over: where each adapter is (None: not known), and that in words."""

    label: str
    axis: Axis
    at: tuple[float | None, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Up:
    """A choice of score: each adapter's (value, low, high) in percent, and in words; the base's beside them."""

    label: str
    group: str
    axis: Axis
    at: tuple[tuple[float, float, float] | None, ...]
    texts: tuple[str, ...]
    base: float | None
    base_text: str


@dataclass(frozen=True)
class Scatter:
    """Score against what an adapter costs."""

    names: tuple[str, ...]
    across: tuple[Across, ...]
    up: tuple[Up, ...]
    first: int  # the score that is shown at first

    @property
    def choices(self) -> dict[str, list[tuple[int, Up]]]:
        """Group → its scores with their places; means come first."""
        found: dict[str, list[tuple[int, Up]]] = {}
        for at, each in enumerate(self.up):
            found.setdefault(each.group, []).append((at, each))
        return found

    def to_json(self) -> dict[str, Any]:
        """What the page's script needs."""
        return {
            "across": [
                {"label": each.label, "ticks": _ticks(each.axis), "at": _rounded(each.at), "texts": each.texts}
                for each in self.across
            ],
            "up": [
                {
                    "label": each.label,
                    "ticks": _ticks(each.axis),
                    "at": [None if place is None else _rounded(place) for place in each.at],
                    "texts": each.texts,
                    "base": None if each.base is None else round(each.base, 2),
                    "baseText": each.base_text,
                }
                for each in self.up
            ],
        }


def scatter(evaluation: Evaluation) -> Scatter | None:
    """The plot of scores against costs; None without an adapter, or without a score or a cost that is known."""
    models = evaluation.adapters
    across = [each for each in _costs(evaluation, models) if any(at is not None for at in each.at)]
    up = [*_group_scores(evaluation), *_task_scores(evaluation)]
    up = [each for each in up if any(at is not None for at in each.at)]
    if not across or not up:
        return None
    names = words.titles(evaluation)
    trained = [
        names[task.name]
        for task in evaluation.tasks
        if any(task.family and task.family in model.trained_on for model in models)
    ]
    first = next((at for at, each in enumerate(up) if each.label in trained), 0)
    return Scatter(tuple(model.name for model in models), tuple(across), tuple(up), first)


def _costs(evaluation: Evaluation, models: Sequence[Model]) -> list[Across]:
    drift = [words.drift_of(evaluation, model.name) for model in models]
    tax = [_mean_tax(evaluation, model.name) for model in models]
    return [
        _across("trained parameters", [m.trained_parameters or None for m in models], _short, log=True),
        _across("file size", [m.file_bytes or None for m in models], wording.size, log=True),
        _across("drift from the base, nats a token", [d.value if d else None for d in drift], _plain),
        _across("time of a forward pass of 512 tokens", [m.pass_seconds for m in models], _seconds),
        _across("mean change of capability, points", tax, lambda value: words.signed(value, share=True), log=False),
    ]


def _across(
    label: str,
    values: Sequence[float | None],
    text: Callable[[float], str],
    *,
    log: bool | None = None,
) -> Across:
    finite = [None if value is None or not math.isfinite(value) else float(value) for value in values]
    axis = _axis([value for value in finite if value is not None], text, log=log)
    return Across(
        label + (", log scale" if axis.log else ""),
        axis,
        tuple(None if value is None else axis.at(value) for value in finite),
        tuple(UNKNOWN if value is None else text(value) for value in finite),
    )


def _mean_tax(evaluation: Evaluation, model: str) -> float | None:
    """Mean change of the capabilities that are shares."""
    tasks = {task.name: task for task in evaluation.tasks}
    lines = [line for tax in evaluation.tax if tax.model == model for line in tax.lines]
    own = [line.versus.change for line in lines if Primary.of(tasks[line.task]).share]
    return words.mean_change(own).value if own else None


def _group_scores(evaluation: Evaluation) -> list[Up]:
    found = []
    for group, tasks in words.groups(evaluation).items():
        own = words.averaged(evaluation, tasks)
        if len(own) > 1:
            means = words.group_means(evaluation, own)
            found.append(_up(evaluation, f"{group}, mean of {len(own)} tasks", "means", means, share=True))
    return found


def _task_scores(evaluation: Evaluation) -> list[Up]:
    names = words.titles(evaluation)
    found = []
    for task in [task for tasks in words.groups(evaluation).values() for task in tasks]:
        primary = Primary.of(task)
        scores = {model.name: primary.interval(words.score_of(task, model.name)) for model in evaluation.models}
        found.append(_up(evaluation, names[task.name], task.group, scores, share=primary.share, lower=primary.lower))
    return found


def _up(
    evaluation: Evaluation, label: str, group: str, scores: dict[str, Interval], *, share: bool, lower: bool = False
) -> Up:
    nothing = Interval(math.nan, math.nan, math.nan)
    base = scores.get(BASE, nothing)
    own = [scores.get(model.name, nothing) for model in evaluation.adapters]
    ends = [end for each in (base, *own) for end in (each.low, each.value, each.high) if math.isfinite(end)]
    axis = _axis(ends, lambda value: f"{100 * value:g}%" if share else _plain(value), log=False if share else None)
    return Up(
        f"{label}, less is better" if lower else label,
        group,
        axis,
        tuple(_place(each, axis) for each in own),
        tuple(words.interval_text(each, share=share) for each in own),
        axis.at(base.value) if math.isfinite(base.value) else None,
        words.interval_text(base, share=share),
    )


@dataclass(frozen=True)
class Lane:
    """An adapter's change on one task: its number and name, (value, low, high) in percent, mark and words."""

    number: int
    name: str
    at: tuple[float, float, float] | None
    mark: Mark
    text: str
    tip: str

    @property
    def sign(self) -> str:
        return words.SIGNS[self.mark]


@dataclass(frozen=True)
class TaxPanel:
    """The changes of one capability. ``zero`` is where nothing changed; an axis is turned where less is better."""

    title: str
    note: str
    ticks: tuple[tuple[float, str], ...]
    zero: float
    lanes: tuple[Lane, ...]


def tax_panels(evaluation: Evaluation) -> list[TaxPanel]:
    """A panel for each capability; those in points share one axis."""
    by_task: dict[str, dict[str, Versus]] = {}
    for tax in evaluation.tax:
        for line in tax.lines:
            by_task.setdefault(line.task, {})[tax.model] = line.versus
    shared = [
        versus.change
        for task in evaluation.tasks
        if task.name in by_task and Primary.of(task).share
        for versus in by_task[task.name].values()
    ]
    points = _change_axis(shared, share=True)
    names = words.titles(evaluation)
    return [
        _tax_panel(evaluation, task, names[task.name], by_task[task.name], points)
        for task in evaluation.tasks
        if task.name in by_task
    ]


def _tax_panel(
    evaluation: Evaluation, task: TaskResult, title: str, found: dict[str, Versus], points: Axis
) -> TaxPanel:
    primary = Primary.of(task)
    changes = [versus.change for versus in found.values()]
    axis = points if primary.share else _change_axis(changes, share=False)

    def turned(at: float) -> float:
        return 100 - at if primary.lower else at

    lanes = []
    for number, model in enumerate(evaluation.adapters, 1):
        versus = found.get(model.name)
        if versus is None:
            continue
        place = _place(versus.change, axis)
        if place and primary.lower:
            place = turned(place[0]), turned(place[2]), turned(place[1])
        mark = words.mark_of(versus, lower=primary.lower)
        known = math.isfinite(versus.change.value)
        told = words.change_sentence(versus.change, share=primary.share) if known else UNKNOWN
        tip = f"{number} {model.name}: {told}, p {words.p_text(versus.p)}{f', {mark}' if mark else ''}"
        text = words.signed(versus.change.value, share=primary.share, decimals=words.decimals_of(versus.change))
        lanes.append(Lane(number, model.name, place, mark, text, tip))
    unit = "points" if primary.share else primary.label
    note = f"{unit}, less is better: the axis is turned" if primary.lower else unit
    ticks = tuple((turned(tick.at), tick.label) for tick in axis.ticks)
    return TaxPanel(title, note, ticks, turned(axis.at(0.0)), tuple(lanes))


def _change_axis(changes: Sequence[Interval], *, share: bool) -> Axis:
    ends = [end for each in changes for end in (each.low, each.value, each.high) if math.isfinite(end)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    room = 0.06 * (high - low) or 0.01
    low, high = low - room, high + room
    round_ends = linear_axis(low, high, bins=4)
    axis = Axis(low, high, log=False)
    marks = [round_ends.value(tick.at) for tick in round_ends.ticks]
    marks = [0.0 if abs(mark) < 1e-9 * (high - low) else mark for mark in marks]
    labels = {mark: words.signed(mark, share=share).removesuffix(".0") for mark in marks if low <= mark <= high}
    return replace(axis, ticks=tuple(Tick(axis.at(mark), label) for mark, label in labels.items()))


@dataclass(frozen=True)
class Curve:
    """A model's bins in a reliability diagram: the path, (x, y, size) of each in percent, and each in words."""

    name: str
    path: str
    points: tuple[tuple[float, float, float], ...]
    tips: tuple[str, ...]


@dataclass(frozen=True)
class Reliability:
    """How sure models are, and how often they are right when so sure. ``main``: the task is about that."""

    title: str
    curves: tuple[Curve, ...]
    main: bool

    def to_json(self) -> list[dict[str, Any]]:
        """What the page's script needs."""
        return [asdict(curve) for curve in self.curves]


def reliabilities(evaluation: Evaluation) -> list[Reliability]:
    """A diagram for each task whose scores hold bins; first those that are about calibration, or else the first."""
    names = words.titles(evaluation)
    found = []
    for task in evaluation.tasks:
        scores = [words.score_of(task, model.name) for model in evaluation.models]
        curves = [_curve(score.model, score.bins) for score in scores if score and any(map(_known, score.bins))]
        if curves:
            found.append(Reliability(names[task.name], tuple(curves), task.primary == "ece"))
    if found and not any(each.main for each in found):
        found = [replace(each, main=at < MOST_MAIN) for at, each in enumerate(found)]
    return sorted(found, key=lambda each: not each.main)


def _curve(name: str, bins: Sequence[Bin]) -> Curve:
    own = [each for each in bins if _known(each)]
    most = max(each.rows for each in own)
    points = tuple(
        (
            round(100 * each.confidence, 2),
            round(100 - 100 * each.right, 2),
            round(6 + 8 * math.sqrt(each.rows / most), 1),
        )
        for each in own
    )
    tips = tuple(
        f"{name}: {100 * each.confidence:.0f}% sure, {100 * each.right:.0f}% right, {wording.plural(each.rows, 'row')}"
        for each in own
    )
    return Curve(name, "M" + "L".join(f"{x:g} {y:g}" for x, y, _ in points), points, tips)


def _known(each: Bin) -> bool:
    return each.rows > 0 and math.isfinite(each.confidence) and math.isfinite(each.right)


def _place(interval: Interval, axis: Axis) -> tuple[float, float, float] | None:
    """Value, low and high end in percent; the ends are the value where they are not known."""
    if not math.isfinite(interval.value):
        return None
    value = axis.at(interval.value)
    return (value, axis.at(interval.low), axis.at(interval.high)) if interval.known else (value, value, value)


def _axis(values: Sequence[float], text: Callable[[float], str], *, log: bool | None = None) -> Axis:
    """Logarithmic where that is asked for; if nothing is, where values above 0 span more than a decade."""
    if not values:
        return linear_axis(0.0, 1.0, label=text)
    low, high = min(values), max(values)
    if low > 0 and (log or (log is None and high / low > LOG_RATIO)):
        room = max(1.25, (8 * low / high) ** 0.5)  # a little at least, and so that there are some marks
        return log_axis(low / room, high * room, label=text)
    return linear_axis(low, high, label=text)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    return [(round(tick.at, 2), tick.label) for tick in axis.ticks]


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(value, 2) for value in values]


def _short(value: float) -> str:
    return wording.short_count(round(value))


def _plain(value: float) -> str:
    return f"{value:.3g}".replace("-", wording.MINUS)


def _seconds(value: float) -> str:
    return f"{1000 * value:.3g} ms" if value < 1 else wording.duration(value)
