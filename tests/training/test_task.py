"""Which rows make which optimizer step, and how many steps there are."""

from __future__ import annotations

import itertools
from array import array
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from graftlm.data.batches import EncodedRow
from graftlm.training.settings import AdapterTraining
from graftlm.training.task import Task
from tests.training.work import make_rows


def task(count: int = 10, **settings: Any) -> Task:
    return Task("a", make_rows(count), AdapterTraining.model_validate(settings))


def sizes(one: Task) -> list[int]:
    return [len(step) for step in one.steps]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"batch_rows": 2}, 5),
        ({"batch_rows": 3}, 4),
        ({"batch_rows": 100}, 1),
        ({}, 1),  # 16 rows
        ({"batch_rows": 2, "epochs": 3}, 15),
        ({"batch_rows": 2, "epochs": 0.4}, 2),
        ({"batch_rows": 2, "epochs": 0.01}, 1),  # at least one step
        ({"batch_rows": 2, "epochs": 2.6}, 13),
        ({"batch_rows": 2, "epochs": 3, "max_steps": 7}, 7),
        ({"batch_rows": 2, "max_steps": 7}, 5),  # epochs end it first
    ],
)
def test_number_of_steps(settings: dict[str, Any], steps: int) -> None:
    assert len(task(**settings).steps) == steps


@pytest.mark.parametrize("group_by_length", [True, False])
@pytest.mark.parametrize("settings", [{"batch_rows": 3}, {"batch_tokens": 25}, {}])
def test_every_row_once_an_epoch(settings: dict[str, Any], group_by_length: bool) -> None:
    one = task(25, group_by_length=group_by_length, **settings)
    assert sorted(itertools.chain(*one.steps)) == list(range(25))
    twice = task(25, epochs=2, group_by_length=group_by_length, **settings)
    assert twice.steps[: len(one.steps)] == one.steps
    second = twice.steps[len(one.steps) :]
    assert sorted(itertools.chain(*second)) == list(range(25))
    assert second != one.steps, "each epoch has an order of its own"


@pytest.mark.parametrize("group_by_length", [True, False])
def test_batch_tokens_are_reached_and_no_row_too_many(group_by_length: bool) -> None:
    one = task(40, batch_tokens=30, group_by_length=group_by_length)
    totals = [[len(one.rows[index].ids) for index in step] for step in one.steps]
    short = [lengths for lengths in totals if sum(lengths) < 30]
    assert len(short) <= 1, "only the last step of the epoch may be smaller"
    for lengths in totals:
        assert sum(lengths[:-1]) < 30


def test_like_lengths_together() -> None:
    def padding(one: Task) -> int:
        lengths = [[len(one.rows[index].ids) for index in step] for step in one.steps]
        return sum(len(step) * max(step) - sum(step) for step in lengths)

    assert padding(task(64, batch_rows=4)) < 0.25 * padding(task(64, batch_rows=4, group_by_length=False))


def test_the_seed_changes_the_order_and_the_dropout() -> None:
    one, other = task(seed=0, batch_rows=2), task(seed=1, batch_rows=2)
    assert one.steps == task(seed=0, batch_rows=2).steps
    assert one.steps != other.steps
    seeds = [[row.seeds for step in range(5) for row in each.step_rows(step)] for each in (one, other)]
    assert not set(seeds[0]) & set(seeds[1])


def test_a_batch_has_rows_or_tokens() -> None:
    with pytest.raises(ValueError, match="batch_rows or batch_tokens, not both"):
        AdapterTraining(batch_rows=2, batch_tokens=100)


def test_targets_and_sources_are_part_of_the_digest() -> None:
    row = EncodedRow([5, 6], [False, True], "rows", 1)
    rows = [row, replace(row, targets=[-1, 1]), replace(row, source_ids=[-1, 1])]
    digests = [Task("a", (one,)).digest for one in rows]
    assert len(set(digests)) == 3
    old = sha256(array("q", row.ids).tobytes() + b"|" + bytes(row.supervised) + b"|").hexdigest()
    assert digests[0] == old
