"""One adapter's part of a run: what is trained on what, and how far it is."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from graftlm.adapters.method import Adapter
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack, mix_seed
from graftlm.adapters.stored import own_tensors
from graftlm.data.batches import EncodedRow, epoch_steps
from graftlm.errors import UserError
from graftlm.objectives.objective import Objective
from graftlm.objectives.sft import SFT
from graftlm.training.forward import RoutedRow, RowScore
from graftlm.training.optimizers import build_optimizer
from graftlm.training.settings import AdapterTraining
from graftlm.training.source import Phase, Source


@dataclass(frozen=True)
class Task:
    """What one adapter learns. ``under`` names trained adapters that it is stacked on, which stay as they are.

    Each of ``rows`` leads its group, and a step has whole groups. The reference of objectives that need one is the
    stack beneath, or with ``continues`` the adapter itself as it is when training begins. With a ``source`` there are
    no ``rows``: they are made phase by phase. ``follows``: an adapter of the run with which this one ends.
    """

    adapter: str
    rows: tuple[EncodedRow, ...]
    settings: AdapterTraining = field(default_factory=lambda: AdapterTraining())
    held_out: tuple[EncodedRow, ...] = ()
    objective: Objective = field(default_factory=SFT)
    under: Stack = ()
    continues: bool = False
    source: Source | None = None
    follows: str | None = None

    @property
    def total(self) -> int:
        """Optimizer steps in all."""
        return len(self.steps) if self.source is None else self.source.total

    @property
    def reference_stack(self) -> Stack:
        """The routing of the reference."""
        return self.stack if self.continues else self.under

    @property
    def stack(self) -> Stack:
        """The routing of this task's rows."""
        return (*self.under, self.adapter)

    @cached_property
    def steps(self) -> list[list[int]]:
        """The rows of every optimizer step of the whole run."""
        settings = self.settings
        lengths = [sum(each.tokens for each in row.group) for row in self.rows]
        batch_rows = settings.batch_rows or (None if settings.batch_tokens else 16)
        steps: list[list[int]] = []
        epoch = 0
        while epoch < settings.epochs:
            one = epoch_steps(
                lengths,
                seed=mix_seed(settings.seed, self.adapter, epoch),
                batch_rows=batch_rows,
                batch_tokens=settings.batch_tokens,
                group_by_length=settings.group_by_length,
            )
            share = min(1.0, settings.epochs - epoch)
            steps += one[: max(1, round(share * len(one)))]
            epoch += 1
            if settings.max_steps is not None and len(steps) >= settings.max_steps:
                break
        return steps[: settings.max_steps]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all rows, learnt and held out: a resumed run must see the same ones."""
        digest = hashlib.sha256(b"" if self.source is None else self.source.digest.encode())
        for row in (each for leader in (*self.rows, *self.held_out) for each in leader.group):
            digest.update(array("q", row.ids).tobytes() + b"|" + bytes(row.supervised) + b"|")
            for mark, values in ((b"targets", row.targets), (b"source", row.source_ids)):
                if values is not None:
                    digest.update(mark + array("q", values).tobytes() + b"|")
            if row.judged is not None:
                digest.update(repr(row.judged).encode() + b"|")
        return digest.hexdigest()

    def step_rows(self, step: int, view: str | None = None, phase: Phase | None = None) -> list[RoutedRow]:
        """The rows of optimizer step ``step``, each with the dropout seed of this adapter, step and row.

        The rows of a group follow their leader. Those that are scored and not learnt are among them, without dropout;
        so are answers that were sampled, for what drew them had none either. ``view``: the form of the adapter that is
        trained at this step; see :meth:`Adapter.training_view`. ``phase``: what the source made for this step.
        """
        seed = mix_seed(self.settings.seed, self.adapter, "dropout", step)
        name = self.adapter if view is None else f"{self.adapter}@{view}"
        found = []
        for index, leader in self._numbered(step, phase):
            group = leader.group
            for place, row in enumerate(group):
                own = mix_seed(seed, index) if place == 0 else mix_seed(seed, index, place)
                seeds = () if row.mismatched or row.sampled is not None else ((name, own),)
                found.append(RoutedRow(row, (*self.under, name), seeds, index if len(group) > 1 else None))
        return found

    def leaders(self, step: int, phase: Phase | None = None) -> list[EncodedRow]:
        """The rows of a step that lead its groups."""
        return [row for _, row in self._numbered(step, phase)]

    def _numbered(self, step: int, phase: Phase | None) -> list[tuple[int, EncodedRow]]:
        return [(index, self.rows[index]) for index in self.steps[step]] if phase is None else phase.numbered(step)

    def epochs_after(self, step: int) -> float:
        """Passes over the rows that ``step`` steps make."""
        if self.source is not None:
            return self.source.epochs_after(step)
        return sum(len(rows) for rows in self.steps[:step]) / len(self.rows)

    def held_out_rows(self, stack: Stack | None = None) -> list[RoutedRow]:
        """The held-out rows under this task's routing, or under another."""
        chosen = self.stack if stack is None else stack
        return [RoutedRow(row, chosen) for leader in self.held_out for row in leader.group]


@dataclass
class Progress:
    """How far one adapter's training is. Everything that a checkpoint must bring back is here."""

    task: Task
    adapter: Adapter
    step: int = 0
    reason: str | None = None
    detail: str = ""
    best_loss: float | None = None
    best_step: int = 0
    best_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    good_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    evaluations_without_gain: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    phase: Phase | None = None
    within_tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    within_step: int | None = None
    rests_until: int = 0

    def __post_init__(self) -> None:
        try:
            self.adapter.config.check_steps(self.total)
        except UserError as error:
            raise UserError(f"adapter '{self.task.adapter}': {error.message}", hint=error.hint) from error
        self._take_parameters()

    def _take_parameters(self) -> None:
        """Make the optimizer of the parameters that the adapter has now."""
        named = {name: value for name, value in self.adapter.named_parameters() if value.requires_grad}
        self._optimised = named
        self.parameters = list(named.values())
        scales = [self.adapter.learning_rate_scale(name) for name in named]
        self.optimizer = build_optimizer(self.parameters, self.task.settings, scales)
        # Made before any activation, and kept: gradients that the backward pass allocates among the activations, and
        # that outlive them, leave the heap in pieces. What someone left there is no part of the first step.
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)

    def step_rows(self) -> list[RoutedRow]:
        """The rows of the next optimizer step."""
        view = self.adapter.training_view(self.task.settings.seed, self.step)
        return self.task.step_rows(self.step, view, self.phase)

    def leaders(self) -> list[EncodedRow]:
        """Those of them that lead their groups."""
        return self.task.leaders(self.step, self.phase)

    @property
    def phase_due(self) -> bool:
        """Whether the next step has no rows yet."""
        return self.task.source is not None and (self.phase is None or self.step >= self.phase.stop)

    @property
    def last_look_due(self) -> bool:
        """Whether the state after the last step is still to be held against the source's bound."""
        source = self.task.source
        return self.active and self.step >= self.total and source is not None and source.bounded

    @property
    def resting(self) -> bool:
        """Whether the next step is left out."""
        return self.step < self.rests_until

    def reshape(self) -> None:
        """Go on with parameters that changed shape: their moments stay, what was best with the old ones goes."""
        old = {name: dict(self.optimizer.state.get(value, {})) for name, value in self._optimised.items()}
        self._take_parameters()
        for name, value in self._optimised.items():
            if old.get(name):
                self.optimizer.state[value] = {
                    key: self.adapter.kept_moments(name, moment) if moment.dim() else moment
                    for key, moment in old[name].items()
                }
        self.best_tensors, self.good_tensors, self.best_loss = {}, {}, None
        self.within_tensors, self.within_step = {}, None
        self.evaluations_without_gain = 0

    @property
    def total(self) -> int:
        """Optimizer steps in all."""
        return self.task.total

    def evaluation_due(self, eval_every: int | None) -> bool:
        """Whether to score the held-out rows now. By default about eight times in this adapter's own steps.

        The cadence must not depend on other adapters: it decides which parameters are the best, and when to stop.
        """
        return self.step == self.total or self.step % (eval_every or max(1, math.ceil(self.total / 8))) == 0

    @property
    def active(self) -> bool:
        """Whether there is a step left to do."""
        return self.reason is None

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy-free view of everything that is a tensor: parameters, moments, best parameters."""
        named = {f"parameter.{name}": value for name, value in own_tensors(self.adapter).items()}
        for name, parameter in self._optimised.items():
            moments = self.optimizer.state.get(parameter, {})
            named |= {f"{key}.{name}": moments[key] for key in ("exp_avg", "exp_avg_sq", "step") if key in moments}
        named |= {f"best.{name}": value for name, value in self.best_tensors.items()}
        named |= {f"within.{name}": value for name, value in self.within_tensors.items()}
        return named | {f"good.{name}": value for name, value in self.good_tensors.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Become what :meth:`state` and :meth:`tensors` described."""
        state = dict(state)
        phase = state.pop("phase", None)
        self.phase = None if phase is None else Phase.from_dict(phase)
        for key, value in state.items():
            setattr(self, key, value)
        own = {name.removeprefix("parameter."): value for name, value in tensors.items()}
        self.adapter.adopt(own)
        self._take_parameters()
        for name, parameter in self.adapter.named_parameters():
            if f"step.{name}" in tensors:
                self.optimizer.state[parameter] = {
                    key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.best_tensors, self.good_tensors, self.within_tensors = (
            {
                name.removeprefix(kind): value.to(self.parameters[0].device)
                for name, value in tensors.items()
                if name.startswith(kind)
            }
            for kind in ("best.", "good.", "within.")
        )

    def state(self) -> dict[str, Any]:
        """Everything that is not a tensor, as JSON."""
        keys = ("step", "reason", "detail", "best_loss", "best_step", "evaluations_without_gain", "history")
        more = ("within_step", "rests_until")
        phase = None if self.phase is None else self.phase.to_dict()
        return {**{key: getattr(self, key) for key in (*keys, *more)}, "phase": phase}

    def keep_best(self) -> None:
        """Remember the parameters as they are now, as the best by held-out loss."""
        self._copy_into(self.best_tensors)

    def keep_good(self) -> None:
        """Remember them as the last from which loss and gradient were finite, unless there are best ones to keep."""
        if self.best_tensors:
            self.good_tensors = {}
        else:
            self._copy_into(self.good_tensors)

    def take_best(self) -> None:
        """Put the best parameters back, if any were kept."""
        self._take(self.best_tensors)

    def note(self, loss: float, told: Mapping[str, float], eligible: bool = True) -> bool:
        """Take note of a held-out loss of the parameters as they are; whether they are the best so far, and kept.

        ``told`` is remembered with the step.
        """
        better = eligible and math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if better:
            self.best_loss, self.best_step, self.evaluations_without_gain = loss, self.state_step, 0
            self.keep_best()
        else:
            self.evaluations_without_gain += 1
        self.history.append({"step": self.state_step, **told})
        return better

    @property
    def state_step(self) -> int:
        """The step that the parameters are of."""
        return self.within_step if self.reason == "KL stop" and self.within_step is not None else self.step

    def keep_within(self) -> None:
        """Remember the parameters as they are now, as the last that are within the source's bound."""
        self.within_step = self.step
        self._copy_into(self.within_tensors)

    def exceed(self, seen: str) -> None:
        """End here, with the last parameters that were within the bound, if there were any."""
        kept = "no earlier state was within it" if self.within_step is None else f"back to step {self.within_step}"
        self.reason, self.detail = "KL stop", f"{seen}; {kept}"
        self._take(self.within_tensors)

    def diverge(self, detail: str) -> None:
        """End here, with the best parameters or else the last good ones, if any were kept."""
        self.reason, self.detail = "diverged", detail
        self._take(self.best_tensors or self.good_tensors)

    @torch.no_grad()
    def _copy_into(self, tensors: dict[str, torch.Tensor]) -> None:
        """Into the tensors that are there already: fresh ones at every step would scatter over the heap."""
        for name, value in self.adapter.named_parameters():
            if name in tensors:
                tensors[name].copy_(value)
            else:
                tensors[name] = value.detach().clone()

    @torch.no_grad()
    def _take(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, parameter in self.adapter.named_parameters():
            if name in tensors:
                parameter.copy_(tensors[name])


def check_tasks(tasks: Sequence[Task]) -> None:
    """See that every task can be trained, and beside the others.

    Raises:
        UserError: there is no task, one has no rows, two train one adapter, or one is stacked on another's adapter.
    """
    if not tasks:
        raise UserError("there is nothing to train: no task is given")
    trained: set[str] = set()
    for task in tasks:
        if task.adapter in trained:
            raise UserError(
                f"the adapter '{task.adapter}' is given twice", hint="Give it one task with all of its rows."
            )
        if not task.rows and task.source is None:
            raise UserError(f"the adapter '{task.adapter}' has no rows to learn from")
        trained.add(task.adapter)
    for task in tasks:
        for name in task.under:
            if name in trained:
                raise UserError(
                    f"'{task.adapter}' is stacked on '{name}', which is trained in the same run",
                    hint=f"Train '{name}' first, and '{task.adapter}' in a run of its own.",
                )


@contextmanager
def frozen_beneath(model: AdaptedModel, tasks: Sequence[Task]) -> Iterator[None]:
    """Inside, adapters that tasks are stacked on get no gradients."""
    parameters = [parameter for task in tasks for name in task.under for parameter in model.adapter(name).parameters()]
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


def mean_loss(scores: Sequence[RowScore]) -> float:
    """Negative log-likelihood a learnt token, over all rows."""
    return -sum(score.log_prob for score in scores) / max(1, sum(score.tokens for score in scores))


def exact_share(scores: Sequence[RowScore]) -> float:
    """The share of rows whose answer greedy decoding gives exactly."""
    return sum(score.exact for score in scores) / max(1, len(scores))
