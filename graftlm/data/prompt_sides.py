"""Which fields of a row a PromptSource pattern shows in its input, and which in its target.

The two sides are apart by ``|||``. A field counts for a side if what is written there follows from it, by itself, by a
variable, or by a branch. A condition around both sides that only leaves rows out counts for neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from jinja2 import nodes

from graftlm.data.counted_jinja import parse_pattern
from graftlm.data.keys import answer_key, input_key, question_key, values_key

SEPARATOR = "|||"
CHOICES = "answer_choices"


@dataclass(frozen=True)
class Sides:
    """The fields that the input shows, and those that the target shows; a field may be in both."""

    input: frozenset[str]
    target: frozenset[str]


@lru_cache(maxsize=4096)
def sides(source: str, choices: str = "") -> Sides:
    """The fields of both sides of a pattern; ``choices`` is the pattern of its answer choices.

    Raises:
        jinja2.TemplateSyntaxError: a pattern is not valid.
    """
    tree, known = parse_pattern(source)
    words = _names(parse_pattern(choices)[0], {}) - known if choices else frozenset[str]()
    walk = _Walk({CHOICES: words})
    walk.through(tree.body, frozenset())
    return Sides(*(frozenset(found - known - {CHOICES}) for found in walk.found))


def keys_of(key: str, shown: Sides, row: Mapping[str, Any], answer: str = "") -> tuple[str, str]:
    """The keys of the input and of the answer that a pattern makes of a row; "" where the input shows no text of it.

    The input's key is of the texts that it shows; numbers that it shows too, such as a label, are part of what is
    asked. ``key`` names the pattern, and its ``answer`` is compared. Without an ``answer`` the values that the target
    shows are: then ``key`` may name several patterns that show the same fields in other words.
    """
    given = {name: row[name] for name in sorted(shown.input) if name in row}
    texts = [value for value in given.values() if _has_text(value)]
    if not texts:
        return "", ""
    numbers = {name: value for name, value in given.items() if not _has_text(value)}
    asked = [key, repr(numbers)]
    if not answer:
        asked += [*sorted(shown.input), "|||", *sorted(shown.target)]
        answer = repr([row.get(name) for name in sorted(shown.target)])
    return input_key(values_key(0, texts)), answer_key(question_key(*asked), answer)


def _has_text(value: Any) -> bool:
    if isinstance(value, dict | list):
        return any(_has_text(each) for each in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str)


@dataclass
class _Walk:
    """Goes through a pattern in the order in which it writes; ``behind`` is 1 from the separator on."""

    variables: dict[str, frozenset[str]]
    found: tuple[set[str], set[str]] = field(default_factory=lambda: (set(), set()))
    behind: int = 0

    def through(self, body: list[nodes.Node], conditions: frozenset[str]) -> None:
        for node in body:
            self.visit(node, conditions)

    def visit(self, node: nodes.Node, conditions: frozenset[str]) -> None:
        if isinstance(node, nodes.Output):
            for part in node.nodes:
                if isinstance(part, nodes.TemplateData):
                    self.behind |= SEPARATOR in part.data
                    continue
                self.append(part, conditions)
                self.found[self.behind].update(_names(part, self.variables))
        elif isinstance(node, nodes.If):
            self.branch(node, conditions)
        elif isinstance(node, nodes.For):
            turns = _names(node.iter, self.variables)
            for name in node.target.find_all(nodes.Name):
                self.variables[name.name] = turns
            if isinstance(node.target, nodes.Name):
                self.variables[node.target.name] = turns
            self.variables.setdefault("loop", frozenset())
            if _writes(node.body):
                self.found[self.behind].update(turns)
            self.through([*node.body, *node.else_], conditions | turns)
        elif isinstance(node, nodes.Assign | nodes.AssignBlock):
            value = _names(node.node, self.variables) if isinstance(node, nodes.Assign) else _all_names(node.body, self)
            self.append(node, conditions)
            for target in _targets(node.target):
                self.variables[target] = self.variables.get(target, frozenset()) | value | conditions

    def branch(self, node: nodes.If, conditions: frozenset[str]) -> None:
        """A branch that holds the separator in all of its ways decides on both sides; a lone one leaves rows out."""
        ways = [node.body, *(other.body for other in node.elif_), *([node.else_] if node.else_ else [])]
        tests = frozenset[str]().union(*(_names(each.test, self.variables) for each in (node, *node.elif_)))
        apart = [way for way in ways if _separates(way)]
        if apart:
            if len(ways) > 1:
                for side in self.found:
                    side.update(tests)
        elif any(_writes(way) for way in ways):
            self.found[self.behind].update(tests)
        begin = end = self.behind
        for way in ways:
            self.behind = begin
            self.through(way, conditions | tests)
            end |= self.behind
        self.behind = end

    def append(self, node: nodes.Node, conditions: frozenset[str]) -> None:
        """``list.append(x)`` makes the list depend on x."""
        for call in node.find_all(nodes.Call):
            owner = call.node.node if isinstance(call.node, nodes.Getattr) else None
            if isinstance(owner, nodes.Name) and owner.name in self.variables:
                given = frozenset[str]().union(*(_names(each, self.variables) for each in call.args))
                self.variables[owner.name] |= given | conditions


def _names(node: nodes.Node, variables: dict[str, frozenset[str]]) -> frozenset[str]:
    """The fields of a row that an expression looks at."""
    names = {each.name for each in node.find_all(nodes.Name)} | ({node.name} if isinstance(node, nodes.Name) else set())
    found: set[str] = set()
    for name in names:
        found.update(variables.get(name, {name}))
    return frozenset(found)


def _all_names(body: list[nodes.Node], walk: _Walk) -> frozenset[str]:
    return frozenset[str]().union(*(_names(each, walk.variables) for each in body))


def _targets(target: Any) -> list[str]:
    """The names that are set; of ``ns.x`` it is ``ns``."""
    if isinstance(target, nodes.Name | nodes.NSRef):
        return [target.name]
    return [each.name for each in target.find_all(nodes.Name)]


def _writes(body: list[nodes.Node]) -> bool:
    """Whether a body writes more than white space."""
    return any(
        not isinstance(part, nodes.TemplateData) or part.data.strip()
        for node in body
        for output in ([node] if isinstance(node, nodes.Output) else node.find_all(nodes.Output))
        for part in output.nodes
    )


def _separates(body: list[nodes.Node]) -> bool:
    return any(SEPARATOR in data.data for node in body for data in node.find_all(nodes.TemplateData))
