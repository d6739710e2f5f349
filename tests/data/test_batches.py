"""Which rows make a step, which run together, and how they are padded."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.batches import EncodedRow, epoch_steps, micro_batches, pad

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


def test_pad_by_hand() -> None:
    rows = [
        EncodedRow([11, 12, 13, 14], [True, False, True, True], "a.json", 1),
        EncodedRow([21, 22], [False, True], "a.json", 2),
        EncodedRow([31, 32, 33], [False, True, False], "a.json", 3),
    ]
    padded = pad(rows, pad_id=9)
    assert padded.input_ids.tolist() == [[11, 12, 13, 14], [21, 22, 9, 9], [31, 32, 33, 9]]
    assert padded.lengths == [4, 2, 3]
    # The state at a position predicts the token after it; a row's first token is never predicted.
    assert padded.positions.tolist() == [1, 2, 4, 8]
    assert padded.targets.tolist() == [13, 14, 22, 32]
    assert padded.counts == [2, 1, 1] == [row.n_supervised for row in rows]
    assert padded.input_ids.dtype == padded.positions.dtype == padded.targets.dtype == torch.int64


def test_masks_come_from_the_row_and_not_from_ids() -> None:
    """A padding id inside a row is a token like any other."""
    padded = pad([EncodedRow([9, 9, 9], [False, True, True], "t", 1), EncodedRow([9, 5], [False, True], "t", 2)], 9)
    assert padded.targets.tolist() == [9, 9, 5]


@pytest.mark.parametrize("row", [EncodedRow([1, 2], [True, False], "x.json", 7), EncodedRow([1], [True], "x.json", 7)])
def test_a_row_without_a_token_to_learn_is_an_error(row: EncodedRow) -> None:
    with pytest.raises(ValueError, match=r"x\.json, row 7: no token to learn"):
        pad([row], 0)


@given(lengths=LENGTHS, seed=st.integers(0, 2**63), grouped=st.booleans(), rows=st.integers(1, 9))
def test_every_row_once_an_epoch(lengths: list[int], seed: int, grouped: bool, rows: int) -> None:
    steps = epoch_steps(lengths, seed=seed, batch_rows=rows, group_by_length=grouped)
    assert sorted(itertools.chain(*steps)) == list(range(len(lengths)))
    assert sum(len(step) != rows for step in steps) <= 1, "only the last rows may be fewer"
    assert steps == epoch_steps(lengths, seed=seed, batch_rows=rows, group_by_length=grouped)


@given(lengths=LENGTHS, seed=st.integers(0, 99), grouped=st.booleans(), tokens=st.integers(1, 200))
def test_tokens_of_a_step(lengths: list[int], seed: int, grouped: bool, tokens: int) -> None:
    steps = epoch_steps(lengths, seed=seed, batch_tokens=tokens, group_by_length=grouped, window=1000)
    assert sorted(itertools.chain(*steps)) == list(range(len(lengths)))
    short = 0
    for step in steps:
        total = sum(lengths[index] for index in step)
        short += total < tokens
        assert total - lengths[step[-1]] < tokens, "one row less would not do"
    assert short <= 1


def test_another_seed_is_another_order() -> None:
    lengths = [5] * 64
    first, second = (epoch_steps(lengths, seed=seed, batch_rows=4) for seed in (0, 1))
    assert first != second
    assert list(itertools.chain(*first)) != list(range(64))


def test_length_grouping_leaves_little_padding() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [int(x) for x in torch.empty(1000).exponential_(1 / 80, generator=generator).clamp(5, 600)]

    def padding(grouped: bool) -> float:
        steps = epoch_steps(lengths, seed=0, batch_rows=8, group_by_length=grouped)
        slots = sum(len(step) * max(lengths[index] for index in step) for step in steps)
        return 1 - sum(lengths) / slots

    assert padding(True) < 0.1
    assert padding(False) > 0.4


def test_grouped_steps_are_shuffled_again() -> None:
    lengths = list(range(1, 257))
    longest = [max(lengths[index] for index in step) for step in epoch_steps(lengths, seed=0, batch_rows=8)]
    assert longest != sorted(longest)


# --- micro-batches ----------------------------------------------------------------------------------------------


def cost(batches: list[list[int]], lengths: list[int], overhead: int) -> int:
    return sum(len(batch) * max(lengths[index] for index in batch) + overhead for batch in batches)


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for smaller in partitions(rest):
        for number, group in enumerate(smaller):
            yield [*smaller[:number], [first, *group], *smaller[number + 1 :]]
        yield [[first], *smaller]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    max_tokens=st.integers(1, 90),
    overhead=st.sampled_from([0, 3, 20, 96]),
)
def test_micro_batches_are_the_best_of_all(lengths: list[int], max_tokens: int, overhead: int) -> None:
    def allowed(batch: list[int]) -> bool:
        return len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens

    found = micro_batches(lengths, max_tokens, overhead=overhead)
    assert sorted(itertools.chain(*found)) == list(range(len(lengths)))
    assert all(allowed(batch) for batch in found)
    best = min(
        cost(every, lengths, overhead)
        for every in partitions(list(range(len(lengths))))
        if all(allowed(batch) for batch in every)
    )
    assert cost(found, lengths, overhead) == best


@given(lengths=LENGTHS, max_tokens=st.integers(1, 400))
def test_micro_batches_keep_the_limit_and_begin_with_the_longest(lengths: list[int], max_tokens: int) -> None:
    batches = micro_batches(lengths, max_tokens)
    longest = [max(lengths[index] for index in batch) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch, length in zip(batches, longest, strict=True):
        assert len(batch) == 1 or len(batch) * length <= max_tokens


def test_no_rows_no_micro_batches() -> None:
    assert micro_batches([], 100) == []
    assert epoch_steps([], seed=0, batch_rows=4) == []


def test_only_one_step_of_an_epoch_may_fall_short_of_its_tokens() -> None:
    lengths = [5 + (7 * number) % 40 for number in range(600)]
    steps = epoch_steps(lengths, seed=3, batch_tokens=100, window=4)
    assert sorted(index for step in steps for index in step) == list(range(600))
    assert sum(sum(lengths[index] for index in step) < 100 for step in steps) <= 1


def test_targets_say_what_each_position_predicts() -> None:
    rows = [
        EncodedRow([5, 6, 7], [False] * 3, "a", 1, targets=[2, -1, 0]),
        EncodedRow([8, 9], [False, True], "a", 2),
    ]
    padded = pad(rows, pad_id=0)
    assert padded.positions.tolist() == [0, 2, 3]
    assert padded.targets.tolist() == [2, 0, 9]
    assert padded.counts == [2, 1] == [row.n_supervised for row in rows]
    assert padded.mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert padded.source_ids is None


def test_sources_are_padded_apart() -> None:
    rows = [
        EncodedRow([5, 6, 7], [False, True, True], "a", 1, source_ids=[3]),
        EncodedRow([8, 9], [False, True], "a", 2, source_ids=[4, 5]),
    ]
    padded = pad(rows, pad_id=0)
    assert padded.source_ids is not None
    assert padded.source_ids.tolist() == [[3, 0], [4, 5]]
    assert padded.source_mask is not None
    assert padded.source_mask.tolist() == [[1, 0], [1, 1]]
    assert padded.size == 10
    assert [row.tokens for row in rows] == [4, 4]
    with pytest.raises(ValueError, match="some have none"):
        pad([rows[0], EncodedRow([8, 9], [False, True], "a", 2)], pad_id=0)


def test_micro_batches_of_two_sequences_hold_the_limit() -> None:
    draw = random.Random(5)
    lengths = [draw.randint(1, 30) for _ in range(60)]
    sources = [draw.randint(1, 30) for _ in range(60)]
    batches = micro_batches(lengths, 200, source_lengths=sources)
    assert sorted(index for batch in batches for index in batch) == list(range(60))
    for batch in batches:
        longest = max(lengths[index] for index in batch) + max(sources[index] for index in batch)
        assert len(batch) * longest <= 200
