"""What lm-evaluation-harness asks, as tokens: plain text as its own Hugging Face model encodes it, or a conversation.

Plain text, after ``lm_eval.models.huggingface.HFLM``: context and continuation are tokenised as one text, which is cut
behind as many tokens as the context has alone; spaces at the end of the context go to the continuation; an empty
context is the token that begins a text. Conversations are rendered by the template that they are answered with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftlm.data.instances import Message
from graftlm.data.labelled import render_source
from graftlm.data.pieces import tokenize_alone
from graftlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from graftlm.data.templates import ChatTemplate

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Pair:
    """A continuation that is scored, and the context before it, as tokens."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class PlainText:
    """Texts as tokens. ``two``: for an encoder-decoder, whose encoder reads the context."""

    tokenizer: PreTrainedTokenizerBase
    two: bool = False

    @property
    def begin(self) -> int:
        """The token that stands before a text that has no context.

        Raises:
            UserError: the tokenizer has none.
        """
        for token in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if isinstance(token, int):
                return token
        raise UserError("the tokenizer has no token that begins or ends a text, and a context is empty")

    def pairs(self, asked: Sequence[tuple[str, str]]) -> list[Pair]:
        """Contexts and their continuations.

        Raises:
            UserError: a continuation is empty, or is no token of its own.
        """
        moved = [_move_spaces(context, continuation) for context, continuation in asked]
        contexts = self._by_text([context for context, _ in moved if context])
        joined = {} if self.two else self._by_text([context + rest for context, rest in moved if context])
        alone = self._by_text([rest for context, rest in moved if self.two or not context], special=False)
        found = []
        for context, rest in moved:
            if not context:
                before, ids = [self.begin], alone[rest]
                if ids[:1] == before:
                    ids = ids[1:]
            elif self.two:
                before, ids = contexts[context], alone[rest]
            else:
                before = contexts[context]
                ids = joined[context + rest][len(before) :]
            found.append(_pair(before, ids, rest))
        return found

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts by themselves, with the special tokens that their tokenizer puts around them."""
        found = self._by_text(texts)
        return [found[text] for text in texts]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts that are gone on from."""
        return [ids or [self.begin] for ids in self.whole(texts)]

    def _by_text(self, texts: Sequence[str], special: bool | None = None) -> dict[str, list[int]]:
        """The ids of each text. ``special`` None: special tokens, unless the text begins with the first of them."""
        begin = str(self.tokenizer.decode([self.begin])) if special is None and texts else ""
        found: dict[str, list[int]] = {}
        for add in (True, False):
            some = [text for text in dict.fromkeys(texts) if (special is None and not text.startswith(begin)) is add]
            if some:
                found |= zip(
                    some, self.tokenizer(some, add_special_tokens=add, verbose=False)["input_ids"], strict=True
                )
        return found


@dataclass(frozen=True)
class Conversations:
    """Conversations as tokens of one chat template; contexts are what :func:`as_context` gives."""

    template: ChatTemplate
    tokenizer: PreTrainedTokenizerBase
    plain: PlainText

    def pairs(self, asked: Sequence[tuple[str, str]]) -> list[Pair]:
        """Conversations and their continuations; those without a context are plain text."""
        return [
            self._pair(*read_context(context), continuation)
            if context
            else self.plain.pairs([(context, continuation)])[0]
            for context, continuation in asked
        ]

    def _pair(self, messages: tuple[Message, ...], begun: str, continuation: str) -> Pair:
        prompt = self._prompt(messages)
        if not begun:
            return _pair(prompt, self._answer(messages, continuation), continuation)
        begun, continuation = _move_spaces(begun, continuation)
        before = self._answer(messages, begun)
        return _pair([*prompt, *before], self._answer(messages, begun + continuation)[len(before) :], continuation)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Conversations whose answer is wanted."""
        found = []
        for text in texts:
            messages, begun = read_context(text)
            found.append([*self._prompt(messages), *(self._answer(messages, begun) if begun else ())])
        return found

    def _prompt(self, messages: Sequence[Message]) -> list[int]:
        if self.plain.two:
            return list(render_source(self.template, messages, self.tokenizer))
        return self.template.render_prompt(messages, self.tokenizer)

    def _answer(self, messages: Sequence[Message], text: str) -> list[int]:
        """The ids of an answer, without what the template writes around it."""
        if self.plain.two:
            return tokenize_alone([text], self.tokenizer)[0]
        prompt = len(self._prompt(messages))
        rendered = self.template.render([*messages, Message("assistant", text)], self.tokenizer)
        count = next(count for origin, count in reversed(rendered.runs) if origin == "assistant")
        return rendered.ids[prompt : prompt + count]


def as_context(history: Sequence[Mapping[str, Any]]) -> str:
    """A conversation as the text that stands for it in a request, the same for all models.

    Raises:
        UserError: a role that no template knows.
    """
    for message in history:
        if message["role"] not in ROLES:
            raise UserError(f"a conversation has the role '{message['role']}'; there are: {', '.join(ROLES)}")
    return json.dumps([[message["role"], message["content"]] for message in history], ensure_ascii=False)


def read_context(text: str) -> tuple[tuple[Message, ...], str]:
    """The messages of :func:`as_context`, and how the answer to them begins (most often: it does not)."""
    pairs = json.loads(text)
    begun = pairs.pop()[1] if pairs[-1][0] == "assistant" else ""
    return tuple(Message(role, content) for role, content in pairs), begun


def _move_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _pair(context: Sequence[int], continuation: Sequence[int], text: str) -> Pair:
    if not continuation:
        raise UserError(
            f"the continuation {text[:60]!r} has no token of its own",
            hint="It is empty, or the tokenizer joins it to the last token of its context.",
        )
    return Pair(tuple(context), tuple(continuation))
