"""The tables of an evaluation: what its page, its Markdown and the terminal show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.evaluation import eval_words as words
from graftlm.evaluation import wording
from graftlm.evaluation.eval_words import SIGNS, UNKNOWN, Mark, Primary
from graftlm.evaluation.evaluation import BASE, Evaluation, Model, TaskResult, Versus
from graftlm.evaluation.statistics import Interval

NAMED = 2  # tasks that a sentence names; the others are counted
MOST_PAIRS = 40  # lines of adapters against each other under a task


@dataclass(frozen=True)
class Line:
    """An adapter in one line: the kind of result, what was gained, lost and how far it drifted."""

    name: str
    kind: str
    sentence: str
    gains: int
    losses: int
    compared: int
    drift: str

    @property
    def with_drift(self) -> str:
        """The sentence, and the drift where it is known."""
        known = self.drift != UNKNOWN
        return f"{self.sentence} Drift {self.drift} nats a token." if known else self.sentence


@dataclass(frozen=True)
class Cell:
    """A score in the table of all: its texts, its mark, and the colour: "gain" or "loss" by so many percent."""

    text: str
    ends: str = ""
    mark: Mark = ""
    side: str = ""
    shade: int = 0

    @property
    def sign(self) -> str:
        return SIGNS[self.mark]


@dataclass(frozen=True)
class Row:
    """A line of the table of all. ``task`` is its place among the tasks; None for a group."""

    name: str
    note: str
    cells: tuple[Cell, ...]
    task: int | None = None


def summary(evaluation: Evaluation) -> list[Line]:
    """A line for each adapter."""
    names = words.titles(evaluation)
    return [_line(evaluation, model, names) for model in evaluation.adapters]


def base_sentence(evaluation: Evaluation) -> str:
    """What the bare base scores, where nothing is compared with it."""
    told = []
    for group, tasks in words.groups(evaluation).items():
        own = words.averaged(evaluation, tasks)
        if own:
            mean = words.group_means(evaluation, own).get(BASE)
            of = f", mean of {wording.plural(len(own), 'task')}" if len(own) > 1 else ""
            told.append(f"{group} {words.interval_text(mean, share=True)}{of}" if mean else "")
    return "; ".join(filter(None, told)) or "no score that is a share"


def _line(evaluation: Evaluation, model: Model, names: Mapping[str, str]) -> Line:
    gains: list[tuple[bool, float, str]] = []
    losses: list[tuple[bool, float, str]] = []
    missed: list[str] = []
    compared = 0
    for task in evaluation.tasks:
        primary, versus = Primary.of(task), words.over_base(task, model.name)
        mark = words.mark_of(versus, lower=primary.lower)
        if versus is None or mark == "unknown":
            continue
        compared += 1
        size = words.effect(versus.change, share=primary.share, lower=primary.lower)
        trained = bool(task.family) and task.family in model.trained_on
        what = names[task.name] if primary.share else f"{names[task.name]} ({primary.label.lower()})"
        told = f"{what} {words.change_sentence(versus.change, share=primary.share)}"
        if mark:
            (gains if mark == "gain" else losses).append((trained, abs(size), told))
        if trained and mark != "gain":
            missed.append(told)
    return Line(
        name=model.name,
        kind=_kind(len(gains), len(losses), compared),
        sentence=_sentence(gains, losses, missed, compared) if compared else _alone(evaluation, model, names),
        gains=len(gains),
        losses=len(losses),
        compared=compared,
        drift=words.drift_text(words.drift_of(evaluation, model.name)),
    )


def _kind(gains: int, losses: int, compared: int) -> str:
    if not compared:
        return "not compared"
    if gains and losses:
        return "gain and loss"
    return "gain" if gains else "loss" if losses else "no change found"


def _alone(evaluation: Evaluation, model: Model, names: Mapping[str, str]) -> str:
    """What an adapter scores, where the base scores nothing: it may lack the head."""
    scores = [(names[task.name], Primary.of(task), words.score_of(task, model.name)) for task in evaluation.tasks]
    known = [
        f"{name} {words.interval_text(primary.interval(score), share=primary.share)}"
        for name, primary, score in scores
        if math.isfinite(primary.interval(score).value)
    ]
    return f"No comparison with the base is known.{f' {_first(known)}.' if known else ''}"


def _sentence(
    gains: list[tuple[bool, float, str]],
    losses: list[tuple[bool, float, str]],
    missed: Sequence[str],
    compared: int,
) -> str:
    tasks = wording.plural(compared, "task")
    parts = [f"Gain on {_listed(gains)}." if gains else f"No gain found on {tasks}."]
    if missed:
        which = "No gain found on what it was trained for" if gains else "What it was trained for"
        parts.append(f"{which}: {missed[0]}{f' and {len(missed) - 1} more' if len(missed) > 1 else ''}.")
    parts.append(f"Loss on {_listed(losses)}." if losses else f"No loss found on {tasks}.")
    return " ".join(parts)


def _listed(found: list[tuple[bool, float, str]]) -> str:
    """Those of what was trained first, then the largest."""
    return _first([text for _, _, text in sorted(found, key=lambda each: (not each[0], -each[1]))])


def _first(texts: Sequence[str]) -> str:
    """Some by name, the others by their number."""
    more = [f"{len(texts) - NAMED} more"] if len(texts) > NAMED else []
    listed = [*texts[:NAMED], *more]
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def heat(evaluation: Evaluation) -> list[Row]:
    """All tasks by group × all models, with the mean of each group of two tasks or more."""
    names = words.titles(evaluation)
    places = {task.name: at for at, task in enumerate(evaluation.tasks)}
    rows = []
    for group, tasks in words.groups(evaluation).items():
        rows.append(_group_row(evaluation, group, tasks))
        rows += [_task_row(evaluation, task, names[task.name], places[task.name]) for task in tasks]
    return rows


def _group_row(evaluation: Evaluation, group: str, tasks: Sequence[TaskResult]) -> Row:
    own = words.averaged(evaluation, tasks)
    if len(own) < 2:
        return Row(group, "", ())
    means, changes = words.group_means(evaluation, own), words.group_changes(evaluation, own)
    cells = tuple(
        _cell(means[model.name], changes.get(model.name), share=True, lower=False) for model in evaluation.models
    )
    of = wording.plural(len(own), "task") if len(own) == len(tasks) else f"{len(own)} of {len(tasks)} tasks"
    return Row(group, f"mean of {of}", cells)


def _task_row(evaluation: Evaluation, task: TaskResult, name: str, place: int) -> Row:
    primary = Primary.of(task)
    cells = []
    for model in evaluation.models:
        score = words.score_of(task, model.name)
        versus = score.over_base if score is not None else None
        cells.append(_cell(primary.interval(score), versus, share=primary.share, lower=primary.lower))
    note = f"{primary.label}, less is better" if primary.lower else primary.label
    if task.chance is not None:
        note += f"; chance {words.score_text(task.chance, share=primary.share)}"
    return Row(name, note, tuple(cells), place)


def _cell(interval: Interval, versus: Versus | None, *, share: bool, lower: bool) -> Cell:
    text, ends = words.value_text(interval, share=share), words.ends_text(interval, share=share)
    if versus is None:
        return Cell(text, ends)
    size = words.effect(versus.change, share=share, lower=lower)
    side = "gain" if size > 0 else "loss" if size < 0 else ""
    mark = words.mark_of(versus, lower=lower)
    return Cell(text, ends, mark, side, words.shade(size, mark))


TAX_COLUMNS = ("task", "before", "after", "change [95%]", "p", "sure", "would have been noticed")


def tax_rows(evaluation: Evaluation, model: str) -> list[tuple[tuple[str, ...], Mark]]:
    """A row of texts for each capability, under :data:`TAX_COLUMNS`, and its mark."""
    names = words.titles(evaluation)
    tasks = {task.name: task for task in evaluation.tasks}
    rows: list[tuple[tuple[str, ...], Mark]] = []
    for line in next((tax.lines for tax in evaluation.tax if tax.model == model), ()):
        primary = Primary.of(tasks[line.task])
        change, share = line.versus.change, primary.share
        mark = words.mark_of(line.versus, lower=primary.lower)
        least, decimals = abs(line.noticed), words.decimals_of(change)
        noticed = f"{100 * least:.1f} points" if share else words.score_text(least, share=False, decimals=decimals)
        texts = (
            names[line.task],
            words.score_text(change.before, share=share, decimals=decimals),
            words.score_text(change.after, share=share, decimals=decimals),
            words.change_text(change, share=share),
            words.p_text(line.versus.p),
            f"{SIGNS[mark]} {mark}".strip(),
            noticed if math.isfinite(least) else "too few rows",
        )
        rows.append((texts, mark))
    return rows


VERSUS_COLUMNS = ("from", "to", "change [95%]", "p", "sure", "only the second right", "only the first right")


def versus_rows(task: TaskResult, most: int | None = MOST_PAIRS) -> tuple[list[tuple[str, ...]], int]:
    """Adapters against each other, the surest first, at most so many; and how many are left out."""
    primary = Primary.of(task)
    order = sorted(task.versus, key=lambda each: each.p if math.isfinite(each.p) else 2.0)
    rows: list[tuple[str, ...]] = [
        (
            each.before,
            each.after,
            words.change_text(each.change, share=primary.share),
            words.p_text(each.p),
            _better(each, primary),
            wording.count(len(each.won)),
            wording.count(len(each.lost)),
        )
        for each in order[:most]
    ]
    return rows, len(order) - len(rows)


def _better(versus: Versus, primary: Primary) -> str:
    mark = words.mark_of(versus, lower=primary.lower)
    return {"gain": f"{versus.after} is better", "loss": f"{versus.before} is better"}.get(mark, SIGNS[mark])


def head_and_rows(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The terminal's table: each model's mean score by group, tasks with gains and losses, and drift."""
    own = {group: words.averaged(evaluation, tasks) for group, tasks in words.groups(evaluation).items()}
    means = {group: words.group_means(evaluation, tasks) for group, tasks in own.items() if tasks}
    lines = {line.name: line for line in summary(evaluation)}
    head = ("model", *means, *(("gains", "losses", "drift") if lines else ()))
    rows = []
    for model in evaluation.models:
        scores = [words.interval_text(of[model.name], share=True) for of in means.values()]
        line = lines.get(model.name)
        rest = ("", "", "") if line is None else (f"{line.gains} of {line.compared}", str(line.losses), line.drift)
        rows.append((model.name, *scores, *(rest if lines else ())))
    return head, rows
