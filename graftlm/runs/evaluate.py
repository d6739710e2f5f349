"""An evaluation from its tasks to its report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from graftlm.adapters.files import describe_method, read_config, read_notes
from graftlm.base.fingerprint import exact_digest
from graftlm.data.sets import hash_file
from graftlm.errors import UserError
from graftlm.evaluation.contamination import Trained, overlaps, read_trained
from graftlm.evaluation.eval_report import write_evaluation
from graftlm.evaluation.evaluation import BASE, Evaluation, Model, Overlap, TaskResult, WinRate
from graftlm.evaluation.gains import compare_models, corrected
from graftlm.evaluation.harness.run import HarnessSettings, run_harness
from graftlm.evaluation.languages import language_pairs
from graftlm.evaluation.pace import pass_seconds
from graftlm.evaluation.scored import primary_score
from graftlm.evaluation.side_by_side import Judge, duels_of, side_by_side
from graftlm.evaluation.speakers import Opened
from graftlm.evaluation.tax import tax_of
from graftlm.runs.eval_answers import Answered, EvalSettings, Prepared, Progress, Say, answer_all, measure_drift, no_bar
from graftlm.runs.folder import RunFolder, locked
from graftlm.runs.setup import versions


def run_evaluation(
    opened: Opened,
    prepared: Sequence[Prepared],
    out: Path,
    settings: EvalSettings,
    *,
    harness: HarnessSettings | None = None,
    judge: Judge | None = None,
    say: Say = lambda _line: None,
    progress: Progress = no_bar,
) -> Evaluation:
    """Answer, measure, compare, and write the report into ``out``; answers that it holds already are kept.

    Raises:
        UserError: another process writes there, a scorer of a task's own fails, the disk is full, or no model can be
            asked any of the tasks. What is done stays.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; results and report need a folder", hint="Choose another: --out FOLDER.")
    begun = time.monotonic()
    with locked(RunFolder(out)):
        answered = answer_all(opened, prepared, out, settings, say=say, progress=progress)
        drifts = measure_drift(opened, prepared, out, settings, progress=progress) if settings.drift else []
        drift_by = {drift.model: drift for drift in drifts}
        say("computing intervals")
        trained = {each.label: read_trained(each.folder) for each in opened.adapters if each.folder is not None}
        tasks = corrected([_compared(each, trained) for each in answered if each.results])
        reported = run_harness(opened, harness, folder=out / "harness", say=say) if harness is not None else {}
        if answered and not tasks:
            reasons = [f"{name}: {why}" for each in answered[:1] for name, why in each.left_out.items()]
            raise UserError("no model can be asked any of these tasks: " + "; ".join(reasons))
        win_rates = tuple(_win_rates(answered, judge, say)) if judge is not None else ()
        models = models_of(opened, trained)
        evaluation = Evaluation(
            title=out.resolve().name,
            created=datetime.now().astimezone().isoformat(sep=" ", timespec="minutes"),
            base=opened.model.name,
            base_parameters=sum(parameter.numel() for parameter in opened.model.base.parameters()),
            seconds=time.monotonic() - begun,
            models=models,
            tasks=tasks,
            tax=tuple(tax_of(model.name, tasks, drift_by.get(model.name)) for model in models if not model.is_base),
            overlaps=tuple(_overlaps(answered, trained)),
            win_rates=win_rates,
            languages=language_pairs(tasks),
            harness=reported,
            settings=asdict(settings)
            | {"device": str(opened.model.device), "dtype": str(opened.model.dtype)}
            | ({} if harness is None else {"lm_eval": asdict(harness)})
            | ({} if judge is None else {"judge": judge.name}),
            hashes=_hashes(opened, prepared),
            versions=versions(),
            notes=(*opened.notes, *_notes(answered)),
        )
        write_evaluation(out, evaluation)
    return evaluation


def models_of(opened: Opened, trained: Mapping[str, Trained]) -> tuple[Model, ...]:
    """The bare base, then the adapters, with what their folders tell of them."""
    model = opened.model
    seconds = pass_seconds(model, opened.speakers)
    parameters = sum(parameter.numel() for parameter in model.base.parameters())
    size, template = f"{parameters / 1e6:.1f}M parameters", opened.base.template.name
    found = [Model(BASE, size, pass_seconds=seconds.get(BASE), template=template)]
    for speaker in opened.adapters:
        folder, name = speaker.folder, speaker.stack[-1]
        assert folder is not None
        owner, _, form = name.partition("@")
        described = describe_method(read_config(folder), read_notes(folder))
        found.append(
            Model(
                speaker.label,
                f"{described}, as {form}" if form else described,
                trained_parameters=model.adapters[owner].trained_parameters,
                file_bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
                pass_seconds=seconds.get(speaker.label),
                folder=str(folder),
                template=speaker.template.name,
                weights_hash=exact_digest(model.adapters[owner])[:16],
                trained_on=trained[speaker.label].families,
            )
        )
    return tuple(found)


def _compared(answered: Answered, trained: Mapping[str, Trained]) -> TaskResult:
    found = compare_models(answered.prepared.task, answered.prepared.items, answered.results)
    known = {name: record.unseen(found.family) for name, record in trained.items() if found.family}
    return replace(found, unseen={name: unseen for name, unseen in known.items() if unseen is not None})


def _overlaps(answered: Sequence[Answered], trained: Mapping[str, Trained]) -> Iterator[Overlap]:
    """Rows of each task that are in an adapter's recorded training data, with its score on the others."""
    for name, record in trained.items():
        for each in answered:
            if name not in each.results:
                continue
            task, items, results = each.prepared.task, each.prepared.items, each.results[name]

            found = overlaps(record, items, task=task.name)
            rest = sorted(set(range(len(items))) - set(found.rows))
            if found.rows and rest:
                score = primary_score(task, [items[at] for at in rest], [results[at] for at in rest])
                found = replace(found, without=score)
            yield replace(found, model=name)


def _win_rates(answered: Sequence[Answered], judge: Judge, say: Say) -> Iterator[WinRate]:
    """Of each adapter over the base, on the tasks of written answers."""
    for each in answered:
        task, items, results = each.prepared.task, each.prepared.items, each.results
        if task.keys.kind != "generate" or BASE not in results:
            continue
        for name in results:
            if name != BASE:
                say(f"{task.name}: {judge.name} judges {name} against the base")
                duels = duels_of(items, results[BASE], results[name], language=task.keys.language)
                yield side_by_side(judge, task.name, BASE, name, list(duels.values()))


def _hashes(opened: Opened, prepared: Sequence[Prepared]) -> Mapping[str, str]:
    """What is needed to see that a repetition is of the same things."""
    found = {"base": opened.model.fingerprint}
    for each in prepared:
        found[f"{each.task.name}: settings"] = each.task.hash
        found[f"{each.task.name}: rows"] = each.hash
        found |= {f"{each.task.name}: {path.name}": hash_file(path)[:16] for path in each.task.paths if path.is_file()}
    return found


def _notes(answered: Sequence[Answered]) -> list[str]:
    """What a reader must know: who was not asked what, and which rows have no result."""
    tasks_of: dict[tuple[str, str], list[str]] = {}
    for each in answered:
        for name, why in each.left_out.items():
            tasks_of.setdefault((name, why), []).append(each.prepared.task.name)
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (name, why), tasks in tasks_of.items():
        alike.setdefault((why, tuple(tasks)), []).append(name)
    found = [f"Not asked {', '.join(tasks)}: {', '.join(names)}; {why}." for (why, tasks), names in alike.items()]
    for each in answered:
        for name, results in each.results.items():
            errors = [result.error for result in results if result.error is not None]
            if errors:
                found.append(
                    f"{each.prepared.task.name}: {len(errors):,} of {len(results):,} rows have no result of {name}; "
                    f"the first: {errors[0]}."
                )
    return found
