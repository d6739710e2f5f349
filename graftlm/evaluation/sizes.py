"""Sums of sizes, such as a calibration error: Σ |mean of a column|, how sure one is, and its change on the same rows.

Chance makes such a sum too large, the more the smaller it is, and a bootstrap adds to that instead of taking it away.
So the means are taken as they were found, with normal noise of the rows' covariance, and what chance adds is counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from graftlm.evaluation.metrics import Floats
from graftlm.evaluation.statistics import LEVEL, SEED, Change, Interval

DRAWS = 1999


def size_of(parts: Floats) -> float:
    """Σ |mean of a column| of parts (rows, columns)."""
    return float(np.abs(parts.mean(axis=0)).sum())


def size_interval(parts: Floats, *, level: float = LEVEL, seed: int = SEED) -> Interval:
    """The size of parts (rows, columns) and its interval.

    The lower end is the least multiple of the means found that would give as much as was found in (1 − level) / 2 of
    cases. The upper end takes nothing away for chance: it is as far above as the noise about the means goes.
    """
    if len(parts) < 2:
        return Interval(size_of(parts) if len(parts) else math.nan, math.nan, math.nan)
    return _interval(parts.mean(axis=0), _noise(parts, seed), level)


def size_change(before: Floats, after: Floats, *, level: float = LEVEL, seed: int = SEED) -> Change:
    """The change of a size between two models on the same rows, (rows, columns) each.

    Chance may have added to one and not to the other: each end gives way for what it adds at the lower end of the one
    that would be too large.
    """
    if np.array_equal(before, after):
        return Change(0.0, 0.0, 0.0, before=size_of(before), after=size_of(after))
    old, new = before.mean(axis=0), after.mean(axis=0)
    noise = _noise(np.concatenate([before, after], axis=1), seed)
    first, second = noise[:, : len(old)], noise[:, len(old) :]
    change = float(np.abs(new).sum() - np.abs(old).sum())
    spread = np.std(np.abs(new + second).sum(axis=1) - np.abs(old + first).sum(axis=1))
    half = float(stats.norm.isf((1 - level) / 2) * spread)
    low, high = change - half - _added(new, second, level), change + half + _added(old, first, level)
    return Change(change, low, high, before=float(np.abs(old).sum()), after=float(np.abs(new).sum()))


def _interval(means: Floats, noise: Floats, level: float) -> Interval:
    value, tail = float(np.abs(means).sum()), (1 - level) / 2
    low = _cross(lambda times: float((np.abs(times * means + noise).sum(axis=1) >= value).mean()) - tail)
    drawn = np.abs(means + noise).sum(axis=1)
    return Interval(value, low * value, value + float(np.quantile(drawn, 1 - tail) - drawn.mean()))


def _added(means: Floats, noise: Floats, level: float) -> float:
    """What chance adds on average, if the truth is at the lower end."""
    found = _interval(means, noise, level)
    times = found.low / found.value if found.value else 0.0
    return max(0.0, float(np.abs(times * means + noise).sum(axis=1).mean() - found.low))


def _noise(parts: Floats, seed: int) -> Floats:
    """Draws of the means' errors, (draws, columns)."""
    deviations = (parts - parts.mean(axis=0)) / math.sqrt(len(parts) * (len(parts) - 1))
    values, vectors = np.linalg.eigh(deviations.T @ deviations)  # a covariance may be singular
    root = vectors * np.sqrt(np.maximum(0, values)) @ vectors.T
    return np.asarray(np.random.default_rng(seed).standard_normal((DRAWS, len(root))) @ root)


def _cross(rising: Callable[[float], float]) -> float:
    """Where between 0 and 1 a function that rises becomes 0; an end where it does not."""
    low, high = 0.0, 1.0
    if rising(low) >= 0:
        return low
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return high
