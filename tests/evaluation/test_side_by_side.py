from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from graftlm.data.instances import Message
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.side_by_side import Duel, Verdict, duels_of, sign_test_p, win_rate, win_rate_interval
from graftlm.evaluation.tasks.items import Item


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [((0, 0, 10), None, None), ((5, 5, 0), None, None), ((10, 0, 0), None, 1.0), ((0, 10, 0), 0.0, None)],
)
def test_interval_at_the_ends(counts: tuple[int, int, int], low: float | None, high: float | None):
    found = win_rate_interval(*counts)
    assert found.value == (counts[0] + counts[2] / 2) / 10
    assert 0 <= found.low < found.high <= 1
    assert found.low <= found.value <= found.high
    assert low is None or found.low == low
    assert high is None or found.high == high


@pytest.mark.parametrize("counts", [(1, 0, 43), (7, 2, 4), (0, 0, 9), (12, 0, 0), (3, 30, 7)])
def test_bounds_are_where_the_score_statistic_is_z(counts: tuple[int, int, int]):
    """The likeliest shares under each bound are searched for, not solved for."""
    number = sum(counts)
    found = win_rate_interval(*counts)
    for bound in (2 * found.low - 1, 2 * found.high - 1):
        if abs(bound) == 1:
            continue

        def loss(lost: float, bound: float = bound) -> float:
            shares = (lost + bound, lost, 1 - 2 * lost - bound)
            return -sum(n * math.log(max(share, 1e-300)) for n, share in zip(counts, shares, strict=True) if n)

        within = (max(0.0, -bound), (1 - bound) / 2)
        lost = optimize.minimize_scalar(loss, bounds=within, method="bounded", options={"xatol": 1e-12}).x
        score = (counts[0] - counts[1] - number * bound) / math.sqrt(number * (2 * lost + bound * (1 - bound)))
        assert abs(score) == pytest.approx(stats.norm.isf(0.025), abs=1e-4)


def test_interval_agrees_with_the_score_test():
    for wins, losses, ties in [(10, 0, 90), (8, 2, 5), (30, 20, 50), (33, 17, 0), (3, 1, 1)]:
        z = (wins - losses) / math.sqrt(wins + losses)
        found = win_rate_interval(wins, losses, ties)
        assert (found.low > 0.5) == (z > stats.norm.isf(0.025)), (wins, losses, ties)


def test_swapping_the_models_mirrors_it():
    one, other = win_rate_interval(12, 5, 9), win_rate_interval(5, 12, 9)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-8)


@pytest.mark.parametrize("rows", [20, 80])
@pytest.mark.parametrize(
    "shares", [(0.5, 0.5, 0.0), (0.1, 0.1, 0.8), (0.6, 0.2, 0.2), (0.85, 0.05, 0.1), (0.02, 0.0, 0.98)]
)
def test_interval_covers_at_the_stated_rate(rows: int, shares: tuple[float, float, float]):
    """Exact over all outcomes, not simulated."""
    true, covered = shares[0] + shares[2] / 2, 0.0
    for wins in range(rows + 1):
        for losses in range(rows + 1 - wins):
            chance = stats.multinomial.pmf([wins, losses, rows - wins - losses], rows, shares)
            if chance > 1e-7:
                found = win_rate_interval(wins, losses, rows - wins - losses)
                covered += chance * (found.low - 1e-9 <= true <= found.high + 1e-9)
    assert covered > 0.93


def test_sign_test():
    assert sign_test_p(10, 0) == pytest.approx(2 / 2**10)
    assert sign_test_p(3, 3) == 1
    assert sign_test_p(0, 0) == 1


def test_win_rate():
    verdicts = [Verdict("win", True), Verdict("win", True), Verdict("loss", True), Verdict("tie", False)]
    found = win_rate(
        [*verdicts, Verdict("tie"), Verdict("tie", read=False)], judge="j", task="t", before="a", after="b"
    )
    assert (found.wins, found.losses, found.ties, found.unread) == (2, 1, 3, 1)
    assert found.rate.value == pytest.approx(3.5 / 6)
    assert found.consistent == 0.75
    assert found.p == 1.0
    none = win_rate([], judge="j", task="t", before="a", after="b")
    assert np.isnan(none.rate.value)
    assert none.consistent is None


def test_duels_are_of_rows_that_both_answer():
    items = [Item("rows", number, (Message("user", f"q{number}"),), references=("r",)) for number in range(4)]
    first = [ItemResult(item.hash, text=f"a{place}") for place, item in enumerate(items)]
    second = [ItemResult(item.hash, text=f"b{place}") for place, item in enumerate(items)]
    first[1] = ItemResult(items[1].hash)
    second[2] = ItemResult(items[2].hash, text="", error="too long")
    found = duels_of(items, first, second, language="zh")
    assert found == {
        0: Duel(items[0].messages, "a0", "b0", "r", "zh"),
        3: Duel(items[3].messages, "a3", "b3", "r", "zh"),
    }
    with pytest.raises(ValueError, match="other items"):
        duels_of(items[1:], first, second)
