from __future__ import annotations

import math
import random

import pytest
import torch

from graftlm.alignment.best_of_n import best_of_n, best_of_n_kl, rejection_sampling
from graftlm.alignment.rewards import Rewarded
from graftlm.alignment.rollouts import Rollouts
from graftlm.errors import UserError
from tests.alignment.conftest import answer, rollouts_of


def case() -> tuple[Rollouts, Rewarded]:
    rollouts = rollouts_of(
        answer("p", 1, 0, (7,), " one "),
        answer("p", 1, 1, (7,), "two"),
        answer("p", 1, 2, (7,), "long", ended=False),
        answer("p", 2, 0, (7,), "same"),
        answer("p", 2, 1, (7,), "same"),
        answer("p", 3, 0, (7,), "   "),
        answer("p", 3, 1, (7,), "lost"),
        answer("q", 1, 0, (7,), "other"),
    )
    totals = torch.tensor([1, 3, 9, 2, 2, 5, math.nan, 7], dtype=torch.float64)
    return rollouts, Rewarded(totals, {"r": totals}, {"r": (6,)})


def test_best_of_n_takes_the_best_ended_answer_of_each_prompt() -> None:
    found = best_of_n(*case(), "p")
    (instance,) = found.instances
    assert [(m.role, m.content) for m in instance.messages] == [("user", "question 1"), ("assistant", "two")]
    assert (instance.source, instance.row, found.places) == ("prompts", 1, (1,))
    assert found.dropped == {
        "cut off": 1,
        "not among the best of its prompt": 1,
        "all rewards of the prompt equal": 2,
        "empty": 1,
        "without a reward": 1,
    }
    assert best_of_n(*case(), "p", equal=True).places == (1, 3)


def test_rejection_sampling_takes_all_that_are_good_enough_once() -> None:
    assert rejection_sampling(*case(), "p", least=2).places == (1, 3)
    both = rejection_sampling(*case(), "p", least=0)
    assert both.places == (0, 1, 3)
    assert both.instances[0].messages[-1].content == "one"
    assert both.dropped["the same answer again"] == 1
    one = rejection_sampling(*case(), "p", least=0, most=1)
    assert one.places == (1, 3)
    assert rejection_sampling(*case(), "p", least=4).dropped["reward below the least"] == 4


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="'z' has no answers"):
        best_of_n(*case(), "z")
    with pytest.raises(UserError, match="most is 0"):
        rejection_sampling(*case(), "p", least=0, most=0)
    with pytest.raises(UserError, match="n is 0"):
        best_of_n_kl(0)


def test_divergence_of_best_of_n() -> None:
    assert best_of_n_kl(1) == 0
    assert best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)
    # Of answers that never repeat, the best of n has density n u^(n−1) at the quantile u of its reward.
    draw = random.Random(0)
    n, total, number = 4, 0.0, 40_000
    for _ in range(number):
        best = max(draw.random() for _ in range(n))
        total += math.log(n) + (n - 1) * math.log(best)
    assert total / number == pytest.approx(best_of_n_kl(n), abs=0.02)
