"""Preference rows: two answers to one conversation, of which people liked the first better."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from graftlm.data.instances import Instance, Message, RowProblem
from graftlm.errors import UserError

Row = dict[str, Any]
Turns = Callable[[Sequence[Any], str], list[Message]]
_SAID = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


def is_preference(row: Row) -> bool:
    """Whether a row has a better and a worse answer."""
    return row.get("chosen") is not None and row.get("rejected") is not None


def pair(before: Sequence[Message], chosen: Any, rejected: Any, turns_of: Turns) -> list[Message]:
    """The messages ``before``, the chosen answer, and the rejected one with its role.

    Either is a text, a turn, or a list of turns (an answer, or a conversation that holds ``before`` itself).

    Raises:
        RowProblem: one is of no such kind, or the two differ in more than their last answer.
    """
    better, worse = (_turns(value, key, turns_of) for value, key in ((chosen, "chosen"), (rejected, "rejected")))
    if not better or not worse or better[-1].role != "assistant" or worse[-1].role != "assistant":
        raise RowProblem("a chosen or rejected conversation ends without an answer")
    if better[:-1] != worse[:-1]:
        raise RowProblem("the two conversations part before their last answers")
    if better[-1].content == worse[-1].content:
        raise RowProblem("the chosen and the rejected answer are the same")
    shared = better[:-1]
    whole = shared if shared[: len(before)] == [*before] else [*before, *shared]
    return [*whole, better[-1], Message("rejected", worse[-1].content)]


def _turns(value: Any, key: str, turns_of: Turns) -> list[Message]:
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return turns_of(value, key)
    if not isinstance(value, str):
        raise RowProblem(f"field '{key}' is no answer")
    said = _SAID.split(value)
    if len(said) > 2 and not said[0].strip():  # "Human: … Assistant: …" in one text
        roles = {"Human": "user", "Assistant": "assistant"}
        return turns_of(
            [{"role": roles[who], "content": text} for who, text in zip(said[1::2], said[2::2], strict=True)], key
        )
    return [Message("assistant", value)]


def refuse_preferences(instances: Sequence[Instance]) -> None:
    """Raises UserError for preference rows where single answers are learnt and nobody said what becomes of them."""
    found = [instance for instance in instances if instance.rejected is not None]
    if found:
        raise UserError(
            f"{found[0].source}, row {found[0].row}: a preference row, with a chosen and a rejected answer; there are"
            f" {len(found):,} of them; instruction tuning learns single answers",
            hint="To learn the chosen answers without the rejected ones, say preferences: chosen for the data set in a"
            " recipe.",
        )
