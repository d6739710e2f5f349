"""Jinja patterns that others wrote: no way to Python's internals, and an end to every loop and size.

Jinja's sandbox keeps a pattern from unsafe attributes, but not from running for ever or filling the memory. So loops,
calls and growing texts are counted here, in the pattern itself: that works in every thread, and is the same everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.visitor import NodeTransformer

from graftlm.errors import UserError

STEPS = 100_000  # turns of all loops, and calls, of one rendering
SIZE = 1_000_000  # characters of any text, entries of any list
_BITS = 256  # of a number

_FILTERS = (
    "abs capitalize count d default first float int last length list lower map reject round select sort string sum"
    " title trim truncate unique upper wordcount"
)
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        [
            "capitalize",
            "count",
            "endswith",
            "find",
            "isdigit",
            "lower",
            "lstrip",
            "removeprefix",
            "removesuffix",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "title",
            "upper",
        ]
    ),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"get", "items", "keys", "values"}),
}


class TooMuch(jinja2.TemplateRuntimeError):
    """A rendering that takes more steps or space than a pattern may."""


class CannotFill(Exception):
    """A pattern that does not go with the values of a row; ``reason`` is counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class _Spent(threading.local):
    steps = 0


_spent = _Spent()


def _step() -> None:
    _spent.steps += 1
    if _spent.steps > STEPS:
        raise TooMuch(f"it takes more than {STEPS:,} steps; is there an endless loop in it?")


def _fits(size: int) -> None:
    if size > SIZE:
        raise TooMuch(f"it makes a text or list of more than {SIZE:,} entries")


@pass_context
def _limited(_: Context, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step()
        yield value


def _concatenated(values: Sequence[Any]) -> str:
    texts = [str(value) for value in values]
    _fits(sum(map(len, texts)))
    return "".join(texts)


def _joined(values: Iterable[Any], between: str = "") -> str:
    texts = [str(value) for value in values]
    _fits(sum(map(len, texts)) + len(between) * len(texts))
    return between.join(texts)


def _replaced(text: Any, old: str, new: str) -> str:
    whole = str(text)
    _fits(len(whole) + whole.count(old) * len(new))
    return whole.replace(old, new)


def _sized(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def run(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        if isinstance(result, str | list):
            _fits(len(result))
        return result

    return run


class _Guards(NodeTransformer):
    """Puts the counting into loops, and into what makes long texts of short ones."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("a loop must not be recursive", node.lineno)
        node = self.generic_visit(node)  # type: ignore[assignment]
        node.iter = nodes.Filter(node.iter, "_limited", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        node = self.generic_visit(node)  # type: ignore[assignment]
        texts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(texts, "_concatenated", [], [], None, None, lineno=node.lineno)


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise jinja2.TemplateSyntaxError("a pattern must not load other templates", node.lineno)
        for attribute in tree.find_all((nodes.Getattr, nodes.Getitem)):
            inner = getattr(attribute, "arg", None)
            word = attribute.attr if isinstance(attribute, nodes.Getattr) else getattr(inner, "value", None)
            if isinstance(word, str) and word.startswith("_"):
                raise jinja2.TemplateSyntaxError(f"'{word}' is no part of the data that it may reach", attribute.lineno)
        guarded: nodes.Template = _Guards().visit(tree)
        return guarded

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        known = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (known is None or attr in known)

    def wrap_str_format(self, value: Any) -> None:
        """Leaves ``str.format`` to be refused like other methods: a width in it makes texts of any size."""
        return None

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        _step()
        return super().call(context, obj, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in ("*", "+"):
            _fits(_size(left, right, operator))
        elif operator == "%" and isinstance(left, str):
            raise SecurityError("'%' makes no texts here; write {{ … }}")
        elif operator == "**" and (abs(right) > 64 or abs(left) > 2**64):
            raise TooMuch("it makes too large a number")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > _BITS:
            raise TooMuch("it makes too large a number")
        return result


def _size(left: Any, right: Any, operator: str) -> int:
    lengths = [len(value) if isinstance(value, str | list | tuple) else None for value in (left, right)]
    if operator == "+":
        return sum(length or 0 for length in lengths)
    if lengths == [None, None]:
        return 0
    (one, other) = (v if n is None else n for v, n in zip((left, right), lengths, strict=True))
    return int(one * other)


def sandbox(filters: Mapping[str, Callable[..., Any]]) -> jinja2.Environment:
    """An environment with the safe filters of Jinja and some more; names that have no value are errors."""
    environment = _Sandbox(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    safe = {name: _sized(environment.filters[name]) for name in _FILTERS.split()}
    guards = {"_limited": _limited, "_concatenated": _concatenated, "join": _joined, "replace": _replaced}
    environment.filters = {**safe, **guards, **filters}
    environment.globals = {"range": safe_range}
    return environment


@dataclass(frozen=True)
class Pattern:
    """A pattern, the names that it takes from outside, and how it is filled in.

    ``plain``: its texts and names in turn, where there is nothing else in it; that needs no Jinja, which is slower.
    """

    source: str
    names: frozenset[str]
    plain: tuple[tuple[str, str], ...]
    template: jinja2.Template | None

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text, without white space at its ends.

        Raises:
            UserError: the pattern runs on and on, or reaches for what it must not.
            CannotFill: it does not go with these values.
        """
        if self.template is None:
            try:
                return "".join([f"{text}{values[name]}" if name else text for text, name in self.plain]).strip()
            except KeyError as error:
                raise CannotFill(f"the pattern does not go with the row: {error} is undefined") from error
        _spent.steps, size, pieces = 0, 0, list[str]()
        try:
            for piece in self.template.generate(values):
                size += len(piece)
                _fits(size)
                pieces.append(piece)
        except (TooMuch, SecurityError, RecursionError) as error:
            raise UserError(
                f"the pattern {_short(self.source)} was stopped: {error}", hint="Mend it in the template's file."
            ) from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise CannotFill(f"the pattern does not go with the row: {error}") from error
        return "".join(pieces).strip()


def compile_pattern(source: str, environment: jinja2.Environment) -> Pattern:
    """Read a pattern.

    Raises:
        UserError: it is no valid Jinja, or loads files, or reaches for a name that begins with "_"; with the line.
    """
    return _compile(source, environment)


@lru_cache(maxsize=4096)
def _compile(source: str, environment: jinja2.Environment) -> Pattern:
    try:
        tree = environment.parse(source)
        names = frozenset(meta.find_undeclared_variables(tree) - {"range"})
        plain = _plain(tree)
        return Pattern(source, names, plain or (), None if plain is not None else environment.from_string(source))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno} of {_short(source)}: {error.message}") from error
    except (TooMuch, SecurityError) as error:  # in what is worked out beforehand
        raise UserError(f"{_short(source)}: {error}") from error


def _plain(tree: nodes.Template) -> tuple[tuple[str, str], ...] | None:
    """Texts, each with the name behind it (or none), if the pattern is made of nothing else."""
    parts: list[tuple[str, str]] = []
    for output in tree.body:
        for node in output.nodes if isinstance(output, nodes.Output) else [output]:
            if isinstance(node, nodes.TemplateData):
                parts.append((node.data, ""))
            elif isinstance(node, nodes.Name) and node.name != "range":
                parts.append(("", node.name))
            else:
                return None
    return tuple(parts)


def _short(source: str) -> str:
    text = source.strip().replace("\n", "⏎")
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
