"""Plan before a run: one real step at the largest batch shape, measured, and what follows from it.

The step is taken on copies of nothing: parameters get gradients and optimizer moments as in the run, and are put
back afterwards, so a plan costs what the run's first step costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.base.memory import available_memory, peak_memory, reset_peak_memory, used_memory
from graftlm.errors import UserError
from graftlm.training.forward import (
    RoutedRow,
    build_micro_batch,
    micro_batch_log_probs,
    padded_size,
    plan_joint,
    score_rows,
)
from graftlm.training.settings import RunSettings
from graftlm.training.task import Progress, Task, check_tasks, frozen_beneath
from graftlm.training.virtual_rows import with_virtual_tokens


@dataclass(frozen=True)
class Plan:
    """What a run will take. Memory in bytes, time in seconds; padding as a share of the tokens run.

    ``largest_micro_batch_tokens`` is the largest setting of ``micro_batch_tokens`` that fits into the memory
    available now, or None where memory does not grow with it measurably.
    """

    rounds: int
    steps: dict[str, int]
    tokens: int
    learnt_tokens: int
    padding_share: float
    micro_batches: int
    seconds: float
    peak_memory: int
    available_memory: int
    largest_micro_batch_tokens: int | None
    trained_parameters: dict[str, int]

    @property
    def fits(self) -> bool:
        """Whether the planned peak is within what is free now plus what is in use already."""
        return self.peak_memory <= self.available_memory

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Sample:
    """One micro-batch that was run: padded tokens, seconds, and the peak that it led to."""

    tokens: int
    seconds: float
    peak: int


def plan(model: AdaptedModel, tasks: Sequence[Task], settings: RunSettings) -> Plan:
    """Lay out every round, run the largest micro-batch for real, and add it all up.

    The adapters of ``tasks`` are in ``model`` already; they end as they began.
    """
    check_tasks(tasks)
    rounds = [with_virtual_tokens(model, rows) for rows in _layout(tasks, settings)]
    shapes = [(rows, joint) for rows in rounds for joint in plan_joint(rows, settings.micro_batch_tokens)]
    padded = [sum(padded_size([rows[index] for index in order]) for order in joint) for rows, joint in shapes]
    work = sorted(range(len(shapes)), key=lambda index: -padded[index])
    largest, middle = work[0], work[len(work) // 2]
    heaviest = max(work, key=lambda index: _weight(model, *shapes[index]))
    model.gradient_checkpointing = settings.gradient_checkpointing
    runs = [Progress(task, model.adapter(task.adapter)) for task in tasks]
    in_use = used_memory(model.device)
    try:
        reset_peak_memory(model.device)
        with frozen_beneath(model, tasks):
            samples = [_run(model, *shapes[middle])]
            _refuse_too_large(in_use, samples[0], padded[largest], available_memory(model.device))
            optimizer_seconds = _optimizer_step(runs)  # moments are there from the second round on
            if heaviest != largest:
                _run(model, *shapes[heaviest])
            samples += [_run(model, *shapes[largest]), _run(model, *shapes[largest])]
        evaluation_seconds = _scoring(model, [row for task in tasks for row in task.held_out_rows()], settings)
        once_seconds = _scoring(model, _scored_once(tasks), settings)
        peak = peak_memory(model.device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise UserError(
            f"a micro-batch of {padded[largest]} tokens does not fit into memory",
            hint="Lower training.micro_batch_tokens, or set training.gradient_checkpointing: true.",
        ) from error
    finally:
        for run in runs:
            run.optimizer.zero_grad()
    seconds_per_token, seconds_per_batch = _line(samples)
    evaluations = 1 + min(8, len(rounds)) if settings.eval_every is None else 1 + len(rounds) // settings.eval_every
    seconds = (
        sum(padded) * seconds_per_token
        + len(padded) * seconds_per_batch
        + len(rounds) * optimizer_seconds
        + evaluations * evaluation_seconds
        + once_seconds
    )
    free = available_memory(model.device)
    tokens = sum(row.row.tokens for rows in rounds for row in rows)
    return Plan(
        rounds=len(rounds),
        steps={task.adapter: task.total for task in tasks},
        tokens=tokens,
        learnt_tokens=sum(row.row.n_supervised for rows in rounds for row in rows),
        padding_share=1.0 - tokens / sum(padded),
        micro_batches=len(padded),
        seconds=seconds,
        peak_memory=peak,
        available_memory=in_use + free,
        largest_micro_batch_tokens=_largest(in_use, samples[-1], free, max(padded)),
        trained_parameters={task.adapter: model.adapter(task.adapter).trained_parameters for task in tasks},
    )


def _refuse_too_large(in_use: int, sample: _Sample, tokens: int, free: int) -> None:
    """Stop where a micro-batch of ``tokens`` would not fit, going by a smaller one; the system would kill it."""
    needed = (sample.peak - in_use) * tokens / sample.tokens
    fits = _largest(in_use, sample, free, sample.tokens)
    if needed <= free or fits is None:
        return
    raise UserError(
        f"a micro-batch of {tokens:,} tokens needs about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free",
        hint=f"Set training.micro_batch_tokens to at most {fits:,}, or training.gradient_checkpointing: true. "
        "A single row longer than that runs alone: shorten rows with max_length.",
    )


def _layout(tasks: Sequence[Task], settings: RunSettings) -> list[list[RoutedRow]]:
    """The rows of every round."""
    total = max(task.total for task in tasks)
    return [
        [row for task in tasks if number < task.total for row in _step_rows(task, number) if not row.row.mismatched]
        for number in range(total)
    ]


def _step_rows(task: Task, step: int) -> list[RoutedRow]:
    """Those of an optimizer step; where they are yet to be made, some that are as large as they may be."""
    if task.source is None:
        return task.step_rows(step)
    return [RoutedRow(row, task.stack) for row in task.source.sketch()]


def _run(model: AdaptedModel, rows: list[RoutedRow], joint: list[list[int]]) -> _Sample:
    """Forward and backward of one micro-batch, or of several that go back together."""
    started = time.perf_counter()
    batches = [build_micro_batch(model, rows, order) for order in joint]
    torch.stack([micro_batch_log_probs(model, batch).sum() for batch in batches]).sum().backward()  # type: ignore[no-untyped-call]
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return _Sample(
        sum(batch.padded.size for batch in batches), time.perf_counter() - started, peak_memory(model.device)
    )


def _weight(model: AdaptedModel, rows: list[RoutedRow], joint: list[list[int]]) -> float:
    """What a micro-batch takes of memory, about: its padded tokens, those of a large adapter counted for more.

    A trained copy of the base has as many activations as the base itself, which runs for its rows too.
    """
    base = sum(parameter.numel() for parameter in model.base.parameters())
    weight = 0.0
    for order in joint:
        chosen = [rows[index] for index in order]
        own = sum(model.adapter(name).trained_parameters for row in chosen for name in row.stack)
        weight += padded_size(chosen) * (1.0 + own / base / len(chosen))
    return weight


def _optimizer_step(runs: list[Progress]) -> float:
    """Give every adapter its gradients and moments, all of which a round holds at once, by a step of no effect."""
    for run in runs:
        for parameter in run.parameters:
            if parameter.grad is None:  # it was not in the micro-batch that was run
                parameter.grad = torch.empty_like(parameter).fill_(0.0)  # zeros_like takes no memory before use
    started = time.perf_counter()
    for run in runs:
        before = [parameter.detach().clone() for parameter in run.parameters]
        run.optimizer.step()
        with torch.no_grad():
            for parameter, value in zip(run.parameters, before, strict=True):
                parameter.copy_(value)
    return time.perf_counter() - started


def _scored_once(tasks: Sequence[Task]) -> list[RoutedRow]:
    """What is scored besides: every row under the reference, and at each step the rows that are not learnt."""
    rows = []
    for task in tasks:
        if task.objective.needs_reference:
            leaders = (*task.rows, *task.held_out)
            rows += [RoutedRow(row, task.reference_stack) for leader in leaders for row in leader.group]
        if any(row.mismatched for leader in task.rows for row in leader.group):
            rows += [row for step in range(len(task.steps)) for row in task.step_rows(step) if row.row.mismatched]
    return rows


def _scoring(model: AdaptedModel, rows: list[RoutedRow], settings: RunSettings) -> float:
    """Seconds of scoring some rows, from a sample of them."""
    if not rows:
        return 0.0
    sample = sorted(rows, key=lambda row: -row.row.tokens)[:: max(1, len(rows) // 32)]
    started = time.perf_counter()
    score_rows(model, sample, settings.micro_batch_tokens)
    share = sum(row.row.tokens for row in sample) / sum(row.row.tokens for row in rows)
    return (time.perf_counter() - started) / share


def _line(samples: Sequence[_Sample]) -> tuple[float, float]:
    """Seconds a padded token and seconds a micro-batch, from a middle and a large one; the first run warms up."""
    middle, _, large = samples
    if large.tokens <= 1.5 * middle.tokens:
        return large.seconds / large.tokens, 0.0
    slope = max(0.0, (large.seconds - middle.seconds) / (large.tokens - middle.tokens))
    return slope, max(0.0, large.seconds - slope * large.tokens)


def _largest(in_use: int, sample: _Sample, free: int, tokens: int) -> int | None:
    """Tokens at which memory, taken to grow in proportion, reaches nine tenths of what is free."""
    grown = sample.peak - in_use
    if grown < 2**20:
        return None
    return int(tokens * 0.9 * free / grown)
