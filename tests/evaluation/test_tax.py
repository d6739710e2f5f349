"""The alignment tax, and the one line that says it."""

from __future__ import annotations

import math

import pytest

from graftlm.evaluation.evaluation import BASE, Drift, TaskResult, TaskScore, Versus
from graftlm.evaluation.languages import language_pairs
from graftlm.evaluation.power import noticed_change, noticed_share, share_power
from graftlm.evaluation.statistics import Change, Interval
from graftlm.evaluation.tax import tax_of


def result(
    name: str,
    change: float,
    p: float,
    *,
    differing: int = 20,
    rows: int = 200,
    group: str = "capability",
    family: int = 1,
    before: float = 0.6,
    language: str = "en",
) -> TaskResult:
    """A task of right and wrong answers."""
    lost = round((differing - change * rows) / 2)
    versus = Versus(
        BASE,
        "lora",
        Change(change, change - 0.04, change + 0.04, before=before, after=before + change),
        p,
        won=tuple(range(differing - lost)),
        lost=tuple(range(100, 100 + lost)),
        family=family,
    )
    scores = (TaskScore(BASE, {}), TaskScore("lora", {}, over_base=versus))
    return TaskResult(
        name=name,
        title=name.capitalize(),
        group=group,
        family="quiz",
        language=language,
        kind="choice",
        about="",
        rows=rows,
        rows_hash="",
        primary="accuracy",
        labels={"accuracy": "accuracy"},
        shares=("accuracy",),
        lower_is_better=(),
        scores=scores,
    )


def texts(change: float, p: float, error: float = 0.05) -> TaskResult:
    """A task of perplexity."""
    interval = Change(change, change - 2 * error, change + 2 * error, before=12.0, after=12.0 + change)
    versus = Versus(BASE, "lora", interval, p, error=error, family=4)
    return TaskResult(
        name="texts",
        title="Texts",
        group="capability",
        family="",
        language="en",
        kind="perplexity",
        about="",
        rows=50,
        rows_hash="",
        primary="perplexity",
        labels={"perplexity": "perplexity"},
        shares=(),
        lower_is_better=("perplexity",),
        scores=(TaskScore("lora", {}, over_base=versus),),
    )


def test_one_task_without_a_loss() -> None:
    tax = tax_of("lora", [result("reading", -0.01, 0.7)])
    points = 100 * noticed_share(200, 20)
    assert tax.sentence == (
        f"No loss was found on Reading, the only capability task; a loss of {points:.1f} points would have been "
        "noticed four times out of five."
    )
    assert [line.task for line in tax.lines] == ["reading"]


def test_many_tasks_without_a_loss() -> None:
    tasks = [
        result("reading", -0.01, 0.7, differing=10),
        result("grammar", 0.05, 0.001, differing=40),
        texts(0.02, 0.8),
    ]
    low, high = (100 * noticed_share(200, differing) for differing in (10, 40))
    assert tax_of("lora", tasks).sentence == (
        f"No loss was found on 3 capability tasks; a loss of {low:.1f} points (Reading) to {high:.1f} points (Grammar) "
        f"or {noticed_change(0.05, 4):.3g} of perplexity (Texts) would have been noticed four times out of five."
    )


def test_large_numbers_are_written_out() -> None:
    sentence = tax_of("lora", [texts(83_800.0, 0.001, error=1000)]).sentence
    assert "perplexity on Texts rose by 83,800 (95% interval 81,800 to 85,800;" in sentence


def test_a_loss_is_named_with_its_interval() -> None:
    tasks = [result("reading", -0.1, 0.012, differing=30, family=3), result("grammar", -0.01, 1.0, family=3)]
    sentence = tax_of("lora", tasks, Drift("lora", Interval(0.123, 0.1, 0.15), 5000, 40)).sentence
    assert sentence.startswith(
        "Lost on 1 of 2 capability tasks: accuracy on Reading fell by 10.0 points (95% interval 6.0 to 14.0; p = 0.012,"
        " corrected for 3 comparisons). On Grammar no loss was found; a loss of "
    )
    assert sentence.endswith(
        "On neutral text it drifted 0.123 nats a token from the base (KL, 95% interval 0.100 to 0.150, 5,000 tokens)."
    )


def test_a_loss_on_the_only_task_and_a_higher_perplexity() -> None:
    assert tax_of("lora", [texts(0.31, 0.0002)]).sentence == (
        "Lost on the only capability task: perplexity on Texts rose by 0.31 (95% interval 0.21 to 0.41; p < 0.001, "
        "corrected for 4 comparisons)."
    )


def test_many_losses_are_named_up_to_three() -> None:
    tasks = [result(f"task{number}", -0.1, 0.001 * number, differing=30) for number in (4, 3, 2, 1)]
    sentence = tax_of("lora", tasks).sentence
    assert sentence.startswith("Lost on 4 of 4 capability tasks: accuracy on Task1 fell")
    assert sentence.endswith("and 1 more in the table.")
    assert "Task4" not in sentence


def test_gains_are_no_losses() -> None:
    assert tax_of("lora", [texts(-0.31, 0.0002)]).sentence.startswith("No loss was found on Texts")
    assert tax_of("lora", [result("reading", 0.1, 0.001, differing=30)]).sentence.startswith("No loss was found")


def test_too_few_rows_notice_nothing() -> None:
    tax = tax_of("lora", [result("reading", 0.0, 1.0, differing=0, rows=4)])
    assert math.isnan(tax.lines[0].noticed)
    assert tax.sentence == (
        "No loss was found on Reading, the only capability task; the rows are too few to notice any."
    )
    # 6 points at least are needed, and the base has only 2 to lose
    rare = tax_of("lora", [result("reading", 0.0, 1.0, differing=2, rows=100, before=0.02)])
    assert math.isnan(rare.lines[0].noticed)
    both = tax_of("lora", [result("reading", 0.0, 1.0, differing=0, rows=4), result("grammar", 0.0, 1.0)]).sentence
    assert both.endswith("; on 1 of them the rows are too few to notice any.")


def test_other_groups_are_passed_over_and_nothing_is_claimed_without_tasks() -> None:
    expected = "No capability task was scored for both the base and this adapter, so nothing is known of losses."
    assert tax_of("lora", [result("jokes", -0.2, 0.001, differing=60, group="fun")]).sentence == expected
    assert tax_of("other", [result("reading", -0.2, 0.001, differing=60)]).sentence == expected


def test_power_against_tables() -> None:
    # Six rows that all differ in one way: the exact test's p is 2/64; with five it is 2/32 and never below 5%.
    assert share_power(6, 1.0, 1.0) == pytest.approx(1.0)
    assert share_power(5, 1.0, 1.0) == 0
    assert math.isnan(noticed_share(5, 5))
    # Connor 1987, Biometrics 43: the normal approximation, here (1.96 √0.2 + 0.84 √(0.2 − δ²)) / √1000 = δ
    assert noticed_share(1000, 200) == pytest.approx(0.0394, abs=0.002)
    assert noticed_share(1000, 200, family=20) > noticed_share(1000, 200)
    assert noticed_change(1.0) == pytest.approx(2.8016, abs=1e-3)
    assert math.isnan(noticed_change(0.0))


def test_languages_are_paired_by_family_and_name() -> None:
    tasks = [
        result("reading-en", 0.1, 0.01),
        result("reading-zh", 0.04, 0.2, language="zh"),
        result("grammar-zh", 0.3, 0.01, language="zh"),
        result("reading-hard-en", 0.3, 0.01),
    ]
    (pair,) = language_pairs(tasks)
    assert (pair.model, pair.task, pair.languages) == ("lora", "reading", ("en", "zh"))
    assert [gain.value for gain in pair.gains] == [0.1, 0.04]
