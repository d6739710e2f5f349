"""What the training loop tells those who watch it: progress displays, metric files, trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Stepped:
    """One optimizer step of one adapter. ``loss`` is the mean over the step's learnt tokens, or its objective's own.

    ``measures``: what else the objective tells of the step, such as rewards; nothing for instruction tuning.
    """

    adapter: str
    step: int
    total: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    learnt_tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated:
    """Held-out rows of one adapter: loss a learnt token, share of rows answered exactly. Step 0 is before training.

    Of other objectives their own loss, and the share of comparisons that come out right, with further ``measures``.
    """

    adapter: str
    step: int
    loss: float
    accuracy: float
    best: bool
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Phased:
    """New rows were made for the steps of one adapter from ``step`` (from 0) on, such as answers of its policy.

    ``measures``: what they are like. ``samples``: some of them, as JSON. ``concerns``: what to look at, and what to do.
    """

    adapter: str
    step: int
    measures: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()
    concerns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tried:
    """What an adapter of a source makes of what is held out, such as the rewards of its answers, at ``step``.

    Step 0 is before training. ``best``: better than all before.
    """

    adapter: str
    step: int
    best: bool
    measures: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Rested:
    """Steps of one adapter, from ``step`` (counted from 1) to ``until``, are left out: it has moved far enough.

    ``measures``: what the objective tells of the first of them.
    """

    adapter: str
    step: int
    until: int
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RoundDone:
    """One step of every active adapter is done. ``padded_tokens`` were run for ``tokens`` real ones."""

    number: int
    total: int
    tokens: int
    padded_tokens: int
    seconds: float


@dataclass(frozen=True)
class Ended:
    """An adapter is done. ``reason``: finished, "early stop", "KL stop" or diverged; ``detail`` says more."""

    adapter: str
    step: int
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is on disk."""

    number: int
    path: str


Event = Stepped | Evaluated | Phased | Tried | Rested | RoundDone | Ended | CheckpointSaved
Watcher = Callable[[Event], None]
