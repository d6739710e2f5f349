"""Beam search: the answers of transformers' generate, beside other requests and in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graftlm import AdaptedModel, LoRA
from graftlm.errors import UserError
from graftlm.generation import Completion, Engine, Request, SamplingSettings
from tests.families import ENCODER_DECODERS, add_random, make_base
from tests.generation.test_batching import prompt_of, sampled, tokens_of

FAMILIES = (*ENCODER_DECODERS, "llama", "gpt2")


def beams(count: int, n: int = 1, **more: Any) -> SamplingSettings:
    return SamplingSettings(**{"max_new_tokens": 12, "num_beams": count, "n": n, "stop_ids": (2,), **more})


def generated(base: Any, request: Request) -> list[tuple[int, ...]]:
    """What transformers' beam search gives, without the prompt, and without what fills up short answers."""
    sampling = request.sampling
    stop = sampling.stop_ids
    found = base.generate(
        torch.tensor([request.prompt_ids]),
        attention_mask=torch.ones(1, len(request.prompt_ids), dtype=torch.int64),
        max_new_tokens=sampling.max_new_tokens,
        do_sample=False,
        num_beams=sampling.num_beams,
        num_return_sequences=sampling.n,
        length_penalty=sampling.length_penalty,
        early_stopping=False,
        eos_token_id=list(stop) if stop else -1,
        pad_token_id=0,
        forced_eos_token_id=None,
    )
    first = 1 if base.config.is_encoder_decoder else len(request.prompt_ids)
    rows = [tuple(row[first:].tolist()) for row in found]
    ends = [next((n + 1 for n, token in enumerate(row) if token in (stop or ())), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_are_those_of_generate(family: str, seed: int) -> None:
    model = AdaptedModel(make_base(family, dtype=torch.float64, seed=seed))
    requests = [
        Request(
            prompt_of(3 + 4 * number, seed + number),
            None,
            beams(count, n, max_new_tokens=new, length_penalty=penalty, stop_ids=stop),
        )
        for number, (count, n, new, penalty, stop) in enumerate(
            [
                (2, 1, 12, 1.0, (2,)),
                (4, 4, 20, 1.0, (2, 9, 11)),
                (3, 2, 7, 0.0, tuple(range(2, 12))),
                (5, 3, 15, 2.0, tuple(range(2, 30))),
                (4, 4, 30, -1.0, tuple(range(2, 20))),
                (3, 3, 9, 1.0, ()),
                (2, 2, 1, 1.0, (2,)),
            ]
        )
    ]
    engine = Engine(model, max_batch_rows=9)
    answers = engine.run(requests)
    assert not engine.busy
    start = 0
    for request in requests:
        own, start = answers[start : start + request.sampling.n], start + request.sampling.n
        assert tokens_of(own) == generated(model.base, request), request.sampling
        for answer in own:
            ended = answer.token_ids[-1] in (request.sampling.stop_ids or ())
            assert answer.finish_reason == ("stop" if ended else "length")
            assert answer.log_probs == pytest.approx(scored(model, request, answer), abs=1e-7)


def scored(model: AdaptedModel, request: Request, answer: Completion) -> list[float]:
    """Log-probabilities of an answer, in a pass over all of it."""
    count = len(answer.token_ids)
    with torch.no_grad():
        if model.kind == "encoder-decoder":
            ids = torch.tensor([[model.base.config.decoder_start_token_id, *answer.token_ids]])
            source = torch.tensor([request.prompt_ids])
            logits = model(source, adapters=request.adapters, decoder_input_ids=ids, use_cache=False).logits[0]
        else:
            ids = torch.tensor([[*request.prompt_ids, *answer.token_ids]])
            logits = model(ids, adapters=request.adapters, use_cache=False).logits[0]
    found = logits.log_softmax(-1)[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
    return found[-count:].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", ["bart", "t5", "llama"])
def test_beside_others_everybody_gets_the_same(family: str) -> None:
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    add_random(model, {"a": LoRA(rank=2), "b": LoRA(rank=3)})
    requests = [
        Request(prompt_of(5 + 3 * number, number), (None, "a", "b")[number % 3], settings, id=number)
        for number, settings in enumerate(
            [
                sampled(14),
                beams(3, 2, max_new_tokens=9),
                sampled(3),
                beams(4, 1),
                beams(2, 2),
                sampled(9, n=3),
                beams(3, 3),
            ]
        )
    ]
    alone = {request.id: tokens_of(Engine(model).run([request])) for request in requests}
    for rows, order in ((5, requests), (32, requests), (7, requests[::-1])):
        engine = Engine(model, max_batch_rows=rows, prefill_tokens=8)
        done: dict[Any, dict[int, tuple[int, ...]]] = {}
        waiting = list(order)
        while waiting or engine.busy:
            if waiting:
                engine.submit(waiting.pop(0))
            for event in engine.step():
                if event.completion is not None:
                    done.setdefault(event.request_id, {})[event.index] = event.completion.token_ids
        assert {key: [own[n] for n in sorted(own)] for key, own in done.items()} == alone


def test_events_come_at_the_end(family_model: Callable[[str], AdaptedModel], tokenizer: Any) -> None:
    engine = Engine(family_model("llama"), tokenizer)
    events = list(engine.stream(Request(prompt_of(5), "a", beams(4, 3))))
    assert [event.index for event in events] == [0, 1, 2]
    for event in events:
        assert event.completion is not None
        assert event.text == event.completion.text
        assert event.token_id == event.completion.token_ids[-1]


def test_a_cancelled_search_gives_as_many_answers_as_were_asked_for(llama: AdaptedModel) -> None:
    engine = Engine(llama)
    request = engine.submit(Request(prompt_of(5), "a", beams(4, 2)))
    engine.step()
    engine.step()
    engine.cancel(request)
    found = [event.completion for event in engine.step()]
    assert [completion.finish_reason for completion in found if completion] == ["cancelled"] * 2
    assert not engine.busy


def test_a_model_that_gives_nan_ends_its_search(llama: AdaptedModel) -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    add_random(model, {"a": LoRA(rank=2)})
    other = Request(prompt_of(4), None, beams(3))
    expected = tokens_of(Engine(model).run([other]))
    with torch.no_grad():
        next(iter(model.adapter("a").parameters())).fill_(float("nan"))
    found = Engine(model).run([Request(prompt_of(5), "a", beams(4, 2)), other])
    assert [completion.finish_reason for completion in found] == ["error", "error", "stop"]
    assert tokens_of(found[2:]) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repetition_penalty": 1.2, "logit_bias": {3: 1.0}}, "repetition_penalty, logit_bias set too"),
        ({"regex": "a+"}, "regex set too"),
        ({"prompt_log_probs": True}, "prompt_log_probs set too"),
    ],
)
def test_what_does_not_go_with_beams(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        beams(2, **settings)


def test_more_beams_than_rows(llama: AdaptedModel) -> None:
    with pytest.raises(UserError, match="num_beams is 5, but at most 4 rows are decoded together"):
        Engine(llama, max_batch_rows=4).submit(Request(prompt_of(5), None, beams(5)))


def test_beams_need_memory_together(llama: AdaptedModel) -> None:
    with pytest.raises(UserError, match=r"51 tokens \(for each of 3 beams, 5 of its prompt and 12 new ones\)"):
        Engine(llama, cache_tokens=50).submit(Request(prompt_of(5), None, beams(3)))


def test_beams_that_are_cancelled_give_the_text_they_have(
    tiny: AdaptedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    engine = Engine(tiny, tokenizer)
    prompt = tuple(tokenizer("Once upon a time")["input_ids"])
    number = engine.submit(Request(prompt, None, SamplingSettings(num_beams=3, n=2, max_new_tokens=9)))
    for _ in range(3):
        engine.step()
    engine.cancel(number)
    for event in engine.step():
        assert event.completion is not None
        assert event.completion.text == event.text == tokenizer.decode(event.completion.token_ids)
        assert len(event.completion.token_ids) == 3
