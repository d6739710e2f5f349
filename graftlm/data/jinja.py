"""Jinja chat templates: what they put around each message, found by rendering marks in its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from graftlm.data.instances import Message
from graftlm.errors import UserError

# Templates that print today's date get this one, so that a template renders the same on every day.
TODAY = "26 Jul 2024"


class CannotRender(UserError):
    """The template has no place for these messages; ``reason`` is the short form that is counted."""

    def __init__(self, reason: str, message: str, *, hint: str | None = None) -> None:
        self.reason = reason
        super().__init__(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a template writes around the messages of given roles.

    ``texts`` has one text more than there are messages; ``order`` gives the message after each text.
    ``merged``: the system message stands in the first user turn, because the template takes no system role.
    """

    texts: tuple[str, ...]
    order: tuple[int, ...]
    merged: bool


class _Generation(Extension):
    """Accepts ``{% generation %}`` and writes its body as it is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda _format: TODAY
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"the chat template is not valid Jinja: line {error.lineno}: {error}") from error


def write(
    source: str,
    special: Sequence[tuple[str, str]],
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None = None,
    answer_begins: bool = False,
) -> str:
    """What a chat template writes; ``answer_begins``: with the beginning of an answer at the end."""
    return _compile(source).render(
        messages=messages, tools=tools, documents=None, add_generation_prompt=answer_begins, **dict(special)
    )


def mark(index: int) -> str:
    return f"\ue000{index}\ue001"


def _messages(roles: Sequence[str], contents: Sequence[str], merged: bool) -> list[dict[str, str]]:
    rows = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
    if merged:
        rows = [{"role": "user", "content": f"{contents[0]}\n\n{contents[1]}"}, *rows[2:]]
    return rows


@lru_cache(maxsize=4096)
def jinja_layout(source: str, special: tuple[tuple[str, str], ...], roles: tuple[str, ...]) -> Layout:
    """What the template writes around messages of these roles.

    Raises:
        CannotRender: the template refuses the roles, or leaves out or repeats a message.
    """
    marks = [mark(i) for i in range(len(roles))]
    merged = False
    try:
        text = write(source, special, _messages(roles, marks, merged))
    except (jinja2.TemplateError, TypeError) as error:
        if roles[:2] != ("system", "user"):
            raise refused(roles, error) from error
        merged = True
        try:
            text = write(source, special, _messages(roles, marks, merged))
        except (jinja2.TemplateError, TypeError):
            raise refused(roles, error) from error
    return split_at_marks(text, roles, merged)


def split_at_marks(text: str, roles: Sequence[str], merged: bool = False, without: Sequence[str] = ()) -> Layout:
    """The layout of a text that a template wrote with marks in the place of contents, but for roles ``without`` one.

    Raises:
        CannotRender: a mark is not there, or more than once.
    """
    found = re.split("\ue000(\\d+)\ue001", text)
    order = tuple(int(index) for index in found[1::2])
    for index, role in enumerate(roles):
        if role not in without and order.count(index) != 1:
            times = "leaves out" if index not in order else "repeats"
            raise CannotRender(
                f"chat template {times} the {role} message",
                f"the chat template {times} the {role} message (message {index + 1} of {len(roles)})",
                hint="Use another template (--chat-template plain), or write one in YAML.",
            )
    return Layout(tuple(found[::2]), order, merged)


def refused(roles: Sequence[str], error: Exception) -> CannotRender:
    return CannotRender(
        f"chat template refuses the roles: {error}",
        f"the chat template refuses a conversation of {', '.join(roles)}: {error}",
    )


def jinja_match(
    source: str,
    special: tuple[tuple[str, str], ...],
    layout: Layout,
    messages: Sequence[Message],
    prompt: bool,
) -> list[str]:
    """The contents as the template writes them, in the layout's order; some templates strip them.

    The template is rendered with the true contents (with a mark for the answer of a ``prompt``), and the
    layout's texts and the contents put together must be equal to that.

    Raises:
        CannotRender: the template rewrites a content, or writes other text because of it.
    """
    contents = [m.content for m in messages]
    if prompt:
        contents[-1] = mark(len(contents) - 1)
    try:
        text = write(source, special, _messages([m.role for m in messages], contents, layout.merged))
    except (jinja2.TemplateError, TypeError) as error:
        raise refused([m.role for m in messages], error) from error
    return match(text, layout, messages, contents)


def match(text: str, layout: Layout, messages: Sequence[Message], contents: Sequence[str]) -> list[str]:
    """The contents as they stand in what a template wrote; see :func:`jinja_match`."""
    place = len(layout.texts[0])
    matched = text.startswith(layout.texts[0])
    written: list[str] = []
    for index, after in zip(layout.order, layout.texts[1:], strict=True):
        last = len(written) == len(layout.order) - 1
        for form in _forms(contents[index], quoted=messages[index].role == "tool"):
            end = place + len(form)
            follows = text[end:] == after if last else text.startswith(after, end)
            if matched and follows and text.startswith(form, place):
                written.append(form)
                place = end + len(after)
                break
        else:
            raise CannotRender(
                "chat template rewrites the content",
                f"the chat template rewrites the {messages[index].role} message {contents[index][:60]!r} or"
                " writes something else because of it, so where its tokens come from is unknown",
                hint="Use another template (--chat-template plain), or write one in YAML.",
            )
    return written


def _forms(content: str, quoted: bool = False) -> list[str]:
    """The content as it is, as templates strip it, and ``quoted``, inside of JSON, as some write results of tools."""
    forms = [content, content.strip(), content.lstrip(), content.rstrip()]
    forms += [_to_json(content)[1:-1]] if quoted else []
    return list(dict.fromkeys([*forms, content.strip("\n"), content.lstrip("\n"), content.rstrip("\n")]))


def special_names(source: str) -> list[str]:
    """The special tokens that a template asks for by name, such as ``bos_token``."""
    return sorted(set(re.findall(r"\b(\w+_token)\b", source)))


def mapping_default(template: str | Mapping[str, str]) -> str | None:
    """The template to use of a tokenizer that has one, or several by name."""
    if isinstance(template, str):
        return template
    return template.get("default") or next(iter(template.values()), None)
