"""Virtual tokens in the engine: in front or where a prompt holds them, beside rows of other kinds, and counted."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch

from graftlm import AdaptedModel, LoRA, Prompt, PTuning
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from tests.families import VOCABULARY, add_random, make_base

FAMILIES = ("llama", "gpt2", "gemma3", "opt", "gpt_neox")
CONFIGS = {
    "p": Prompt(length=3),
    "l": LoRA(rank=2),
    "m": PTuning(template="[P×2] {input} [P×2] {target}", encoder_hidden=5),
}
ROUTINGS = ("p", None, ("p", "l"), "l", ("l", "m", "p"), "m", "p")
INSIDE = (VOCABULARY, VOCABULARY + 1, 9, 4, 11, VOCABULARY + 2, VOCABULARY + 3)


@cache
def model_of(family: str) -> AdaptedModel:
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    add_random(model, CONFIGS)
    return model


def requests(**settings: float) -> list[Request]:
    draw = random.Random(0)
    sampling = SamplingSettings(max_new_tokens=9, stop_ids=(), seed=1, **settings)  # type: ignore[arg-type]
    prompts = [tuple(draw.randrange(3, VOCABULARY) for _ in range(length)) for length in (4, 9, 1, 6, 3, 5, 7)]
    found = [Request(prompt, adapters, sampling) for prompt, adapters in zip(prompts, ROUTINGS, strict=True)]
    return [*found, Request(INSIDE, "m", sampling)]


@torch.no_grad()
def written_step_by_step(model: AdaptedModel, request: Request, penalty: float = 1.0) -> list[int]:
    """Greedy, a whole forward for every token, vectors put into ``inputs_embeds`` where no LoRA is."""
    tokens: list[int] = []
    for _ in range(request.sampling.max_new_tokens):
        ids = torch.tensor([[*request.prompt_ids, *tokens]])
        logits = model(ids, adapters=request.adapters, use_cache=False).logits[0, -1]
        for seen in {token for token in ids[0].tolist() if token < VOCABULARY}:
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        tokens.append(int(logits.argmax()))
    return tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_whole_forwards(family: str) -> None:
    model = model_of(family)
    for request, completion in zip(requests(), Engine(model).run(requests()), strict=True):
        assert list(completion.token_ids) == written_step_by_step(model, request)


def test_greedy_text_is_that_of_vectors_put_in_by_hand() -> None:
    model = model_of("llama")
    embedding = model.base.get_input_embeddings()
    sampling = SamplingSettings(max_new_tokens=9, stop_ids=())
    for prompt, name in (((5, 9, 4), "p"), (INSIDE, "m")):
        (completion,) = Engine(model).run([Request(prompt, name, sampling)])
        vectors = model.adapter(name).virtual()
        held = prompt if prompt is INSIDE else (*range(VOCABULARY, VOCABULARY + 3), *prompt)
        tokens: list[int] = []
        for _ in range(9):
            rows = [vectors[i - VOCABULARY] if i >= VOCABULARY else embedding.weight[i] for i in (*held, *tokens)]
            tokens.append(int(model.base(inputs_embeds=torch.stack(rows)[None]).logits[0, -1].argmax()))
        assert list(completion.token_ids) == tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_alone_and_in_any_batch_is_the_same(family: str) -> None:
    model = model_of(family)
    together = Engine(model).run(requests(temperature=1.2, top_p=0.9))
    alone = [Engine(model).run([request])[0] for request in requests(temperature=1.2, top_p=0.9)]
    few = Engine(model, max_batch_rows=3).run(requests(temperature=1.2, top_p=0.9)[::-1])[::-1]
    for one, other, third in zip(together, alone, few, strict=True):
        assert one.token_ids == other.token_ids == third.token_ids
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
    assert len({completion.token_ids[:4] for completion in together}) > 4


def test_the_repetition_penalty_passes_virtual_tokens_by() -> None:
    model = model_of("llama")
    found = Engine(model).run(requests(repetition_penalty=1.6))
    for request, completion in zip(requests(), found, strict=True):
        assert list(completion.token_ids) == written_step_by_step(model, request, penalty=1.6)
    only_virtual = Request(INSIDE[:2], "m", SamplingSettings(max_new_tokens=5, repetition_penalty=1.6, stop_ids=()))
    (completion,) = Engine(model).run([only_virtual])
    assert list(completion.token_ids) == written_step_by_step(model, only_virtual, penalty=1.6)


def test_the_context_holds_the_virtual_tokens_too() -> None:
    model = model_of("llama")
    sampling = SamplingSettings(max_new_tokens=50, stop_ids=())
    (full,) = Engine(model).run([Request((5,) * 57, "p", sampling)])
    assert (len(full.token_ids), full.finish_reason) == (4, "context")
    with pytest.raises(UserError, match="has 61 tokens beside 3 virtual tokens of its adapters") as caught:
        Engine(model).submit(Request((5,) * 61, "p", sampling))
    assert caught.value.hint == "Shorten it to at most 60 tokens."
    Engine(model).submit(Request((5,) * 61, None, sampling))


def test_an_id_that_is_no_token_is_refused() -> None:
    model = model_of("llama")
    for adapters, said in ((None, "no virtual tokens"), ("l", "no virtual tokens"), ("p", "3 virtual tokens")):
        with pytest.raises(UserError, match=f"the id {VOCABULARY + 3} is no token.*{said}"):
            Engine(model).submit(Request((5, VOCABULARY + 3), adapters))
