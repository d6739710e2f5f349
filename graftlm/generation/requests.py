"""What goes into the engine and what comes out, as values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any, Literal

from graftlm.errors import UserError

RequestId = int | str
FinishReason = Literal["stop", "length", "context", "cancelled", "error"]
#: Token ids with their log-probabilities, the likeliest first.
TopTokens = tuple[tuple[int, float], ...]

#: Limits that keep one request from costing the others much.
MOST_STOP_TEXTS, LONGEST_STOP_TEXT = 64, 1_000  # texts, characters
MOST_STOP_IDS = 1_000
MOST_BIASES, LARGEST_BIAS = 1_000, 1e9
MOST_TOP_LOG_PROBS = 20
MOST_SAMPLES = 1_000
MOST_BEAMS = 64
LOWEST_TEMPERATURE = 1e-5  # below it, float32 scores overflow; as good as greedy long before

ConstraintKind = Literal["json_schema", "regex", "grammar"]
_CONSTRAINTS: tuple[ConstraintKind, ...] = ("json_schema", "regex", "grammar")
_BESIDE_NO_BEAMS = (
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_log_probs",
    "prompt_log_probs",
)
_INF = math.inf
#: Whole numbers: the least, the most, and that in words.
_WHOLE: dict[str, tuple[float, float, str]] = {
    "max_new_tokens": (1, _INF, "at least 1"),
    "top_k": (0, _INF, "0 (off) or more"),
    "top_log_probs": (0, MOST_TOP_LOG_PROBS, f"0 (off) to {MOST_TOP_LOG_PROBS}"),
    "n": (1, MOST_SAMPLES, f"1 to {MOST_SAMPLES:,}"),
    "num_beams": (1, MOST_BEAMS, f"1 (no beams) to {MOST_BEAMS}"),
}
#: Numbers: what holds (it never does for NaN), and that in words.
_REAL: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (
        lambda value: value == 0 or LOWEST_TEMPERATURE <= value < _INF,
        f"0 (greedy) or at least {LOWEST_TEMPERATURE:g}",
    ),
    "top_p": (lambda value: 0 < value <= 1, "above 0 and at most 1 (off)"),
    "min_p": (lambda value: 0 <= value <= 1, "between 0 (off) and 1"),
    "repetition_penalty": (lambda value: 0.001 <= value <= 1000, "0.001 to 1,000; 1 is off"),
    "presence_penalty": (lambda value: -100 <= value <= 100, "-100 to 100; 0 is off"),
    "frequency_penalty": (lambda value: -100 <= value <= 100, "-100 to 100; 0 is off"),
    "length_penalty": (lambda value: -100 <= value <= 100, "-100 to 100; 1 ranks by the mean log-probability"),
}


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen, and when to stop.

    The order is that of transformers: ``logit_bias``, repetition penalty, frequency and presence penalty, constraint,
    ``temperature``, ``top_k``, ``top_p``, ``min_p``, each on what the one before left. ``temperature`` 0 is greedy, and
    truncation changes nothing then; ``top_k`` 0, ``top_p`` 1, ``min_p`` 0, ``repetition_penalty`` 1 are off. The
    repetition penalty counts prompt and answer. For a token that occurs ``count`` times in the answer so far,
    ``count * frequency_penalty + (count > 0) * presence_penalty`` is taken off its logit, as in the OpenAI API.

    ``stop``: texts that end the answer and are cut off it. ``stop_ids``: tokens that end it; None is the
    tokenizer's end-of-sequence token, () is none. ``seed`` fixes every draw, whatever else runs; None takes a new one.

    ``logit_bias``: (token id, what is added to its logit) pairs, or a mapping; minus infinity forbids the token. It is
    kept as pairs in the order of ids. ``top_log_probs``: give the log-probabilities of so many likeliest tokens too.
    ``prompt_log_probs``: give those of the prompt's tokens. ``n``: samples of the prompt, each with its own stream of
    draws (:func:`graftlm.generation.sampling.sample_seed`). At most one of ``json_schema`` (the schema as JSON text),
    ``regex`` and ``grammar`` (Lark): what the whole answer must match, unless ``max_new_tokens`` or a stop text cuts it
    off.

    ``num_beams`` above 1 is beam search: temperature 0, the ``n`` best beams are the answers, ranked by their
    log-probability divided by their length to the power ``length_penalty``.

    Raises:
        UserError: a value is of the wrong type or out of its range, or two contradict each other; all of it at once.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    top_log_probs: int = 0
    prompt_log_probs: bool = False
    n: int = 1
    json_schema: str | None = None
    regex: str | None = None
    grammar: str | None = None
    num_beams: int = 1
    length_penalty: float = 1.0

    def __post_init__(self) -> None:
        wrong = [*self._numbers(), *self._lists(), *self._biases()]
        # Values that contradict each other tell nothing new where one of them is wrong by itself.
        wrong = wrong or list(self._contradictions())
        if wrong:
            raise UserError("sampling settings: " + "\n".join(wrong))

    @property
    def biases(self) -> dict[int, float]:
        """``logit_bias`` by token."""
        return dict(self.logit_bias)

    @property
    def constraint(self) -> ConstraintKind | None:
        """The name of the constraint that is set, if any."""
        return next((name for name in _CONSTRAINTS if getattr(self, name) is not None), None)

    def check_vocabulary(self, vocabulary: int) -> None:
        """Whether the tokens that are named exist in a model of so many.

        Raises:
            UserError: a stop id or a biased token is past the vocabulary.
        """
        named = {"stop_ids": self.stop_ids or (), "logit_bias": tuple(self.biases)}
        wrong = [
            f"{name} has the token {max(ids)}; the model's tokens are 0 to {vocabulary - 1:,}"
            for name, ids in named.items()
            if ids and max(ids) >= vocabulary
        ]
        if wrong:
            raise UserError("sampling settings: " + "\n".join(wrong))

    def _set(self, name: str, value: object) -> None:
        """Keep a value in its plain form; nobody has seen these settings yet."""
        object.__setattr__(self, name, value)

    def _numbers(self) -> Iterator[str]:
        """What is wrong with numbers and switches; numbers that are right become plain int and float."""
        for name, (least, most, allowed) in _WHOLE.items():
            value = getattr(self, name)
            if not _is_whole(value) or not least <= value <= most:
                yield f"{name} is {_shown(value)}; allowed: {allowed}"
            else:
                self._set(name, int(value))
        for name, (holds, allowed) in _REAL.items():
            value = getattr(self, name)
            if not _is_number(value) or not holds(value):
                yield f"{name} is {_shown(value)}; allowed: {allowed}"
            else:
                self._set(name, float(value))
        if self.seed is not None and not _is_whole(self.seed):
            yield f"seed is {_shown(self.seed)}; allowed: a whole number, or None for a new one"
        elif self.seed is not None:
            self._set("seed", int(self.seed))
        if not isinstance(self.prompt_log_probs, bool):
            yield f"prompt_log_probs is {_shown(self.prompt_log_probs)}; allowed: True or False"

    def _lists(self) -> Iterator[str]:
        """What is wrong with texts and lists; lists that are right become tuples."""
        if not isinstance(self.stop, Sequence) or isinstance(self.stop, str):
            yield "stop must be a tuple of texts, none of them empty"
        elif len(self.stop) > MOST_STOP_TEXTS:
            yield f"stop has {len(self.stop):,} texts; allowed: at most {MOST_STOP_TEXTS}"
        elif not all(isinstance(text, str) and text for text in self.stop):
            yield "stop must be a tuple of texts, none of them empty"
        elif (longest := max((len(text) for text in self.stop), default=0)) > LONGEST_STOP_TEXT:
            yield f"stop has a text of {longest:,} characters; allowed: at most {LONGEST_STOP_TEXT:,}"
        else:
            self._set("stop", tuple(self.stop))
        ids = self.stop_ids
        if ids is not None and (not isinstance(ids, Sequence) or not all(map(is_token, ids))):
            yield "stop_ids must be a tuple of token ids, 0 or more each, or None"
        elif ids is not None and len(ids) > MOST_STOP_IDS:
            yield f"stop_ids has {len(ids):,} tokens; allowed: at most {MOST_STOP_IDS:,}"
        elif ids is not None:
            self._set("stop_ids", tuple(int(each) for each in ids))
        for name in _CONSTRAINTS:
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                yield f"{name} is {_shown(value)}; allowed: a text that is not empty, or None"

    def _biases(self) -> Iterator[str]:
        """What is wrong with logit_bias; one that is right becomes pairs in the order of ids."""
        given: Any = self.logit_bias
        if not isinstance(given, Mapping | Sequence) or isinstance(given, str):
            yield "logit_bias must be a mapping of token ids to numbers, or (id, number) pairs"
            return
        if len(given) > MOST_BIASES:
            yield f"logit_bias has {len(given):,} tokens; allowed: at most {MOST_BIASES:,}"
            return
        pairs = list(given.items()) if isinstance(given, Mapping) else list(given)
        if not all(isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2 for pair in pairs):
            yield "logit_bias must be a mapping of token ids to numbers, or (id, number) pairs"
            return
        kept: dict[int, float] = {}
        for token, bias in pairs:
            if not is_token(token):
                yield f"logit_bias has the token {_shown(token)}; allowed: token ids, 0 or more"
            elif not _is_number(bias) or not (bias == -_INF or -LARGEST_BIAS <= bias <= LARGEST_BIAS):
                allowed = f"{-LARGEST_BIAS:g} to {LARGEST_BIAS:g}, or -inf (never this token)"
                yield f"logit_bias of token {token} is {_shown(bias)}; allowed: {allowed}"
            elif token in kept:
                yield f"logit_bias names the token {token} more than once"
            else:
                kept[int(token)] = float(bias)
        self._set("logit_bias", tuple(sorted(kept.items())))

    def _contradictions(self) -> Iterator[str]:
        """Values that are right one by one, but not together."""
        set_ = [name for name in _CONSTRAINTS if getattr(self, name) is not None]
        if len(set_) > 1:
            yield f"{' and '.join(set_)} are set; allowed: at most one of {', '.join(_CONSTRAINTS)}"
        if self.num_beams > 1:
            if self.temperature > 0:
                given = f"num_beams is {self.num_beams} and temperature {self.temperature}"
                yield f"{given}: beam search draws nothing. Set temperature to 0, or num_beams to 1"
            if self.n > self.num_beams:
                yield f"n is {self.n} and num_beams {self.num_beams}: there are no more answers than beams. Set n lower"
            defaults = {field.name: field.default for field in fields(self)}
            others = [name for name in (*_BESIDE_NO_BEAMS, *_CONSTRAINTS) if getattr(self, name) != defaults[name]]
            if others:
                given = f"num_beams is {self.num_beams}, and {', '.join(others)} set too"
                yield f"{given}: beam search goes by the model alone. Leave {others[0]} out, or set num_beams to 1"
        elif self.n > 1 and self.temperature == 0:
            given = f"n is {self.n} and temperature 0"
            yield f"{given}: greedy answers are all the same. Set a temperature above 0, or n to 1"


def _is_whole(value: object) -> bool:
    """True and False are no numbers here: they are values in the wrong place."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_token(value: object) -> bool:
    """Whether a value may be the id of a token, in some vocabulary."""
    return _is_whole(value) and value >= 0  # type: ignore[operator]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """A value as it stands in a message: numbers as people write them, texts quoted, long ones cut."""
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length():,} bits"
    shown = str(value) if isinstance(value, Real) else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


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
    """What became of a request, or of one of its ``n`` samples.

    ``token_ids`` are all new tokens, a stop token included; ``text`` leaves out special tokens and the stop text, and
    is None if the engine has no tokenizer. ``log_probs`` are those of ``token_ids`` under the model as it is, before
    penalties, biases, temperature and truncation: a scoring pass gives the same. ``drawn_log_probs``: those under the
    distribution that each token was drawn from, after all of these; 0 where nothing is drawn, as in greedy answers and
    beams. ``top_log_probs`` has for each new
    token the likeliest tokens under the model as it is; it is empty unless asked for. ``prompt_log_probs``: those of
    the prompt's tokens, None for the first, which follows nothing.
    ``finish_reason``: a stop token or text; max_new_tokens; the end of the model's context; cancelled; an error of this
    request alone, which ``error`` tells. ``index`` numbers the samples of a request, the first 0.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    text: str | None
    finish_reason: FinishReason
    log_probs: tuple[float, ...]
    top_log_probs: tuple[TopTokens, ...] = ()
    prompt_log_probs: tuple[float | None, ...] | None = None
    error: str | None = None
    index: int = 0
    drawn_log_probs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One new token of a request, or of its sample number ``index``.

    ``text`` is what can be shown now: it lags behind while a character or a possible stop text is incomplete.
    The last event of a sample has its ``completion``; ``token_id`` and ``log_prob`` are None if it was cancelled or
    ended by an error.
    """

    request_id: RequestId
    token_id: int | None
    log_prob: float | None
    text: str
    completion: Completion | None = None
    index: int = 0
    top_log_probs: TopTokens = ()
