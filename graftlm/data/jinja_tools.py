"""Conversations with tools in Jinja chat templates: what the template makes of the tools, the calls and their results.

A call has no content that a mark could stand for, so where it stands is told by rendering: it begins where the
template lets an answer begin after what came before, and ends before what it writes behind a plain answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import jinja2

from graftlm.data.instances import TOOL_ROLES, Message
from graftlm.data.jinja import CannotRender, mark, match, refused, split_at_marks, write
from graftlm.data.pieces import Piece
from graftlm.data.tools import as_dicts, tool_name

Special = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Calls:
    """Where the calls of a message stand in what the template wrote."""

    message: int
    begin: int
    end: int
    ended: bool  # what the template writes behind an answer follows


def tool_pieces(
    source: str, special: Special, messages: Sequence[Message], learnt: Sequence[bool], prompt: bool
) -> list[Piece]:
    """The pieces of a conversation with tools; calls are pieces of their own, of the origin ``calls``.

    Raises:
        CannotRender: the template has no place for tools, calls or their results, or where they stand is not clear.
    """
    roles = [message.role for message in messages]
    marks = [mark(place) for place in range(len(messages))]
    try:
        tools, rows = as_dicts(messages, marks)
        text = write(source, special, rows, tools)
        calls = [_find(source, special, messages, marks, at, text) for at, role in enumerate(roles) if role == "calls"]
        contents = [message.content for message in messages]
        if prompt:
            contents[-1] = marks[-1]
        real = write(source, special, as_dicts(messages, contents)[1], tools)
    except (jinja2.TemplateError, TypeError) as error:
        raise refused(roles, error) from error
    if any(tool_name(tool) not in text for tool in tools or ()):
        raise no_tools("this chat template")
    layout = split_at_marks(text, roles, without=("tools", "calls"))
    if prompt and layout.order[-1] != len(messages) - 1:
        raise CannotRender("answer is not last", "the chat template writes something else after the answer")
    written = iter(match(real, layout, messages, contents))
    pieces: list[Piece] = []
    begin, learn = 0, False  # of the text after a content, and whether an answer ends in it
    for index, fixed in zip((*layout.order, None), layout.texts, strict=True):
        end = begin + len(fixed)
        for call in calls:
            if begin <= call.begin and call.end <= end:
                pieces.append(Piece(text[begin : call.begin], "template", "no"))
                pieces.append(Piece(text[call.begin : call.end], "calls", "all" if learnt[call.message] else "no"))
                begin, learn = call.end, learnt[call.message] and call.ended
        pieces.append(Piece(text[begin:end], "template", "stop" if learn else "no"))
        if index is None or (prompt and index == len(messages) - 1):
            break
        pieces.append(Piece(next(written), roles[index], "all" if learnt[index] else "no"))
        begin, learn = end + len(marks[index]), learnt[index] and roles[index] == "assistant"
    return pieces


def _find(
    source: str, special: Special, messages: Sequence[Message], marks: Sequence[str], at: int, whole: str
) -> _Calls:
    """Where the calls of message ``at`` stand in ``whole``."""
    first = at - 1 if at and messages[at - 1].role == "assistant" else at  # of the same turn
    tools, before = as_dicts(messages[:first], marks[:first])
    _, through = as_dicts(messages[: at + 1], marks[: at + 1])
    start = write(source, special, before, tools, answer_begins=True)
    told = write(source, special, through, tools)
    plain = write(source, special, [*before, {"role": "assistant", "content": marks[at]}], tools)
    if not (told.startswith(start) and whole.startswith(told)):
        raise CannotRender(
            "where tool calls stand is not clear",
            "the chat template writes tool calls otherwise as the conversation goes on, so where they stand is unknown",
        )
    behind = plain.partition(marks[at])[2]
    begin = told.find(marks[first], len(start)) + len(marks[first]) if first < at else len(start)
    ended = bool(behind) and told.endswith(behind)
    end = len(told) - len(behind) if ended else len(told)
    if any(tool_name(call) not in told[begin:end] for call in json.loads(messages[at].content)):
        raise no_tools("this chat template", "tool calls")
    return _Calls(at, begin, end, ended)


def no_tools(what: str, kind: str = "tools") -> CannotRender:
    """The error for a template without a place for tools."""
    return CannotRender(
        f"the chat template has no place for {kind}",
        f"{what} has no place for {kind}, and the model would not know of them",
        hint="Use a base whose chat template has one, or give such a template: --chat-template FILE.jinja.",
    )


def refuse_special_tokens(messages: Sequence[Message], special: Collection[str]) -> None:
    """Raises CannotRender where a tool or a call holds the text of a special token.

    A template writes them with special tokens of its own around, so those of the data could not be told apart.
    """
    for message in messages:
        if message.role in TOOL_ROLES[:2] and any(token in message.content for token in special):
            raise CannotRender(
                "special token in a tool or a tool call",
                f"a tool or a tool call holds the text of a special token: {message.content[:60]!r}",
            )
