"""What settings of sampling do in the engine, beside what :mod:`tests.generation.test_sampling` says of a step."""

from __future__ import annotations

import math

import pytest
import torch

from graftlm.adapters import AdaptedModel
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings

PROMPT = (5, 9, 7, 11)


def by_hand(model: AdaptedModel, sampling: SamplingSettings) -> list[int]:
    """Greedy tokens with penalties by count and biases, one forward of the whole text for each."""
    tokens: list[int] = []
    for _ in range(sampling.max_new_tokens):
        with torch.no_grad():
            scores = model(torch.tensor([[*PROMPT, *tokens]])).logits[0, -1].clone()
        for token in set(tokens):
            scores[token] -= tokens.count(token) * sampling.frequency_penalty + sampling.presence_penalty
        for token, bias in sampling.biases.items():
            scores[token] += bias
        tokens.append(int(scores.argmax()))
    return tokens


def test_penalties_by_count_and_biases_in_one_batch(llama: AdaptedModel) -> None:
    def settings(**changes: object) -> SamplingSettings:
        return SamplingSettings(max_new_tokens=14, stop_ids=(), **changes)  # type: ignore[arg-type]

    plain = by_hand(llama, settings())
    each = [
        settings(),
        settings(frequency_penalty=0.3),
        settings(presence_penalty=1.5),
        settings(logit_bias={plain[0]: -math.inf, plain[1]: -2.0}),
    ]
    found = Engine(llama).run([Request(PROMPT, None, sampling) for sampling in each])
    assert [list(completion.token_ids) for completion in found] == [by_hand(llama, sampling) for sampling in each]
    assert len({completion.token_ids for completion in found}) == 4  # every setting does something here


def test_likeliest_tokens_of_every_step(llama: AdaptedModel) -> None:
    wanted = SamplingSettings(max_new_tokens=5, stop_ids=(), top_log_probs=3, temperature=1.0, seed=2)
    engine = Engine(llama)
    events = list(engine.stream(Request(PROMPT, None, wanted)))
    completion = events[-1].completion
    assert completion is not None
    assert tuple(event.top_log_probs for event in events) == completion.top_log_probs
    with torch.no_grad():
        logits = llama(torch.tensor([[*PROMPT, *completion.token_ids]])).logits[0, len(PROMPT) - 1 : -1]
    values, ids = logits.log_softmax(-1).topk(3)
    assert [[token for token, _ in top] for top in completion.top_log_probs] == ids.tolist()
    given = torch.tensor([[value for _, value in top] for top in completion.top_log_probs], dtype=values.dtype)
    torch.testing.assert_close(given, values)
    assert engine.run([Request(PROMPT, None, SamplingSettings(max_new_tokens=2))])[0].top_log_probs == ()


def test_biases_that_leave_nothing_end_their_request_alone(llama: AdaptedModel) -> None:
    nothing = SamplingSettings(max_new_tokens=4, logit_bias=dict.fromkeys(range(llama.vocabulary), -math.inf))
    free = SamplingSettings(max_new_tokens=4, stop_ids=())
    failed, completion = Engine(llama).run([Request(PROMPT, None, nothing), Request(PROMPT, None, free)])
    assert (failed.finish_reason, failed.token_ids) == ("error", ())
    assert failed.error is not None
    assert "allow no token" in failed.error
    assert completion.token_ids == Engine(llama).run([Request(PROMPT, None, free)])[0].token_ids


def test_tokens_past_the_vocabulary_are_refused(llama: AdaptedModel) -> None:
    for settings in (SamplingSettings(stop_ids=(10**6,)), SamplingSettings(logit_bias={10**6: 1.0})):
        with pytest.raises(UserError, match="has the token 1000000; the model's tokens are 0 to"):
            Engine(llama).submit(Request(PROMPT, None, settings))
