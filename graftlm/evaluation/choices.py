"""Choosing an answer by its likelihood: each candidate's log p after the same prompt, for many adapters in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.evaluation.metrics import Floats
from graftlm.training.forward import RoutedRow, RowScore, score_rows

MOST_CHOICES = 20  # more distinct answers than this are not taken for classes
Normalise = Literal["sum", "token", "byte"]


@dataclass(frozen=True)
class Question:
    """A prompt with its candidate answers, each rendered as a row of its own that learns the answer alone.

    ``candidates``: None where an answer has no room in the context. ``sizes``: bytes of each answer in UTF-8.
    """

    candidates: tuple[EncodedRow | None, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.candidates or len(self.candidates) != len(self.sizes):
            raise ValueError(f"{len(self.candidates)} candidates and {len(self.sizes)} sizes")

    def routed(self, stack: Stack) -> list[RoutedRow]:
        """The candidates that there are, under a routing."""
        return [RoutedRow(row, stack) for row in self.candidates if row is not None]

    def log_probs(self, scores: Sequence[RowScore], normalise: Normalise = "sum") -> Floats:
        """log p of each candidate, (candidates,), from the scores of :meth:`routed`; −∞ where there is no room."""
        found = iter(scores)
        values = np.full(len(self.candidates), -np.inf)
        for index, (row, size) in enumerate(zip(self.candidates, self.sizes, strict=True)):
            if row is not None:
                score = next(found)
                values[index] = score.log_prob / {"sum": 1, "token": score.tokens, "byte": max(1, size)}[normalise]
        return values


def score_together(model: AdaptedModel, parts: Sequence[Sequence[RoutedRow]], max_tokens: int) -> list[list[RowScore]]:
    """Score the rows of all parts in shared micro-batches; the scores part by part."""
    rows = [row for part in parts for row in part]
    scores = iter(score_rows(model, rows, max_tokens) if rows else [])
    return [[next(scores) for _ in part] for part in parts]


def score_choices(
    model: AdaptedModel,
    questions: Sequence[Question],
    stacks: Sequence[Stack],
    max_tokens: int,
    normalise: Normalise = "sum",
) -> dict[Stack, Floats]:
    """log p of every candidate of every question under each stack, (questions, candidates), all in one pass.

    ``normalise``: "sum", or the mean a "token" or a "byte" of the answer, where answers differ much in length.
    """
    parts = [question.routed(stack) for stack in stacks for question in questions]
    scores = iter(score_together(model, parts, max_tokens))
    return {
        stack: np.array([question.log_probs(next(scores), normalise) for question in questions]) for stack in stacks
    }


def find_choices(answers: Sequence[str]) -> tuple[str, ...]:
    """The distinct answers of a data set, sorted, where they are few and come again; else none."""
    distinct = sorted(set(answers))
    few = 2 <= len(distinct) <= MOST_CHOICES and 2 * len(distinct) <= len(answers)
    return tuple(distinct) if few else ()


def read_choices(text: str, answers: Sequence[str]) -> tuple[str, ...]:
    """Choices as they are given: "auto" (:func:`find_choices`), "none", or a list "positive, negative".

    Raises:
        UserError: fewer than two, one twice, or an answer of the data that is not among them.
    """
    if text in ("auto", "none"):
        return find_choices(answers) if text == "auto" else ()
    choices = [choice.strip() for choice in text.split(",")]
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UserError(
            f"--choices '{text}': needs two different answers or more, separated by commas",
            hint="For example: --choices 'positive, negative'; or auto, or none.",
        )
    missing = sorted(set(answers) - set(choices))
    if missing:
        raise UserError(
            f"--choices '{text}': the data has the answer '{missing[0][:60]}', which is not among them",
            hint="Leave --choices out: the answers of the data are then the choices.",
        )
    return tuple(choices)
