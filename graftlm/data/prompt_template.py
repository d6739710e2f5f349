"""A template of one adapter's own, with virtual tokens anywhere in it: P-tuning.

It is a chat template of another form, so training, evaluation, chat and serving render through the same code, and the
adapter carries it as it carries a chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from graftlm.data.instances import Message
from graftlm.data.jinja import CannotRender
from graftlm.data.pieces import Piece
from graftlm.data.templates import ChatTemplate, learnt_messages
from graftlm.errors import UserError
from graftlm.template_text import count_virtual, parse_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KIND = "prompt"


@dataclass(frozen=True)
class PromptTemplate(ChatTemplate):
    """One question and its answer in a text with virtual tokens: ``[P×3] {input} [P×2] is {target}``.

    The n-th virtual token has the id ``first_id + beneath + n``; before them come, in front of everything, the
    ``beneath`` ones of adapters that this one is stacked on. ``start`` begins a row, unless virtual tokens do;
    ``end`` follows the target and is learnt with it.

    Virtual tokens are as if they were not there for spaces: "a [P] b" is "a", a virtual token, " b".
    """

    text: str = ""
    first_id: int = 0
    beneath: int = 0

    @property
    def virtual(self) -> int:
        """How many virtual tokens a row holds."""
        return self.beneath + count_virtual(parse_template(self.text))

    @property
    def turns(self) -> int | None:
        """How many questions a conversation may have."""
        return 1

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values; :func:`template_from_dict` gives an equal template."""
        keys = ("name", "start", "end", "text", "first_id", "beneath")
        return {"version": 1, "kind": KIND, **{key: getattr(self, key) for key in keys}, "special": dict(self.special)}

    def _pieces(self, messages: Sequence[Message], train_on: str | Sequence[str] | None) -> list[Piece]:
        """``train_on`` None: a prompt, cut before the target."""
        question = _question(messages)
        learnt = learnt_messages(messages, train_on or "assistant")
        learn_question, learn_answer = _learn(learnt[-2]), _learn(learnt[-1])
        parts = parse_template(self.text)
        pieces: list[Piece] = []
        number = self.beneath
        for part in parts:
            if part.kind == "virtual":
                pieces.append(self._virtual(number, part.count))
                number += part.count
            elif part.kind == "text":
                pieces.append(Piece(part.text, "template"))
            elif part.kind == "input":
                pieces.append(Piece(question, "user", learn_question))
            elif train_on is None:
                break
            else:
                answer = Piece(messages[-1].content, "assistant", learn_answer)
                pieces += [answer, Piece(self.end, "template", learn_answer)]
        front = [self._virtual(0, self.beneath)] if self.beneath else []
        if parts[0].kind == "virtual":
            front.append(pieces.pop(0))
        return [*front, Piece(self.start, "template"), *_hand_on_spaces(pieces)]

    def _virtual(self, number: int, count: int) -> Piece:
        first = self.first_id + number
        return Piece("", "virtual", ids=tuple(range(first, first + count)))


def _learn(flag: bool) -> Literal["all", "no"]:
    return "all" if flag else "no"


def _hand_on_spaces(pieces: Sequence[Piece]) -> list[Piece]:
    """Spaces that end a template's text go to the next text or content; those that begin the row go.

    Tokenizers write a word and the space before it as one token; see :func:`graftlm.data.pieces.move_spaces`.
    """
    moved: list[Piece] = []
    held, begun = "", False
    for piece in pieces:
        text = piece.text
        if piece.origin == "template" and piece.learn == "no":
            text = held + (text.lstrip(" ") if held or not begun else text)
            kept = text.rstrip(" ")
            text, held = kept, text[len(kept) :]
        elif piece.origin != "virtual":
            text, held = held + text, ""
        begun = begun or bool(text)
        held = held if begun else ""
        if text or piece.ids:
            moved.append(piece if text == piece.text else replace(piece, text=text))
    return moved


def _question(messages: Sequence[Message]) -> str:
    """What stands for {input}: the system message, if any, and the one question.

    Raises:
        CannotRender: there is something else.
    """
    *before, last = messages
    if last.role != "assistant" or not before:
        raise CannotRender("no answer to its question", "a template with virtual tokens needs a question and an answer")
    roles = [message.role for message in before if message.role != "system"]
    if roles != ["user"]:
        raise CannotRender(
            "more than one question", "a template with virtual tokens has the place for one question and its answer"
        )
    return "\n\n".join(message.content for message in before)


def prompt_template(
    text: str, tokenizer: PreTrainedTokenizerBase, first_id: int, beneath: int = 0, *, framed: bool = True
) -> PromptTemplate:
    """A template's text, bound to the special tokens of ``tokenizer``. ``first_id`` is the size of the vocabulary.

    ``framed``: rows begin and end as a decoder's do; for other bases their rendering puts begin and end.

    Raises:
        UserError: the text is no such template, or the tokenizer has no end-of-sequence token.
    """
    parse_template(text)
    names = ("bos_token", "eos_token") if framed else ()
    special = {name: str(token) for name in names if (token := getattr(tokenizer, name, None))}
    if framed and "eos_token" not in special:
        raise UserError(f"template '{text}': the tokenizer has no end-of-sequence token, so answers could not end")
    return PromptTemplate(
        name=text,
        start=special.get("bos_token", ""),
        end=special.get("eos_token", ""),
        special=tuple(sorted(special.items())),
        text=text,
        first_id=first_id,
        beneath=beneath,
    )


def is_prompt_template(values: Mapping[str, Any] | None) -> bool:
    """Whether what an adapter's notes hold is a template with virtual tokens."""
    return values is not None and values.get("kind") == KIND


def template_from_dict(values: Mapping[str, Any]) -> ChatTemplate:
    """The template that ``to_dict`` of either kind gave.

    Raises:
        UserError: a key is unknown, or the version.
    """
    if not is_prompt_template(values):
        return ChatTemplate.from_dict(values)
    rest = {key: value for key, value in values.items() if key != "kind"}
    return PromptTemplate.from_dict(rest)
