"""Tools, tool calls and their results: from rows of OpenAI's form to messages, and back for chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from graftlm.data.instances import Message, RowProblem


def tools_message(value: Any) -> Message | None:
    """The tools that a row offers, if any; a list of objects, or the same as JSON.

    Raises:
        RowProblem: it is no such list, or a tool has no name.
    """
    if isinstance(value, str):
        value = _parsed(value, "field 'tools' is no JSON") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise RowProblem("field 'tools' is not a list of objects")
    if not all(tool_name(tool) for tool in value):
        raise RowProblem("a tool without a name")
    return Message("tools", _json(value))


def tool_name(tool: dict[str, Any]) -> str:
    """The name of a tool or of a call; empty where there is none."""
    function = tool.get("function")
    name = (function if isinstance(function, dict) else tool).get("name")
    return name if isinstance(name, str) else ""


def calls_message(value: Any, train: bool | None = None) -> Message:
    """Tool calls of OpenAI's form; arguments that are JSON in a text become the object that they say.

    Raises:
        RowProblem: a call has no name, or its arguments are no object.
    """
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict) or not tool_name(call):
            raise RowProblem("a tool call without a name")
        function = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = function.get("arguments", function.get("parameters")) or {}
        if isinstance(arguments, str):
            arguments = _parsed(arguments, "the arguments of a tool call are no JSON object")
        if not isinstance(arguments, dict):
            raise RowProblem("the arguments of a tool call are no JSON object")
        known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        calls.append({**known, "type": "function", "function": {"name": tool_name(call), "arguments": arguments}})
    if not calls:
        raise RowProblem("a tool call without a name")
    return Message("calls", _json(calls), train)


def with_results(messages: Sequence[Message], ids: Sequence[str | None]) -> list[Message]:
    """The messages with the results of every turn in the order of its calls; ``ids``: which call each is of.

    Raises:
        RowProblem: a result without its call.
    """
    ordered: list[Message] = []
    place = 0
    while place < len(messages):
        end = place
        while end < len(messages) and messages[end].role == "tool":
            end += 1
        if end == place:
            ordered.append(messages[place])
            place += 1
            continue
        called = json.loads(ordered[-1].content) if ordered and ordered[-1].role == "calls" else []
        known = [call.get("id") for call in called]
        if end - place > len(called) or any(
            each is not None and each not in known for each in ids[place:end] if any(known)
        ):
            raise RowProblem("a tool's result without its call")
        if any(known) and all(ids[place:end]):
            ordered += [messages[at] for at in sorted(range(place, end), key=lambda at: known.index(ids[at]))]
        else:
            ordered += messages[place:end]
        place = end
    return ordered


def as_dicts(messages: Sequence[Message], contents: Sequence[str] | None = None) -> tuple[list[Any] | None, list[Any]]:
    """The tools and the messages as chat templates and OpenAI's files have them; ``contents`` in place of their own.

    An assistant's words and its calls become one message.
    """
    tools: list[Any] | None = None
    rows: list[dict[str, Any]] = []
    due: list[dict[str, Any]] = []  # calls whose results are still to come
    for place, message in enumerate(messages):
        content = message.content if contents is None else contents[place]
        if message.role == "tools":
            tools = json.loads(message.content)
        elif message.role == "calls":
            due = json.loads(message.content)
            if not rows or rows[-1]["role"] != "assistant":
                rows.append({"role": "assistant", "content": ""})
            rows[-1]["tool_calls"] = due
        elif message.role == "tool":
            call, due = due[0], due[1:]
            known = {"tool_call_id": call["id"]} if "id" in call else {}
            rows.append({"role": "tool", "name": tool_name(call), **known, "content": content})
        else:
            rows.append({"role": message.role, "content": content})
    return tools, rows


def check_turns(turns: Sequence[Message]) -> None:
    """Raises RowProblem where user, assistant and tools do not speak in turn, or one says nothing."""
    before, results = "", 0
    follows = {"": ("user",), "user": ("assistant", "calls"), "assistant": ("user", "calls"), "calls": ("tool",)}
    follows["tool"] = ("tool", "assistant", "calls")
    for message in turns:
        if message.role not in follows[before]:
            due = " or ".join(role for role in follows[before] if role not in ("calls", "tool")) or "tool"
            raise RowProblem(f"roles out of order ({message.role} where {due} is due)")
        if not message.content.strip() and message.role != "tool":
            raise RowProblem("empty prompt" if message.role == "user" else "empty answer")
        if message.role == "calls":
            results = len(json.loads(message.content))
        elif message.role == "tool":
            results -= 1
            if results < 0:
                raise RowProblem("a tool's result without its call")
        before = message.role


def _parsed(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RowProblem(reason) from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
