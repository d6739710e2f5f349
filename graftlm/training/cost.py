"""What training one adapter costs: bytes and seconds, measured on steps that change nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.data.batches import EncodedRow
from graftlm.training.forward import RoutedRow, build_micro_batch, micro_batch_log_probs, plan_micro_batches
from graftlm.training.task import Progress, Task, frozen_beneath
from graftlm.training.virtual_rows import with_virtual_tokens


@dataclass(frozen=True)
class StepCost:
    """Bytes of an adapter's parameters and of its optimizer's state, and the seconds of one of its steps."""

    adapter_bytes: int
    optimizer_bytes: int
    step_seconds: float


def measure_step(
    model: AdaptedModel, task: Task, rows: Sequence[EncodedRow], max_tokens: int, *, repeats: int = 3
) -> StepCost:
    """Take a few optimizer steps of size nought with ``rows``, the adapter alone; the median of their times.

    One step more comes first, so that memory is there and caches are warm.
    """
    run = Progress(task, model.adapter(task.adapter))
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    view = run.adapter.training_view(task.settings.seed, 0)
    name = task.adapter if view is None else f"{task.adapter}@{view}"
    routed = with_virtual_tokens(model, [RoutedRow(row, (*task.under, name)) for row in rows])
    seconds = []
    with frozen_beneath(model, [task]):
        for _ in range(1 + repeats):
            started = time.perf_counter()
            _step(model, run, routed, max_tokens)
            seconds.append(time.perf_counter() - started)
    states = [value for state in run.optimizer.state.values() for value in state.values()]
    for parameter in run.parameters:
        parameter.grad = None
    return StepCost(
        adapter_bytes=sum(each.numel() * each.element_size() for each in run.adapter.state_dict().values()),
        optimizer_bytes=sum(state.numel() * state.element_size() for state in states),
        step_seconds=median(seconds[1:]),
    )


def _step(model: AdaptedModel, run: Progress, rows: list[RoutedRow], max_tokens: int) -> None:
    for order in plan_micro_batches(rows, max_tokens):
        log_probs = micro_batch_log_probs(model, build_micro_batch(model, rows, order))
        (-log_probs.mean()).backward()  # type: ignore[no-untyped-call]
    penalty = run.adapter.penalty()
    if penalty is not None:
        penalty.backward()  # type: ignore[no-untyped-call]
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=False)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
