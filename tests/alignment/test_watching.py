from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from graftlm.alignment.rewards import Rewarded
from graftlm.alignment.watching import PhaseStatistics, concerns, distinct_2, phase_statistics, shown_answers
from tests.alignment.conftest import answer, rollouts_of, scores_of


def statistics() -> PhaseStatistics:
    rollouts = rollouts_of(
        answer("p", 1, 0, (7, 8)),
        answer("p", 1, 1, (7, 8, 9, 9), ended=False),
        answer("p", 2, 0, (7,)),
        answer("p", 2, 1, (7,)),
        answer("q", 1, 0, (7,)),
    )
    log_probs = [[-1.0, -1.0], [-1.0] * 4, [-1.0], [-1.0], [-5.0]]
    scores = scores_of(rollouts, log_probs, [[-1.0, -2.0], [-1.0] * 4, [-1.0], [0.0], [-5.0]])
    totals = torch.tensor([1.0, 3.0, 0.0, 0.0, 9.0], dtype=torch.float64)
    return phase_statistics(rollouts, scores, Rewarded(totals, {"r": 2 * totals}), "p")


def test_statistics_by_hand() -> None:
    found = statistics()
    assert (found.answers, found.groups, found.equal_groups, found.failed, found.left_out) == (4, 2, 1, 0, 0)
    assert found.reward_mean == 1.0
    assert found.reward_std == pytest.approx(1.5**0.5)
    assert found.rewards == {"r": 2.0}
    assert found.kl_k1 == pytest.approx(0.0)  # log-ratios 1 and −1, of four answers
    assert found.kl_k3 == pytest.approx((2.718281828**-1 + 2.718281828 - 2) / 4)
    assert (found.length, found.ended, found.entropy) == (2.0, 0.75, 1.0)
    assert found.distinct_2 == 3 / 4  # (7, 8), (8, 9), (9, 9) of four pairs
    assert found.length_slope == pytest.approx(1.0)  # lengths 2, 4, 1, 1 and rewards 1, 3, 0, 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_answers_are_shown_with_what_they_are_worth() -> None:
    rollouts = rollouts_of(answer("p", 1, 0, (7,), "a"), answer("p", 1, 1, (7,), "b"), answer("p", 2, 0, (7,), "c"))
    totals = torch.tensor([1.0, 2.0, float("nan")], dtype=torch.float64)
    first, second = shown_answers(rollouts, Rewarded(totals, {"r": totals}), "p")
    assert (first["answer"], first["reward"], first["rewards"], first["row"]) == ("a", 1.0, {"r": 1.0}, 1)
    assert (second["answer"], second["reward"], second["prompt"][0]["content"]) == ("c", None, "question 2")
    json.dumps([first, second], allow_nan=False)


def test_distinct_2_without_pairs() -> None:
    assert distinct_2([(1,), ()]) == 1.0


CALM = PhaseStatistics("p", 0, 8, 0.5, 0.2, {}, 0.5, 0.5, 2.0, 20.0, 0.9, 0.8, 4, 1, 0.0, 0, 0, 1e-6, 1e-7)


def kinds(*changes: dict[str, object], window: int = 5) -> list[str]:
    """The concerns after phases that are calm but for some changes."""
    history = [replace(CALM, step=step, **change) for step, change in enumerate(changes)]
    found = concerns(history, window=window)
    assert all(each.seen and each.advice and each.step == len(changes) - 1 for each in found)
    return [each.kind for each in found]


def test_calm_phases_concern_nobody() -> None:
    assert concerns([]) == []
    assert kinds(*[{}] * 8) == []
    assert kinds(*[{"reward_mean": 0.1 * n, "kl_k3": 0.9 * n} for n in range(8)]) == []


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("equal_rewards", [{"equal_groups": 4}]),
        ("never_ends", [{}, {"ended": 0.0}]),
        ("entropy", [{}, {"entropy": 1.0}, {"entropy": 0.4}]),
        ("kl", [{"kl_k3": 1.2 * n} for n in range(6)]),
        ("length", [{"reward_mean": 0.1 * n, "length": 20.0 + 10 * n, "length_slope": 0.01} for n in range(6)]),
    ],
)
def test_each_concern(kind: str, changes: list[dict[str, object]]) -> None:
    assert kinds(*changes) == [kind]


def test_reward_that_grows_beyond_what_length_gives_is_fine() -> None:
    changes = [{"reward_mean": 0.3 * n, "length": 20.0 + 10 * n, "length_slope": 0.01} for n in range(6)]
    assert kinds(*changes) == []
