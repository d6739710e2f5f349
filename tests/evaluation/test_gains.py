"""What adapters gain on a task, and how it is corrected over an evaluation."""

from __future__ import annotations

import math

import pytest

from graftlm.errors import UserError
from graftlm.evaluation.evaluation import BASE
from graftlm.evaluation.gains import compare_models, corrected
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.statistics import holm, mcnemar_p, paired_share_change, wilson_interval
from graftlm.evaluation.tasks.items import Item
from tests.evaluation.fake_task import answered, choice, failed, likely, task_of, written


def choices(rows: int) -> list[Item]:
    return [choice(row, 0) for row in range(1, rows + 1)]


def chosen(items: list[Item], right: list[bool]) -> list[ItemResult]:
    return [likely(item, *((-1.0, -2.0) if good else (-2.0, -1.0))) for item, good in zip(items, right, strict=True)]


OLD = [True] * 12 + [False] * 28
NEW = [True] * 10 + [False] * 2 + [True] * 18 + [False] * 10


def test_shares_have_wilsons_and_newcombes_intervals_and_mcnemars_p() -> None:
    items = choices(40)
    result = compare_models(task_of("choice"), items, {BASE: chosen(items, OLD), "lora": chosen(items, NEW)})
    assert (result.primary, result.rows, result.chance) == ("accuracy", 40, 0.5)
    assert result.score(BASE).measures["accuracy"] == wilson_interval(12, 40)
    versus = result.score("lora").over_base
    assert versus is not None
    assert versus.change == paired_share_change(OLD, NEW)
    assert versus.p == mcnemar_p(OLD, NEW)
    assert versus.won == tuple(range(12, 30))
    assert versus.lost == (10, 11)
    assert versus.error == pytest.approx(math.sqrt((20 / 40 - 0.4**2) / 40))
    assert result.score(BASE).over_base is None
    assert "accuracy" in result.shares
    assert "ece" in result.lower_is_better
    assert not result.versus


def test_scores_in_between_have_bootstrap_intervals() -> None:
    items = [written(row, "x") for row in range(1, 61)]
    old = [answered(item, f1=row % 5 / 5) for row, item in enumerate(items)]
    new = [answered(item, f1=min(1, row % 5 / 5 + 0.1 * (row % 3))) for row, item in enumerate(items)]
    task = task_of("generate", scorers=["f1"])
    result = compare_models(task, items, {BASE: old, "lora": new})
    versus = result.score("lora").over_base
    assert versus is not None
    assert versus.change.low < versus.change.value < versus.change.high
    assert versus.change.low > 0
    assert versus.p < 0.001
    assert result == compare_models(task, items, {BASE: old, "lora": new})  # seeded
    assert "f1" not in result.shares


def test_a_model_against_itself_is_no_change() -> None:
    items = [written(row, "x") for row in range(1, 21)]
    same = [answered(item, f1=row % 5 / 5) for row, item in enumerate(items)]
    versus = compare_models(task_of("generate", scorers=["f1"]), items, {BASE: same, "lora": same}).scores[1].over_base
    assert versus is not None
    assert (versus.change.value, versus.change.low, versus.change.high, versus.p, versus.error) == (0, 0, 0, 1, 0)


def test_adapters_are_compared_with_each_other() -> None:
    items = choices(40)
    models = {"a": chosen(items, OLD), "b": chosen(items, NEW), "c": chosen(items, OLD)}
    result = compare_models(task_of("choice"), items, models)
    assert [(each.before, each.after) for each in result.versus] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(score.over_base is None for score in result.scores)
    assert result.examples


def test_examples_are_lost_and_won_rows_in_turn() -> None:
    items = choices(40)
    models = {BASE: chosen(items, OLD), "lora": chosen(items, NEW)}
    result = compare_models(task_of("choice"), items, models, examples=5)
    assert len(result.examples) == 5
    assert {10, 11} < {example.place for example in result.examples}
    first = result.examples[0]
    assert first.place in (10, 11)
    assert first.asked == f"Question {first.place + 1}?"
    assert (first.expected, dict(first.answers)) == ("yes", {BASE: "yes", "lora": "no"})
    assert dict(first.right) == {BASE: True, "lora": False}


def test_a_row_without_loss_is_left_out_for_all_models() -> None:
    items = [choice(row, 0, ("text",)) for row in range(1, 31)]
    old = [likely(item, -1.0 - row % 3, tokens=(2,)) for row, item in enumerate(items)]
    new = [failed(items[0]), *(likely(item, -0.9 - row % 3, tokens=(2,)) for row, item in enumerate(items) if row)]
    result = compare_models(task_of("perplexity"), items, {BASE: old, "lora": new})
    kept = [-result.log_probs[0] for result in old[1:] if result.log_probs[0] is not None]
    assert result.score(BASE).measures["loss"].value == pytest.approx(sum(kept) / (2 * 29))
    assert (result.score(BASE).failed, result.score("lora").failed) == (0, 1)
    versus = result.score("lora").over_base
    assert versus is not None
    assert versus.change.high < 0


def test_a_model_without_results_is_compared_with_none() -> None:
    items = [written(row, "a") for row in range(1, 4)]
    head = [ItemResult(item.hash, predicted="a") for item in items]
    result = compare_models(task_of("classify"), items, {BASE: [failed(item) for item in items], "head": head})
    assert result.score(BASE).failed == 3
    assert math.isnan(result.score(BASE).measures["accuracy"].value)
    assert result.score("head").over_base is None
    assert result.score("head").measures["accuracy"].value == 1


def test_different_rows_are_not_compared() -> None:
    items = choices(3)
    good = chosen(items, [True] * 3)
    with pytest.raises(UserError, match="there are 3, and 'lora' was scored on 2"):
        compare_models(task_of("choice"), items, {BASE: good, "lora": good[:2]})
    other = [*good[:2], likely(choice(9), -1.0, -2.0)]
    with pytest.raises(UserError, match=r"'lora' was scored on another text of quiz\.jsonl, row 3"):
        compare_models(task_of("choice"), items, {BASE: good, "lora": other})


def test_one_row_has_scores_and_no_intervals() -> None:
    items = choices(1)
    result = compare_models(task_of("choice"), items, {BASE: chosen(items, [True]), "lora": chosen(items, [False])})
    versus = result.score("lora").over_base
    assert versus is not None
    assert versus.change.value == -1
    assert not versus.change.known
    assert math.isnan(versus.p)


def test_holm_is_over_adapters_and_tasks() -> None:
    items = choices(40)
    models = {BASE: chosen(items, OLD), "a": chosen(items, NEW), "b": chosen(items, OLD)}
    tasks = [compare_models(task_of("choice", name), items, models) for name in ("one", "two")]
    found = corrected(tasks)
    raw = [score.over_base.p for task in tasks for score in task.scores if score.over_base]
    new = [score.over_base for task in found for score in task.scores if score.over_base]
    assert [each.p for each in new] == holm(raw)
    assert {each.family for each in new} == {4}
    assert [each.p for task in found for each in task.versus] == holm(
        [each.p for task in tasks for each in task.versus]
    )
    assert {each.family for task in found for each in task.versus} == {2}
    assert found[0].scores[0] == tasks[0].scores[0]


def test_few_rows_without_one_of_them_still_have_an_interval() -> None:
    items = [choice(row, 0, ("text",)) for row in range(1, 6)]
    old = [likely(item, -1.0 - row / 10) for row, item in enumerate(items)]
    new = [failed(items[0]), *(likely(item, -2.0 - row / 7) for row, item in enumerate(items[1:]))]
    versus = compare_models(task_of("perplexity"), items, {BASE: old, "lora": new}).score("lora").over_base
    assert versus is not None
    assert versus.change.known


@pytest.mark.filterwarnings("error")
def test_losses_without_bound_are_not_compared() -> None:
    items = [choice(row, 0, ("text",)) for row in range(1, 6)]
    models = {name: [likely(item, loss) for item in items] for name, loss in ((BASE, -1e4), ("lora", -2e4))}
    result = compare_models(task_of("perplexity"), items, models)
    versus = result.score("lora").over_base
    assert versus is not None
    assert math.isnan(versus.p)
    assert result.score("lora").measures["loss"].value == 2e4
