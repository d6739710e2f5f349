"""Labels for prompts, by adapters that predict them instead of writing text: many adapters in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import MaskedWord, choose_rendering, prompt_text
from graftlm.data.prepare import RowFates
from graftlm.data.prompt_template import PromptTemplate
from graftlm.data.prompted import PromptedWord
from graftlm.data.rendering import Rendering
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.training.forward import RoutedRow, class_log_probs


@dataclass(frozen=True)
class Labels:
    """The likeliest label of a prompt, or one for each word of it, and how probable each is.

    ``cut``: the prompt was longer than the context, and its end was not read.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    cut: bool = False


def stored_head(model: AdaptedModel, stack: Stack) -> HeadSettings | None:
    """What loaded adapters predict instead of text: the topmost that has a head, or fills in words.

    A head whose labels were not stored with it has none.
    """
    owner = model.head_of(stack)
    for name in (owner,) if owner is not None else reversed(stack):
        stored = model.notes.get(name.partition("@")[0], {}).get("head")
        if stored is not None:
            return HeadSettings.model_validate(stored)
    return None if owner is None else HeadSettings(type="classifier")


@dataclass(frozen=True, eq=False)
class Predictor:
    """A stack that predicts labels, with the rendering that it was trained with.

    ``words``: the tokens of the language head that stand for the labels, where it has no head of its own.
    """

    stack: Stack
    head: HeadSettings
    rendering: Rendering
    words: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        model: AdaptedModel,
        tokenizer: PreTrainedTokenizerBase,
        stack: Stack,
        head: HeadSettings,
        template: ChatTemplate,
    ) -> Predictor:
        """The predictor of a stack with a head, whose labels are known.

        Raises:
            UserError: this kind of base has no such head, or the labels are not those of the head's weights.
        """
        own = model.head_of(stack)
        if head.type == "reward":
            raise UserError(
                f"the adapter '{own or stack[-1]}' gives rewards to answers, and no labels",
                hint="Score answers with it: graftlm.evaluation.rewards.",
            )
        weights = None if own is None else model.adapter(own).head
        found = getattr(weights, "classes", None)
        if found != head.classes or not head.labels:
            raise UserError(
                f"the adapter '{own or stack[-1]}' has {found or 'no'} classes, and {len(head.labels)} labels stand "
                "beside it",
                hint="Copy its folder again: head.safetensors and graftlm.json belong together.",
            )
        # A template of the adapter's own has the places of its virtual tokens; elsewhere they come on top of the row.
        placed = model.virtual_length(stack) if isinstance(template, PromptTemplate) else 0
        rendering = choose_rendering(
            model.kind, head, template, tokenizer, max_length=model.room(stack) + placed, train_on="last"
        )
        words = rendering.words if isinstance(rendering, MaskedWord | PromptedWord) else {}
        return cls(stack, head, rendering, tuple(words[label] for label in head.labels if words))

    def asked(self, messages: Sequence[Message], row: int) -> Instance:
        """A prompt as an instance. Rendering needs an answer to see where one is due; which one makes no difference."""
        words = prompt_text(Instance(tuple(messages), "", row)).split() if self.head.type == "tagger" else [""]
        answer = Message("assistant", " ".join(self.head.labels[:1] * len(words)))
        return Instance((*messages, answer), "", row)


def predict_labels(
    model: AdaptedModel, prompts: Sequence[tuple[Predictor, Sequence[Message]]], max_tokens: int
) -> list[Labels | str]:
    """Labels for each prompt from its predictor, or why there are none; in the order of ``prompts``.

    ``max_tokens``: padded tokens that run together. Rows of all predictors share their passes through the base.
    """
    accounts = {predictor: RowFates() for predictor, _ in prompts}
    rows: dict[int, RoutedRow] = {}
    for predictor, account in accounts.items():
        asked = [predictor.asked(messages, row) for row, (own, messages) in enumerate(prompts) if own is predictor]
        for instance, encoded in predictor.rendering.rows(asked, account):
            rows[instance.row] = RoutedRow(encoded, predictor.stack)
    words = {predictor.stack: predictor.words for predictor in accounts}
    tables = iter(class_log_probs(model, list(rows.values()), max_tokens, words) if rows else [])
    found = dict(zip(rows, tables, strict=True))
    results: list[Labels | str] = []
    for row, (predictor, _) in enumerate(prompts):
        account = accounts[predictor]
        if row not in found:
            results.append(account.reasons[row])
            continue
        best = found[row].max(dim=-1)
        labels = tuple(predictor.head.labels[number] for number in best.indices.tolist())
        results.append(Labels(labels, tuple(best.values.exp().tolist()), row in account.cut))
    return results
