"""Statistics on cases where the truth is known: intervals cover, losses are found as promised, and none where none is.

Every simulation is seeded. ``TRIALS`` repetitions tell a rate of 95% to about ±2.5 points; bounds allow for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from graftlm.evaluation import statistics
from graftlm.evaluation.evaluation import BASE, TaskResult, Versus
from graftlm.evaluation.gains import compare_models
from graftlm.evaluation.measures import Measure, measures_of
from graftlm.evaluation.metrics import Floats
from graftlm.evaluation.power import noticed_change, noticed_share, share_power
from graftlm.evaluation.scored import Scored, score_measures
from graftlm.evaluation.tax import is_loss, noticed_loss
from tests.evaluation.fake_task import choice, likely, task_of

TRIALS = 300
Draw = Callable[[np.random.Generator, int], Floats]


def measure(kind: str, name: str, **keys: object) -> Measure:
    return next(each for each in measures_of(task_of(kind, **keys)) if each.name == name)


def mean_of(values: Floats) -> Floats:
    return np.stack([values, np.ones(len(values))], axis=1)


def score(found: Measure, sums: dict[str, Floats], trial: int) -> Scored:
    drawn = 1 if found.is_share or found.sized else 399  # these need no draws
    return score_measures([found], [sums], seed=trial, resamples=drawn)[0]


def coverage(found: Measure, draw: Draw, truth: float, rows: int) -> float:
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(TRIALS):
        interval = score(found, {"a": draw(generator, rows)}, trial).interval("a")
        held += interval.low <= truth <= interval.high
    return held / TRIALS


def share(p: float) -> Draw:
    return lambda generator, rows: mean_of((generator.random(rows) < p).astype(np.float64))


def grades(generator: np.random.Generator, rows: int) -> Floats:
    """Scores like F1: a third 0, a third 1, the rest in between; the mean is 0.5."""
    which = generator.integers(0, 3, rows)
    return mean_of(np.where(which == 2, generator.random(rows), which))


def losses(generator: np.random.Generator, rows: int) -> Floats:
    """Texts of many lengths, 3 nats a token; long ones are a little easier."""
    tokens = generator.integers(5, 60, rows).astype(np.float64)
    return np.stack([tokens * (3 + generator.normal(0, 0.8, rows)), tokens], axis=1)


def confidences(gap: float) -> Draw:
    """Answers of 60% to 100% confidence in five bins, right so often less ``gap``: the calibration error is the gap."""

    def draw(generator: np.random.Generator, rows: int) -> Floats:
        bins = generator.integers(5, 10, rows)
        sure = (bins + 0.5) / 10
        sums = np.zeros((rows, 11))
        sums[np.arange(rows), bins] = sure - (generator.random(rows) < sure - gap)
        sums[:, -1] = 1
        return sums

    return draw


@pytest.mark.parametrize(
    ("found", "draw", "truth", "rows", "least"),
    [
        (measure("choice", "accuracy"), share(0.3), 0.3, 60, 0.93),
        (measure("choice", "accuracy"), share(0.03), 0.03, 60, 0.93),
        (measure("generate", "f1"), grades, 0.5, 60, 0.93),
        (measure("perplexity", "loss"), losses, 3.0, 60, 0.92),
        (measure("perplexity", "perplexity"), losses, math.exp(3), 60, 0.92),
        (measure("choice", "ece"), confidences(0.0), 0.0, 200, 0.93),
        (measure("choice", "ece"), confidences(0.05), 0.05, 500, 0.92),
        (measure("choice", "ece"), confidences(0.2), 0.2, 100, 0.92),
        (measure("pairs", "bias", metric="bias"), share(0.5), 0.0, 100, 0.93),
        (measure("pairs", "bias", metric="bias"), share(0.8), 0.6, 100, 0.92),
    ],
    ids=["share", "rare share", "f1", "loss", "perplexity", "ece 0", "ece 0.05", "ece 0.2", "bias 0", "bias 0.6"],
)
def test_intervals_cover(found: Measure, draw: Draw, truth: float, rows: int, least: float) -> None:
    rate = coverage(found, draw, truth, rows)
    print(f"covered {rate:.3f}")
    assert rate >= least


def answers(generator: np.random.Generator, rows: int, loss: float, differing: float) -> tuple[Floats, Floats]:
    """Two models on the same rows: a share differs, and of it more are lost than won, by ``loss``."""
    drawn = generator.random(rows)
    lost, won = drawn < (differing + loss) / 2, drawn >= 1 - (differing - loss) / 2
    other = (generator.random(rows) < 0.6).astype(np.float64)
    return np.where(lost, 1.0, np.where(won, 0.0, other)), np.where(lost, 0.0, np.where(won, 1.0, other))


def test_intervals_of_changes_cover() -> None:
    generator = np.random.default_rng(2)
    held = {"share": 0, "f1": 0, "loss": 0, "ece": 0, "ece from 0": 0}
    trials = TRIALS // 2
    for trial in range(trials):
        old, new = answers(generator, 100, 0.1, 0.3)
        found = statistics.paired_share_change(old == 1, new == 1)
        held["share"] += found.low <= -0.1 <= found.high
        base = grades(generator, 60)
        lower = base.copy()
        lower[:, 0] *= generator.random(60) < 0.8  # one in five is lost: 0.5 becomes 0.4
        change = score(measure("generate", "f1"), {"a": base, "b": lower}, trial).change("a", "b")
        held["f1"] += change.low <= -0.1 <= change.high
        base = losses(generator, 60)
        higher = base + base[:, 1:] * np.stack([0.2 + generator.normal(0, 0.3, 60), np.zeros(60)], axis=1)
        change = score(measure("perplexity", "loss"), {"a": base, "b": higher}, trial).change("a", "b")
        held["loss"] += change.low <= 0.2 <= change.high
        for name, gap in (("ece", 0.1), ("ece from 0", 0.0)):
            both = {"a": confidences(gap)(generator, 100), "b": confidences(gap + 0.15)(generator, 100)}
            change = score(measure("choice", "ece"), both, trial).change("a", "b")
            held[name] += change.low <= 0.15 <= change.high
    print({name: times / trials for name, times in held.items()})
    assert min(held.values()) >= 0.9 * trials


@pytest.mark.parametrize(("rows", "differing", "family"), [(100, 0.2, 1), (400, 0.1, 1), (400, 0.2, 20), (60, 0.0, 1)])
def test_a_planted_loss_of_a_share_is_found_as_promised(rows: int, differing: float, family: int) -> None:
    loss = noticed_share(rows, round(rows * differing), family)
    generator = np.random.default_rng(3)
    trials = 4000
    drawn = generator.multinomial(
        rows, [(max(differing, loss) + loss) / 2, (max(differing, loss) - loss) / 2, 1 - max(differing, loss)], trials
    )
    p = 2 * stats.binom.cdf(drawn[:, :2].min(axis=1), drawn[:, :2].sum(axis=1), 0.5)  # McNemar's
    found = float(((p < 0.05 / family) & (drawn[:, 0] > drawn[:, 1])).mean())
    print(f"loss {loss:.3f} found {found:.3f}, promised {share_power(rows, loss, differing, 0.05 / family):.3f}")
    assert found == pytest.approx(0.8, abs=0.025)


def test_a_planted_loss_of_a_mean_is_found_as_promised() -> None:
    rows, generator, found = 100, np.random.default_rng(4), 0
    loss = noticed_change(0.3 / math.sqrt(rows))
    for trial in range(TRIALS):
        base = generator.random(rows)
        lower = base - loss + generator.normal(0, 0.3, rows)
        p = statistics.swap_p([mean_of(base), mean_of(lower)], [(0, 1)], _ratio, resamples=999, seed=trial)
        found += p[0] < 0.05
    print(f"loss {loss:.3f} found {found / TRIALS:.3f}")
    assert found / TRIALS == pytest.approx(0.8, abs=0.05)


def _ratio(sums: Floats) -> Floats:
    return np.asarray(sums[..., 0] / sums[..., 1])


def test_what_an_evaluation_says_would_be_noticed_is_noticed() -> None:
    """The whole way: `noticed` is told from results without a loss, and so large a loss is then found 4 times in 5."""
    task, rows, trials = task_of("choice"), 100, 100
    items = [choice(row) for row in range(rows)]
    generator = np.random.default_rng(5)

    def compared(loss: float) -> tuple[TaskResult, Versus]:
        old, new = answers(generator, rows, loss, 0.2)
        results = {
            name: [likely(item, -1.0, -2.0 if good else -0.5) for item, good in zip(items, right, strict=True)]
            for name, right in ((BASE, old), ("lora", new))
        }
        result = compare_models(task, items, results, examples=0, resamples=99)
        versus = result.score("lora").over_base
        assert versus is not None
        return result, versus

    promised = float(np.mean([noticed_loss(*compared(0.0)) for _ in range(15)]))
    found = np.mean([is_loss(*compared(promised)) for _ in range(trials)])
    print(f"promised {promised:.3f}, found {found:.3f}")
    assert found == pytest.approx(0.8, abs=0.09)


def test_where_nothing_is_lost_nothing_is_found_in_95_of_100_evaluations() -> None:
    """3 adapters on 12 tasks, shares and means; a family is wrong where one of its 36 differences is "found"."""
    generator, trials, wrong, lost = np.random.default_rng(6), 120, 0, 0
    for trial in range(trials):
        p: list[float] = []
        signs: list[float] = []
        for number in range(12):
            rows = int(generator.integers(30, 120))
            for _ in range(3):
                if number % 2:
                    old, new = answers(generator, rows, 0.0, 0.3)
                    p.append(statistics.mcnemar_p(old == 1, new == 1))
                else:
                    old = grades(generator, rows)[:, 0]
                    new = np.where(generator.random(rows) < 0.3, grades(generator, rows)[:, 0], old)
                    p += statistics.swap_p([mean_of(old), mean_of(new)], [(0, 1)], _ratio, resamples=1499, seed=trial)
                signs.append(float(new.mean() - old.mean()))
        holm = np.array(statistics.holm(p))
        wrong += bool((holm < 0.05).any())
        lost += bool(((holm < 0.05) & (np.array(signs) < 0)).any())
    print(f"something found in {wrong / trials:.3f} of evaluations, a loss in {lost / trials:.3f}")
    assert wrong / trials <= 0.05
