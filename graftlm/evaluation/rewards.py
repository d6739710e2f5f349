"""Rewards of answers by reward adapters, as functions that judges and reinforcement learning take."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graftlm.adapters.heads import RewardHead
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import RowAdapters, Stack, as_stack
from graftlm.adapters.stored import parameters_digest
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import RowFates
from graftlm.data.prompt_template import PromptTemplate, template_from_dict
from graftlm.data.rendering import Rendering
from graftlm.data.templates import ChatTemplate, resolve_chat_template
from graftlm.errors import UserError, unknown_name
from graftlm.evaluation.labels import stored_head
from graftlm.training.forward import RoutedRow, score_rows

MAX_TOKENS = 4096  # padded tokens that run together


@dataclass(frozen=True)
class RewardModel:
    """A stack with a reward head, with the rendering that it was trained with.

    Called with (messages, answer) it gives one number each: the weighted sum of the criteria, each on the scale where
    reference answers have mean 0 and variance 1. NaN where an answer cannot be read: its prompt fills the context.
    """

    model: AdaptedModel
    stack: Stack
    criteria: tuple[str, ...]
    weights: tuple[float, ...]
    rendering: Rendering
    max_tokens: int = MAX_TOKENS

    def __call__(self, rows: Sequence[tuple[Sequence[Message], str]]) -> list[float]:
        weights = torch.tensor(self.weights, dtype=torch.float64)
        found: list[float] = (self.rewards(rows) @ weights).tolist()
        return found

    def rewards(self, rows: Sequence[tuple[Sequence[Message], str]], *, normalised: bool = True) -> torch.Tensor:
        """The reward of each answer by each criterion: (rows, criteria), float64."""
        instances = [
            Instance((*messages, Message("assistant", answer)), "answers", number)
            for number, (messages, answer) in enumerate(rows)
        ]
        encoded = {row.row: row for _, row in self.rendering.rows(instances, RowFates())}
        routed = [RoutedRow(row, self.stack) for row in encoded.values()]
        scores = score_rows(self.model, routed, self.max_tokens) if routed else []
        found = torch.full((len(rows), len(self.criteria)), math.nan, dtype=torch.float64)
        for number, score in zip(encoded, scores, strict=True):
            found[number] = torch.tensor(score.rewards, dtype=torch.float64)
        return self.head.normalised(found.to(self.model.device)).cpu() if normalised else found

    @property
    def head(self) -> RewardHead:
        """The head itself."""
        return _head(self.model, self.stack)

    @property
    def identity(self) -> str:
        """What the rewards depend on: base, parameters of the stack, and weights; as a hash."""
        parameters = parameters_digest(self.model.adapter(name) for name in self.stack)
        parts = f"{self.model.fingerprint} {parameters} {self.criteria} {self.weights}"
        return hashlib.sha256(parts.encode()).hexdigest()


def reward_model(
    model: AdaptedModel,
    adapters: RowAdapters,
    *,
    weights: Mapping[str, float] | None = None,
    template: ChatTemplate | None = None,
    max_tokens: int = MAX_TOKENS,
) -> RewardModel:
    """The reward function of a loaded adapter with a reward head, or of a stack.

    Args:
        weights: of each criterion; left out, the criteria count the same: 1 / criteria each.
        template: of prompts and answers; left out, the one that was stored with the adapter, or else the base's own.

    Raises:
        UserError: the stack has no reward head, a criterion is unknown, or the model has no tokenizer.
    """
    stack = as_stack(adapters)
    head = _head(model, stack)
    if model.tokenizer is None:
        raise UserError("a reward needs the tokenizer of the base, and this model has none")
    stored = stored_head(model, stack)
    named = stored.criteria if stored is not None else ()
    criteria = named if len(named) == head.criteria else tuple(f"reward_{n + 1}" for n in range(head.criteria))
    for name in weights or {}:
        if name not in criteria:
            raise unknown_name("criterion", name, list(criteria))
    given = {name: 1 / len(criteria) for name in criteria} if weights is None else weights
    notes: dict[str, Any] = model.notes.get(stack[-1].partition("@")[0], {})
    if template is None:
        own = notes.get("template")
        template = template_from_dict(own) if own else resolve_chat_template("auto", model.tokenizer, model.kind)
    placed = model.virtual_length(stack) if isinstance(template, PromptTemplate) else 0
    rendering = choose_rendering(
        model.kind,
        HeadSettings(type="reward", labels=criteria),
        template,
        model.tokenizer,
        max_length=model.room(stack) + placed,
        train_on="last",
    )
    return RewardModel(
        model, stack, criteria, tuple(float(given.get(name, 0.0)) for name in criteria), rendering, max_tokens
    )


def _head(model: AdaptedModel, stack: Stack) -> RewardHead:
    owner = model.head_of(stack)
    head = None if owner is None else model.adapter(owner).head
    if not isinstance(head, RewardHead):
        raise UserError(
            f"the adapter '{stack[-1] if stack else 'None'}' has no reward head",
            hint="Train one with objective: reward.",
        )
    return head
