"""Patterns of task templates: Jinja in the counted sandbox. Most are texts and names alone, which need no Jinja."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError

from graftlm.data.counted_jinja import BadValue, OverBudget, Sandbox, compile_pattern, render
from graftlm.errors import UserError

_CHANGING = frozenset(["append", "clear", "copy", "insert", "pop", "remove", "reverse", "setdefault", "sort", "update"])


class CannotFill(Exception):
    """A pattern that does not go with the values of a row; ``reason`` is counted."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class TaskSandbox(Sandbox):
    """The counted sandbox with filters of task templates; lists and objects are not to be changed in it."""

    def __init__(self, filters: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(filters, trim_blocks=True)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _CHANGING and super().is_safe_attribute(obj, attr, value)


@dataclass(frozen=True)
class Pattern:
    """A pattern, the names that it takes from outside, and how it is filled in.

    ``plain``: its texts and names in turn, where there is nothing else in it; ``template`` is None then.
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
        try:
            if self.template is None:
                return "".join([f"{text}{values[name]}" if name else text for text, name in self.plain]).strip()
            return render(self.template, values, "").strip()
        except (OverBudget, RecursionError, MemoryError) as error:
            what = "it takes too many steps or writes too much; is there an endless loop in it?"
            raise UserError(f"the pattern {_short(self.source)} was stopped: {what}") from error
        except SecurityError as error:
            raise UserError(f"the pattern {_short(self.source)} was stopped: {error}") from error
        except KeyError as error:
            raise CannotFill(f"the pattern does not go with the row: {error} is undefined") from error
        except BadValue as error:
            raise CannotFill(f"the pattern does not go with the row: {error}") from error
        except jinja2.UndefinedError as error:
            raise CannotFill(f"the pattern does not go with the row: {error.message}") from error
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            # The message may hold text of the row.
            raise CannotFill(f"the pattern does not go with the row ({type(error).__name__})") from error


@lru_cache(maxsize=4096)
def read_pattern(source: str, sandbox: TaskSandbox) -> Pattern:
    """Read a pattern.

    Raises:
        UserError: it is no valid Jinja, loads files or reaches for Python's internals; with the line.
    """
    try:
        tree = sandbox.parse(source)
        names = frozenset(meta.find_undeclared_variables(tree) - set(sandbox.globals))
        plain = _plain(tree)
        return Pattern(source, names, plain or (), compile_pattern(source, sandbox) if plain is None else None)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"line {error.lineno} of {_short(source)}: {error.message}") from error
    except (OverBudget, BadValue, jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{_short(source)}: {error or 'what is constant in it is too large'}") from error


def _plain(tree: nodes.Template) -> tuple[tuple[str, str], ...] | None:
    """Texts, each with the name behind it (or none), if the pattern is made of nothing else."""
    parts: list[tuple[str, str]] = []
    for output in tree.body:
        for node in output.nodes if isinstance(output, nodes.Output) else [output]:
            if isinstance(node, nodes.TemplateData):
                parts.append((node.data, ""))
            elif isinstance(node, nodes.Name):
                parts.append(("", node.name))
            else:
                return None
    return tuple(parts)


def _short(source: str) -> str:
    text = source.strip().replace("\n", "⏎")
    return f'"{text[:60]}…"' if len(text) > 60 else f'"{text}"'
