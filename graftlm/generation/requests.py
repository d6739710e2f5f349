"""What goes into the engine and what comes out, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from graftlm.errors import UserError

RequestId = int | str
FinishReason = Literal["stop", "length", "context", "cancelled"]


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen, and when to stop.

    The order is that of transformers: repetition penalty, temperature, ``top_k``, ``top_p``, ``min_p``, each on what
    the one before left. ``temperature`` 0 is greedy; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``repetition_penalty`` 1
    are off. ``stop``: texts that end the answer and are cut off it. ``stop_ids``: tokens that end it; None is the
    tokenizer's end-of-sequence token, () is none. ``seed`` fixes every draw, whatever else runs; None takes a new one.

    Raises:
        UserError: a value is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1 (off)"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "between 0 (off) and 1"),
            ("repetition_penalty", 0.0 < self.repetition_penalty < float("inf"), "above 0; 1 is off"),
        )
        wrong = [f"{name} is {getattr(self, name)}; allowed: {allowed}" for name, holds, allowed in checks if not holds]
        if isinstance(self.stop, str) or not all(self.stop):
            wrong.append("stop must be a tuple of texts, none of them empty")
        if wrong:
            raise UserError("sampling settings: " + "\n".join(wrong))


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to go on from. ``adapters``: a name, a stack of names, or None (the bare base).

    ``id`` names the request in events and completions; None lets the engine number it.
    """

    prompt_ids: tuple[int, ...]
    adapters: str | tuple[str, ...] | None = None
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    id: RequestId | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of a request.

    ``token_ids`` are all new tokens, a stop token included; ``text`` leaves out special tokens and the stop text, and
    is None if the engine has no tokenizer. ``log_probs`` are those of ``token_ids`` under the model as it is, before
    penalties, temperature and truncation: a scoring pass gives the same.
    ``finish_reason``: a stop token or text; max_new_tokens; the end of the model's context; cancelled.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    log_probs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of a request.

    ``text`` is what can be shown now: it lags behind while a character or a possible stop text is incomplete.
    The last event of a request has its ``completion``; ``token_id`` and ``log_prob`` are None if it was cancelled.
    """

    request_id: RequestId
    token_id: int | None
    log_prob: float | None
    text: str
    completion: Completion | None = None
