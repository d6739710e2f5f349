from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as some
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from graftlm.generation.distributions import draw
from graftlm.generation.requests import SamplingSettings
from graftlm.generation.sampling import (
    Allowed,
    RowSettings,
    choose,
    choose_and_tell,
    sample_seed,
    top_log_probs,
    uniform,
)

VOCABULARY = 1000


def some_logits(rows: int = 8, vocabulary: int = VOCABULARY, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64) * spread


def some_uniforms(rows: int) -> torch.Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def some_ids(rows: int, number: int = 40) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, number), generator=torch.Generator().manual_seed(5))


def test_uniform_numbers() -> None:
    numbers = torch.tensor(
        [uniform(seed, position) for seed in range(200) for position in range(50)], dtype=torch.float64
    )
    assert 0.0 <= float(numbers.min()) < float(numbers.max()) < 1.0
    counts = torch.histc(numbers.float(), 20, 0.0, 1.0)
    assert float(((counts - 500) ** 2 / 500).sum()) < 43.8  # 19 degrees of freedom, p = 0.001
    assert len(numbers.unique()) == len(numbers)
    assert uniform(7, 3) == uniform(7, 3) != uniform(7, 4)


def test_samples_of_a_request_have_streams_of_their_own() -> None:
    assert sample_seed(5, 0) == 5
    seeds = [sample_seed(seed, index) for seed in range(10) for index in range(50)]
    assert len({uniform(seed, 0) for seed in seeds}) == 500


@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0}, {"top_k": 6}, {"top_p": 0.8}, {"logit_bias": {3: 1.5}}])
def test_choices_follow_the_distribution(settings: dict[str, Any]) -> None:
    logits, count = some_logits(1, 11, spread=1.0), 20_000
    row = SamplingSettings(**{"temperature": 1.0, **settings})
    numbers = [uniform(sample_seed(seed, seed % 3), seed % 7) for seed in range(count)]
    uniforms = torch.tensor(numbers, dtype=torch.float64)
    drawn = choose(logits.expand(count, -1), RowSettings.of([row] * count), uniforms)[0].bincount(minlength=11).double()
    expected = logits.clone()
    for token, bias in row.biases.items():
        expected[:, token] += bias
    expected = TemperatureLogitsWarper(row.temperature)(None, expected)
    if row.top_k:
        expected = TopKLogitsWarper(row.top_k)(None, expected)
    if row.top_p < 1:
        expected = TopPLogitsWarper(row.top_p)(None, expected)
    expected = expected.softmax(-1)[0] * count
    assert (drawn[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = float(((drawn - expected)[kept] ** 2 / expected[kept]).sum())
    assert chi_square < 29.6  # at most 10 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 1.4, "logit_bias": {3: 2.0, 700: -1.0, 40: -math.inf}},
        {"repetition_penalty": 0.7, "temperature": 0.6, "top_k": 40},
        {"logit_bias": {3: 9.0, 4: 9.5}, "temperature": 1.7, "top_p": 0.7},
        {
            "repetition_penalty": 1.3,
            "logit_bias": {5: 12.0},
            "temperature": 1.7,
            "top_k": 90,
            "top_p": 0.9,
            "min_p": 0.05,
        },
    ],
)
def test_choices_equal_transformers_processors_in_their_order(settings: dict[str, Any]) -> None:
    row = SamplingSettings(**settings)
    logits, uniforms, history = some_logits(), some_uniforms(8), some_ids(8)
    processors = LogitsProcessorList()
    if row.biases:
        processors.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in row.biases.items()]))
    if row.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(row.repetition_penalty))
    if row.temperature:
        processors.append(TemperatureLogitsWarper(row.temperature))
    if row.top_k:
        processors.append(TopKLogitsWarper(row.top_k))
    if row.top_p < 1:
        processors.append(TopPLogitsWarper(row.top_p))
    if row.min_p:
        processors.append(MinPLogitsWarper(row.min_p))
    scores = processors(history, logits.clone())
    expected = draw(scores.softmax(-1), uniforms) if row.temperature else scores.argmax(-1)
    tokens, log_probs, drawn = choose_and_tell(logits, RowSettings.of([row] * 8), uniforms, history)
    assert torch.equal(tokens, expected)
    torch.testing.assert_close(log_probs, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1))
    known = scores.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(drawn, known if row.temperature else torch.zeros_like(drawn), rtol=1e-4, atol=1e-5)


def test_penalties_by_count_and_biases_change_the_choice() -> None:
    logits = torch.tensor([[3.0, 2.5, 0.0, -1.0]]).repeat(6, 1)
    rows = [
        SamplingSettings(),
        SamplingSettings(frequency_penalty=0.2),  # 3 - 2 * 0.2 = 2.6
        SamplingSettings(frequency_penalty=0.3),  # 2.4
        SamplingSettings(presence_penalty=0.6),
        SamplingSettings(logit_bias={3: 4.5}),
        SamplingSettings(logit_bias={0: -math.inf}, presence_penalty=-1.0),
    ]
    settings = RowSettings.of(rows)
    assert (settings.penalised, settings.counted) == (False, True)
    generated = torch.tensor([[0, 0, 9]]).repeat(6, 1)
    tokens, log_probs = choose(logits, settings, torch.zeros(6, dtype=torch.float64), generated=generated)
    assert tokens.tolist() == [0, 0, 1, 1, 3, 1]
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[range(6), tokens])


def test_choose_mixes_greedy_and_sampled_rows() -> None:
    logits, uniforms = some_logits(4), some_uniforms(4)
    greedy, hot = SamplingSettings(), SamplingSettings(temperature=5.0)
    tokens, log_probs = choose(logits, RowSettings.of([greedy, hot, greedy, hot]), uniforms)
    best = logits.argmax(-1)
    assert (tokens[0], tokens[2]) == (best[0], best[2])
    assert torch.equal(tokens[[1, 3]], draw((logits[[1, 3]] / 5.0).softmax(-1), uniforms[[1, 3]]))
    expected = logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
    torch.testing.assert_close(log_probs, expected)


def some_settings() -> some.SearchStrategy[SamplingSettings]:
    return some.builds(
        SamplingSettings,
        temperature=some.sampled_from([0.0, 0.5, 1.0, 3.0]),
        top_k=some.sampled_from([0, 1, 30]),
        top_p=some.sampled_from([1.0, 0.6]),
        min_p=some.sampled_from([0.0, 0.1]),
        repetition_penalty=some.sampled_from([1.0, 1.5]),
        presence_penalty=some.sampled_from([0.0, 0.7]),
        frequency_penalty=some.sampled_from([0.0, -0.3]),
        logit_bias=some.sampled_from([{}, {3: 8.0, 9: -math.inf}]),
        top_log_probs=some.sampled_from([0, 3]),
    )


@hypothesis_settings(max_examples=60, deadline=None)
@given(some.lists(some_settings(), min_size=1, max_size=20), some.data())
def test_a_row_gets_the_same_whatever_stands_beside_it(rows: list[SamplingSettings], data: some.DataObject) -> None:
    """To the last bit, in float32: alone, and among others of any settings."""
    number = len(rows)
    logits, uniforms, history, generated = (
        some_logits(number).float(),
        some_uniforms(number),
        some_ids(number),
        some_ids(number, 9),
    )
    bound = data.draw(some.lists(some.integers(0, number - 1), unique=True))
    bits = torch.full((len(bound), 32), 0x55555555, dtype=torch.int32)
    tokens, log_probs = choose(
        logits, RowSettings.of(rows), uniforms, history, generated, Allowed(bound, bits) if bound else None
    )
    top = top_log_probs(logits, RowSettings.of(rows))
    for row in range(number):
        one, own = slice(row, row + 1), RowSettings.of([rows[row]])
        allowed = Allowed([0], bits[:1]) if row in bound else None
        token, log_prob = choose(logits[one], own, uniforms[one], history[one], generated[one], allowed)
        assert (token[0], log_prob[0]) == (tokens[row], log_probs[row])
        assert top_log_probs(logits[one], own).get(0, ()) == top.get(row, ())
        assert row not in bound or int(token[0]) % 2 == 0


def test_likeliest_tokens() -> None:
    logits = some_logits(3).float()
    settings = RowSettings.of(
        [SamplingSettings(top_log_probs=2), SamplingSettings(), SamplingSettings(top_log_probs=5)]
    )
    found = top_log_probs(logits, settings)
    assert sorted(found) == [0, 2]
    for row, most in ((0, 2), (2, 5)):
        values, ids = logits[row].double().log_softmax(-1).topk(most)
        assert [token for token, _ in found[row]] == ids.tolist()
        torch.testing.assert_close(torch.tensor([value for _, value in found[row]]), values.float())
    assert top_log_probs(logits, RowSettings.of([SamplingSettings()] * 3)) == {}
    small = top_log_probs(logits[:, :3], RowSettings.of([SamplingSettings(top_log_probs=20)] * 3))
    assert [len(row) for row in small.values()] == [3, 3, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_rows_with_nothing_to_choose_from(temperature: float) -> None:
    """NaN logits show in the log-probability, a constraint that allows nothing in the token; the others go on."""
    logits = some_logits(4).float()
    logits[1] = math.nan
    nothing = Allowed([2], torch.zeros(1, 32, dtype=torch.int32))
    rows = [SamplingSettings(temperature=temperature)] * 4
    tokens, log_probs = choose(logits, RowSettings.of(rows), some_uniforms(4), allowed=nothing)
    free = choose(logits[[0, 3]], RowSettings.of(rows[:2]), some_uniforms(4)[[0, 3]])
    assert torch.equal(tokens[[0, 3]], free[0])
    assert torch.equal(log_probs[[0, 3]], free[1])
    assert log_probs.isfinite().tolist() == [True, False, True, True]
    assert tokens[2] == -1


def test_tokens_that_a_penalty_needs_must_be_given() -> None:
    uniforms = some_uniforms(1)
    with pytest.raises(ValueError, match="need history"):
        choose(some_logits(1), RowSettings.of([SamplingSettings(repetition_penalty=2.0)]), uniforms)
    with pytest.raises(ValueError, match="need generated"):
        choose(some_logits(1), RowSettings.of([SamplingSettings(presence_penalty=2.0)]), uniforms)


def test_extreme_settings_stay_finite() -> None:
    logits = some_logits(2).float() * 100
    rows = [SamplingSettings(temperature=1e-5), SamplingSettings(temperature=1e300, logit_bias={5: 1e9})]
    tokens, log_probs = choose(logits, RowSettings.of(rows), some_uniforms(2))
    assert tokens[0] == logits[0].argmax()
    assert 0 <= tokens[1] < VOCABULARY
    assert log_probs.isfinite().all()
