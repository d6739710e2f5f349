from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from graftlm.generation.requests import SamplingSettings
from graftlm.generation.sampling import (
    RowSettings,
    choose,
    draw,
    lowest_kept,
    penalise_repetition,
    sample_seed,
    uniform,
)

VOCABULARY = 1000


def some_logits(rows: int = 8, vocabulary: int = VOCABULARY, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * spread


@pytest.mark.parametrize("spread", [0.1, 3.0])  # flat logits need more than the first look of top_p
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 5000},
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
    expected = logits.clone()
    dummy = torch.zeros(len(logits), 1, dtype=torch.int64)
    expected = TemperatureLogitsWarper(0.7)(dummy, expected)
    if "top_k" in settings:
        expected = TopKLogitsWarper(settings["top_k"])(dummy, expected)
    if "top_p" in settings:
        expected = TopPLogitsWarper(settings["top_p"])(dummy, expected)
    if "min_p" in settings:
        expected = MinPLogitsWarper(settings["min_p"])(dummy, expected)
    rows = RowSettings.of([SamplingSettings(temperature=0.7, **settings)] * len(logits))
    scores = logits / 0.7
    lowest = lowest_kept(scores, rows.top_k, rows.top_p, rows.min_p)
    assert torch.equal(scores >= lowest[:, None], expected.isfinite())


def test_every_row_has_its_own_settings() -> None:
    logits = some_logits()
    each = [
        SamplingSettings(temperature=1.0, top_k=k, top_p=p, min_p=m)
        for k, p, m in (
            (0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.5, 0.0), (700, 0.99, 0.1),
            (0, 0.9999, 0.0), (1, 1.0, 0.0), (0, 1.0, 0.5), (50, 0.2, 0.0),
        )
    ]  # fmt: skip
    rows = RowSettings.of(each)
    together = lowest_kept(logits, rows.top_k, rows.top_p, rows.min_p)
    for number, settings in enumerate(each):
        row = RowSettings.of([settings])
        one = lowest_kept(logits[number : number + 1], row.top_k, row.top_p, row.min_p)
        assert one[0] == together[number]


def test_repetition_penalty_equals_transformers() -> None:
    logits = some_logits()
    seen = torch.randint(0, VOCABULARY, (len(logits), 50), generator=torch.Generator().manual_seed(1))
    seen[:, 10:20] = seen[:, :10]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(seen, logits.clone())
    ours = penalise_repetition(logits, torch.full((len(logits),), 1.3), seen)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_draws_follow_the_distribution() -> None:
    logits = some_logits(1, 11, spread=1.0)
    count = 20_000
    uniforms = torch.tensor([uniform(seed, seed % 7) for seed in range(count)], dtype=torch.float64)
    drawn = draw(logits.expand(count, -1), uniforms).bincount(minlength=11).double()
    expected = logits.softmax(-1)[0] * count
    chi_square = float(((drawn - expected) ** 2 / expected).sum())
    assert chi_square < 29.6  # 10 degrees of freedom, p = 0.001


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = some_logits(64, 1300)
    uniforms = torch.rand(64, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cumulative = logits.softmax(-1).cumsum(-1)
    expected = torch.searchsorted(cumulative, uniforms[:, None], right=True).squeeze(1)
    assert torch.equal(draw(logits, uniforms), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vocabulary", [1, 3, 256, 257, 5000])
def test_tokens_without_mass_are_never_drawn(dtype: torch.dtype, vocabulary: int) -> None:
    logits = torch.full((3, vocabulary), -math.inf, dtype=dtype)
    middle = vocabulary // 2
    logits[:, middle] = 0.0
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-52], dtype=torch.float64)
    assert draw(logits, uniforms).tolist() == [middle] * 3


def test_uniform_numbers() -> None:
    numbers = torch.tensor(
        [uniform(seed, position) for seed in range(200) for position in range(50)], dtype=torch.float64
    )
    assert 0.0 <= float(numbers.min()) < float(numbers.max()) < 1.0
    counts = torch.histc(numbers.float(), 20, 0.0, 1.0)
    assert float(((counts - 500) ** 2 / 500).sum()) < 43.8  # 19 degrees of freedom, p = 0.001
    assert len(numbers.unique()) == len(numbers)
    assert uniform(7, 3) == uniform(7, 3) != uniform(7, 4)


def test_choose_mixes_greedy_and_sampled_rows() -> None:
    logits = some_logits(4)
    greedy, hot = SamplingSettings(), SamplingSettings(temperature=5.0)
    uniforms = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    tokens, log_probs = choose(logits, RowSettings.of([greedy, hot, greedy, hot]), uniforms)
    best = logits.argmax(-1)
    assert (tokens[0], tokens[2]) == (best[0], best[2])
    assert torch.equal(tokens[[1, 3]], draw(logits[[1, 3]] / 5.0, uniforms[[1, 3]]))
    expected = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs, expected)


def test_samples_of_a_request_have_streams_of_their_own() -> None:
    assert sample_seed(5, 0) == 5
    seeds = [sample_seed(seed, index) for seed in range(10) for index in range(50)]
    assert len({uniform(seed, 0) for seed in seeds}) == 500


def test_ids_past_the_vocabulary_are_penalised_nowhere() -> None:
    """Virtual tokens, and columns that hold no token yet: not even the last word of the vocabulary is."""
    logits, seen = torch.tensor([[1.0, -2.0, 3.0], [1.0, -2.0, 3.0]]), torch.tensor([[0, 3, 7], [3, 3, 9]])
    found = penalise_repetition(logits, torch.tensor([2.0, 2.0]), seen)
    assert found.tolist() == [[0.5, -2.0, 3.0], [1.0, -2.0, 3.0]]
