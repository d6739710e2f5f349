from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from graftlm.generation.distributions import (
    allow_only_,
    draw,
    largest,
    penalise_counts_,
    penalise_repetition_,
    truncate_,
)

VOCABULARY = 1000


def some_logits(rows: int = 8, vocabulary: int = VOCABULARY, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * spread


def columns(rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> tuple[torch.Tensor, ...]:
    each = torch.ones(rows, dtype=torch.float64)
    return each.long() * top_k, each * top_p, each * min_p


@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 5000},
        {"top_p": 1e-20},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"top_k": 30, "top_p": 0.8},
        {"top_k": 300, "top_p": 0.95, "min_p": 0.02},
        {},
    ],
)
def test_truncation_equals_transformers(settings: dict[str, Any], spread: float) -> None:
    logits = some_logits(spread=spread)
    kinds = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    warpers = LogitsProcessorList([kinds[name](value) for name, value in settings.items()])
    expected = warpers(torch.zeros(len(logits), 1, dtype=torch.int64), logits.clone())
    chances = logits.softmax(-1)
    truncate_(chances, *columns(len(logits), **settings))
    assert torch.equal(chances > 0, expected.isfinite())
    torch.testing.assert_close(chances / chances.sum(-1, keepdim=True), expected.softmax(-1))


def test_equal_chances_stay_or_go_together() -> None:
    chances = torch.tensor([[0.1, 0.3, 0.3, 0.2, 0.1]] * 3, dtype=torch.float64)
    truncate_(chances, torch.tensor([1, 4, 0]), torch.tensor([1.0, 1.0, 0.4]).double(), torch.zeros(3).double())
    assert (chances > 0).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [3, 256, 257, 1000, 5000])
def test_rows_do_not_depend_on_each_other(vocabulary: int, dtype: torch.dtype) -> None:
    """Not in the last bit: the same functions on one row give the same row."""
    chances = some_logits(8, vocabulary, 1.0).to(dtype).softmax(-1)
    top_k = torch.tensor([0, 5, 0, 700, 0, 1, 0, 50])
    top_p = torch.tensor([1.0, 1.0, 0.5, 0.99, 0.9999, 1.0, 1.0, 0.2]).double()
    min_p = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.0, 0.0, 0.5, 0.0]).double()
    uniforms = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    together = chances.clone()
    truncate_(together, top_k, top_p, min_p)
    tokens = draw(together, uniforms)
    for number in range(8):
        row = slice(number, number + 1)
        alone = chances[row].clone()
        truncate_(alone, top_k[row], top_p[row], min_p[row])
        assert torch.equal(alone, together[row])
        assert draw(alone, uniforms[row])[0] == tokens[number]


def test_repetition_penalty_equals_transformers() -> None:
    logits = some_logits()
    seen = torch.randint(0, VOCABULARY, (len(logits), 50), generator=torch.Generator().manual_seed(1))
    seen[:, 10:20] = seen[:, :10]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits.clone())
    penalise_repetition_(logits, torch.full((len(logits),), 1.3), seen)
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=0)


def test_ids_past_the_vocabulary_are_penalised_nowhere() -> None:
    """Virtual tokens, and columns that hold no token yet: not even the last word of the vocabulary is."""
    scores = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 3.0]])
    seen = torch.tensor([[0, 3, 7], [3, 3, 9]])
    penalise_repetition_(scores, torch.tensor([2.0, 2.0]), seen)
    assert scores.tolist() == [[0.5, -2.0, 3.0], [1.0, -2.0, 3.0]]
    penalise_counts_(scores, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]), seen)
    assert scores.tolist() == [[-1.5, -2.0, 3.0], [1.0, -2.0, 3.0]]
    penalise_counts_(scores, torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]), seen[:, :0])
    assert scores.tolist() == [[-1.5, -2.0, 3.0], [1.0, -2.0, 3.0]]


def test_penalties_by_count_are_those_of_the_openai_api() -> None:
    scores = torch.tensor([[5.0, 5.0, -5.0, 5.0]] * 3)
    generated = torch.tensor([[1, 2, 1, 1, 4]] * 3)
    penalise_counts_(scores, torch.tensor([0.5, 0.0, -0.25]), torch.tensor([0.0, 0.75, 2.0]), generated)
    assert scores.tolist() == [[5.0, 3.5, -5.5, 5.0], [5.0, 4.25, -5.75, 5.0], [5.0, 3.75, -6.75, 5.0]]


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 70, 100])
def test_bits_of_a_constraint(vocabulary: int) -> None:
    """The first bit of a word is its token 0; the sign bit is a bit too. Too few words: the rest is not allowed."""
    allowed = torch.rand(2, 96, generator=torch.Generator().manual_seed(3)) < 0.5
    allowed[:, 31] = True
    words = [
        [sum(int(bit) << place for place, bit in enumerate(row[start : start + 32].tolist())) for start in (0, 32, 64)]
        for row in allowed
    ]
    bits = torch.tensor([[word - 2**32 if word >= 2**31 else word for word in row] for row in words], dtype=torch.int32)
    scores = torch.zeros(2, vocabulary)
    allow_only_(scores, bits)
    expected = torch.nn.functional.pad(allowed, (0, 4))[:, :vocabulary]
    assert torch.equal(scores == 0, expected)
    assert torch.equal(scores == -math.inf, ~expected)


@pytest.mark.parametrize("vocabulary", [1, 255, 256, 257, 1300])
def test_the_first_of_the_largest(vocabulary: int) -> None:
    scores = some_logits(64, vocabulary)
    assert torch.equal(largest(scores), scores.argmax(-1))
    assert torch.equal(largest(scores.round()), scores.round().argmax(-1))
    assert largest(torch.full((2, vocabulary), -math.inf)).tolist() == [0, 0]
    scores[:, vocabulary // 2] = math.nan
    assert ((largest(scores) >= 0) & (largest(scores) < vocabulary)).all()


@pytest.mark.parametrize("vocabulary", [11, 600])
def test_draws_follow_the_distribution(vocabulary: int) -> None:
    chances = some_logits(1, vocabulary, spread=1.0).softmax(-1)
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) * 0.6180339887498949) % 1.0
    drawn = draw(chances.expand(count, -1), uniforms).bincount(minlength=vocabulary).double()
    assert float((drawn - chances[0] * count).abs().max()) < 8  # evenly spread numbers: no chance involved


def test_draw_inverts_the_cumulative_distribution() -> None:
    chances = some_logits(64, 1300).exp()
    uniforms = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cumulative = (chances / chances.sum(-1, keepdim=True)).cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None], right=True).squeeze(1)
    assert torch.equal(draw(chances, uniforms), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 3, 256, 257, 5000])
def test_tokens_without_mass_are_never_drawn(dtype: torch.dtype, vocabulary: int) -> None:
    chances = torch.zeros(3, vocabulary, dtype=dtype)
    middle = vocabulary // 2
    chances[:, middle] = 1.0
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-52], dtype=torch.float64)
    assert draw(chances, uniforms).tolist() == [middle] * 3
    assert draw(chances * 0, uniforms).tolist() == [-1] * 3
    assert draw(chances * math.nan, uniforms).tolist() == [-1] * 3
