"""Pictures of a policy's training: reward, divergence and length, phase by phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.evaluation.charts import Axis, Tick, linear_axis

#: What is drawn of each phase: its key among the numbers of a phase, and its name.
DRAWN = {"reward": "reward", "kl": "divergence from the start, nats an answer", "length": "tokens an answer"}
TRIED = DRAWN | {"distinct_2": "different pairs of words over all"}


@dataclass(frozen=True)
class PhaseCurve:
    """One number by step, laid out in percent of a box, with the values it shows."""

    name: str
    x: Axis
    y: Axis
    path: str
    hover: tuple[tuple[float, float, str], ...]
    values: tuple[tuple[int, float], ...]
    held_path: str = ""
    held: tuple[tuple[int, float], ...] = ()


def phase_curves(
    phases: Sequence[Mapping[str, float]], trials: Sequence[Mapping[str, float]] = ()
) -> tuple[PhaseCurve, ...]:
    """A curve of each number that is known of two phases or more; a phase has its ``step`` and numbers by key.

    ``trials``: the same numbers of held-out prompts, which are drawn beside them.
    """
    found = []
    for key, name in (TRIED if trials else DRAWN).items():
        values, held = _known(phases, key), _known(trials, key)
        if len(values) > 1:
            found.append(_curve(name, values, held))
    return tuple(found)


def _known(phases: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    values = [(int(phase["step"]), float(phase[key])) for phase in phases if phase.get(key) is not None]
    return [(step, value) for step, value in values if math.isfinite(value)]


def reward_sentence(
    phases: Sequence[Mapping[str, float]], trials: Sequence[Mapping[str, float]] = (), best_step: int = 0
) -> str:
    """The reward before and after, on held-out prompts where there are ``trials``, and how far from its start it is.

    After is the state of ``best_step``, which is kept; without trials it is the last phase.
    """
    kept = next((trial for trial in reversed(trials) if trial["step"] == best_step), None)
    if kept is not None:
        kl = f", {kept['kl']:.1f} nats an answer from its start" if kept.get("kl") is not None else ""
        prompts = f"{kept['answers']:.0f} held-out prompts, step {best_step:.0f} is kept"
        return f"reward {trials[0]['reward']:.3g} → {kept['reward']:.3g}{kl} ({prompts})"
    first, last = phases[0], phases[-1]
    kl = f", {last['kl']:.1f} nats an answer from its start" if last.get("kl") is not None else ""
    return f"reward {first['reward']:.3g} → {last['reward']:.3g}{kl} (first and last phase, on prompts that it learnt)"


def _curve(name: str, values: Sequence[tuple[int, float]], held: Sequence[tuple[int, float]]) -> PhaseCurve:
    low, high = values[0][0], max(values[-1][0], held[-1][0] if held else 0)
    x = Axis(low, high, False, (Tick(0.0, str(low)), Tick(100.0, f"step {high}")))
    every = [value for _, value in (*values, *held)]
    y = linear_axis(min(every), max(every))

    def laid_out(line: Sequence[tuple[int, float]], word: str) -> tuple[str, list[tuple[float, float, str]]]:
        points = [(round(x.at(step), 2), round(100 - y.at(value), 2)) for step, value in line]
        path = "".join(f"{'L' if number else 'M'}{px:g} {py:g}" for number, (px, py) in enumerate(points))
        told = (f"{word}step {step}: {value:.3g}" for step, value in line)
        return path, [(*point, text) for point, text in zip(points, told, strict=True)]

    path, hover = laid_out(values, "")
    held_path, more = laid_out(held, "held-out, ")
    return PhaseCurve(name, x, y, path, tuple(sorted(hover + more)), tuple(values), held_path, tuple(held))
