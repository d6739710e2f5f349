"""Prompts without their answers: what a policy is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance
from graftlm.data.jinja import CannotRender
from graftlm.data.jinja_tools import refuse_special_tokens
from graftlm.data.labelled import render_source
from graftlm.data.pieces import special_texts
from graftlm.data.rendering import PROMPT_FILLS, Rows
from graftlm.data.templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftlm.data.prepare import RowCounts

NO_PROMPT = "a text without a prompt"


@dataclass(frozen=True)
class Prompts:
    """Conversations up to their last answer, of which nothing is learnt. Those that leave no room are dropped.

    ``reads_source``: the base is an encoder-decoder, whose answers have a context of their own.
    """

    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None = None
    reads_source: bool = False

    def rows(self, instances: Sequence[Instance], counts: RowCounts) -> Rows:
        special = special_texts(self.tokenizer)
        for instance in instances:
            asked = instance.asked
            if not asked:
                counts.drop(NO_PROMPT, instance.source, instance.row)
                continue
            try:
                refuse_special_tokens(asked, special)
                if self.reads_source:
                    ids = list(render_source(self.template, asked, self.tokenizer))
                else:
                    ids = list(self.template.render_prompt(asked, self.tokenizer))
            except CannotRender as error:
                counts.drop(error.reason, instance.source, instance.row)
                continue
            room = len(ids) if self.max_length is None else self.max_length - (0 if self.reads_source else 1)
            if len(ids) > room:
                counts.drop(PROMPT_FILLS, instance.source, instance.row)
                continue
            yield instance, EncodedRow(ids, [False] * len(ids), instance.source, instance.row)
