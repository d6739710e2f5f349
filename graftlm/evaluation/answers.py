"""What a model answered to an item: its choice, how sure it was, and in words."""

from __future__ import annotations

import numpy as np

from graftlm.evaluation.metrics import Floats
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask

NO_ANSWER = "(no answer)"


def log_probs(task: EvalTask, result: ItemResult) -> Floats:
    """log p of the candidates, normalised as the task says; −∞ where one has no room. (candidates,)"""
    lengths = {"sum": None, "token": result.tokens, "byte": result.sizes}[task.keys.normalise]
    values = [-np.inf if value is None else value for value in result.log_probs]
    if lengths is None:
        return np.array(values, np.float64)
    return np.array([value / max(1, length) for value, length in zip(values, lengths, strict=True)], np.float64)


def likeliest(task: EvalTask, result: ItemResult) -> int | None:
    """The place of the likeliest candidate, the first of equals; None where none has room."""
    values = log_probs(task, result)
    return int(values.argmax()) if len(values) and np.isfinite(values).any() else None


def probabilities(task: EvalTask, result: ItemResult) -> Floats:
    """The candidates' probabilities among themselves; 0 where one has no room, and all 0 where none has."""
    values = log_probs(task, result)
    if not np.isfinite(values).any():
        return np.zeros(len(values))
    weights = np.exp(values - values.max())
    return np.asarray(weights / weights.sum(), np.float64)


def answer_text(task: EvalTask, item: Item, result: ItemResult) -> str:
    """What a model answered, for people."""
    if result.error is not None:
        return f"(no answer: {result.error})"
    if task.keys.kind == "generate":
        return result.text or ""
    if task.keys.kind == "classify":
        return result.predicted or NO_ANSWER
    if task.keys.kind == "perplexity":
        value, count = (result.log_probs or (None,))[0], sum(result.tokens)
        return NO_ANSWER if value is None or not count else f"{-value / count:.3f} nats a token"
    chosen = likeliest(task, result)
    return NO_ANSWER if chosen is None else item.candidates[chosen]


def predicted(task: EvalTask, item: Item, result: ItemResult) -> tuple[str, str]:
    """The right class of an item and the chosen one.

    Where an item has several right ones, the chosen one is taken if it is among them, else the first. Classes are the
    candidates' texts where the task lists them, else their places.
    """
    if task.keys.kind == "classify":
        own = NO_ANSWER if result.error is not None or result.predicted is None else result.predicted
        return (own if own in item.references else item.references[0]), own
    names = item.candidates if isinstance(task.keys.choices, tuple) else tuple(map(str, range(len(item.candidates))))
    chosen = likeliest(task, result) if result.error is None else None
    truth = chosen if chosen in item.right and chosen is not None else item.right[0]
    return names[truth], NO_ANSWER if chosen is None else names[chosen]
