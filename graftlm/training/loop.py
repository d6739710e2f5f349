"""The training loop: any number of adapters, each with its own data, objective, optimizer and pace.

A round is one optimizer step of every adapter that still trains. The rows of all these steps run through the
base together, in micro-batches of like length; losses, clipping, schedules and stopping are kept per adapter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.errors import UserError
from graftlm.objectives.objective import RowScores
from graftlm.objectives.sft import SFT
from graftlm.training.checkpoints import latest_checkpoint, save_checkpoint
from graftlm.training.diagnosis import find_non_finite, non_finite_parameter
from graftlm.training.events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Phased,
    Rested,
    RoundDone,
    Stepped,
    Tried,
    Watcher,
)
from graftlm.training.forward import (
    RoutedRow,
    build_micro_batch,
    micro_batch_values,
    plan_joint,
    score_rows,
)
from graftlm.training.measures import evaluation, measure
from graftlm.training.optimizers import clip_gradients, gradient_norm, learning_rate
from graftlm.training.reference import with_references
from graftlm.training.settings import RunSettings
from graftlm.training.source import Turn
from graftlm.training.task import Progress, Task, check_tasks, frozen_beneath
from graftlm.training.virtual_rows import with_virtual_tokens

SAVE_SECONDS = 600.0  # the most work that a kill costs, where the recipe says nothing


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``interrupted``: it was asked to stop, and a checkpoint waits to be resumed."""

    progress: dict[str, Progress]
    rounds: int
    tokens: int
    padded_tokens: int
    interrupted: bool


def train(
    model: AdaptedModel,
    tasks: Sequence[Task],
    settings: RunSettings | None = None,
    *,
    checkpoints: Path | None = None,
    resume: bool = False,
    watch: Watcher = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
    references: Path | None = None,
) -> Outcome:
    """Train the adapters of ``tasks`` (already added to ``model``) side by side.

    At the end each adapter holds its best parameters by held-out loss, or its last ones where nothing is held out.

    Args:
        checkpoints: a folder for checkpoints; None keeps none.
        resume: go on from the newest checkpoint there, to the same bits as a run that was never stopped.
        watch: called with every event, in order.
        should_stop: asked after every round; True saves a checkpoint and returns.
        references: a folder to keep the reference's log-probabilities in, for objectives that compare with one; they
            are found once, before the first step, and used again where base, adapters and rows are the same.

    Raises:
        UserError: the tasks cannot be trained together, the disk is full, or a checkpoint cannot be read or is of
            another run.
    """
    check_tasks(tasks)
    settings = settings or RunSettings()
    tasks = with_references(model, tasks, settings, references)
    runs = {task.adapter: Progress(task, model.adapter(task.adapter)) for task in tasks}
    counters = Counters()
    if resume and checkpoints is not None and (saved := latest_checkpoint(checkpoints)) is not None:
        _restore(model, runs, counters, saved.state, saved.tensors)
    else:
        _evaluate(model, list(runs.values()), settings, watch)
    total = max(run.total for run in runs.values())
    save_every = settings.save_every or settings.eval_every or max(1, math.ceil(total / 8))
    saved_at = time.monotonic()
    model.gradient_checkpointing = settings.gradient_checkpointing

    def save() -> None:
        if checkpoints is not None:
            state, tensors = _snapshot(model, runs, counters)
            path = save_checkpoint(checkpoints, counters.rounds, state, tensors, settings.keep_checkpoints)
            watch(CheckpointSaved(counters.rounds, str(path)))

    while active := [run for run in runs.values() if run.active]:
        started = time.perf_counter()
        _fill(model, [run for run in active if run.phase_due], settings, watch)
        working = [run for run in active if run.active and not run.resting]
        for run in active:
            run.step += run.active and run.resting
        with frozen_beneath(model, tasks):
            tokens, padded = _round(model, working, settings, watch) if working else (0, 0)
        _fill(model, [run for run in active if run.last_look_due], settings, watch)
        counters.add(tokens, padded)
        due = [run for run in active if run.active and run.evaluation_due(settings.eval_every)]
        _evaluate(model, due, settings, watch)
        for run in active:
            _maybe_end(run, watch)
        for run in active:
            _end_with(run, runs, watch)
        watch(RoundDone(counters.rounds, total, tokens, padded, time.perf_counter() - started))
        if should_stop() and any(run.active for run in runs.values()):
            save()
            return Outcome(runs, counters.rounds, counters.tokens, counters.padded_tokens, interrupted=True)
        overdue = settings.save_every is None and time.monotonic() - saved_at > SAVE_SECONDS
        if counters.rounds % save_every == 0 or overdue or not any(run.active for run in runs.values()):
            save()
            saved_at = time.monotonic()
    for run in runs.values():
        run.take_best()
    return Outcome(runs, counters.rounds, counters.tokens, counters.padded_tokens, interrupted=False)


@dataclass
class Counters:
    """What the run as a whole has done so far."""

    rounds: int = 0
    tokens: int = 0
    padded_tokens: int = 0

    def add(self, tokens: int, padded_tokens: int) -> None:
        """Count one more round."""
        self.rounds += 1
        self.tokens += tokens
        self.padded_tokens += padded_tokens


def _fill(model: AdaptedModel, due: list[Progress], settings: RunSettings, watch: Watcher) -> None:
    """Rows for adapters whose source has none left: those of one kind are made together."""
    kinds: dict[str, list[tuple[Progress, Turn]]] = {}
    for run in due:
        source = run.task.source
        assert source is not None
        turn = Turn(source, run.step, {} if run.phase is None else run.phase.state)
        kinds.setdefault(source.kind, []).append((run, turn))
    for own in kinds.values():
        turns = [turn for _, turn in own]
        phases = turns[0].source.phases(model, turns, settings)
        for (run, turn), phase in zip(own, phases, strict=True):
            run.phase = phase
            watch(Phased(run.task.adapter, run.step, phase.measures, phase.samples, phase.concerns))
            if phase.exceeded:
                run.exceed(phase.exceeded)
                watch(Ended(run.task.adapter, run.step, run.reason or "", run.detail))
                if run.state_step not in [each["step"] for each in run.history]:
                    _try_out(model, [run], settings, watch)
            elif turn.source.bounded:
                run.keep_within()


def _round(model: AdaptedModel, active: list[Progress], settings: RunSettings, watch: Watcher) -> tuple[int, int]:
    """One optimizer step of every active adapter; gives real and padded tokens."""
    owners: list[Progress] = []
    rows: list[RoutedRow] = []
    compared: list[RoutedRow] = []
    for run in active:
        step_rows = run.step_rows()
        learnt = [row for row in step_rows if not row.row.mismatched]
        compared += [row for row in step_rows if row.row.mismatched]
        owners += [run] * len(learnt)
        rows += with_virtual_tokens(model, learnt)
    statistics = _statistics(model, active, compared, settings)
    losses = dict.fromkeys(statistics, 0.0)
    outputs: dict[int, torch.Tensor] = {}
    padded = 0
    for joint in plan_joint(rows, settings.micro_batch_tokens):
        values: dict[int, torch.Tensor] = {}
        for order in joint:
            batch = build_micro_batch(model, rows, order)
            padded += batch.padded.size
            values |= zip(order, micro_batch_values(model, batch), strict=True)
        parts = _adapter_losses(values, rows, owners, statistics)
        torch.stack(list(parts.values())).sum().backward()  # type: ignore[no-untyped-call]
        for name, part in parts.items():
            losses[name] += float(part.detach())
        outputs |= {index: value.detach() for index, value in values.items()}
    for run in active:
        penalty = run.adapter.penalty()
        if penalty is not None:
            penalty.backward()  # type: ignore[no-untyped-call]
            losses[run.task.adapter] += float(penalty.detach())
        own = [index for index, owner in enumerate(owners) if owner is run]
        measures = _measures(run, [outputs[index] for index in own], statistics[run.task.adapter])
        _step(model, run, losses[run.task.adapter], [rows[index] for index in own], measures, watch)
    return sum(row.row.tokens for row in rows), padded


def _statistics(
    model: AdaptedModel, active: list[Progress], mismatched: list[RoutedRow], settings: RunSettings
) -> dict[str, Any]:
    """What each objective must know of its whole step; rows that are scored and not learnt are scored here."""
    scores = iter(score_rows(model, mismatched, settings.micro_batch_tokens) if mismatched else [])
    found: dict[str, Any] = {}
    for run in active:
        leaders = run.leaders()
        own = [row for leader in leaders for row in leader.group if row.mismatched]
        log_ratios = [next(scores).log_prob - (row.reference or 0.0) for row in own]
        found[run.task.adapter] = run.task.objective.statistics(leaders, log_ratios)
    return found


def _measures(run: Progress, outputs: list[torch.Tensor], statistics: Any) -> dict[str, float]:
    """What the objective tells of the step, without its loss."""
    if isinstance(run.task.objective, SFT):
        return {}
    values = [value.double() for value in outputs]
    numbers = measure(run.task.objective, run.leaders(), values, statistics)
    numbers.pop("loss", None)
    return numbers


def _adapter_losses(
    values: dict[int, torch.Tensor], rows: list[RoutedRow], owners: list[Progress], statistics: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The loss of each adapter's rows (by index) that ran together."""
    indices: dict[str, list[int]] = {}
    for index in sorted(values):
        indices.setdefault(owners[index].task.adapter, []).append(index)
    losses: dict[str, torch.Tensor] = {}
    for name, own in indices.items():
        sizes: dict[object, int] = {}
        for index in own:
            key: object = ("alone", index) if rows[index].group is None else rows[index].group
            sizes[key] = sizes.get(key, 0) + 1
        scores = RowScores(
            torch.cat([values[index] for index in own]),
            tuple(len(values[index]) for index in own),
            tuple(rows[index].row for index in own),
            tuple(sizes.values()),
        )
        losses[name] = owners[own[0]].task.objective.loss(scores, statistics[name])
    return losses


def _step(
    model: AdaptedModel,
    run: Progress,
    loss: float,
    rows: list[RoutedRow],
    measures: dict[str, float],
    watch: Watcher,
) -> None:
    """Clip, step and clear one adapter's gradients; where something is not finite, it ends with its last good state."""
    task = run.task
    norm = gradient_norm(run.parameters)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        run.optimizer.zero_grad(set_to_none=False)
        run.diverge(find_non_finite(model, rows, task.adapter, loss, norm))
        watch(Ended(task.adapter, run.step, "diverged", run.detail))
        return
    if task.source is not None and run.phase is not None and task.source.enough(measures):
        run.optimizer.zero_grad(set_to_none=False)
        run.rests_until = min(run.phase.stop, run.total)
        run.step += 1
        watch(Rested(task.adapter, run.step, run.rests_until, measures))
        return
    run.keep_good()
    rate = learning_rate(task.settings, run.step, run.total)
    for group in run.optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    clip_gradients(run.parameters, norm, task.settings.max_grad_norm)
    run.optimizer.step()
    # The fused optimizer does not say that it changed them; what is kept of their values (P-tuning) goes by that.
    torch.autograd.graph.increment_version(run.parameters)
    broken = non_finite_parameter(run.adapter)
    if broken is None and run.adapter.stepped(run.step + 1, run.total):
        model.drop_views(task.adapter)
        run.reshape()
    run.optimizer.zero_grad(set_to_none=False)
    if broken is not None:  # said now: after the last step no loss would show it
        run.diverge(f"the step made the parameter {broken} NaN or infinite; learning rate {rate:.4g}, loss {loss:.4g}")
        watch(Ended(task.adapter, run.step, "diverged", run.detail))
        return
    run.step += 1
    tokens, learnt = sum(row.row.tokens for row in rows), sum(row.row.n_supervised for row in rows)
    epoch = task.epochs_after(run.step)
    watch(Stepped(task.adapter, run.step, run.total, epoch, loss, rate, norm, tokens, learnt, measures))


def _evaluate(model: AdaptedModel, runs: list[Progress], settings: RunSettings, watch: Watcher) -> None:
    """Score the held-out rows of several adapters together; remember the best parameters of each."""
    _try_out(model, runs, settings, watch)
    runs = [run for run in runs if run.task.held_out]
    rows = [row for run in runs for row in run.task.held_out_rows()]
    scores = score_rows(model, rows, settings.micro_batch_tokens) if rows else []
    start = 0
    for run in runs:
        own = scores[start : start + len(run.task.held_out_rows())]
        start += len(own)
        loss, accuracy, measures = evaluation(run.task, own)
        better = run.note(loss, {"loss": loss, "accuracy": accuracy})
        watch(Evaluated(run.task.adapter, run.step, loss, accuracy, better, measures))


def _try_out(model: AdaptedModel, runs: list[Progress], settings: RunSettings, watch: Watcher) -> None:
    """Try the adapters of sources on what is held out, those of one kind together."""
    kinds: dict[str, list[tuple[Progress, Turn]]] = {}
    for run in runs:
        source = run.task.source
        if source is not None and source.tried:
            kinds.setdefault(source.kind, []).append((run, Turn(source, run.step)))
    for own in kinds.values():
        turns = [turn for _, turn in own]
        for (run, _), trial in zip(own, turns[0].source.trials(model, turns, settings), strict=True):
            best = run.note(-trial.value, trial.measures, trial.eligible)
            watch(Tried(run.task.adapter, run.state_step, best, trial.measures, trial.samples))


def _maybe_end(run: Progress, watch: Watcher) -> None:
    if not run.active:
        return
    patience = run.task.settings.patience
    if run.step >= run.total:
        run.reason = "finished"
    elif patience is not None and run.evaluations_without_gain >= patience and run.adapter.settled:
        run.reason = "early stop"
        what = "loss" if run.task.source is None else "reward"
        run.detail = f"no better held-out {what} in {patience} evaluations; the best was at step {run.best_step}"
    if run.reason:
        watch(Ended(run.task.adapter, run.step, run.reason, run.detail))


def _end_with(run: Progress, runs: dict[str, Progress], watch: Watcher) -> None:
    """End an adapter that follows another one which has ended."""
    leader = runs.get(run.task.follows or "")
    if run.active and leader is not None and not leader.active:
        run.reason, run.detail = "finished", f"{leader.task.adapter}, which it follows, has ended"
        watch(Ended(run.task.adapter, run.step, run.reason, run.detail))


def _snapshot(
    model: AdaptedModel, runs: dict[str, Progress], counters: Counters
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    state = {
        "base": model.fingerprint,
        "rows": {name: run.task.digest for name, run in runs.items()},
        "counters": vars(counters),
        "adapters": {name: run.state() for name, run in runs.items()},
    }
    tensors = {f"{name}/{key}": tensor for name, run in runs.items() for key, tensor in run.tensors().items()}
    return state, tensors


def _restore(
    model: AdaptedModel,
    runs: dict[str, Progress],
    counters: Counters,
    state: dict[str, Any],
    tensors: dict[str, torch.Tensor],
) -> None:
    try:
        if state["base"] != model.fingerprint:
            raise ValueError(f"its base has fingerprint {state['base'][:12]}, this one {model.fingerprint[:12]}")
        changed = [name for name, run in runs.items() if state["rows"].get(name, run.task.digest) != run.task.digest]
        if changed:
            raise ValueError(f"the rows of {', '.join(changed)} have changed since")
        if state["adapters"].keys() != runs.keys():
            raise ValueError(f"its adapters are {', '.join(state['adapters'])}, and this run's are {', '.join(runs)}")
        for name, run in runs.items():
            prefix = f"{name}/"
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            run.restore(state["adapters"][name], own)
    except (KeyError, ValueError, RuntimeError) as error:  # the last two: load_state_dict's of names and shapes
        raise UserError(
            f"the checkpoint is of another run: {str(error).splitlines()[0]}",
            hint="Resume with the adapters that the run was begun with, or start anew in another folder.",
        ) from error
    vars(counters).update(state["counters"])
