"""Encoder-decoders write: as transformers' generate does, all methods together, whenever requests come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm import AdaptedModel, LoRA, Prefix, Prompt
from graftlm.adapters.merge import export_merged
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from tests.adapters.grid import model_with_all
from tests.families import ENCODER_DECODERS, VOCABULARY, add_random, make_base
from tests.generation.arrivals import check_arrivals
from tests.generation.test_batching import prompt_of, sampled, tokens_of

FAMILIES = tuple(ENCODER_DECODERS)
SMALL = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.15,
    "max_position_embeddings": 64,
}


def greedy(new: int = 9, stop: tuple[int, ...] = (2,), **more: Any) -> SamplingSettings:
    return SamplingSettings(max_new_tokens=new, stop_ids=stop, **more)


def generated(base: Any, prompt: Sequence[int], new: int, **settings: Any) -> tuple[int, ...]:
    """What transformers' own loop writes after the decoder's start token."""
    given = {"do_sample": False, "eos_token_id": 2, "forced_eos_token_id": None, **settings}
    found = base.generate(torch.tensor([list(prompt)]), max_new_tokens=new, **given)
    return tuple(found[0, 1:].tolist())


def scored(model: AdaptedModel, request: Request, start: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Log-probabilities of an answer, in a pass over all of it."""
    decoder = torch.tensor([[*start, *answer]])
    with torch.no_grad():
        logits = model(
            torch.tensor([request.prompt_ids]),
            adapters=request.adapters,
            decoder_input_ids=decoder[:, :-1],
            use_cache=False,
        ).logits[0, len(start) - 1 :]
    found = logits.log_softmax(-1).gather(1, decoder[0, len(start) :, None])
    return found.squeeze(1).tolist()  # type: ignore[no-any-return]


def start_of(model: AdaptedModel) -> tuple[int]:
    return (int(model.base.config.decoder_start_token_id),)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_generate(family_model: Callable[[str], AdaptedModel], family: str) -> None:
    model = family_model(family)
    requests = [Request(prompt_of(3 + 5 * n % 17, n), None, greedy(4 + 3 * n % 19)) for n in range(9)]
    found = tokens_of(Engine(model, max_batch_rows=4).run(requests))
    for request, tokens in zip(requests, found, strict=True):
        assert tokens == generated(model.base, request.prompt_ids, request.sampling.max_new_tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_the_merged_model(
    family_model: Callable[[str], AdaptedModel], family: str, tmp_path: Path
) -> None:
    model = family_model(family)
    export_merged(model, ["a", "b"], tmp_path / "merged")
    merged = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged", dtype=model.dtype)
    requests = [Request(prompt_of(4 + n, n), ("a", "b"), greedy(12)) for n in range(5)]
    for request, tokens in zip(requests, tokens_of(Engine(model).run(requests)), strict=True):
        assert tokens == generated(merged, request.prompt_ids, 12)


@pytest.mark.parametrize("family", FAMILIES)
def test_repetition_counts_the_decoders_tokens(family_model: Callable[[str], AdaptedModel], family: str) -> None:
    model = family_model(family)
    request = Request(prompt_of(9), None, greedy(15, repetition_penalty=1.7))
    assert Engine(model).run([request])[0].token_ids == generated(
        model.base, request.prompt_ids, 15, repetition_penalty=1.7
    )


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-7), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_methods_decode_together_as_they_score(family: str, dtype: torch.dtype, within: float) -> None:
    model = model_with_all(family, dtype=dtype)
    routings: list[Any] = [*model.adapters, None, ("lora", "prefix"), ("prompt", "seq_bn"), ("prefix-plain", "prefix")]
    requests = [
        Request(prompt_of(3 + number % 7, number), adapters, sampled(4 + number % 5, seed=number))
        for number, adapters in enumerate(routings)
    ]
    engine = Engine(model, max_batch_rows=7, prefill_tokens=16)
    completions = engine.run(requests)
    for request, completion in zip(requests, completions, strict=True):
        expected = scored(model, request, start_of(model), completion.token_ids)
        assert completion.log_probs == pytest.approx(expected, abs=within), request.adapters
    if dtype == torch.float64:
        assert tokens_of(Engine(model).run(requests[::-1]))[::-1] == tokens_of(completions)
        assert [Engine(model).run([request])[0].token_ids for request in requests] == tokens_of(completions)


@pytest.fixture(scope="module")
def mixed() -> Callable[[str], AdaptedModel]:
    built: dict[str, AdaptedModel] = {}

    def get(family: str) -> AdaptedModel:
        if family not in built:
            built[family] = AdaptedModel(make_base(family, dtype=torch.float64))
            add_random(
                built[family], {"a": LoRA(rank=2), "b": Prefix(length=5, projection=False), "c": Prompt(length=3)}
            )
        return built[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 30), st.integers(1, 20), st.sampled_from([None, "a", "b", "c"])),
        min_size=1,
        max_size=8,
    ),
    rows=st.integers(1, 5),
    chunk=st.integers(1, 40),
)
def test_whenever_requests_come_they_get_the_same(
    mixed: Callable[[str], AdaptedModel],
    family: str,
    arrivals: list[tuple[int, int, int, str | None]],
    rows: int,
    chunk: int,
) -> None:
    model = mixed(family)
    requests = [
        (step, Request(prompt_of(length, n), adapters, sampled(new, seed=n), id=n))
        for n, (step, length, new, adapters) in enumerate(arrivals)
    ]
    engine = Engine(model, max_batch_rows=rows, prefill_tokens=chunk, cache_tokens=160)
    check_arrivals(model, engine, requests)


@pytest.mark.parametrize("family", ["Marian", "Pegasus", "M2M100"])
def test_rows_of_all_ages_where_families_number_positions_in_their_own_ways(family: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        **SMALL, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2
    )
    model = AdaptedModel(transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float64))
    add_random(model, {"a": LoRA(rank=2), "b": Prefix(length=5, projection=False)})
    requests = [
        Request(prompt_of(3 + n, n), (None, "a", "b")[n % 3], sampled(3 + 5 * n % 14, seed=n)) for n in range(8)
    ]
    for request, completion in zip(requests, Engine(model, max_batch_rows=3).run(requests), strict=True):
        expected = scored(model, request, (2,), completion.token_ids)
        assert completion.log_probs == pytest.approx(expected, abs=1e-7)


def test_samples_of_a_source_read_it_once(family_model: Callable[[str], AdaptedModel]) -> None:
    model = family_model("bart")
    engine = Engine(model)
    samples = engine.run([Request(prompt_of(11), "a", sampled(8, n=4)), Request(prompt_of(11), "b", sampled(3))])
    assert engine.statistics.read == 22
    assert len(set(tokens_of(samples[:4]))) == 4


def test_a_forced_first_token_belongs_to_the_start(family_model: Callable[[str], AdaptedModel]) -> None:
    model = AdaptedModel(make_base("bart", dtype=torch.float64))
    model.base.generation_config.forced_bos_token_id = 1
    request = Request(prompt_of(8), None, greedy(10))
    found = Engine(model).run([request])[0]
    assert (1, *found.token_ids) == generated(model.base, request.prompt_ids, 11)
    assert found.log_probs == pytest.approx(scored(model, request, (2, 1), found.token_ids), abs=1e-7)


class TestLimits:
    def test_of_the_source(self, family_model: Callable[[str], AdaptedModel]) -> None:
        model = family_model("bart")
        engine = Engine(model)
        full = engine.run([Request(prompt_of(64), None, greedy(3, ()))])[0]
        assert full.finish_reason == "length"
        with pytest.raises(UserError, match="the prompt has 65 tokens, but the context of the model is 64"):
            engine.submit(Request(prompt_of(65)))
        with pytest.raises(UserError, match="the prompt is empty"):
            engine.submit(Request(()))

    def test_of_the_answer(self, mixed: Callable[[str], AdaptedModel]) -> None:
        engine = Engine(mixed("bart"))
        long, short = engine.run([Request(prompt_of(60), name, greedy(1000, ())) for name in (None, "b")])
        assert (long.finish_reason, len(long.token_ids)) == ("context", 63)
        assert (short.finish_reason, len(short.token_ids)) == ("context", 58)

    def test_no_log_probs_of_the_prompt(self, family_model: Callable[[str], AdaptedModel]) -> None:
        with pytest.raises(UserError, match=r"prompt_log_probs: .* predicts no token of its prompt"):
            Engine(family_model("t5")).submit(Request((4, 5), None, greedy(prompt_log_probs=True)))

    def test_no_start(self) -> None:
        model = AdaptedModel(make_base("bart"))
        model.base.config.decoder_start_token_id = None
        model.base.generation_config.decoder_start_token_id = None
        with pytest.raises(UserError, match="names no decoder_start_token_id"):
            Engine(model)
