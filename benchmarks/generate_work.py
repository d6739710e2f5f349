"""What the contenders of ``generate.py`` are asked for, and the arithmetic of what they did: no torch here."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from sft_vs_trl import VOCABULARY

SCENARIOS = ("plain", "lora", "kinds", "samples", "unequal")
KINDS = ("lora", "bottleneck", "prefix", "prompt")  # two adapters of each
ADAPTERS = 8
SPREAD = 1.0  # standard deviation of the logarithm of unequal lengths


@dataclass(frozen=True)
class Sizes:
    """How much of everything. ``rows`` are decoded together; the lengths of ``unequal`` have no fixed size."""

    rows: int = 32
    prompt: int = 64
    new: int = 64
    samples: int = 8
    sampled_prompt: int = 256
    requests: int = 96
    longest: int = 256
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """One answer that is wanted: exactly ``new`` tokens after ``prompt``."""

    prompt: tuple[int, ...]
    new: int


def asked(scenario: str, sizes: Sizes) -> list[Asked]:
    """The answers of a scenario, in the order in which they are asked for; samples of a prompt side by side."""
    draw = random.Random(sizes.seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, VOCABULARY) for _ in range(count))

    if scenario == "samples":
        prompts = [ids(sizes.sampled_prompt) for _ in range(max(1, sizes.rows // sizes.samples))]
        return [Asked(prompt, sizes.new) for prompt in prompts for _ in range(sizes.samples)]
    if scenario == "unequal":
        lengths = zip(
            log_normal(sizes.requests, sizes.prompt, sizes.longest, draw),
            log_normal(sizes.requests, sizes.new, sizes.longest, draw),
            strict=True,
        )
        return [Asked(ids(prompt), new) for prompt, new in lengths]
    return [Asked(ids(sizes.prompt), sizes.new) for _ in range(sizes.rows)]


def log_normal(count: int, mean: int, longest: int, draw: random.Random) -> list[int]:
    """``count`` lengths in random order: quantiles of a log-normal distribution of this mean, cut at ``longest``.

    Quantiles instead of draws: no seed has luckier lengths than another.
    """
    normal = NormalDist()
    lengths = []
    for number in range(count):
        quantile = normal.inv_cdf((number + 0.5) / count)
        lengths.append(max(1, min(longest, round(mean * math.exp(SPREAD * quantile - SPREAD**2 / 2)))))
    draw.shuffle(lengths)
    return lengths


def wanted(answers: Iterable[Asked]) -> int:
    """How many tokens are useful."""
    return sum(answer.new for answer in answers)


def batches(answers: Sequence[Asked], rows: int) -> list[Sequence[Asked]]:
    """Fixed batches in the order of asking."""
    return [answers[start : start + rows] for start in range(0, len(answers), rows)]


def check_lengths(answers: Sequence[Asked], lengths: Sequence[int], *, exact: bool = True) -> None:
    """End the contender if an answer has fewer tokens than were asked for (or more, where ``exact``)."""
    if len(lengths) != len(answers):
        raise SystemExit(f"{len(answers)} answers were wanted, {len(lengths)} came")
    for number, (answer, length) in enumerate(zip(answers, lengths, strict=True)):
        if length < answer.new or (exact and length != answer.new):
            raise SystemExit(f"answer {number} has {length} tokens, {answer.new} were wanted")


def busy_share(running: Sequence[int], waiting: Sequence[int], slots: int) -> float | None:
    """Share of the slots in use, over the steps after which requests still waited; None if none ever did.

    ``running`` and ``waiting``: rows of each step, and requests that had no token yet after it.
    """
    rows = [row for row, left in zip(running, waiting, strict=True) if left]
    return sum(rows) / (slots * len(rows)) if rows else None


def rate(result: dict[str, Any]) -> float:
    """Useful tokens per second."""
    return float(result["tokens"] / result["seconds"])


def processor_rate(result: dict[str, Any]) -> float:
    """Useful tokens per second of processor time, which neighbours on the machine lengthen less."""
    return float(result["tokens"] / (result["user_seconds"] + result["system_seconds"]))
