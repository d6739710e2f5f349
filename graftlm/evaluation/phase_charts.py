"""Pictures of a policy's training: reward, divergence and length, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.evaluation.charts import Axis, Tick, linear_axis

#: What is drawn of each phase: its key among the numbers of a phase, and its name.
DRAWN = {"reward": "reward", "kl": "divergence from the start, nats an answer", "length": "tokens an answer"}


@dataclass(frozen=True)
class PhaseCurve:
    """One number by step, laid out in percent of a box, with the values it shows."""

    name: str
    x: Axis
    y: Axis
    path: str
    hover: tuple[tuple[float, float, str], ...]
    values: tuple[tuple[int, float], ...]


def phase_curves(phases: Sequence[Mapping[str, float]]) -> tuple[PhaseCurve, ...]:
    """A curve of each number that is known of two phases or more; a phase has its ``step`` and numbers by key."""
    found = []
    for key, name in DRAWN.items():
        values = [(int(phase["step"]), float(phase[key])) for phase in phases if phase.get(key) is not None]
        values = [(step, value) for step, value in values if math.isfinite(value)]
        if len(values) > 1:
            found.append(_curve(name, values))
    return tuple(found)


def reward_sentence(phases: Sequence[Mapping[str, float]]) -> str:
    """The reward of the first and the last phase, and how far the policy is from its start."""
    first, last = phases[0], phases[-1]
    kl = f", {last['kl']:.1f} nats an answer from its start" if last.get("kl") is not None else ""
    return f"reward {first['reward']:.3g} → {last['reward']:.3g}{kl} (first and last phase, on prompts that it learnt)"


def _curve(name: str, values: Sequence[tuple[int, float]]) -> PhaseCurve:
    low, high = values[0][0], values[-1][0]
    x = Axis(low, high, False, (Tick(0.0, str(low)), Tick(100.0, f"step {high}")))
    y = linear_axis(min(value for _, value in values), max(value for _, value in values))
    points = [(round(x.at(step), 2), round(100 - y.at(value), 2)) for step, value in values]
    hover = tuple((*point, f"step {step}: {value:.3g}") for point, (step, value) in zip(points, values, strict=True))
    path = "".join(f"{'L' if number else 'M'}{px:g} {py:g}" for number, (px, py) in enumerate(points))
    return PhaseCurve(name, x, y, path, hover, tuple(values))
