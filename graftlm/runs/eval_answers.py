"""All models answer all tasks of an evaluation in shared batches over one base, going on from what is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.base.fingerprint import exact_digest
from graftlm.evaluation.answering import Answering, Limits, Tell
from graftlm.evaluation.asking import largest, why_not
from graftlm.evaluation.drift import drift_of, drift_of_texts
from graftlm.evaluation.evaluation import BASE, Drift
from graftlm.evaluation.results import ItemResult, ResultFile
from graftlm.evaluation.speakers import Opened, Speaker
from graftlm.evaluation.tasks.items import Item, read_items
from graftlm.evaluation.tasks.task import EvalTask

Say = Callable[[str], None]
Progress = Callable[[str, int], AbstractContextManager[Tell]]  # a bar of so many steps, with a title


def no_bar(_title: str, _total: int) -> AbstractContextManager[Tell]:
    """No progress is shown."""
    return nullcontext(lambda _done: None)


DRIFT_TEXTS = 64  # of each neutral task


@dataclass(frozen=True)
class EvalSettings:
    """How tasks are run. ``limit``: rows of each at most; ``shots`` in the place of a task's own; 0 tokens: chosen."""

    limit: int | None = None
    shots: int | None = None
    batch_tokens: int = 0
    batch_rows: int = 32
    seed: int | None = None
    drift: bool = True


@dataclass(frozen=True)
class Prepared:
    """A task with its items, read before anything is loaded."""

    task: EvalTask
    items: tuple[Item, ...]

    @cached_property
    def hash(self) -> str:
        """Of all items."""
        return hashlib.sha256("".join(item.hash for item in self.items).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answered:
    """What all models made of a task, in the order of its items, and why some models were not asked."""

    prepared: Prepared
    results: Mapping[str, list[ItemResult]]
    left_out: Mapping[str, str]


def prepare(tasks: Sequence[EvalTask], settings: EvalSettings) -> list[Prepared]:
    """Read the rows of all tasks.

    Raises:
        UserError: a task has no rows, or a row does not go with it.
    """
    found = []
    for task in tasks:
        given: dict[str, Any] = {"seed": settings.seed}
        if settings.shots is not None and task.keys.kind in ("choice", "generate"):
            given["shots"] = settings.shots
        if settings.limit is not None:
            given["max_rows"] = min(settings.limit, task.keys.max_rows or settings.limit)
        changed = {key: value for key, value in given.items() if value is not None}
        own = replace(task, keys=task.keys.model_copy(update=changed))
        found.append(Prepared(own, tuple(read_items(own))))
    return found


def answer_all(
    opened: Opened,
    prepared: Sequence[Prepared],
    out: Path,
    settings: EvalSettings,
    *,
    say: Say = lambda _line: None,
    progress: Progress = no_bar,
) -> list[Answered]:
    """Let all models answer all tasks, going on from what ``out`` holds of them.

    Raises:
        UserError: a scorer of a task's own fails; the disk is full. What is done stays.
    """
    limits = Limits(settings.batch_tokens or largest(opened.model), settings.batch_rows)
    identities = {speaker.label: identity(opened, speaker) for speaker in opened.speakers}
    found = []
    for each in prepared:
        task, items = each.task, each.items
        reasons = {speaker.label: why_not(opened, speaker, task, items) for speaker in opened.speakers}
        files = {
            label: ResultFile(out / "results" / task.name / f"{label}.jsonl", header(each, identities[label]))
            for label, reason in reasons.items()
            if reason is None
        }
        other = [label for label, file in files.items() if file.begun_anew]
        if other:
            say(
                f"{task.name}: earlier answers of {', '.join(other)} are of other rows, settings or weights; "
                "they are made anew"
            )
        left = sum(len(file.missing(len(items))) for file in files.values())
        kept = len(files) * len(items) - left
        if kept:
            say(f"{task.name}: {kept:,} of {kept + left:,} answers were there")
        if left:
            with progress(task.name, left) as tell:
                Answering(opened, task, items, files, limits, tell).run()
        results = {label: file.in_order(len(items)) for label, file in files.items()}
        found.append(Answered(each, results, {label: why for label, why in reasons.items() if why is not None}))
    return found


def identity(opened: Opened, speaker: Speaker) -> dict[str, Any]:
    """What a model's answers follow from: base, weights of its adapters, template, precision."""
    names = [name.partition("@")[0] for name in speaker.stack]
    weights = [exact_digest(opened.model.adapters[name])[:16] for name in names]
    return {
        "base": opened.model.fingerprint[:16],
        "adapters": weights,
        "forms": [name.partition("@")[2] for name in speaker.stack],
        "template": speaker.template.hash[:16],
        "head": None if speaker.head is None else speaker.head.model_dump(mode="json"),
        "dtype": str(opened.model.dtype).removeprefix("torch."),
    }


def header(prepared: Prepared, model: Mapping[str, Any]) -> dict[str, Any]:
    """The first line of a file of results: whose they are, of which rows."""
    scorers = [_code(prepared.task, scorer.python) for scorer in prepared.task.keys.all_scorers if scorer.python]
    if scorers:  # they see all columns of a row, and an item's hash is only of what is asked and expected
        columns = json.dumps([dict(item.values) for item in prepared.items], default=str)
        scorers.append(hashlib.sha256(columns.encode()).hexdigest()[:16])
    values = {"version": 1, "task": prepared.task.hash, "rows": prepared.hash, "scorers": scorers, "model": dict(model)}
    return dict(json.loads(json.dumps(values)))


def _code(task: EvalTask, python: str) -> str:
    """The hash of a scorer's file: its scores are of this code."""
    path = task.folder / python.rpartition(":")[0]
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""


def measure_drift(
    opened: Opened,
    prepared: Sequence[Prepared],
    out: Path,
    settings: EvalSettings,
    *,
    progress: Progress = no_bar,
) -> list[Drift]:
    """KL(base ‖ adapter) a token on the neutral texts of the tasks; nothing where there are none, or no decoder."""
    speakers = [speaker for speaker in opened.adapters if speaker.head is None]
    neutral = [each for each in prepared if each.task.keys.neutral]
    if not neutral or not speakers or opened.model.kind != "decoder":
        return []
    identities = {speaker.label: identity(opened, speaker) for speaker in (opened.base, *speakers)}
    totals: dict[str, list[tuple[float, float]]] = {speaker.label: [] for speaker in speakers}
    for each in neutral:
        items = each.items[:DRIFT_TEXTS]
        files = {
            label: ResultFile(
                out / "drift" / each.task.name / f"{label}.jsonl",
                {**header(each, identities[label]), "from": header(each, identities[BASE])},
            )
            for label in totals
        }
        places = sorted({place for file in files.values() for place in file.missing(len(items))})
        if places:
            with progress(f"{each.task.name}: drift", len(places)) as tell:
                texts = [items[place] for place in places]
                tokens = settings.batch_tokens or largest(opened.model)
                for label, found in drift_of_texts(opened, each.task, texts, speakers, tokens).items():
                    own = dict(zip(places, found, strict=True))
                    files[label].add({place: own[place] for place in files[label].missing(len(items))})
                tell(len(places))
        for label, file in files.items():
            totals[label] += [
                (result.scores["kl"], result.scores["tokens"]) for result in file.in_order(len(items)) if result.scores
            ]
    return [drift_of(label, np.array(sums, dtype=np.float64)) for label, sums in totals.items() if sums]
