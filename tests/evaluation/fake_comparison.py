"""Comparisons with made-up outcomes, for tests of how they are shown."""

from __future__ import annotations

import numpy as np

from graftlm.evaluation.compare_report import CompareReport
from graftlm.evaluation.comparison import Comparison, Contender, Cost, stand
from graftlm.evaluation.metrics import METRICS, Outcomes

METHODS = {  # name → share of right answers, trained parameters
    "lora-r8": (0.86, 180_000),
    "lora-r64": (0.87, 1_400_000),
    "adalora": (0.855, 210_000),
    "dylora": (0.85, 190_000),
    "bottleneck": (0.84, 230_000),
    "bottleneck-parallel": (0.845, 240_000),
    "prefix": (0.80, 61_000),
    "prompt": (0.66, 3_800),
    "p-tuning": (0.71, 3_900),
    "ia3": (0.82, 4_700),
    "bitfit": (0.81, 9_100),
    "full": (0.88, 5_700_000),
}


def outcomes(share: float, *, rows: int = 400, seed: int = 0) -> Outcomes:
    """Two classes, of which about ``share`` of the rows are answered right."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, rows)
    right = generator.random(rows) < share
    loss = -np.log(np.where(right, 0.8, 0.2))
    return Outcomes(truth, np.where(right, truth, 1 - truth), 2, loss, np.ones(rows))


def contender(name: str, share: float, parameters: int, *, seeds: int = 1) -> Contender:
    number = sum(name.encode())
    return Contender(
        name=name,
        method=f"method of {name}",
        members=tuple(f"{name}-s{seed}" for seed in range(seeds)),
        outcomes=tuple(_again(share, number + seed) for seed in range(seeds)),
        learning_rate=1e-3,
        trained_parameters=parameters,
        cost=Cost(4 * parameters, 8 * parameters, 4 * parameters + 2000, 0.05),
        tried={1e-3: share, 3e-3: share - 0.02},
    )


def _again(share: float, seed: int) -> Outcomes:
    """Other answers to the same rows."""
    truth = outcomes(share).truth
    right = np.random.default_rng(seed).random(len(truth)) < share
    loss = -np.log(np.where(right, 0.8, 0.2))
    return Outcomes(truth, np.where(right, truth, 1 - truth), 2, loss, np.ones(len(truth)))


def comparison(metric: str = "accuracy", *, seeds: int = 3, with_base: bool = True, data: str = "sst2") -> Comparison:
    majority = outcomes(1.0)
    majority = Outcomes(majority.truth, np.ones_like(majority.truth), 2, majority.loss, majority.tokens)
    base = _again(0.53, 99) if with_base else None
    contenders = [contender(name, share, size, seeds=seeds) for name, (share, size) in METHODS.items()]
    score, standings = stand(contenders, base, majority, METRICS[metric])
    return Comparison(
        data=data,
        metric=METRICS[metric],
        choices=("negative", "positive"),
        normalise="sum",
        rows=400,
        tuning_rows=200,
        base=score,
        majority=METRICS[metric].of(majority),
        standings=tuple(standings),
        notes=("Learning rates were chosen on 200 other held-out rows.",),
    )


def report(*comparisons: Comparison) -> CompareReport:
    return CompareReport("methods", "tiny", 5_730_000, "2026-01-01 12:00", comparisons, {"graftlm": "0.1.0"})
