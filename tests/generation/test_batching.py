"""Rows that join and leave at any step, prompts read in chunks or once for several, and errors of one request alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.routing import mix_seed
from graftlm.errors import UserError
from graftlm.generation import Completion, Engine, Request, SamplingSettings
from tests.adapters.grid import DECODERS, model_with_all
from tests.families import VOCABULARY, make_base, randomise
from tests.generation.arrivals import check_arrivals


def prompt_of(length: int, seed: int = 0) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(3, VOCABULARY) for _ in range(length))


def sampled(new: int = 6, **more: Any) -> SamplingSettings:
    return SamplingSettings(**{"max_new_tokens": new, "temperature": 1.1, "stop_ids": (), "seed": 5, **more})


def tokens_of(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


def scored(model: AdaptedModel, request: Request, ids: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (ids) of what follows the first of ``ids``, in a pass over all of them."""
    given = torch.tensor([list(ids)])
    with torch.no_grad():
        logits = model(given, adapters=request.adapters, use_cache=False).logits[0]
    return logits.log_softmax(-1)[:-1].gather(1, given[0, 1:, None]).squeeze(1)


@pytest.fixture(scope="module")
def all_methods() -> Callable[[str], AdaptedModel]:
    built: dict[str, AdaptedModel] = {}

    def get(family: str) -> AdaptedModel:
        if family not in built:
            built[family] = model_with_all(family, dtype=torch.float64)
        return built[family]

    return get


@pytest.mark.parametrize("family", DECODERS)
def test_all_methods_decode_together_as_they_score(all_methods: Callable[[str], AdaptedModel], family: str) -> None:
    model = all_methods(family)
    routings: list[Any] = [*model.adapters, None]
    if "prefix" in model.adapters:
        routings += [("lora", "prefix"), ("prompt", "seq_bn"), ("prefix-plain", "prefix", "prompt")]
    requests = [
        Request(prompt_of(3 + number % 7, number), adapters, sampled(4 + number % 5, seed=number))
        for number, adapters in enumerate(routings)
    ]
    engine = Engine(model, max_batch_rows=7, prefill_tokens=16)
    for request, completion in zip(requests, engine.run(requests), strict=True):
        expected = scored(model, request, [*request.prompt_ids, *completion.token_ids])[-len(completion.token_ids) :]
        assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-6), request.adapters
    assert tokens_of(Engine(model).run(requests[::-1]))[::-1] == tokens_of(engine.run(requests))


@pytest.mark.parametrize("tokens", [1, 3, 8])
@pytest.mark.parametrize("family", ["llama", "gemma3", "falcon_alibi"])
def test_prompts_in_chunks(family_model: Callable[[str], AdaptedModel], family: str, tokens: int) -> None:
    model = family_model(family)
    requests = [Request(prompt_of(n, n), "a" if n % 2 else None, sampled(seed=n)) for n in (20, 7, 33, 1, 12)]
    expected = Engine(model, prefill_tokens=4096).run(requests)
    found = Engine(model, prefill_tokens=tokens).run(requests)
    assert tokens_of(found) == tokens_of(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5 if model.dtype == torch.float32 else 1e-9)


def test_a_long_prompt_holds_nobody_up(llama: AdaptedModel) -> None:
    engine = Engine(llama, prefill_tokens=4)
    engine.submit(Request((5, 6), None, sampled(30), id="running"))
    engine.step()
    engine.submit(Request(prompt_of(40), None, sampled(3), id="long"))
    engine.submit(Request(prompt_of(3), None, sampled(3), id="short"))
    order, running = [], 0
    while "long" not in order:
        events = engine.step()
        running += sum(event.request_id == "running" for event in events)
        order += [event.request_id for event in events if event.completion is not None]
        assert any(event.request_id == "running" for event in events) or "running" in order
    assert order.index("short") < order.index("long")
    assert running >= 10


class TestPrefixes:
    def test_are_read_once(self, llama: AdaptedModel) -> None:
        shared = prompt_of(35)
        requests = [Request((*shared, 5 + n, 7), "a", sampled(seed=n)) for n in range(3)]
        engine = Engine(llama)
        found = engine.run(requests)
        assert engine.statistics.reused == 2 * 32  # whole blocks of 16
        assert engine.statistics.read == 3 * 37 - 2 * 32
        assert tokens_of(found) == tokens_of([Engine(llama).run([request])[0] for request in requests])
        again = engine.run(requests)
        assert tokens_of(again) == tokens_of(found)
        assert engine.statistics.reused == 5 * 32

    def test_belong_to_adapters(self, llama: AdaptedModel) -> None:
        engine = Engine(llama)
        for adapters in ("a", "b", None, ("a", "b"), ("b", "a")):
            request = Request(prompt_of(40), adapters, sampled())
            assert engine.run([request])[0].token_ids == Engine(llama).run([request])[0].token_ids
        assert engine.statistics.reused == 0

    def test_belong_to_versions(self) -> None:
        model = AdaptedModel(make_base("llama", dtype=torch.float64))
        randomise(model.add("a", LoRA(rank=2)), seed=1)
        engine, request = Engine(model), Request(prompt_of(40), "a", sampled(12))
        first = engine.run([request])[0]
        with torch.no_grad():
            for parameter in model.adapter("a").parameters():
                parameter.mul_(2)  # a step of training
        second = engine.run([request])[0]
        model.remove("a")
        randomise(model.add("a", LoRA(rank=2)), seed=3)
        third = engine.run([request])[0]
        assert engine.statistics.reused == 0
        assert third.token_ids == Engine(model).run([request])[0].token_ids
        assert len({first.token_ids, second.token_ids, third.token_ids}) == 3

    def test_of_answers(self, llama: AdaptedModel) -> None:
        engine = Engine(llama, keep_answers=True)
        first = engine.run([Request(prompt_of(20), "a", sampled(20))])[0]
        request = Request((*prompt_of(20), *first.token_ids, 9, 8), "a", sampled(9))
        second = engine.run([request])[0]
        assert engine.statistics.reused == 32
        assert second.token_ids == Engine(llama).run([request])[0].token_ids

    @pytest.mark.parametrize("length", [15, 16, 17, 32])
    def test_that_are_the_whole_prompt(self, llama: AdaptedModel, length: int) -> None:
        engine, request = Engine(llama), Request(prompt_of(length), "a", sampled())
        first, second = (engine.run([request])[0] for _ in range(2))
        assert first == replace(second, request_id=first.request_id)
        assert engine.statistics.reused == (length - 1) // 16 * 16  # the last token is read: its logits are not kept

    @pytest.mark.parametrize("new", [11, 12, 13])
    def test_of_answers_that_end_beside_a_block(self, llama: AdaptedModel, new: int) -> None:
        engine = Engine(llama, keep_answers=True)
        prompt = prompt_of(20)
        request = Request((*prompt, *engine.run([Request(prompt, "a", sampled(new))])[0].token_ids, 9), "a", sampled())
        assert engine.run([request])[0].token_ids == Engine(llama).run([request])[0].token_ids
        assert engine.statistics.reused == (20 + new - 1) // 16 * 16  # the last token was never read

    def test_of_answers_whose_adapter_was_trained_meanwhile(self) -> None:
        model = AdaptedModel(make_base("llama", dtype=torch.float64))
        randomise(model.add("a", LoRA(rank=2)), seed=1)
        engine = Engine(model, keep_answers=True)
        stream = engine.stream(Request(prompt_of(20), "a", sampled(20)))
        tokens = [next(stream).token_id]
        with torch.no_grad():
            for parameter in model.adapter("a").parameters():
                parameter.mul_(2)
        tokens += [event.token_id for event in stream]
        request = Request((*prompt_of(20), *(token for token in tokens if token is not None), 9, 8), "a", sampled(9))
        assert engine.run([request])[0].token_ids == Engine(model).run([request])[0].token_ids
        assert engine.statistics.reused == 0

    def test_stay_within_their_limit(self, llama: AdaptedModel) -> None:
        engine = Engine(llama, cache_tokens=400)
        for seed in range(6):
            engine.run([Request(prompt_of(40, seed), None, sampled(2))])
        assert 0 < engine.prefixes.bytes <= engine.prefixes.limit
        assert len(engine.prefixes) == 3  # of 32 tokens each, in a quarter of 400
        engine.run([Request(prompt_of(40, 5), None, sampled(2)), Request(prompt_of(40, 0), None, sampled(2))])
        assert engine.statistics.reused == 32  # the latest, but not the earliest


def test_samples_of_a_prompt_read_it_once(llama: AdaptedModel) -> None:
    request = Request(prompt_of(11), "a", sampled(8, n=4))
    engine = Engine(llama)
    samples = engine.run([request, Request(prompt_of(11), "b", sampled(3))])
    assert [sample.index for sample in samples] == [0, 1, 2, 3, 0]
    assert engine.statistics.read == 22
    assert len(set(tokens_of(samples[:4]))) == 4
    for index, sample in enumerate(samples[:4]):
        seed = mix_seed(5, index) if index else 5
        alone = Engine(llama).run([Request(request.prompt_ids, "a", sampled(8, seed=seed))])[0]
        assert alone.token_ids == sample.token_ids


@pytest.mark.parametrize("tokens", [3, 512])
def test_prompt_log_probs(all_methods: Callable[[str], AdaptedModel], tokens: int) -> None:
    model = all_methods("llama")
    requests = [
        Request(prompt_of(18), adapters, sampled(2, prompt_log_probs=True)) for adapters in ("lora", None, "prefix")
    ]
    engine = Engine(model, prefill_tokens=tokens)
    engine.run([replace(request, sampling=sampled(2)) for request in requests])  # what was read before changes nothing
    for request, completion in zip(requests, engine.run(requests), strict=True):
        assert completion.prompt_log_probs is not None
        assert completion.prompt_log_probs[0] is None
        expected = scored(model, request, request.prompt_ids)
        assert completion.prompt_log_probs[1:] == pytest.approx(expected.tolist(), abs=1e-7)
    virtual = engine.run([Request(prompt_of(6), "prompt", sampled(2, prompt_log_probs=True))])[0]
    assert virtual.prompt_log_probs is not None
    assert len(virtual.prompt_log_probs) == 6
    assert None not in virtual.prompt_log_probs  # virtual tokens stand before the first


@settings(max_examples=25, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 30), st.integers(1, 20), st.sampled_from([None, "a", "b"])),
        min_size=1,
        max_size=10,
    ),
    rows=st.integers(1, 5),
    chunk=st.integers(1, 40),
)
def test_whenever_requests_come_they_get_the_same(
    family_model: Callable[[str], AdaptedModel],
    arrivals: list[tuple[int, int, int, str | None]],
    rows: int,
    chunk: int,
) -> None:
    llama = family_model("llama")
    requests = [
        (step, Request(prompt_of(length, n), adapters, sampled(new, seed=n), id=n))
        for n, (step, length, new, adapters) in enumerate(arrivals)
    ]
    engine = Engine(llama, max_batch_rows=rows, prefill_tokens=chunk, cache_tokens=120)
    check_arrivals(llama, engine, requests)


@settings(max_examples=20, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_whatever_goes_on_beside_it_a_request_gets_the_same(
    family_model: Callable[[str], AdaptedModel], draw: random.Random
) -> None:
    """Samples, beams, shared beginnings, cancellations, in tables and stores of all sizes."""
    llama, rows = family_model("llama"), draw.choice([1, 2, 5])
    prefill_tokens, cache_tokens = draw.choice([1, 16, 17, 100]), draw.choice([160, 400])
    engine = Engine(
        llama,
        max_batch_rows=rows,
        prefill_tokens=prefill_tokens,
        cache_tokens=cache_tokens,
        keep_answers=draw.random() < 0.5,
    )
    engine.prefixes.limit = draw.choice([0, 30_000, 300_000])
    requests = []
    for number in range(draw.randint(2, 10)):
        begun = prompt_of(40, draw.randrange(2))[: draw.choice([1, 15, 16, 17, 32, 33, 40])]
        new, beams = draw.randint(1, 10), draw.choice([1, 1, min(3, rows)])
        more = {"num_beams": beams, "temperature": 0.0} if beams > 1 else {"n": draw.choice([1, 3])}
        sampling = sampled(new, stop_ids=tuple(range(5, 9)), **more)
        requests.append(
            Request((*begun, *prompt_of(draw.randrange(3))), draw.choice([None, "a", "b"]), sampling, number)
        )
    left, cancelled, done = list(requests), set(), {}
    while left or engine.busy:
        if left and draw.random() < 0.5:
            engine.submit(left.pop())
        if draw.random() < 0.1:
            cancelled.add(number := draw.randrange(len(requests)))
            engine.cancel(number)
        for event in engine.step():
            if event.completion is not None:
                assert (event.request_id, event.index) not in done
                done[event.request_id, event.index] = event.completion
    for request in requests:
        for completion in Engine(llama).run([request]):
            found = done[request.id, completion.index]
            if found.finish_reason == "cancelled":
                assert request.id in cancelled
            else:
                assert (found.token_ids, found.finish_reason) == (completion.token_ids, completion.finish_reason)


def test_samples_with_prompt_log_probs_are_read_once(llama: AdaptedModel) -> None:
    wanting, plain = (sampled(3, n=2, prompt_log_probs=wanted) for wanted in (True, False))
    requests = [Request(prompt_of(40), None, sampling) for sampling in (wanting, plain)]
    engine = Engine(llama)
    found = engine.run(requests)
    assert engine.statistics.read == 40
    assert found[0].prompt_log_probs == found[1].prompt_log_probs
    assert len(found[0].prompt_log_probs or ()) == 40
    assert found[2].prompt_log_probs is None
    # One that comes while the prompt is half read has it read for itself.
    engine = Engine(llama, prefill_tokens=2)
    first = engine.submit(requests[1])
    engine.step()
    late = engine.run(requests[:1])
    assert late[0].prompt_log_probs == pytest.approx(found[0].prompt_log_probs)
    assert {event.request_id for event in engine.step()} == {first}


@pytest.mark.parametrize(("cache_tokens", "together"), [(39, 1), (40, 2), (59, 2), (60, 3)])
def test_as_many_run_as_keys_and_values_are_kept_for(llama: AdaptedModel, cache_tokens: int, together: int) -> None:
    engine = Engine(llama, cache_tokens=cache_tokens)
    for seed, (length, new) in enumerate(((15, 5), (10, 10), (5, 15))):  # the widest decides: 20 each
        engine.submit(Request(prompt_of(length, seed), None, sampled(new)))
    most = 0
    while engine.busy:
        engine.step()
        most = max(most, len(engine._begun()))
    assert most == together


def test_adapters_that_are_trained_while_they_run_serve_as_they_are() -> None:
    def log_probs(forget: bool) -> list[tuple[float, ...]]:
        model = AdaptedModel(make_base("llama", dtype=torch.float64))
        for seed, name in enumerate("ab"):
            randomise(model.add(name, LoRA(rank=2)), seed=seed)
        engine = Engine(model)
        stream = engine.stream([Request(prompt_of(4, n), name, sampled(9)) for n, name in enumerate("abab")])
        events = [next(stream) for _ in range(12)]
        with torch.no_grad():
            for parameter in model.adapters["a"].parameters():
                parameter.mul_(3)
        if forget:
            engine._slots.forget()
        return [e.completion.log_probs for e in (*events, *stream) if e.completion is not None]

    assert log_probs(forget=False) == log_probs(forget=True)


def test_slots_are_refilled(llama: AdaptedModel) -> None:
    draw = random.Random(0)
    requests = [
        Request(prompt_of(draw.randint(1, 20), n), None, sampled(round(draw.lognormvariate(2, 0.8)) + 1, seed=n))
        for n in range(60)
    ]
    engine = Engine(llama, max_batch_rows=8)
    engine.run(requests)
    found = engine.statistics
    assert found.waiting_row_steps / found.waiting_steps > 0.9 * 8


class TestErrors:
    def test_what_never_fits_is_refused_with_the_numbers(self, llama: AdaptedModel) -> None:
        engine = Engine(llama, cache_tokens=20)
        with pytest.raises(
            UserError, match=r"24 tokens \(14 of its prompt and 10 new ones\), but there is memory for 20"
        ):
            engine.submit(Request(prompt_of(14), None, sampled(10)))
        assert not engine.busy

    def test_an_adapter_removed_while_it_runs(self) -> None:
        model = AdaptedModel(make_base("llama", dtype=torch.float64))
        for seed, name in enumerate(("a", "b")):
            randomise(model.add(name, LoRA(rank=2)), seed=seed)
        requests = [Request(prompt_of(4, n), name, sampled(9, seed=n), id=n) for n, name in enumerate("abab")]
        expected = Engine(model).run(requests)
        engine = Engine(model, max_batch_rows=3)
        done: dict[Any, Completion] = {}
        for number, event in enumerate(engine.stream(requests)):
            if number == 3:
                model.remove("a")
            if event.completion is not None:
                done[event.request_id] = event.completion
        assert [done[n].token_ids for n in (1, 3)] == [expected[n].token_ids for n in (1, 3)]
        for n in (0, 2):
            assert done[n].finish_reason == "error"
            assert "its adapter was removed while it ran" in (done[n].error or "")
            assert done[n].token_ids == expected[n].token_ids[: len(done[n].token_ids)]

    def test_a_step_that_is_broken_off(self, llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        engine = Engine(llama, max_batch_rows=1)
        engine.submit(Request(prompt_of(4), None, sampled(9), id="running"))
        engine.submit(Request(prompt_of(4), None, sampled(4), id="waiting"))
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr(llama, "hidden", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                engine.step()
        done = {}
        while engine.busy:
            done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
        assert (done["running"].finish_reason, done["waiting"].finish_reason) == ("error", "length")
