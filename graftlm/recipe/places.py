"""YAML 1.2 as plain values that know their line, and back. ``1e-4`` is a number and ``no`` a word in it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError
from ruamel.yaml.representer import SafeRepresenter

from graftlm.recipe.problems import KeyPath, Problem, RecipeError

_NUMBERS = ("null", "bool", "int", "float")  # everything else, dates too, is text
_PLAIN_TAGS = (*_NUMBERS, "str", "timestamp", "map", "seq", "merge", "value")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Place:
    """Where a value stands: 1-based line and column of its key, and the places inside it."""

    line: int
    column: int
    inside: Mapping[str | int, Place] = field(default_factory=dict)

    def at(self, path: KeyPath) -> Place:
        """The place of a path, or of as much of it as exists."""
        place = self
        for part in path:
            if part not in place.inside:
                break
            place = place.inside[part]
        return place


def read_yaml(
    text: str, source: str, *, if_empty: str = "`graftlm recipe` prints a full one."
) -> tuple[Any, Place, list[Problem]]:
    """The value, its place, and problems that leave the rest readable (such as a key that stands twice).

    ``if_empty``: what to do where there is nothing, for the error.

    Raises:
        RecipeError: the text is no YAML, or empty.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(source, [_broken(text, error)]) from error
    if root is None:
        raise RecipeError(source, [Problem("the file is empty", line=1)], hint=if_empty)
    reader = _Reader(yaml)
    value, inside = reader.value(root, ())
    return value, Place(*_mark(root), inside), reader.problems


def write_yaml(value: Any) -> str:
    """Block mappings, lists on one line, keys in their order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 10**6
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()


class _Representer(SafeRepresenter):
    def flat_list(self, value: list[Any]) -> Node:
        return self.represent_sequence(_TAG + "seq", value, flow_style=True)

    def text(self, value: str) -> Node:
        # Line separators other than \n come back as blanks unless they are escaped, which only double quotes allow.
        return self.represent_scalar(_TAG + "str", value, style=None if value.isprintable() else '"')


_Representer.add_representer(list, _Representer.flat_list)
_Representer.add_representer(str, _Representer.text)


class _Reader:
    def __init__(self, yaml: YAML) -> None:
        self.constructor = yaml.constructor
        self.problems: list[Problem] = []
        self.open: list[Node] = []  # the nodes around the present one

    def value(self, node: Node, path: KeyPath) -> tuple[Any, dict[str | int, Place]]:
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _PLAIN_TAGS:
            self._problem(node, path, f"the tag {str(node.tag).replace(_TAG, '!!')} is not allowed here")
        if any(node is outer for outer in self.open):
            self._problem(node, path, "an alias (*) stands inside what it repeats")
            return None, {}
        self.open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, path)
            if isinstance(node, SequenceNode):
                entries = [self.value(child, (*path, i)) for i, child in enumerate(node.value)]
                places: dict[str | int, Place] = {
                    i: Place(*_mark(child), entries[i][1]) for i, child in enumerate(node.value)
                }
                return [value for value, _ in entries], places
            return self._scalar(node, kind, path), {}
        finally:
            self.open.pop()

    def _mapping(self, node: MappingNode, path: KeyPath) -> tuple[dict[str, Any], dict[str | int, Place]]:
        values: dict[str, Any] = {}
        places: dict[str | int, Place] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                continue
            if not isinstance(key_node, ScalarNode):
                self._problem(key_node, path, "a key must be a single word, not a list or mapping")
                continue
            key = str(key_node.value)
            line, column = _mark(key_node)
            if key in values:
                first = places[key].line
                self._problem(key_node, (*path, key), f"stands twice; the first is in line {first}")
                continue
            values[key], inside = self.value(value_node, (*path, key))
            places[key] = Place(line, column, inside)
        for source in merged:  # <<: *anchor gives what the mapping does not say itself
            value, inside = self.value(source, path)
            if not isinstance(value, dict):
                self._problem(source, path, "<< takes a mapping")
                continue
            values = {**value, **values}
            places = {**inside, **places}
        return values, places

    def _scalar(self, node: Node, kind: str, path: KeyPath) -> Any:
        if kind not in _NUMBERS:
            return node.value
        try:
            return self.constructor.construct_object(node)
        except (ValueError, KeyError, OverflowError, YAMLError):
            self._problem(node, path, f"'{node.value}' is not a value of the kind {kind}")
            return node.value

    def _problem(self, node: Node, path: KeyPath, message: str) -> None:
        line, column = _mark(node)
        self.problems.append(Problem(message, path, line, column))


def _mark(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _broken(text: str, error: Exception) -> Problem:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        context = f"{error.context}: " if error.context else ""
        what = f"column {mark.column + 1}: broken YAML: {context}{error.problem}"
        return Problem(what, (), mark.line + 1, mark.column + 1)
    if isinstance(error, ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return Problem("broken YAML: a character that is not allowed in it", (), line)
    return Problem(f"broken YAML: {error}", ())
