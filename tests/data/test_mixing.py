"""Mixtures against numbers worked out by hand, and samples against what must not change them."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.instances import Instance, Message
from graftlm.data.mixing import Mixture, Sampler, allot, largest_total, tempered
from graftlm.data.splits import share_of
from graftlm.errors import UserError

COUNTS = {"big": 90_000, "middle": 6_000, "small": 4_000}


def instance(task, number, text="what is it"):
    return Instance((Message("user", f"{text} {number}"), Message("assistant", "yes")), f"{task}.csv", number)


def mixed(mixture, tasks, **options):
    with Sampler(mixture, **options) as sampler:
        for task, numbers in tasks:
            for number in numbers:
                sampler.add(task, instance(task, number))
        return list(sampler.take()), sampler.plan()


def test_proportional_with_a_cap():
    mixture = Mixture(cap=10_000)  # 10,000 of 20,000; 6,000; 4,000
    assert mixture.weights(COUNTS) == {"big": 0.5, "middle": 0.3, "small": 0.2}
    assert mixture.quotas(COUNTS) == {"big": 10_000, "middle": 6_000, "small": 4_000}
    assert Mixture(cap=10_000, total=100).quotas(COUNTS) == {"big": 50, "middle": 30, "small": 20}
    assert Mixture().quotas(COUNTS) == COUNTS


def test_temperature():
    counts = {"a": 100, "b": 400}  # square roots 10 and 20
    assert tempered(counts, 2.0) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert tempered(counts, 1.0) == pytest.approx({"a": 0.2, "b": 0.8})
    assert tempered(counts, 1e9) == pytest.approx({"a": 0.5, "b": 0.5})
    assert Mixture("temperature", temperature=2.0).quotas(counts) == {"a": 100, "b": 200}  # all of a, twice as many b
    assert Mixture("temperature", temperature=2.0, cap=100).weights(counts) == {"a": 0.5, "b": 0.5}


def test_fixed_shares():
    counts = {"a": 100, "b": 1000, "c": 10}
    assert Mixture("fixed", shares={"a": 1, "b": 3}).quotas(counts) == {"a": 100, "b": 300, "c": 0}
    with pytest.raises(UserError, match="unknown task of the mixture 'd'; there are: a, b, c"):
        Mixture("fixed", shares={"d": 1}).quotas(counts)


def test_largest_remainders():
    # 10 in the shares 1/2, 1/3, 1/6: 5, 3.33, 1.67
    assert allot({"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}, 10) == {"a": 5, "b": 3, "c": 2}
    assert allot({"b": 1, "a": 1, "c": 1}, 4) == {"b": 1, "a": 2, "c": 1}  # a tie goes by name


def test_what_is_missing_is_filled_by_the_others():
    # 100 in thirds; a has 10 only, so b and c share 90; b has 30 only, so c gives 60.
    assert allot({"a": 1, "b": 1, "c": 1}, 100, {"a": 10, "b": 30, "c": 500}) == {"a": 10, "b": 30, "c": 60}
    assert allot({"a": 1, "b": 1}, 100, {"a": 10, "b": 30}) == {"a": 10, "b": 30}


def test_largest_total():
    assert largest_total({"a": 0.5, "b": 0.25, "c": 0.25}, {"a": 100, "b": 30, "c": 70}) == 120
    assert largest_total({"a": 0.0}, {"a": 0}) == 0


@given(
    st.dictionaries(st.text("abcdef", min_size=1), st.tuples(st.floats(0.01, 5), st.integers(1, 50)), min_size=1),
    st.integers(0, 200),
)
def test_an_allotment_adds_up(tasks, total):
    weights = {name: weight for name, (weight, _) in tasks.items()}
    available = {name: number for name, (_, number) in tasks.items()}
    assert sum(allot(weights, total).values()) == total
    given = allot(weights, total, available)
    assert sum(given.values()) == min(total, sum(available.values()))
    assert all(0 <= given[name] <= available[name] for name in given)
    assert allot(dict(reversed(weights.items())), total, available) == given


def test_a_sample_does_not_depend_on_the_order_of_the_sources():
    tasks = [("a", range(1, 301)), ("b", range(1, 1001)), ("c", range(1, 41))]
    mixture = Mixture(cap=200, total=120)
    taken, plan = mixed(mixture, tasks, seed=3)
    assert {task: each.rows for task, each in plan.items()} == {"a": 55, "b": 54, "c": 11}  # of 54.5, 54.5 and 10.9
    shuffled = [(task, random.Random(1).sample(list(numbers), len(numbers))) for task, numbers in reversed(tasks)]
    assert mixed(mixture, shuffled, seed=3)[0] == taken
    assert mixed(mixture, tasks, seed=4)[0] != taken
    assert Counter(i.source for i in taken) == {"a.csv": 55, "b.csv": 54, "c.csv": 11}
    assert len({i.source for i in taken[:20]}) > 1  # tasks are mixed, not one after the other


def test_other_tasks_do_not_change_which_rows_a_task_gives():
    alone, _ = mixed(Mixture("fixed", shares={"a": 1}, total=50), [("a", range(300))], seed=3)
    beside, _ = mixed(
        Mixture("fixed", shares={"a": 1, "b": 1}, total=100), [("b", range(99)), ("a", range(300))], seed=3
    )
    assert [i for i in beside if i.source == "a.csv"] == alone


@pytest.mark.parametrize("repeat", [False, True])
def test_tasks_are_mixed_whatever_part_of_them_is_taken(repeat):
    """Any first part of the rows holds every task in its share."""
    mixture = Mixture("fixed", shares={"big": 1, "small": 1}, total=400, repeat=repeat)
    rows, _ = mixed(mixture, [("big", range(20_000)), ("small", range(250))], seed=3)
    assert len(rows) == 400
    for part in (rows[:100], rows[100:200], rows[300:]):
        small = sum(row.source == "small.csv" for row in part)
        assert 30 <= small <= 70  # 4 standard deviations of a fair draw


def test_rows_are_repeated_where_that_is_asked_for():
    tasks = [("a", range(10)), ("b", range(100))]
    mixture = Mixture("fixed", shares={"a": 1, "b": 1}, total=50, repeat=True)
    taken, plan = mixed(mixture, tasks)
    assert {task: (each.available, each.rows) for task, each in plan.items()} == {"a": (10, 25), "b": (100, 25)}
    times = Counter(i.row for i in taken if i.source == "a.csv")
    assert sorted(times.values()) == [2] * 5 + [3] * 5
    assert set(Counter(i.row for i in taken if i.source == "b.csv").values()) == {1}


def test_totals_in_tokens():
    def size(instance):
        return 10 if instance.source == "long.csv" else 1

    tasks = [("long", range(100)), ("short", range(1000))]  # 1,000 tokens each
    taken, plan = mixed(Mixture(total=215), tasks, size=size)
    assert {task: (each.quota, each.rows) for task, each in plan.items()} == {"long": (108, 10), "short": (107, 107)}
    assert len(taken) == 117


def test_nothing_taken_is_told():
    with pytest.raises(UserError, match="takes no row"):
        mixed(Mixture(total=0), [("a", range(5))])


def test_equal_prompts_fall_on_one_side():
    other = Instance((Message("user", "what is it 1 "), Message("assistant", "no")), "x.csv", 7)
    assert share_of(other, 1) == share_of(instance("a", 1), 1) != share_of(instance("a", 1), 2)
    inside = sum(share_of(instance("a", n), 0) < 0.2 for n in range(5000))
    assert 900 < inside < 1100
