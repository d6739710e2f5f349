"""The messages of one row, in each of the forms that rows are known in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from graftlm.data.instances import Message, Role, RowProblem
from graftlm.data.tools import calls_message, tools_message, with_results

Row = dict[str, Any]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
RESULT_ROLES = ("tool", "function", "observation", "function_response", "tool_response", "ipython")
CALL_ROLES = ("function_call", "tool_call")  # of ShareGPT files: the call is the content, as JSON
_TURN = re.compile(r"(?:^|\s)### (Human|Assistant):[ ]?")


def text_of(row: Row, key: str, *, required: bool = True) -> str:
    """The text of a field; numbers and truth values are written out."""
    value = row.get(key)
    if value is None:
        if required:
            raise RowProblem(f"missing field '{key}'")
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    kinds: dict[type, str] = {list: "a list", dict: "an object"}
    raise RowProblem(f"field '{key}' is {kinds.get(type(value), type(value).__name__)}, not text")


def list_of(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        raise RowProblem(f"missing field '{key}'")
    if not isinstance(value, list):
        raise RowProblem(f"field '{key}' is not a list")
    return value


def instruction_turns(answer: str, extra: str) -> Callable[[Row], list[Message]]:
    """Instruction with an optional further input, joined by an empty line; optional system and history."""

    def convert(row: Row) -> list[Message]:
        parts = [text_of(row, "instruction"), text_of(row, extra, required=False)]
        messages = [Message("system", text_of(row, "system", required=False))]
        for turn in row.get("history") or []:
            if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(t, str) for t in turn):
                raise RowProblem("field 'history' is not a list of pairs of texts")
            messages += [Message("user", turn[0]), Message("assistant", turn[1])]
        user = "\n\n".join(part for part in parts if part.strip())
        return [*messages, Message("user", user), Message("assistant", text_of(row, answer))]

    return convert


def chat_turns(key: str) -> Callable[[Row], list[Message]]:
    """A list of turns with role and content, or from and value, and what tools there are."""

    def convert(row: Row) -> list[Message]:
        messages = turns_of(list_of(row, key), key)
        system = text_of(row, "system", required=False)
        if system.strip() and messages and messages[0].role != "system":
            messages.insert(0, Message("system", system))
        tools = tools_message(row.get("tools"))
        return messages if tools is None else [tools, *messages]

    return convert


def turns_of(turns: Sequence[Any], key: str) -> list[Message]:
    """The messages of a list of turns; ``key`` is where it stands in the row."""
    messages: list[Message] = []
    ids: list[str | None] = []  # which call a result is of
    for turn in turns:
        found = _turn(turn, key)
        messages += found
        ids += [turn.get("tool_call_id")] * len(found)
    return with_results(messages, ids) if any(message.role == "tool" for message in messages) else messages


def _turn(turn: Any, key: str) -> list[Message]:
    """What a turn says, and then what it calls."""
    if not isinstance(turn, dict):
        raise RowProblem(f"a turn in '{key}' is not an object")
    name = text_of(turn, "role" if "role" in turn else "from")
    field = "content" if "content" in turn else "value"
    train = turn.get("train", turn.get("weight"))
    learnt = None if train is None else bool(train)
    role: Role | None = "tool" if name.lower() in RESULT_ROLES else ROLES.get(name.lower())
    if name.lower() in CALL_ROLES:
        try:
            return [calls_message(json.loads(text_of(turn, field)), learnt)]
        except ValueError as error:
            raise RowProblem(f"the content of a turn of '{name}' is no JSON") from error
    if role is None:
        raise RowProblem(f"unknown role '{name}'")
    if turn.get("tool_calls"):
        if role != "assistant":
            raise RowProblem(f"tool calls in a turn of '{name}'")
        said = [Message(role, turn[field], learnt)] if isinstance(turn.get(field), str) and turn[field].strip() else []
        return [*said, calls_message(turn["tool_calls"], learnt)]
    return [Message(role, _content(turn, field), learnt)]


def _content(turn: Row, field: str) -> str:
    if isinstance(turn.get(field), list):
        texts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in turn[field]]
        if not all(isinstance(text, str) for text in texts):
            raise RowProblem("a turn holds more than text (an image or the like)")
        return "".join(str(text) for text in texts)
    return text_of(turn, field)


def pair_turns(prompt: str, answer: str) -> Callable[[Row], list[Message]]:
    def convert(row: Row) -> list[Message]:
        if isinstance(row.get(prompt), list) and isinstance(row.get(answer), list):
            tools = tools_message(row.get("tools"))
            turns = turns_of([*row[prompt], *row[answer]], f"{prompt}' and '{answer}")
            return turns if tools is None else [tools, *turns]
        system = Message("system", text_of(row, "system", required=False))
        return [system, Message("user", text_of(row, prompt)), Message("assistant", text_of(row, answer))]

    return convert


def tag_turns(words: str, tags: str) -> Callable[[Row], list[Message]]:
    """A list of words and one of their labels; prompt and answer are the two, apart by spaces."""

    def joined(row: Row, key: str) -> tuple[str, int]:
        texts = [text_of({key: entry}, key) for entry in list_of(row, key)]
        if any(len(text.split()) != 1 for text in texts):
            raise RowProblem(f"an entry of field '{key}' is empty or has a space in it")
        return " ".join(texts), len(texts)

    def convert(row: Row) -> list[Message]:
        (prompt, one), (answer, other) = joined(row, words), joined(row, tags)
        if one != other:
            raise RowProblem("not as many labels as words")
        return [Message("user", prompt), Message("assistant", answer)]

    return convert


def oasst_turns(row: Row) -> list[Message]:
    """``### Human: … ### Assistant: …`` in ``input``, the last answer in ``output``."""
    found = _TURN.split(text_of(row, "input"))
    if found[0].strip() or len(found) < 3 or found[-2] != "Assistant" or found[-1].strip():
        raise RowProblem("field 'input' is not '### Human: … ### Assistant:'")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    turns = [Message(roles[who], said) for who, said in zip(found[1:-2:2], found[2:-1:2], strict=True)]
    return [*turns, Message("assistant", text_of(row, "output").rstrip())]


def self_instruct_parts(row: Row) -> list[Row]:
    instances = list_of(row, "instances")
    if not instances or not all(isinstance(i, dict) for i in instances):
        raise RowProblem("field 'instances' is not a list of objects")
    return [{"instruction": row.get("instruction"), **{k: i.get(k) for k in ("input", "output")}} for i in instances]
