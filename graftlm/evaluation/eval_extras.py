"""What an evaluation tells besides scores: unseen tasks, overlap, win rates, languages, the harness."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from graftlm.evaluation import eval_words as words
from graftlm.evaluation import wording
from graftlm.evaluation.eval_words import UNKNOWN, Primary
from graftlm.evaluation.evaluation import Evaluation, LanguagePair, Overlap, TaskResult
from graftlm.evaluation.harness.run import harness_lines

UNSEEN_COLUMNS = ("adapter", "trained families", "mean change there", "unseen families", "mean change there")


def unseen_rows(evaluation: Evaluation) -> list[tuple[str, str, str, str, str]]:
    """Rows under :data:`UNSEEN_COLUMNS`: what is known of families that an adapter was trained on, and was not."""
    rows = []
    for model in evaluation.adapters:
        halves: list[tuple[str, str]] = []
        for unseen in (False, True):
            tasks = [task for task in evaluation.tasks if task.unseen.get(model.name) is unseen]
            own = words.averaged(evaluation, tasks)
            change = words.group_changes(evaluation, own).get(model.name)
            families = {task.family for task in tasks if task.family}
            of = f"{len(own)} of {wording.plural(len(tasks), 'task')}" if len(own) < len(tasks) else ""
            named = ", ".join(sorted(families)) if not unseen or len(families) <= 4 else f"{len(families)} families"
            told = words.change_text(change.change, share=True) if change else UNKNOWN
            halves.append((named or "none", f"{told}{f' ({of})' if of and change else ''}"))
        if any(model.name in task.unseen for task in evaluation.tasks):
            rows.append((model.name, *halves[0], *halves[1]))
    return rows


OVERLAP_COLUMNS = ("adapter", "task", "rows that overlap", "score", "without them")


def overlap_rows(evaluation: Evaluation, only: str | None = None) -> tuple[list[tuple[str, ...]], list[str]]:
    """Rows under :data:`OVERLAP_COLUMNS`, and sentences on what is clean, not known, and how far the record goes.

    ``only``: of this task.
    """
    names, rows_of = words.titles(evaluation), {task.name: task.rows for task in evaluation.tasks}
    rows: list[tuple[str, ...]] = []
    told: list[str] = []
    for model in evaluation.models:
        own = [each for each in evaluation.overlaps if each.model == model.name and only in (None, each.task)]
        rows += [_overlap_row(evaluation, each, names) for each in own if not each.unknown and each.rows]
        told += _clean(model.name, [each for each in own if not each.unknown and not each.rows], rows_of, only)
        for why, tasks in _by_text([(each.unknown, names.get(each.task, each.task)) for each in own]).items():
            of = "" if only else " for all tasks" if len(tasks) == len(evaluation.tasks) else f" for {', '.join(tasks)}"
            told.append(f"{model.name}: unknown{of}: {why}.")
        told += [f"{model.name}: {note}." for note in _by_text([(each.note, each.task) for each in own])]
    return rows, told


def _clean(name: str, clean: Sequence[Overlap], rows_of: Mapping[str, int], only: str | None) -> list[str]:
    if not clean:
        return []
    checked, rows = sum(each.checked for each in clean), sum(rows_of.get(each.task, each.checked) for each in clean)
    of = "" if checked == rows else f" of {wording.count(rows)}, the others being too short"
    where = "" if only else f" in {wording.plural(len(clean), 'task')}"
    return [f"{name}: no overlap found{where} ({wording.plural(checked, 'row')} checked{of})."]


def _by_text(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for text, task in pairs:
        if text:
            found.setdefault(text.rstrip("."), []).append(task)
    return found


def _overlap_row(evaluation: Evaluation, overlap: Overlap, names: Mapping[str, str]) -> tuple[str, ...]:
    task = next((each for each in evaluation.tasks if each.name == overlap.task), None)
    share = task is not None and Primary.of(task).share
    score = Primary.of(task).interval(words.score_of(task, overlap.model)) if task is not None else None
    return (
        overlap.model,
        names.get(overlap.task, overlap.task),
        f"{wording.count(len(overlap.rows))} of {wording.count(overlap.checked)}",
        words.interval_text(score, share=share) if score is not None else UNKNOWN,
        words.interval_text(overlap.without, share=share) if overlap.without is not None else UNKNOWN,
    )


WIN_COLUMNS = ("task", "judge", "from", "to", "second wins [95%]", "wins", "losses", "ties", "same in both orders")


def win_rows(evaluation: Evaluation, only: str | None = None) -> list[tuple[str, ...]]:
    """Win rates side by side, under :data:`WIN_COLUMNS`; ``only``: of this task."""
    names = words.titles(evaluation)
    return [
        (
            names.get(each.task, each.task),
            each.judge,
            each.before,
            each.after,
            words.interval_text(each.rate, share=True),
            wording.count(each.wins),
            wording.count(each.losses),
            wording.count(each.ties),
            UNKNOWN if each.consistent is None else words.score_text(each.consistent, share=True),
        )
        for each in evaluation.win_rates
        if only in (None, each.task)
    ]


LANGUAGE_COLUMNS = ("adapter", "task", "first language", "second language", "carried over")


def language_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Rows under :data:`LANGUAGE_COLUMNS`: the gain over the base in both, and the part of the first in the second."""
    rows = []
    for pair in evaluation.languages:
        task = next((task for task in evaluation.tasks if _is_of(task, pair)), None)
        share = task is None or Primary.of(task).share
        title = task.title if task is not None else pair.task
        first, second = pair.gains
        part = second.value / first.value if first.significant and first.value else math.nan
        gains = (
            f"{code}: {words.change_text(gain, share=share)}"
            for code, gain in zip(pair.languages, pair.gains, strict=True)
        )
        carried = (
            f"{100 * part:.0f}%".replace("-", wording.MINUS) if math.isfinite(part) else "not said: no sure change"
        )
        rows.append((pair.model, title, *gains, carried))
    return rows


def _is_of(task: TaskResult, pair: LanguagePair) -> bool:
    """Whether a task is the first of a pair: reading-en is reading in English."""
    return task.language == pair.languages[0] and task.name.removesuffix(f"-{task.language}") == pair.task


def harness_rows(evaluation: Evaluation) -> tuple[list[str], list[tuple[str, ...]]]:
    """What the harness reported: the models, and for each measure of a task what each has, with its standard error."""
    models = list(evaluation.harness)
    rows = []
    for line in harness_lines(evaluation.harness):
        note = ", less is better" if line.higher_is_better is False else ""
        values = (_with_error(line.values.get(name), line.errors.get(name)) for name in models)
        rows.append((f"{line.task}: {line.measure}{note}", *values))
    return models, rows


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    told = words.score_text(value, share=False)
    return f"{told} ± {words.score_text(error, share=False)}" if error and math.isfinite(error) else told
