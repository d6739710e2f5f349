"""How an answer is written, as the harness's tasks say it and as the engine wants it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graftlm.errors import UserError, nearest
from graftlm.generation.requests import SamplingSettings

if TYPE_CHECKING:
    from graftlm.evaluation.speakers import Speaker

MOST_NEW = 256  # new tokens where a task does not say, as in the harness
TAKEN = ("top_k", "top_p", "min_p", "repetition_penalty", "num_beams", "length_penalty")
KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", *TAKEN)


def sampling_settings(keywords: Mapping[str, Any], speaker: Speaker | None, seed: str) -> SamplingSettings:
    """The settings of a task's ``generation_kwargs``; ``speaker``: whose template ends answers, in a conversation.

    Raises:
        UserError: a key that the engine does not know, or sampling without a temperature.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    given: dict[str, Any] = dict(normalize_gen_kwargs(dict(keywords), MOST_NEW))
    strange = sorted(set(given) - set(KNOWN))
    if strange:
        guess = nearest(strange[0], list(KNOWN))
        raise UserError(
            f"generation_kwargs has '{strange[0]}'; graftlm knows: {', '.join(KNOWN)}",
            hint=f"Did you mean '{guess}'?" if guess else None,
        )
    temperature = float(given.get("temperature", 0.0))
    if given.get("do_sample") and not temperature:
        raise UserError("generation_kwargs has do_sample, and no temperature above 0", hint="Set temperature: 1.0.")
    stop = [text for text in given["until"] if text]
    return SamplingSettings(
        max_new_tokens=given["max_gen_toks"],
        temperature=temperature,
        stop=tuple(dict.fromkeys([*stop, *(speaker.stop if speaker else ())])),
        stop_ids=speaker.stop_ids if speaker else None,
        seed=int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big"),
        **{key: given[key] for key in TAKEN if key in given},
    )
