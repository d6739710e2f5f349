from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graftlm.adapters import AdaptedModel
from graftlm.errors import UserError
from graftlm.generation import Completion, Engine, Request, SamplingSettings
from tests import families

FAMILIES = tuple(families.FAMILIES)
ROUTINGS = (None, "a", "b", ("a", "b"), "a", None)
LENGTHS = (3, 11, 7, 5, 1, 14)


def mixed(**settings: Any) -> list[Request]:
    """Prompts of unequal length under every kind of routing, answers of unequal length."""
    draw = random.Random(0)
    requests = []
    for number, (adapters, length) in enumerate(zip(ROUTINGS, LENGTHS, strict=True)):
        prompt = tuple(draw.randrange(3, families.VOCABULARY) for _ in range(length))
        sampling = SamplingSettings(**{"max_new_tokens": 6 + 3 * number, "stop_ids": (), "seed": number, **settings})
        requests.append(Request(prompt, adapters, sampling, id=number))
    return requests


def alone(model: AdaptedModel, requests: list[Request]) -> list[Completion]:
    engine = Engine(model)
    return [engine.run([request])[0] for request in requests]


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch_equals_each_request_alone(family_model: Callable[[str], AdaptedModel], family: str) -> None:
    model = family_model(family)
    together = Engine(model).run(mixed())
    for one, other in zip(together, alone(model, mixed()), strict=True):
        assert one.token_ids == other.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5 if model.dtype == torch.float32 else 1e-9)
    assert len({completion.token_ids[:3] for completion in together}) > 3  # the adapters do something


@pytest.mark.parametrize("family", FAMILIES)
def test_bare_base_equals_transformers_generate(family_model: Callable[[str], AdaptedModel], family: str) -> None:
    model = family_model(family)
    requests = [
        replace(request, adapters=None, sampling=replace(request.sampling, max_new_tokens=12)) for request in mixed()
    ]
    for request, completion in zip(requests, Engine(model).run(requests), strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = model.base.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, ids.shape[1] :].tolist()


def test_repetition_penalty_in_a_padded_batch_equals_transformers(llama: AdaptedModel) -> None:
    requests = [replace(request, adapters=None) for request in mixed(repetition_penalty=1.7)]
    for request, completion in zip(requests, Engine(llama).run(requests), strict=True):
        ids = torch.tensor([request.prompt_ids])
        expected = llama.base.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request.sampling.max_new_tokens,
            repetition_penalty=1.7,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert list(completion.token_ids) == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_equal_a_scoring_pass(family_model: Callable[[str], AdaptedModel], family: str) -> None:
    model = family_model(family)
    requests = mixed(temperature=1.3, top_k=20, repetition_penalty=1.2)
    for request, completion in zip(requests, Engine(model).run(requests), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = model(ids, adapters=request.adapters, use_cache=False).logits[0]
        expected = logits.log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        expected = expected.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def test_log_probs_in_float32(tiny: AdaptedModel) -> None:
    prompts = [(1, *range(300, 300 + n)) for n in (4, 17, 9)]
    requests = [
        Request(prompt, adapters, SamplingSettings(max_new_tokens=20, temperature=1.0, seed=3, stop_ids=()))
        for prompt, adapters in zip(prompts, (None, "a", ("b", "a")), strict=True)
    ]
    for request, completion in zip(requests, Engine(tiny).run(requests), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = tiny(ids, adapters=request.adapters, use_cache=False).logits[0]
        expected = logits.log_softmax(-1)[len(request.prompt_ids) - 1 : -1]
        expected = expected.gather(1, torch.tensor(completion.token_ids)[:, None]).squeeze(1)
        assert completion.log_probs == pytest.approx(expected.tolist(), abs=1e-4)


def test_sampled_tokens_depend_on_the_seed_alone(llama: AdaptedModel) -> None:
    requests = mixed(temperature=1.5, top_p=0.95)
    together = Engine(llama).run(requests)
    assert [c.token_ids for c in alone(llama, requests)] == [c.token_ids for c in together]
    backwards = Engine(llama, max_batch_rows=4).run(requests[::-1])[::-1]
    assert [c.token_ids for c in backwards] == [c.token_ids for c in together]
    other = Engine(llama).run([replace(r, sampling=replace(r.sampling, seed=99)) for r in requests])
    assert [c.token_ids for c in other] != [c.token_ids for c in together]


def test_without_a_seed_answers_differ(llama: AdaptedModel) -> None:
    settings = SamplingSettings(max_new_tokens=12, temperature=2.0, stop_ids=())
    answers = Engine(llama).run([Request((5, 6, 7), None, settings) for _ in range(4)])
    assert len({answer.token_ids for answer in answers}) > 1


@pytest.mark.parametrize(("rows", "tokens"), [(1, 10_000), (2, 10_000), (6, 70), (6, 35)])
def test_limits_change_nothing_but_the_batches(llama: AdaptedModel, rows: int, tokens: int) -> None:
    expected = [c.token_ids for c in Engine(llama).run(mixed())]
    engine = Engine(llama, max_batch_rows=rows, cache_tokens=tokens)
    assert [c.token_ids for c in engine.run(mixed())] == expected


def test_one_forward_a_step_whatever_the_adapters(llama: AdaptedModel) -> None:
    calls = []
    engine = Engine(llama)
    handle = llama.base.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        engine.run(mixed())
    finally:
        handle.remove()
    assert len(calls) == max(request.sampling.max_new_tokens for request in mixed())


def test_stop_ids_and_lengths(llama: AdaptedModel) -> None:
    free = Engine(llama).run(mixed())
    stopping = [
        replace(r, sampling=replace(r.sampling, stop_ids=(c.token_ids[4],))) for r, c in zip(mixed(), free, strict=True)
    ]
    for before, after in zip(free, Engine(llama).run(stopping), strict=True):
        until = before.token_ids.index(before.token_ids[4]) + 1
        assert after.token_ids == before.token_ids[:until]
        assert after.finish_reason == "stop"
        assert before.finish_reason == "length"


def test_the_end_of_the_context(llama: AdaptedModel) -> None:
    settings = SamplingSettings(max_new_tokens=10, stop_ids=())
    engine = Engine(llama)
    full, roomy = engine.run([Request((5,) * 60, None, settings), Request((5,) * 54, None, settings)])
    assert (len(full.token_ids), full.finish_reason) == (4, "context")
    assert (len(roomy.token_ids), roomy.finish_reason) == (10, "length")
    with pytest.raises(UserError, match="the prompt has 64 tokens, but the context of the model is 64"):
        engine.submit(Request((5,) * 64))
    assert not engine.busy


def test_events_make_up_the_completion(tiny: AdaptedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompt = tuple(tokenizer("Once upon a time")["input_ids"])
    requests = [Request(prompt, adapters, SamplingSettings(max_new_tokens=9)) for adapters in (None, "a")]
    engine = Engine(tiny)
    ids = [engine.submit(request) for request in requests]
    events = []
    while engine.busy:
        events += engine.step()
    for request_id, expected in zip(ids, Engine(tiny).run(requests), strict=True):
        own = [event for event in events if event.request_id == request_id]
        done = own[-1].completion
        assert done is not None
        assert done.token_ids == expected.token_ids == tuple(event.token_id for event in own)
        assert done.text == expected.text == "".join(event.text for event in own)
        assert done.text == tokenizer.decode(done.token_ids, skip_special_tokens=True)
        assert [event.completion for event in own[:-1]] == [None] * (len(own) - 1)


def test_stop_text_ends_an_answer_in_the_middle_of_a_token(
    tiny: AdaptedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = tuple(tokenizer("Once upon a time")["input_ids"])
    free = Engine(tiny).run([Request(prompt, None, SamplingSettings(max_new_tokens=20))])[0]
    assert free.text is not None
    stop = free.text[10:19]
    until = free.text.index(stop)
    settings = SamplingSettings(max_new_tokens=20, stop=("never said", stop))
    stopped = Engine(tiny).run([Request(prompt, None, settings)])[0]
    assert stopped.text == free.text[:until]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert len(stopped.token_ids) < 20


def test_cancel_leaves_the_others_alone(llama: AdaptedModel) -> None:
    requests = mixed()
    expected = Engine(llama, max_batch_rows=4).run(requests)
    engine = Engine(llama, max_batch_rows=4)
    done: dict[Any, Completion] = {}
    cancelled = {5: 2, 2: 3, 0: 0}  # id: after how many tokens; 0 waits in the queue
    counts: dict[Any, int] = {}
    for event in engine.stream(requests):
        counts[event.request_id] = counts.get(event.request_id, 0) + (event.token_id is not None)
        if event.completion is not None:
            done[event.request_id] = event.completion
        for request_id, after in list(cancelled.items()):
            if counts.get(request_id, 0) >= after:
                engine.cancel(request_id)
                del cancelled[request_id]
    assert not engine.busy
    for number, completion in enumerate(expected):
        if number in (0, 2, 5):
            assert done[number].finish_reason == "cancelled"
            assert done[number].token_ids == completion.token_ids[: len(done[number].token_ids)]
        else:
            assert done[number].token_ids == completion.token_ids
            assert done[number].finish_reason == completion.finish_reason
    assert done[0].token_ids == ()
    assert len(done[5].token_ids) == 2
    engine.cancel("unknown")


def test_leaving_a_stream_cancels_it(llama: AdaptedModel) -> None:
    engine = Engine(llama)
    for _ in engine.stream(mixed()):
        break
    assert not engine.busy
    assert Engine(llama).run(mixed()) == engine.run(mixed())


def test_streams_may_interleave(llama: AdaptedModel) -> None:
    expected = [c.token_ids for c in Engine(llama).run(mixed())]
    engine = Engine(llama)
    streams = [engine.stream(request) for request in mixed()]
    found: dict[Any, list[int | None]] = {}
    while streams:
        for stream in list(streams):
            event = next(stream, None)
            if event is None:
                streams.remove(stream)
            else:
                found.setdefault(event.request_id, []).append(event.token_id)
    assert [tuple(found[number]) for number in range(len(expected))] == expected


def test_a_stream_whose_events_another_caller_took(llama: AdaptedModel) -> None:
    engine = Engine(llama)
    stream = engine.stream(Request((5, 6), id="x"))
    next(stream)
    list(iter_events(engine))
    with pytest.raises(UserError, match=r"another caller of step\(\) took the events of the request 'x'"):
        next(stream)


def test_a_second_thread_is_told_of_the_other_engine_and_cancels(llama: AdaptedModel) -> None:
    engine = Engine(llama)
    (expected,) = Engine(llama).run([Request((5, 6))])
    inside, over = threading.Event(), threading.Event()
    real = engine.model.hidden

    def hidden(*args: Any, **kwargs: Any) -> Any:
        inside.set()
        over.wait(10)
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as threads:
        patch.setattr(llama, "hidden", hidden)
        first, second = engine.submit(Request((5, 6))), engine.submit(Request((5, 6, 7)))
        running = threads.submit(lambda: list(iter_events(engine)))
        inside.wait(10)
        for call in (engine.step, lambda: engine.run([Request((5,))])):
            with pytest.raises(UserError, match="another thread is in this engine"):
                call()
        cancelled = threads.submit(engine.cancel, second)
        over.set()
        events = [*running.result(), *iter_events(engine)]
    cancelled.result()
    done = {event.request_id: event.completion for event in events if event.completion is not None}
    assert done[first].token_ids == expected.token_ids
    assert done[second].finish_reason == "cancelled"


def test_no_gradients_and_an_untouched_base(llama: AdaptedModel) -> None:
    from graftlm.base.fingerprint import base_fingerprint

    Engine(llama).run(mixed())
    assert base_fingerprint(llama.base) == llama.fingerprint
    assert all(p.grad is None and p.requires_grad for p in llama.adapter("a").parameters())


def test_bad_requests(llama: AdaptedModel) -> None:
    engine = Engine(llama)
    with pytest.raises(UserError, match="unknown adapter 'c'; there are: a, b"):
        engine.submit(Request((5,), "c"))
    with pytest.raises(UserError, match="the prompt is empty"):
        engine.submit(Request(()))
    for ids, shown in (((5, -1), "-1"), ((5, 1.5), "1.5"), ("text", "'t'"), ((True,), "True")):
        with pytest.raises(UserError, match=f"the prompt has {shown} where a token's id should be"):
            engine.submit(Request(ids))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the id 99999 is no token"):
        engine.submit(Request((5, 99999)))
    with pytest.raises(UserError, match="stop texts need a tokenizer"):
        engine.submit(Request((5,), None, SamplingSettings(stop=("x",))))
    engine.submit(Request((5,), id="x"))
    with pytest.raises(UserError, match="already a request with the id 'x'"):
        engine.submit(Request((5,), id="x"))
    with pytest.raises(UserError, match="already a request with the id 'y'"):
        engine.run([Request((5,), id="y"), Request((6,), id="y")])


def test_a_broken_adapter_ends_its_own_request_alone(llama: AdaptedModel) -> None:
    expected = Engine(llama).run(mixed())
    llama.copy("a", "broken")
    try:
        with torch.no_grad():
            for parameter in llama.adapter("broken").parameters():
                parameter.fill_(float("nan"))
        *others, bad = Engine(llama).run([*mixed(), Request((5, 6), "broken", SamplingSettings(stop_ids=()))])
        assert others == expected
        assert (bad.finish_reason, bad.token_ids) == ("error", ())
        assert bad.error == "the adapter broken gives logits that are not finite"
    finally:
        llama.remove("broken")


def iter_events(engine: Engine) -> Any:
    while engine.busy:
        yield from engine.step()
