"""An evaluation from its tasks to its report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from graftlm.adapters.files import describe_method, read_config, read_notes
from graftlm.base.fingerprint import exact_digest
from graftlm.data.sets import hash_file
from graftlm.errors import UserError
from graftlm.evaluation.eval_report import write_evaluation
from graftlm.evaluation.evaluation import BASE, Evaluation, Model, TaskResult
from graftlm.evaluation.gains import compare_models, corrected
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
        tasks = corrected([_compared(each) for each in answered if each.results])
        if not tasks:
            reasons = [f"{name}: {why}" for each in answered[:1] for name, why in each.left_out.items()]
            raise UserError("no model can be asked any of these tasks: " + "; ".join(reasons))
        models = models_of(opened)
        evaluation = Evaluation(
            title=out.resolve().name,
            created=datetime.now().astimezone().isoformat(timespec="seconds"),
            base=opened.model.name,
            base_parameters=sum(parameter.numel() for parameter in opened.model.base.parameters()),
            seconds=time.monotonic() - begun,
            models=models,
            tasks=tasks,
            tax=tuple(tax_of(model.name, tasks, drift_by.get(model.name)) for model in models if not model.is_base),
            settings=asdict(settings) | {"device": str(opened.model.device), "dtype": str(opened.model.dtype)},
            hashes=_hashes(opened, prepared),
            versions=versions(),
            notes=tuple(_notes(answered)),
        )
        write_evaluation(out, evaluation)
    return evaluation


def models_of(opened: Opened) -> tuple[Model, ...]:
    """The bare base, then the adapters, with what their folders tell of them."""
    model = opened.model
    parameters = sum(parameter.numel() for parameter in model.base.parameters())
    found = [Model(BASE, f"{parameters / 1e6:.1f}M parameters", template=opened.base.template.name)]
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
                folder=str(folder),
                template=speaker.template.name,
                weights_hash=exact_digest(model.adapters[owner])[:16],
            )
        )
    return tuple(found)


def _compared(answered: Answered) -> TaskResult:
    return compare_models(answered.prepared.task, answered.prepared.items, answered.results)


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
    alike: dict[tuple[str, str], list[str]] = {}
    for each in answered:
        for name, why in each.left_out.items():
            alike.setdefault((name, why), []).append(each.prepared.task.name)
    found = [f"{name} was not asked {', '.join(tasks)}: {why}." for (name, why), tasks in alike.items()]
    for each in answered:
        for name, results in each.results.items():
            errors = [result.error for result in results if result.error is not None]
            if errors:
                found.append(
                    f"{each.prepared.task.name}: {len(errors):,} of {len(results):,} rows have no result of {name}; "
                    f"the first: {errors[0]}."
                )
    return found
