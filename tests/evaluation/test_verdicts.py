"""The sentence of an adapter claims what its held-out rows show, and no more."""

from __future__ import annotations

import math

import numpy as np

from graftlm.evaluation.statistics import accuracy_change, loss_change
from graftlm.evaluation.verdicts import judge
from tests.evaluation.fake_run import Row


def rows(loss: float, right: int, count: int = 100, seed: int = 0) -> list[Row]:
    noise = np.random.default_rng(seed).normal(0, 0.1, count)
    return [Row(-3 * (loss + e), 3, 3 if i < right else 1) for i, e in enumerate(noise.tolist())]


def test_a_gain_is_told_with_its_interval() -> None:
    before, after = rows(3.1, 2), rows(0.21, 91, seed=1)
    verdict = judge(before, after)
    assert verdict.kind == "better"
    change = accuracy_change(before, after)
    low, high = round(100 * change.low), round(100 * change.high)
    loss = loss_change(before, after)
    assert verdict.sentence == (
        f"exact answers 2% → 91% (+{low} to +{high} points), loss {loss.before:.2f} → {loss.after:.2f}"
    )


def test_no_gain_is_said() -> None:
    verdict = judge(rows(2.4, 10), rows(2.4, 12, seed=4))
    assert verdict.kind == "no gain found"
    assert verdict.sentence.startswith("no gain found: exact answers 10% → 12% (")


def test_a_gain_of_loss_alone_claims_no_better_answers() -> None:
    verdict = judge(rows(2.4, 10), rows(1.4, 11, seed=4))
    assert verdict.kind == "better"
    assert "points: no gain found), loss 2." in verdict.sentence


def test_worse_and_mixed() -> None:
    worse = judge(rows(2.4, 50), rows(3.0, 50, seed=4))
    assert worse.kind == "worse"
    assert worse.sentence.endswith(": worse)")
    mixed = judge(rows(2.4, 10), rows(3.0, 80, seed=4))
    assert mixed.kind == "mixed"
    assert mixed.sentence.endswith(": worse)")


def test_divergence_names_its_cause_and_what_was_kept() -> None:
    ended = ("diverged", "the loss of step 40 is NaN")
    kept = judge(rows(3.1, 2), rows(0.21, 91), ended=ended, best_step=28)
    assert kept.kind == "diverged"
    assert kept.sentence.startswith("diverged (the loss of step 40 is NaN). The state of step 28 was kept; exact")
    lost = judge(rows(3.1, 2), [Row(math.nan, 3, 0)] * 100, ended=ended)
    assert lost.kind == "diverged"
    assert "not a finite number" in lost.sentence
    assert judge([], [], ended=ended).kind == "diverged"
    assert judge(rows(3.1, 2), [Row(math.nan, 3, 0)] * 100).kind == "diverged"


def test_without_held_out_rows_nothing_is_claimed() -> None:
    verdict = judge([], [], train_loss=[(step, 4.0 - step / 10) for step in range(1, 31)])
    assert verdict.kind == "not measured"
    assert verdict.sentence == "no held-out rows, so no gain is claimed; training loss 3.80 → 1.10"
    assert judge([], []).sentence == "no held-out rows, so no gain is claimed"


def test_few_rows_are_called_few() -> None:
    assert "only 5 held-out rows" in judge(rows(3.0, 0, 5), rows(1.0, 5, 5)).sentence
    one = judge(rows(3.0, 0, 1), rows(1.0, 1, 1))
    assert one.kind == "no gain found"
    assert "no interval" in one.sentence
