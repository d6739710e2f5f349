"""Objectives of preferences in the one loop: beside others as alone, whatever the micro-batches; the reference."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from graftlm import LoRA
from graftlm.base.fingerprint import exact_digest
from graftlm.errors import UserError
from graftlm.objectives.preference import dpo_loss
from graftlm.training.events import Evaluated, Stepped
from graftlm.training.forward import RoutedRow, plan_joint, score_rows
from graftlm.training.plan import plan
from graftlm.training.reference import FILE, with_references
from graftlm.training.settings import RunSettings
from graftlm.training.task import Task
from tests.training.preferred import OBJECTIVES, make_groups, model_for, preference_task
from tests.training.work import Weights, difference, run, same_bits, weights

NAMES = dict(zip("abcdef", OBJECTIVES, strict=True))


def task_of(name: str) -> Task:
    answers = 3 if NAMES[name] in ("reward", "simpo") else 2
    return preference_task(name, NAMES[name], answers=answers, seed=ord(name))


def trained(names: str, settings: RunSettings | None = None) -> dict[str, tuple[Weights, list[float]]]:
    """Weights, and every number that was told, of each adapter; trained side by side."""
    tasks = [task_of(name) for name in names]
    model = model_for(tasks)
    before = exact_digest(model.base)
    _, recorder = run(model, tasks, settings)
    assert exact_digest(model.base) == before
    told = {
        name: [
            value
            for event in recorder.of((Stepped, Evaluated), name)  # type: ignore[arg-type]
            for value in (event.loss, *(each for _, each in sorted(event.measures.items())))
        ]
        for name in names
    }
    return {name: (weights(model, name), told[name]) for name in names}


@cache
def alone(name: str) -> tuple[Weights, list[float]]:
    return trained(name)[name]


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        ("abcdef", RunSettings()),
        ("fdbeca", RunSettings(micro_batch_tokens=40)),
        ("bcd", RunSettings(micro_batch_tokens=1)),
        ("acbe", RunSettings(gradient_checkpointing=True)),
    ],
)
def test_beside_others_is_alone(names: str, settings: RunSettings) -> None:
    together = trained(names, settings)
    for name in names:
        own, told = alone(name)
        assert difference(own, together[name][0]) < 1e-7, NAMES[name]
        assert told == pytest.approx(together[name][1], rel=1e-7, abs=1e-9)


def test_each_objective_learns_its_rows() -> None:
    for objective in OBJECTIVES[1:]:
        task = preference_task("a", objective, groups=4, learning_rate=0.02, max_steps=40, epochs=40)
        task = Task("a", task.rows, task.settings, task.rows, task.objective)
        model = model_for([task], dropout=0.0)
        _, recorder = run(model, [task])
        told = recorder.of(Evaluated, "a")
        assert told[-1].loss < told[0].loss, objective
        assert told[-1].accuracy == 1.0, objective


def test_groups_stay_together_and_everything_runs_once() -> None:
    tasks = [task_of(name) for name in "abcd"]
    rows = [row for task in tasks for row in task.step_rows(0) if not row.row.mismatched]
    for limit in (1, 30, 60, 10_000):
        joints = plan_joint(rows, limit)
        flat = [index for joint in joints for order in joint for index in order]
        assert sorted(flat) == list(range(len(rows)))
        homes: dict[object, set[int]] = {}
        for number, joint in enumerate(joints):
            for order in joint:
                for index in order:
                    if rows[index].group is not None:
                        homes.setdefault((rows[index].stack, rows[index].group), set()).add(number)
        assert all(len(home) == 1 for home in homes.values())


def test_the_step_of_a_pair_by_hand() -> None:
    task = preference_task("a", "dpo", groups=4, max_steps=1, epochs=1)
    model = model_for([task], dropout=0.0)
    (filled,) = with_references(model, [task], RunSettings())
    chosen = [filled.rows[index] for index in filled.steps[0]]

    def log_ratio(row: object) -> float:
        (score,) = score_rows(model, [RoutedRow(row, ("a",))], 4096)  # type: ignore[arg-type]
        (base,) = score_rows(model, [RoutedRow(row, ())], 4096)  # type: ignore[arg-type]
        return score.log_prob - base.log_prob

    ratios = [[log_ratio(row) for row in leader.group] for leader in chosen]
    expected = dpo_loss(torch.tensor([r[0] for r in ratios]), torch.tensor([r[1] for r in ratios])).mean()
    _, recorder = run(model, [task])
    (step,) = recorder.of(Stepped)
    assert step.loss == pytest.approx(float(expected), rel=1e-6)
    assert step.measures["margin"] == pytest.approx(0.1 * sum(a - b for a, b in ratios) / len(ratios), rel=1e-5)
    assert step.measures["accuracy"] == sum(a > b for a, b in ratios) / len(ratios)


def test_the_reference_is_the_base_the_stack_or_the_start() -> None:
    task = preference_task("a", "dpo", groups=3)
    model = model_for([task], dropout=0.0)
    from tests.families import randomise

    randomise(model.add("beneath", LoRA(rank=2)), seed=3)
    stacks = {
        (): task,
        ("beneath",): Task("a", task.rows, task.settings, (), task.objective, ("beneath",)),
        ("a",): Task("a", task.rows, task.settings, (), task.objective, continues=True),
    }
    seen = set()
    for stack, each in stacks.items():
        (filled,) = with_references(model, [each], RunSettings())
        (score,) = score_rows(model, [RoutedRow(task.rows[0], stack)], 4096)
        assert filled.rows[0].reference == pytest.approx(score.log_prob, rel=1e-9)
        seen.add(round(score.log_prob, 6))
    assert len(seen) == 3


def test_the_reference_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = preference_task("a", "dpo", groups=3)
    model = model_for([task])
    (first,) = with_references(model, [task], RunSettings(), tmp_path)
    assert (tmp_path / "a" / FILE).exists()

    def refuse(*_: object) -> None:
        raise AssertionError("scored again")

    monkeypatch.setattr("graftlm.training.reference.score_rows", refuse)
    (again,) = with_references(model, [task], RunSettings(), tmp_path)
    assert [row.reference for row in again.rows] == [row.reference for row in first.rows]
    other = preference_task("a", "dpo", groups=4)  # other rows: found anew
    with pytest.raises(AssertionError, match="scored again"):
        with_references(model, [other], RunSettings(), tmp_path)


def test_a_reference_of_another_base_is_refused(tmp_path: Path) -> None:
    task = preference_task("a", "dpo", groups=3)
    with_references(model_for([task]), [task], RunSettings(), tmp_path)
    with pytest.raises(UserError, match="of another base"):
        with_references(model_for([task], "gpt2"), [task], RunSettings(), tmp_path)


def test_without_a_gap_the_loss_is_ln_2() -> None:
    task = preference_task("a", "dpo", groups=5)
    model = model_for([], dropout=0.0)
    model.add("a", LoRA(rank=2))  # fresh: the base itself
    _, recorder = run(model, [task])
    assert recorder.of(Evaluated, "a")[0].loss == pytest.approx(math.log(2), abs=1e-9)


def test_plan_counts_all_answers() -> None:
    tasks = [task_of(name) for name in "bcd"]
    model = model_for(tasks)
    before = {name: weights(model, name) for name in "bcd"}
    found = plan(model, tasks, RunSettings(micro_batch_tokens=60))
    expected = sum(row.row.tokens for t in tasks for s in range(len(t.steps)) for row in t.step_rows(s))
    strangers = sum(
        row.row.tokens for t in tasks for s in range(len(t.steps)) for row in t.step_rows(s) if row.row.mismatched
    )
    assert found.tokens == expected - strangers
    assert all(same_bits(before[name], weights(model, name)) for name in "bcd")


def test_equal_ranks_are_no_element() -> None:
    from dataclasses import replace

    from graftlm.objectives.compared import dpo

    (pair,) = make_groups(1)
    tie = replace(pair, beside=(replace(pair.beside[0], judged=pair.judged),))
    assert dpo().statistics([pair, tie]) == 1
