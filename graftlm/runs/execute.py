"""Carry out a prepared run: plan, train, save the adapters, and write what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from graftlm.adapters.decoder_positions import positions_are_unknown
from graftlm.adapters.merge import can_be_merged
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.base.files import write_json, write_text
from graftlm.base.memory import peak_memory, reset_peak_memory
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import render_source
from graftlm.data.templates import ChatTemplate
from graftlm.data.texts import answer_of
from graftlm.evaluation.frequency import frequency_scores
from graftlm.evaluation.rank_charts import RankScore
from graftlm.evaluation.report import AdapterReport, Example, RunReport, write_report
from graftlm.evaluation.reward_quality import RewardQuality
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Request, SamplingSettings
from graftlm.runs.folder import RunFolder
from graftlm.runs.preferences import (
    criteria_notes,
    group_scores,
    is_preference,
    preference_result,
    reward_qualities,
    scores_before,
    set_reward_scales,
)
from graftlm.runs.record import training_records
from graftlm.runs.setup import PreparedRun, adapter_notes, versions
from graftlm.training.checkpoints import latest_checkpoint
from graftlm.training.events import Event, Watcher
from graftlm.training.forward import RowScore, score_rows
from graftlm.training.loop import Outcome, train
from graftlm.training.measures import evaluation
from graftlm.training.metrics import MetricsFile, open_trackers, read_metrics
from graftlm.training.plan import Plan
from graftlm.training.task import Progress, Task, exact_share, mean_loss

EXAMPLES = 12
ANSWER_TOKENS = 96


@dataclass(frozen=True)
class _Measured:
    """What came of training: ``seconds`` and ``peak`` (bytes) of it, held-out scores by adapter before and after."""

    outcome: Outcome
    plan: Plan | None
    seconds: float
    peak: int
    before: dict[str, list[RowScore]]
    after: dict[str, list[RowScore]]
    by_rank: dict[str, list[RankScore]]
    preferred: dict[str, dict[str, Any]]
    worth: dict[str, list[RewardQuality]]

    @property
    def padding_share(self) -> float:
        return 1.0 - self.outcome.tokens / max(1, self.outcome.padded_tokens)

    def metrics(self, name: str) -> dict[str, Any]:
        values = _metrics(self.outcome.progress[name], self.before[name], self.after[name]) | self.preferred[name]
        if scores := self.by_rank.get(name):
            values["by_rank"] = {
                str(rank): {"held_out_loss": loss, "held_out_accuracy": exact} for rank, loss, exact in scores
            }
        return values


@dataclass(frozen=True)
class RunResult:
    """How a run ended; ``report`` is None where it was interrupted."""

    outcome: Outcome
    report: RunReport | None


def execute(
    run: PreparedRun,
    folder: RunFolder,
    *,
    plan: Plan | None = None,
    resume: bool = False,
    watch: Watcher = lambda _event: None,
    recall: Callable[[list[dict[str, Any]]], None] = lambda _lines: None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _line: None,
) -> RunResult:
    """Train the run's adapters into ``folder`` (already locked) and write adapters, run.json and the report.

    ``recall`` gets the lines of metrics.jsonl from before a run was stopped, and ``watch`` every event from there on.

    Raises:
        UserError: the disk is full, a checkpoint is broken, or a tracker is missing.
    """
    if not resume:
        folder.clear()
    write_text(folder.recipe, run.recipe.to_yaml())
    saved = latest_checkpoint(folder.checkpoints) if resume else None
    metrics = MetricsFile(folder.metrics, rounds=saved.state["counters"]["rounds"] if saved else 0)
    earlier = read_metrics(folder.metrics)
    recall(earlier)
    trackers = open_trackers(run.recipe.log, folder.path, run.recipe.name)
    reset_peak_memory(run.model.device)
    started = time.monotonic()
    outcome = train(
        run.model,
        run.tasks,
        run.recipe.training,
        checkpoints=folder.checkpoints,
        resume=resume,
        watch=_all([metrics, *trackers, watch]),
        should_stop=should_stop,
        references=folder.references,
    )
    seconds, peak = time.monotonic() - started, peak_memory(run.model.device)
    seconds += sum(line["seconds"] for line in earlier if line["kind"] == "round")
    if outcome.interrupted or should_stop():
        return RunResult(outcome, None)
    run = replace(run, tasks=tuple(progress.task for progress in outcome.progress.values()))  # with their references
    say("scoring held-out rows with the bare base and each adapter")
    reference = set_reward_scales(run, say)
    before, after = _scores_before(run), _scores(run, run.tasks, lambda task: task.stack)
    worth = {
        task.adapter: reward_qualities(run, task, after[task.adapter], reference.get(task.adapter, {}))
        for task in run.tasks
    }
    for name, qualities in worth.items():
        for each in qualities:
            say(f"adapter {name}: {each.sentence}")
    preferred = {task.adapter: preference_result(task, after[task.adapter], worth[task.adapter]) for task in run.tasks}
    for task in run.tasks:
        if is_preference(task):  # a row of the report is then a group
            name = task.adapter
            before[name], after[name] = scores_before(run, task, before[name]), group_scores(task, after[name])
    measured = _Measured(outcome, plan, seconds, peak, before, after, _scores_by_rank(run), preferred, worth)
    records = training_records(run)
    for name in outcome.progress:
        summary, run.model.adapter(name).trained_on = records[name]
        run.model.notes[name] = {**adapter_notes(run, name, measured.metrics(name)), "trained_on": summary}
        run.model.save(name, folder.adapters / name)
    if should_stop():
        return RunResult(outcome, None)
    say("writing answers side by side")
    examples = _examples(run)
    report = _report(run, folder, measured, examples)
    write_report(folder.report, report)
    write_json(folder.summary, _summary(run, measured))
    return RunResult(outcome, report)


def _all(watchers: Sequence[Watcher]) -> Watcher:
    def watch(event: Event) -> None:
        for watcher in watchers:
            watcher(event)

    return watch


def _scores(
    run: PreparedRun, tasks: Sequence[Task], stack: Callable[[Task], tuple[str, ...]]
) -> dict[str, list[RowScore]]:
    """Score the held-out rows of tasks under a routing, all tasks in the same batches."""
    rows = [row for task in tasks for row in task.held_out_rows(stack(task))]
    scores = iter(score_rows(run.model, rows, run.recipe.training.micro_batch_tokens) if rows else [])
    return {task.adapter: [next(scores) for leader in task.held_out for _ in leader.group] for task in tasks}


def _scores_before(run: PreparedRun) -> dict[str, list[RowScore]]:
    """The scores without the adapters. Without a head there are no classes: then those of the most frequent one."""
    headed = {task.adapter for task in run.tasks if run.model.head_of(task.stack) not in (None, *task.under)}
    rest = [task for task in run.tasks if task.adapter not in headed]
    scores = _scores(run, rest, lambda task: task.under)
    for task in run.tasks:
        if task.adapter in headed:
            if is_preference(task):
                scores[task.adapter] = []
                continue
            scores[task.adapter] = frequency_scores(task.rows, task.held_out)
    return scores


def _scores_by_rank(run: PreparedRun) -> dict[str, list[RankScore]]:
    """Held-out scores of every adapter that serves at several ranks, at each, all in the same batches."""
    forms = [(task, form) for task in run.tasks if task.held_out for form in run.model.adapter(task.adapter).forms]
    rows = [row for task, form in forms for row in task.held_out_rows((*task.under, f"{task.adapter}@{form}"))]
    scores = iter(score_rows(run.model, rows, run.recipe.training.micro_batch_tokens) if rows else [])
    found: dict[str, list[RankScore]] = {}
    for task, form in forms:
        own = [next(scores) for leader in task.held_out for _ in leader.group]
        loss, accuracy, _ = evaluation(task, own)
        found.setdefault(task.adapter, []).append((int(form), loss, accuracy))
    return found


def _metrics(progress: Progress, before: list[RowScore], after: list[RowScore]) -> dict[str, Any]:
    values: dict[str, Any] = {"steps": progress.step, "ended": progress.reason, "best_step": progress.best_step}
    if after:
        values |= {
            "held_out_rows": len(after),
            "held_out_loss": mean_loss(after),
            "held_out_accuracy": exact_share(after),
            "base_loss": mean_loss(before),
            "base_accuracy": exact_share(before),
        }
    if progress.task.source is not None and progress.task.source.tried:
        kept = next((each for each in progress.history if each["step"] == progress.best_step), None)
        values["held_out_prompts"] = {"start": progress.history[0], "kept": kept, "last": progress.history[-1]}
    return values


def _examples(run: PreparedRun) -> dict[str, list[Example]]:
    """What each adapter makes of some of its held-out prompts: answers beside the base's, or the labels of its head."""
    writes = run.model.kind != "encoder" and not positions_are_unknown(run.model.base)
    written = _answers(run, [task for task in run.tasks if writes and not _classes(run, task)])
    return {task.adapter: written.get(task.adapter) or _labels(run, task) for task in run.tasks}


def _classes(run: PreparedRun, task: Task) -> bool:
    return run.model.head_of(task.stack) is not None


def _labels(run: PreparedRun, task: Task) -> list[Example]:
    """The labels of an adapter's own head, where it has one."""
    head = run.heads.get(task.adapter)
    if head is None or head.type == "reward" or not _classes(run, task):
        return []
    numbers = range(len(task.held_out))[:: max(1, len(task.held_out) // EXAMPLES)][:EXAMPLES]
    rows = task.held_out_rows()
    scores = score_rows(run.model, [rows[number] for number in numbers], run.recipe.training.micro_batch_tokens)
    return [
        Example(
            _prompt_text(run.held_out[task.adapter][number]),
            run.held_out[task.adapter][number].messages[-1].content,
            {task.adapter: " ".join(head.labels[label] for label in score.predicted)},
        )
        for number, score in zip(numbers, scores, strict=True)
    ]


def _answers(run: PreparedRun, tasks: Sequence[Task]) -> dict[str, list[Example]]:
    """Answers of the base and of each adapter, decoded greedily in shared batches."""
    if not tasks:
        return {}
    chosen = {task.adapter: _spread(run.held_out[task.adapter]) for task in tasks}
    requests = []
    for task in tasks:
        template = run.templates[task.adapter]
        stop_ids = template.stop_ids(run.tokenizer)
        longest = max((row.n_supervised for row in task.held_out), default=ANSWER_TOKENS)
        limit = min(ANSWER_TOKENS, 2 * longest + 16)  # enough to see an answer that does not end
        sampling = SamplingSettings(max_new_tokens=limit, temperature=0.0, stop_ids=stop_ids)
        for instance in chosen[task.adapter]:
            for stack in (task.under, task.stack):
                prompt = _prompt(run, template, instance.asked, stack)
                requests.append(Request(prompt, stack or None, sampling))
    once = list(dict.fromkeys(requests))  # many adapters, one base: its answers are the same for all of them
    completions = dict(zip(once, Engine(run.model).run(once), strict=True))
    answers = iter(completions[request] for request in requests)
    return {
        task.adapter: [
            Example(
                _prompt_text(instance),
                answer_of(instance),
                {"base": next(answers).text or "", task.adapter: next(answers).text or ""},
            )
            for instance in chosen[task.adapter]
        ]
        for task in tasks
    }


def _prompt(run: PreparedRun, template: ChatTemplate, messages: Sequence[Message], stack: Stack) -> tuple[int, ...]:
    """What a stack goes on from, cut where it is too long: a source behind, as in training, a prompt in front."""
    model = run.model
    if model.kind != "encoder-decoder":
        return _with_room(model, template.render_prompt(messages, run.tokenizer), stack)
    source = render_source(template, messages, run.tokenizer, model.context_length - model.virtual_length(stack))
    return model.with_virtual_tokens(source, stack, drop_others=True)


def _with_room(model: AdaptedModel, prompt: Sequence[int], stack: Stack) -> tuple[int, ...]:
    """The prompt under a stack, its beginning cut where there is no room for an answer; virtual tokens stay."""
    whole = model.with_virtual_tokens(prompt, stack, drop_others=True)
    words = [place for place, token in enumerate(whole) if not model.is_virtual(token)]
    room = model.room(stack)
    kept = max(1, room - min(ANSWER_TOKENS, room // 2))
    cut = set(words[: max(0, len(words) - kept)])
    return tuple(token for place, token in enumerate(whole) if place not in cut)


def _spread(instances: Sequence[Instance]) -> list[Instance]:
    """Some question-and-answer instances, evenly over all."""
    fit = [each for each in instances if each.asked and each.conversation[-1].role in ("assistant", "user")]
    return fit[:: max(1, len(fit) // EXAMPLES)][:EXAMPLES]


def _prompt_text(instance: Instance) -> str:
    turns = instance.asked
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in turns)


def _report(run: PreparedRun, folder: RunFolder, measured: _Measured, examples: dict[str, list[Example]]) -> RunReport:
    outcome, plan = measured.outcome, measured.plan
    lines = read_metrics(folder.metrics)
    adapters = []
    for name, progress in outcome.progress.items():
        own = [line for line in lines if line.get("adapter") == name]
        settings = progress.task.settings
        adapters.append(
            AdapterReport(
                name=name,
                method=run.recipe.adapters[name].method.describe(),
                trained_parameters=progress.adapter.trained_parameters,
                data=", ".join(run.recipe.adapters[name].data),
                counts=_joint_counts(run, name),
                steps=progress.total,
                epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                ended=(progress.reason or "", progress.detail),
                train_loss=[(line["step"], line["loss"]) for line in own if line["kind"] == "step"],
                held_out=[
                    (line["step"], line["loss"], line["accuracy"]) for line in own if line["kind"] == "evaluation"
                ],
                before=measured.before[name],
                after=measured.after[name],
                best_step=progress.best_step,
                folder=str(folder.adapters / name),
                examples=examples[name],
                ranks=dict(progress.adapter.ranks or {}),
                by_rank=measured.by_rank.get(name, ()),
                phases=[line for line in own if line["kind"] == "phase" and "reward" in line],
                trials=[line for line in own if line["kind"] == "trial"],
                right="preferences right" if is_preference(progress.task) else "exact answers",
                notes=criteria_notes(run, progress.task, measured.worth[name]),
                rewards=measured.worth[name],
            )
        )
    return RunReport(
        title=run.recipe.name,
        base=run.model.name,
        base_parameters=sum(parameter.numel() for parameter in run.model.base.parameters()),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        seconds=measured.seconds,
        tokens=outcome.tokens,
        padding_share=measured.padding_share,
        peak_memory=measured.peak,
        planned={"peak_memory": plan.peak_memory, "seconds": plan.seconds} if plan else None,
        adapters=adapters,
        settings=run.recipe.to_dict(),
        versions=versions(),
        next_commands=next_commands(run, folder),
    )


def next_commands(run: PreparedRun, folder: RunFolder) -> list[str]:
    """What to type next: what works with the run's adapters, shown with the first of them that it works with."""
    writing = [task for task in run.tasks if run.model.kind == "decoder" and not _classes(run, task)]
    labelling = [task for task in run.tasks if task.adapter in run.heads and not is_preference(task)]
    merging = [
        task for task in run.tasks if all(can_be_merged(run.model.adapter(name)) for name in task.stack)
    ]  # with a verbalizer too: its words are the base's own
    commands = [
        *([["graftlm", "chat", str(folder.path)]] if writing else []),
        *[_label_command(run, folder, task) for task in labelling[:1]],
        ["graftlm", "adapters", "list", str(folder.path)],
        *[["graftlm", "export", str(folder.adapters / task.adapter), "--out", "merged"] for task in merging[:1]],
        ["graftlm", "recipe", "--out", "your.yaml"],
        ["graftlm", "train", "your.yaml"],
    ]
    return [shlex.join(command) for command in commands]


def _label_command(run: PreparedRun, folder: RunFolder, task: Task) -> list[str]:
    """Labels of the adapter's own data, as an example."""
    data = run.recipe.data[run.recipe.adapters[task.adapter].data[0]]
    prompt = ["--prompt", data.prompt] if data.prompt else []
    adapter = ["--adapter", str(folder.adapters / task.adapter)]
    return ["graftlm", "generate", str(data.path[0]), *prompt, *adapter, "--limit", "20", "--out", "labels.jsonl"]


def _joint_counts(run: PreparedRun, name: str) -> dict[str, Any]:
    """The account of all of an adapter's data sets together."""
    joint: dict[str, Any] = {"read": 0, "kept": 0, "truncated": {}, "dropped": {}}
    for key in run.recipe.adapters[name].data:
        counts = run.parts[name][key].train.counts
        joint["read"] += counts.read
        joint["kept"] += counts.kept
        for part, table in (("truncated", counts.truncated), ("dropped", counts.dropped)):
            for reason, number in table.items():
                joint[part][reason] = joint[part].get(reason, 0) + number
    return joint


def _summary(run: PreparedRun, measured: _Measured) -> dict[str, Any]:
    outcome, plan = measured.outcome, measured.plan
    return {
        "name": run.recipe.name,
        "base": {"name": run.model.name, "fingerprint": run.model.fingerprint},
        "actual": {"seconds": measured.seconds, "peak_memory": measured.peak, "tokens": outcome.tokens},
        "planned": plan.to_dict() if plan else None,
        "padding_share": measured.padding_share,
        "data": {key: split.counts() for key, split in run.data.items()},
        "adapters": {
            name: measured.metrics(name) | {"detail": progress.detail} | _ranks(progress)
            for name, progress in outcome.progress.items()
        },
        "versions": versions(),
    }


def _ranks(progress: Progress) -> dict[str, Any]:
    """The rank of each matrix, where the method chose it."""
    ranks = progress.adapter.ranks
    return {} if ranks is None else {"ranks": dict(ranks)}
