from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy
import pytest

from graftlm.errors import UserError
from graftlm.generation.requests import Completion, SamplingSettings, TokenEvent

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; allowed: at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens is 2.5; allowed: at least 1"),
        ({"max_new_tokens": True}, "max_new_tokens is True; allowed: at least 1"),
        ({"max_new_tokens": NAN}, "max_new_tokens is nan"),
        ({"temperature": -1.0}, "temperature is -1.0; allowed: 0 (greedy) or at least 1e-05"),
        ({"temperature": 1e-30}, "temperature is 1e-30; allowed: 0 (greedy) or at least 1e-05"),
        ({"temperature": NAN}, "temperature is nan"),
        ({"temperature": INF}, "temperature is inf"),
        ({"temperature": True}, "temperature is True"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": None}, "temperature is None"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed: above 0"),
        ({"top_p": NAN}, "top_p is nan"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": NAN}, "repetition_penalty is nan"),
        ({"presence_penalty": NAN}, "presence_penalty is nan; allowed: -100 to 100"),
        ({"presence_penalty": 10**5000}, "presence_penalty is a number of 16,610 bits; allowed"),
        ({"frequency_penalty": -INF}, "frequency_penalty is -inf"),
        ({"length_penalty": NAN}, "length_penalty is nan"),
        ({"top_log_probs": 21}, "top_log_probs is 21; allowed: 0 (off) to 20"),
        ({"top_log_probs": True}, "top_log_probs is True"),
        ({"prompt_log_probs": 1}, "prompt_log_probs is 1; allowed: True or False"),
        ({"n": 0}, "n is 0; allowed: 1 to 1,000"),
        ({"n": 10**9, "temperature": 1.0}, "n is 1000000000; allowed: 1 to 1,000"),
        ({"num_beams": 0}, "num_beams is 0; allowed: 1 (no beams) to 64"),
        ({"seed": 1.5}, "seed is 1.5; allowed: a whole number"),
        ({"seed": False}, "seed is False"),
        ({"stop": ("",)}, "none of them empty"),
        ({"stop": "end"}, "must be a tuple of texts"),
        ({"stop": None}, "must be a tuple of texts"),
        ({"stop": ("a", 3)}, "must be a tuple of texts"),
        ({"stop": ["x"] * 10_000}, "stop has 10,000 texts; allowed: at most 64"),
        ({"stop": ("ok", "x" * 1_001)}, "stop has a text of 1,001 characters; allowed: at most 1,000"),
        ({"stop_ids": (3, -1)}, "stop_ids must be a tuple of token ids, 0 or more each"),
        ({"stop_ids": (True,)}, "stop_ids must be a tuple of token ids"),
        ({"stop_ids": 7}, "stop_ids must be a tuple of token ids"),
        ({"stop_ids": range(1_001)}, "stop_ids has 1,001 tokens; allowed: at most 1,000"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias has the token -1; allowed: token ids, 0 or more"),
        ({"logit_bias": {"the": 1.0}}, "logit_bias has the token 'the'"),
        ({"logit_bias": {True: 1.0}}, "logit_bias has the token True"),
        ({"logit_bias": {3: NAN}}, "logit_bias of token 3 is nan; allowed: -1e+09 to 1e+09, or -inf"),
        ({"logit_bias": {3: INF}}, "logit_bias of token 3 is inf"),
        ({"logit_bias": {3: False}}, "logit_bias of token 3 is False"),
        ({"logit_bias": ((3, 1.0), (3, 2.0))}, "logit_bias names the token 3 more than once"),
        ({"logit_bias": ((3,),)}, "logit_bias must be a mapping"),
        ({"logit_bias": 3}, "logit_bias must be a mapping"),
        ({"logit_bias": "35"}, "logit_bias must be a mapping"),
        ({"logit_bias": dict.fromkeys(range(1_001), 1.0)}, "logit_bias has 1,001 tokens; allowed: at most 1,000"),
        ({"json_schema": ""}, "json_schema is ''; allowed: a text that is not empty, or None"),
        ({"regex": 3}, "regex is 3; allowed: a text"),
        ({"regex": "a+", "json_schema": "{}"}, "json_schema and regex are set; allowed: at most one of"),
        ({"n": 3}, "n is 3 and temperature 0: greedy answers are all the same. Set a temperature above 0"),
        ({"num_beams": 4, "temperature": 0.5}, "num_beams is 4 and temperature 0.5: beam search draws nothing"),
        ({"num_beams": 4, "n": 5}, "n is 5 and num_beams 4: there are no more answers than beams"),
    ],
)
def test_bad_values(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        SamplingSettings(**settings)
    assert error.value.message.startswith("sampling settings: ")
    assert message in error.value.message


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        SamplingSettings(temperature=-1, top_p=2, stop=("",), logit_bias={-1: 0.0, 2: NAN}, n=3)
    assert len(error.value.message.splitlines()) == 5


def test_tokens_that_the_model_does_not_have() -> None:
    settings = SamplingSettings(stop_ids=(3, 10), logit_bias={9: 1.0, 12: 1.0})
    settings.check_vocabulary(13)
    SamplingSettings().check_vocabulary(1)
    with pytest.raises(UserError) as error:
        settings.check_vocabulary(10)
    assert "stop_ids has the token 10; the model's tokens are 0 to 9" in error.value.message
    assert "logit_bias has the token 12" in error.value.message


def test_values_are_kept_plain() -> None:
    settings = SamplingSettings(
        max_new_tokens=numpy.int64(3),  # type: ignore[arg-type]
        temperature=numpy.float32(0.5),  # type: ignore[arg-type]
        stop=["a", "b"],  # type: ignore[arg-type]
        stop_ids=[numpy.int32(4), 2],  # type: ignore[arg-type, list-item]
        seed=-5,
        logit_bias={9: 1, 3: -math.inf},
    )
    assert (settings.stop, settings.stop_ids) == (("a", "b"), (4, 2))
    assert [type(settings.max_new_tokens), type(settings.temperature)] == [int, float]
    assert settings.logit_bias == ((3, -math.inf), (9, 1.0))
    assert settings.biases == {3: -math.inf, 9: 1.0}
    assert len({settings, replace(settings), SamplingSettings()}) == 2  # hashable, and equal where it should be


def test_what_may_stand_together() -> None:
    """Truncation beside temperature 0 changes nothing; beams give several answers without any draw."""
    SamplingSettings(temperature=0.0, top_k=5, top_p=0.5, min_p=0.1)
    SamplingSettings(num_beams=4, n=4, length_penalty=-1.0)
    assert SamplingSettings(grammar="start: /a/").constraint == "grammar"
    assert SamplingSettings().constraint is None


def test_positions_of_older_fields_stay() -> None:
    assert SamplingSettings(1, 0.1, 2, 0.2, 0.3, 1.1, ("s",), (3,), 4).seed == 4
    completion = Completion(1, (2,), "x", "stop", (-0.5,))
    assert (completion.top_log_probs, completion.prompt_log_probs, completion.error, completion.index) == (
        (),
        None,
        None,
        0,
    )
    event = TokenEvent(1, 2, -0.5, "x", completion)
    assert (event.index, event.top_log_probs, event.completion) == (0, (), completion)
