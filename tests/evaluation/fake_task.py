"""Tasks, items and results made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftlm.data.instances import Message
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys

PATTERNS: dict[str, dict[str, Any]] = {
    "choice": {"prompt": "{{ q }}", "choices": "{{ c }}", "answer": "{{ a }}"},
    "generate": {"prompt": "{{ q }}", "answer": "{{ a }}"},
    "classify": {"prompt": "{{ q }}", "answer": "{{ a }}"},
    "perplexity": {"text": "{{ t }}"},
    "pairs": {"good": "{{ g }}", "bad": "{{ b }}"},
    "preference": {"prompt": "{{ q }}", "chosen": "{{ g }}", "rejected": "{{ b }}"},
}


def task_of(kind: str, name: str = "quiz-en", folder: Path = Path(), **keys: Any) -> EvalTask:
    """A task of a kind with patterns that nobody fills in."""
    return EvalTask(name, TaskKeys(kind=kind, path="quiz.jsonl", **{**PATTERNS[kind], **keys}), folder)


def choice(
    row: int, right: int | tuple[int, ...] = 0, candidates: tuple[str, ...] = ("yes", "no"), **more: Any
) -> Item:
    """A question with its choices."""
    places = (right,) if isinstance(right, int) else right
    return Item("quiz.jsonl", row, (Message("user", f"Question {row}?"),), candidates, places, **more)


def written(row: int, *references: str, **values: Any) -> Item:
    """A question whose answer is written."""
    return Item("quiz.jsonl", row, (Message("user", f"Question {row}?"),), references=references, values=values)


def likely(
    item: Item, *log_probs: float | None, tokens: tuple[int, ...] = (), sizes: tuple[int, ...] = ()
) -> ItemResult:
    """What a model made of an item's candidates."""
    ones = (1,) * len(log_probs)
    return ItemResult(item.hash, log_probs, tokens or ones, sizes or ones)


def answered(item: Item, text: str = "", **scores: float) -> ItemResult:
    """A written answer with its scores."""
    return ItemResult(item.hash, text=text, scores=scores)


def failed(item: Item) -> ItemResult:
    return ItemResult(item.hash, error="does not fit the context")
