"""The report of an evaluation: one page that loads nothing, with Markdown and JSON beside it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from graftlm.base.files import write_texts
from graftlm.evaluation import eval_extras, eval_plots, eval_tables, wording
from graftlm.evaluation import eval_words as words
from graftlm.evaluation.eval_words import SIGNS, Primary
from graftlm.evaluation.evaluation import BASE, Evaluation, Example, TaskResult, TaskScore
from graftlm.evaluation.report import page_environment, settings_yaml

SHOWN_EXAMPLES = 12  # of each task; a page with all of them would be too heavy
LEGEND = (
    "Intervals are 95%, rows are their unit, and they are those of one comparison alone. ▲ marks a gain over the base "
    "and ▼ a loss where p < 0.05 after Holm's correction for the comparisons that are made together; ? where that is "
    "not known. A mean is one of tasks whose score is a share that all models have; its interval adds up those of its "
    "tasks, whose rows are independent, and its p is that of the normal law, corrected for the number of adapters."
)


def write_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Write report.html, report.md and results.json into a folder: all of them, or none; gives their paths.

    Raises:
        UserError: the disk is full or the place may not be written; earlier ones stay.
    """
    texts = {
        folder / "report.html": render(evaluation),
        folder / "report.md": markdown(evaluation),
        folder / "results.json": to_json(evaluation),
    }
    write_texts(texts)
    return list(texts)


def to_json(evaluation: Evaluation) -> str:
    """All values. Half of a surrogate pair, which UTF-8 cannot hold, is an escape and reads back as it was."""
    text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, default=_plain)
    text = re.sub(r"\[\n[\s\d,-]*\]", lambda places: "".join(places[0].split()), text)  # rows that changed, on one line
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text) + "\n"


def summary_table(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows for a terminal: each model's mean score by group, tasks with gains and losses, drift."""
    return eval_tables.head_and_rows(evaluation)


def summary_scores(evaluation: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows for a terminal: each task's primary score of each model, with the sign of a sure change."""
    rows = [
        (row.name, row.note, *(f"{cell.sign}{cell.text}" for cell in row.cells))
        for row in eval_tables.heat(evaluation)
        if row.task is not None
    ]
    return ("task", "score", *(model.name for model in evaluation.models)), rows


def summary_sentences(evaluation: Evaluation) -> list[str]:
    """One line for each adapter; or one for the base, where nothing is compared with it."""
    lines = eval_tables.summary(evaluation)
    return [f"{line.name}: {line.with_drift}" for line in lines] or [f"base: {eval_tables.base_sentence(evaluation)}"]


@dataclass(frozen=True)
class Answer:
    """An answer and the models that gave it."""

    text: str
    models: tuple[str, ...]
    right: bool


@dataclass(frozen=True)
class Shown:
    """An example as the page shows it: which adapters won or lost it against the base, and who answered what."""

    example: Example
    won: tuple[str, ...]
    lost: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Section:
    """A task as the page shows it."""

    task: TaskResult
    title: str
    primary: Primary
    facts: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, ...], str], ...]
    versus: list[tuple[str, ...]]
    left_out: int
    examples: tuple[Shown, ...]
    more_examples: int
    wins: list[tuple[str, ...]]
    overlaps: list[tuple[str, ...]]
    overlap_told: list[str]
    gains: int
    losses: int


def render(evaluation: Evaluation) -> str:
    """The page as text."""
    environment = page_environment()
    script = environment.loader.get_source(environment, "eval.js")[0] if environment.loader else ""
    overlaps, overlap_told = eval_extras.overlap_rows(evaluation)
    scatter = eval_plots.scatter(evaluation)
    tax = [{"tax": each, "rows": eval_tables.tax_rows(evaluation, each.model)} for each in evaluation.tax]
    page = environment.get_template("eval.html.j2").render(
        e=evaluation,
        lines=eval_tables.summary(evaluation),
        base_sentence=eval_tables.base_sentence(evaluation),
        sentences={each.model: each.sentence for each in evaluation.tax},
        facts=_facts(evaluation),
        models=_model_rows(evaluation),
        heat=eval_tables.heat(evaluation),
        scatter=scatter,
        tax=tax,
        tax_columns=eval_tables.TAX_COLUMNS,
        panels=eval_plots.tax_panels(evaluation),
        reliabilities=eval_plots.reliabilities(evaluation),
        unseen=eval_extras.unseen_rows(evaluation),
        languages=eval_extras.language_rows(evaluation),
        wins=eval_extras.win_rows(evaluation),
        win_columns=eval_extras.WIN_COLUMNS,
        overlaps=overlaps,
        overlap_told=overlap_told,
        harness=eval_extras.harness_rows(evaluation),
        sections=_sections(evaluation),
        versus_columns=eval_tables.VERSUS_COLUMNS,
        unseen_columns=eval_extras.UNSEEN_COLUMNS,
        language_columns=eval_extras.LANGUAGE_COLUMNS,
        overlap_columns=eval_extras.OVERLAP_COLUMNS,
        settings=settings_yaml(evaluation.settings),
        legend=LEGEND,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        base=BASE,
        w=wording,
    )
    return _encodable(page)


def markdown(evaluation: Evaluation) -> str:
    """The report in short: summary, scores, tax, adapters against each other, notes."""
    parts = [f"# {_escaped(evaluation.title)}\n"]
    size = wording.short_count(evaluation.base_parameters)
    parts.append(f"Base {_escaped(evaluation.base)} ({size} parameters), {_escaped(evaluation.created)}.\n")
    parts.append(_list(summary_sentences(evaluation)))
    if evaluation.notes:
        parts += ["## What to know\n", _list(evaluation.notes)]
    heat = eval_tables.heat(evaluation)
    rows = [
        (
            f"**{_escaped(row.name)}**" if row.task is None else _escaped(row.name),
            _escaped(row.note),
            *(" ".join(filter(None, (c.text, c.ends, c.sign))) for c in row.cells),
            *([""] * (len(evaluation.models) - len(row.cells))),
        )
        for row in heat
    ]
    if rows:
        head = ("task", "score", *(model.name for model in evaluation.models))
        parts += ["## Scores\n", _table(head, rows, raw=2), LEGEND + "\n"]
    if evaluation.tax:
        parts.append("## Alignment tax\n")
        for tax in evaluation.tax:
            parts.append(f"**{_escaped(tax.model)}**: {_escaped(tax.sentence)}\n")
            lines = [texts for texts, _ in eval_tables.tax_rows(evaluation, tax.model)]
            if lines:
                parts.append(_table(eval_tables.TAX_COLUMNS, lines))
    pairs = _sure_pairs(evaluation)
    if any(task.versus for task in evaluation.tasks):
        parts.append("## Adapters against each other\n")
        head = ("task", *eval_tables.VERSUS_COLUMNS[:5])
        parts.append(_table(head, pairs) if pairs else "No difference was found.\n")
    for title, columns, table in _small_tables(evaluation):
        parts += [f"## {title}\n", _table(columns, table)]
    overlap_told = eval_extras.overlap_rows(evaluation)[1]
    if overlap_told:
        parts += ["## Contamination\n", _list(overlap_told)]
    return _encodable("\n".join(parts))


def _small_tables(evaluation: Evaluation) -> Iterable[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
    models, measured = eval_extras.harness_rows(evaluation)
    tables = (
        ("Unseen tasks", eval_extras.UNSEEN_COLUMNS, eval_extras.unseen_rows(evaluation)),
        ("Languages", eval_extras.LANGUAGE_COLUMNS, eval_extras.language_rows(evaluation)),
        ("Win rates", eval_extras.WIN_COLUMNS, eval_extras.win_rows(evaluation)),
        ("Rows that overlap with training data", eval_extras.OVERLAP_COLUMNS, eval_extras.overlap_rows(evaluation)[0]),
        ("lm-evaluation-harness", ("measure", *models), measured),
    )
    return [each for each in tables if each[2]]


def _sure_pairs(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Differences between adapters that are sure, task by task."""
    names = words.titles(evaluation)
    return [
        (names[task.name], *row[:5])
        for task in evaluation.tasks
        for row in eval_tables.versus_rows(task)[0]
        if row[4] and row[4] != SIGNS["unknown"]
    ]


def _facts(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Name, value and small print."""
    rows = sum(task.rows for task in evaluation.tasks)
    answers = sum(task.rows * len(task.scores) for task in evaluation.tasks)
    failed = sum(score.failed for task in evaluation.tasks for score in task.scores)
    size = f"{wording.short_count(evaluation.base_parameters)} parameters, unchanged"
    return [
        ("Base", evaluation.base, size),
        ("Adapters", wording.count(len(evaluation.adapters)), ""),
        ("Tasks", wording.count(len(evaluation.tasks)), f"in {wording.plural(len(words.groups(evaluation)), 'group')}"),
        ("Rows", wording.count(rows), f"{wording.count(answers)} results, {wording.count(failed)} failed"),
        ("Time", wording.duration(evaluation.seconds), "of this run"),
    ]


def _model_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    return [
        {
            "model": model,
            "parameters": wording.count(model.trained_parameters) if model.trained_parameters else "–",
            "file": wording.size(model.file_bytes) if model.file_bytes else "–",
            "step": words.pass_text(model),
            "drift": "–" if model.is_base else words.drift_text(words.drift_of(evaluation, model.name)),
        }
        for model in evaluation.models
    ]


def _sections(evaluation: Evaluation) -> list[Section]:
    names = words.titles(evaluation)
    return [_section(evaluation, task, names[task.name]) for task in evaluation.tasks]


def _section(evaluation: Evaluation, task: TaskResult, title: str) -> Section:
    primary = Primary.of(task)
    versus, left_out = eval_tables.versus_rows(task)
    overlaps, overlap_told = eval_extras.overlap_rows(evaluation, task.name)
    marks = [words.mark_of(score.over_base, lower=primary.lower) for score in task.scores if score.over_base]
    facts = [
        wording.plural(task.rows, "row"),
        task.kind,
        f"family {task.family}" if task.family else "",
        f"language {task.language}" if task.language else "",
        f"chance {words.score_text(task.chance, share=primary.share)}" if task.chance is not None else "",
    ]
    names = list(dict.fromkeys([task.primary, *(name for score in task.scores for name in score.measures)]))
    less = {name: ", less is better" if name in task.lower_is_better else "" for name in names}
    models = [model.name for model in evaluation.models]
    scores = [score for name in models if (score := words.score_of(task, name)) is not None]
    shown = [_shown(scores, example) for example in task.examples]
    return Section(
        task=task,
        title=title,
        primary=primary,
        facts=tuple(filter(None, facts)),
        columns=(
            *(f"{task.labels.get(name, name)}{less[name]} [95%]" for name in names),
            "over base [95%]",
            "p",
            "sure",
            "won",
            "lost",
            "failed",
            "family",
        ),
        rows=tuple(_score_rows(task, scores, primary, names)),
        versus=versus,
        left_out=left_out,
        examples=tuple(shown[:SHOWN_EXAMPLES]),
        more_examples=max(0, len(shown) - SHOWN_EXAMPLES),
        wins=eval_extras.win_rows(evaluation, task.name),
        overlaps=overlaps,
        overlap_told=overlap_told,
        gains=marks.count("gain"),
        losses=marks.count("loss"),
    )


def _score_rows(
    task: TaskResult, scores: Sequence[TaskScore], primary: Primary, names: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], str]]:
    """A row of texts for each model, its name first, and its mark."""
    for score in scores:
        versus = score.over_base
        mark = words.mark_of(versus, lower=primary.lower) if versus else ""
        unseen = task.unseen.get(score.model)
        yield (
            (
                score.model,
                *(
                    words.interval_text(score.measures[name], share=name in task.shares)
                    if name in score.measures
                    else "–"
                    for name in names
                ),
                words.change_text(versus.change, share=primary.share) if versus else "–",
                f"{words.p_text(versus.p)} (of {versus.family})" if versus else "–",
                f"{SIGNS[mark]} {mark}".strip(),
                wording.count(len(versus.won)) if versus else "–",
                wording.count(len(versus.lost)) if versus else "–",
                wording.count(score.failed),
                "–" if unseen is None else "unseen" if unseen else "trained on",
            ),
            mark,
        )


def _shown(scores: Sequence[TaskScore], example: Example) -> Shown:
    compared = [(score.model, score.over_base) for score in scores if score.over_base is not None]
    same: dict[tuple[str, bool], list[str]] = {}
    for score in scores:
        if score.model in example.answers:
            key = example.answers[score.model].strip(), example.right.get(score.model, False)
            same.setdefault(key, []).append(score.model)
    return Shown(
        example,
        won=tuple(model for model, versus in compared if example.place in versus.won),
        lost=tuple(model for model, versus in compared if example.place in versus.lost),
        answers=tuple(Answer(text, tuple(models), right) for (text, right), models in same.items()),
    )


def _encodable(text: str) -> str:
    """Data may hold half of a surrogate pair (JSON allows it), which UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    """What JSON has no word for: numbers of numpy are numbers, all else is its text."""
    return value.item() if hasattr(value, "item") else str(value)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {_escaped(line)}" for line in lines) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, raw: int = 0) -> str:
    """A table; the first ``raw`` cells of a row are escaped already."""
    lines = [[_escaped(cell) for cell in head], ["---"] * len(head)]
    lines += [[*row[:raw], *(_escaped(cell) for cell in row[raw:])] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _escaped(text: str) -> str:
    """As Markdown shows it: no tag, no link, no new cell, no new line."""
    return re.sub(r"([\\|<`]|(?<=\])\()", r"\\\1", " ".join(text.split()))
