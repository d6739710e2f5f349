"""Rows made for a template by its own field names, for templates whose data set is not at hand."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from jinja2 import nodes

from graftlm.data.counted_jinja import _sandbox
from graftlm.data.formats import RowProblem
from graftlm.data.instances import Instance
from graftlm.data.promptsource import PromptTemplate, to_instance
from tests.data.promptsource_handmade import ROWS

WORDS = ["alpha", "beta gamma", "Delta went home. He slept.", "A", "B", "3", "yes", "no"]


def search(template: PromptTemplate, tries: int = 3000) -> tuple[dict[str, Any], Instance] | str:
    """A row that renders and its instance, or the reason of the last try."""
    handmade = ROWS.get(template.dataset)
    if handmade is not None:
        with suppress(RowProblem):
            return handmade, to_instance(template, handmade)
    tree = _Seen(template)
    reason = ""
    for attempt in range(tries):
        row = tree.row(random.Random(attempt))
        try:
            return row, to_instance(template, row, number=attempt)
        except RowProblem as problem:
            reason = problem.reason
    return reason


class _Seen:
    """What a template's source tells of its fields: names of entries, constants that they are compared with."""

    def __init__(self, template: PromptTemplate) -> None:
        self.names = sorted(template.fields())
        source = f"{template.jinja}\n{template.answer_choices}"
        # The plain parser, not the sandbox's: what a template says, before anything is put into it.
        tree = _sandbox().__class__.__mro__[1]._parse(_sandbox(), source, None, None)
        self.entries = sorted(
            {node.attr for node in tree.find_all(nodes.Getattr)}
            | {
                node.arg.value
                for node in tree.find_all(nodes.Getitem)
                if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
            }
            | {
                key.value.value
                for node in tree.find_all(nodes.Filter)
                for key in node.kwargs
                if key.key == "attribute" and isinstance(key.value, nodes.Const)
            }
            | {
                node.args[0].value
                for node in tree.find_all(nodes.Filter)
                if node.name in ("selectattr", "rejectattr") and node.args and isinstance(node.args[0], nodes.Const)
            }
        )
        consts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str | int | float)}
        consts = {const for const in consts if "|||" not in str(const)}
        self.consts = sorted(consts, key=repr)
        numbers = [c for c in self.consts if isinstance(c, int)]
        self.numbers = [0, 1, 2, 3, *numbers, *(n + 1 for n in numbers)]

    def row(self, draw: random.Random) -> dict[str, Any]:
        kinds = {entry: draw.randrange(8) for entry in self.entries}
        return {name: self.value(draw, kinds, 0) for name in self.names}

    def value(self, draw: random.Random, kinds: dict[str, int], depth: int, kind: int | None = None) -> Any:
        kind = draw.randrange(10) if kind is None else kind
        size = draw.choice([2, 3, 4, 6])
        if kind in (0, 1, 2) or depth > 3:
            return draw.choice(WORDS)
        if kind == 3:
            return draw.choice(self.numbers)
        if kind == 4 and self.consts:
            return draw.choice(self.consts)
        if kind == 5 and self.consts:
            return [draw.choice(self.consts) for _ in range(size)]
        if kind == 6 and self.entries:
            return {entry: self.value(draw, kinds, depth + 1, kinds[entry]) for entry in self.entries}
        if kind == 7:
            inner = draw.choice([1, 3, 6, 8, 9])
            return [self.value(draw, kinds, depth + 1, inner) for _ in range(size)]
        if kind == 8:
            return draw.sample(WORDS, size)
        return [draw.choice(self.numbers) for _ in range(size)]
