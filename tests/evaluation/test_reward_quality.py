"""What a reward is worth, by hand: accuracy by prompt, length, calibration, and good answers told from bad ones."""

from __future__ import annotations

import json
import math

import pytest

from graftlm.evaluation.reward_quality import JudgedGroup, best_limit, longer_is_better, reward_quality

LN3, LN9 = math.log(3), math.log(9)

#: A pair right by reward, a pair wrong, a list of three of which 1 of 3 is wrong; the last two share a prompt.
GROUPS = [
    JudgedGroup("p", [(0, 1)], [10, 4], rewards=[LN3, 0.0]),  # 75% sure, right; the longer one is better
    JudgedGroup("q", [(0, 1)], [3, 7], rewards=[0.0, LN9]),  # 90% sure, wrong; the shorter one is better
    JudgedGroup("q", [(0, 1), (0, 2), (1, 2)], [9, 9, 2], rewards=[0.0, LN3, -LN3]),
]
#: 2 of 3 by length: 9 and 9 tie, 9 over 2 twice.
BY_LENGTH = [1.0, 0.0, (0.5 + 1 + 1) / 3]
RIGHT = [1.0, 0.0, 2 / 3]


def quality(groups=GROUPS, **options):
    found = reward_quality("kind", groups, options.pop("learnt", groups), **options)
    assert found is not None
    return found


def test_accuracy_and_length_by_hand() -> None:
    found = quality()
    assert (found.groups, found.prompts, found.comparisons) == (3, 2, 5)
    assert found.accuracy.value == pytest.approx(sum(RIGHT) / 3)
    assert found.longer_is_better
    assert found.length.value == pytest.approx(sum(BY_LENGTH) / 3)
    assert found.over_length.value == pytest.approx((sum(RIGHT) - sum(BY_LENGTH)) / 3)


def test_the_side_of_length_is_that_of_the_learnt_groups() -> None:
    learnt = [JudgedGroup("x", [(0, 1)], [1, 2])]
    assert not longer_is_better(learnt)
    assert quality(learnt=learnt).length.value == pytest.approx(1 - sum(BY_LENGTH) / 3)


def test_plain_pairs_have_wilsons_interval() -> None:
    """7 of 10 pairs, each with a prompt of its own: 0.397 to 0.892 (Wilson 1927)."""
    pairs = [JudgedGroup(n, [(0, 1)], [n, 5], rewards=[1.0 if n < 7 else -1.0, 0.0]) for n in range(10)]
    found = quality(pairs)
    assert [found.accuracy.low, found.accuracy.high] == pytest.approx([0.3968, 0.8922], abs=1e-4)


def test_copies_of_a_prompt_are_no_more_evidence() -> None:
    """Ten pairs four times over are 40 groups; the interval is that of ten prompts."""
    pairs = [JudgedGroup(n, [(0, 1)], [n, 5], rewards=[1.0 if n < 7 else -1.0, 0.0]) for n in range(10)]
    once, often = quality(pairs), quality(pairs * 4)
    assert often.groups == 40
    assert (often.accuracy.low, often.accuracy.high) == pytest.approx((once.accuracy.low, once.accuracy.high))
    ends = [(each.over_length.low, each.over_length.high) for each in (often, once)]
    assert ends[0] == pytest.approx(ends[1])


def test_more_than_length_has_students_interval() -> None:
    """Four prompts with gains 1, 1, 0, −1: mean 0.25, deviation √(11 / 12), t(3) = 3.1824."""
    groups = [
        JudgedGroup(0, [(0, 1)], [1, 2], rewards=[1.0, 0.0]),
        JudgedGroup(1, [(0, 1)], [1, 2], rewards=[1.0, 0.0]),
        JudgedGroup(2, [(0, 1)], [2, 1], rewards=[1.0, 0.0]),
        JudgedGroup(3, [(0, 1)], [2, 1], rewards=[0.0, 1.0]),
    ]
    found = quality(groups, learnt=[JudgedGroup(0, [(0, 1)], [2, 1])]).over_length
    half = 3.18245 * math.sqrt(11 / 12 / 4)
    assert [found.value, found.low, found.high] == pytest.approx([0.25, 0.25 - half, 0.25 + half], abs=1e-4)


def test_calibration_by_hand() -> None:
    """σ(ln 3) = 75% and σ(ln 9) = 90%; a comparison of the list weighs a third of a pair's."""
    found = quality()
    bins = [(each.confidence, each.right, each.rows) for each in found.bins]
    # The list: 0 over ln 3 is wrong at 75%, 0 over −ln 3 right at 75%, ln 3 over −ln 3 right at 90%.
    assert bins == [
        pytest.approx((0.75, (1 + 1 / 3) / (1 + 2 / 3), 3)),
        pytest.approx((0.9, (1 / 3) / (1 + 1 / 3), 2)),
    ]
    error = (5 / 3) / 3 * abs(0.75 - 0.8) + (4 / 3) / 3 * abs(0.9 - 0.25)
    assert found.error == pytest.approx(error)


def test_equal_rewards_are_half_right_and_half_sure() -> None:
    found = quality([JudgedGroup("p", [(0, 1)], [1, 2], rewards=[0.4, 0.4])])
    assert found.accuracy.value == 0.5
    assert [(each.confidence, each.right) for each in found.bins] == [(0.5, 0.5)]
    assert found.error == 0.0
    assert found.length_correlation is None


def test_length_and_reward() -> None:
    """Differences from the mean of the group: ln 3 / 2 with 3, and ln 3 / 2 with −2; the prompt's level is nothing."""
    groups = [
        JudgedGroup("p", [(0, 1)], [10, 4], rewards=[LN3, 0.0]),
        JudgedGroup("q", [(0, 1)], [103, 107], rewards=[50 + LN3, 50.0]),
    ]
    found = quality(groups)
    assert found.length_correlation == pytest.approx((3 - 2) / math.sqrt(2 * (9 + 4)))
    assert (found.longer_preferred, found.longer_better) == (0.5, 0.5)
    wrong = quality([JudgedGroup("p", [(1, 0)], [10, 4], rewards=[1.0, 0.0])])
    assert (wrong.longer_preferred, wrong.longer_better) == (1.0, 0.0)
    assert wrong.length_correlation == pytest.approx(1.0)


def test_good_and_bad_answers_by_one_limit() -> None:
    """Learnt: bad at 0 and 1, good at 3: the limit is 2. Held out: 3 of 4 right, and most learnt answers are bad."""
    learnt = [JudgedGroup("a", [(2, 0), (2, 1)], [1, 1, 1], [False, False, True], [0.0, 1.0, 3.0])]
    held_out = [
        JudgedGroup("p", [(0, 1)], [1, 2], [True, False], [5.0, 4.0]),
        JudgedGroup("q", [], [1, 2, 3], [True, True, None], [2.5, 2.1, 9.0]),
    ]
    found = quality(held_out, learnt=learnt, scored=learnt)
    assert found.labels is not None
    assert found.labels.limit == 2.0
    assert found.labels.answers == 4
    assert found.labels.accuracy.value == 3 / 4
    assert found.labels.majority.value == 1 / 4
    assert quality(held_out, learnt=learnt).labels is None
    assert quality().labels is None


@pytest.mark.parametrize(
    ("rewards", "labels", "limit"),
    [
        ([3.0, 1.0, 2.0], [True, False, True], 1.5),
        ([1.0, 2.0], [True, True], 0.0),  # below all: everything is good
        ([1.0, 2.0], [False, False], 3.0),
        ([1.0, 1.0, 1.0, 2.0], [True, False, False, True], 1.5),  # equal rewards are not parted
    ],
)
def test_the_best_limit(rewards: list[float], labels: list[bool], limit: float) -> None:
    assert best_limit(rewards, labels) == limit


def test_nothing_to_compare() -> None:
    assert reward_quality("kind", [JudgedGroup("p", [], [1, 2], rewards=[0.0, 1.0])], GROUPS) is None
    assert reward_quality("kind", [], GROUPS) is None


def test_rewards_that_are_no_numbers() -> None:
    found = quality([JudgedGroup("p", [(0, 1)], [1, 2], rewards=[math.nan, 0.0])])
    assert found.accuracy.value == 0.0
    assert found.bins == ()
    assert "calibration" not in found.sentence
    json.dumps(found.to_dict(), allow_nan=False)


def test_in_words() -> None:
    assert quality().sentence.startswith("kind: 55.6% (")
    assert "taking the longer answer gives 61.1% (" in quality().sentence
    assert "a constant reward 50%" in quality().sentence
    assert "−5.6 points (" in quality().sentence
