"""A YAML file that is one mapping with known keys: read strictly, all mistakes at once, each with its line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from graftlm.data.readers import find_sources
from graftlm.errors import UserError
from graftlm.recipe.places import read_yaml
from graftlm.recipe.problems import KeyPath, Problem, RecipeError, schema_at, show, translate, unknown_key

Keys = TypeVar("Keys", bound=BaseModel)
Found = Iterable[tuple[KeyPath, str]]


def read_text(path: Path, what: str) -> str:
    """The text of a file; ``what`` it is, for errors: "recipe", "task".

    Raises:
        UserError: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.expanduser().read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} is not UTF-8, at byte {error.start}", hint="Save it as UTF-8.") from error


def parse_keys(
    text: str,
    source: str,
    kind: type[Keys],
    expected: str,
    *,
    look: Callable[[Mapping[str, Any]], Found] = lambda _value: (),
    check: Callable[[Keys], Found] = lambda _keys: (),
) -> Keys:
    """The keys of a text. ``expected`` says what it must be: "a task must be a mapping (kind: choice …)".

    Args:
        look: what is wrong with the plain values, whatever else is wrong.
        check: what is wrong with keys that are as they have to be.

    Raises:
        RecipeError: all mistakes, each with its line.
    """
    value, place, problems = read_yaml(text, source, if_empty=f"{expected[:1].upper()}{expected[1:]}.")
    found: list[tuple[KeyPath, str]] = []
    keys = None
    if not isinstance(value, dict):
        found.append(((), f"{expected}, is {show(value)}"))
    else:
        try:
            keys = kind.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            found += [(path, _words(kind, path, words)) for path, words in translate(error, kind, value)]
        else:
            found += check(keys)
        found += look(value)
    for path, words in found:
        at = place.at(path)
        problems.append(Problem(words, path, at.line, at.column))
    if problems or keys is None:
        raise RecipeError(source, problems)
    return keys


def missing_files(paths: Iterable[tuple[KeyPath, Any]], folder: Path) -> list[tuple[KeyPath, str]]:
    """Those of some paths, each with its key, that lead nowhere from ``folder``."""
    problems: list[tuple[KeyPath, str]] = []
    for where, path in paths:
        if isinstance(path, str) and path:
            try:
                find_sources(folder / Path(path).expanduser())
            except UserError as error:
                hint = f" ({error.hint})" if error.hint else ""
                problems.append((where, f"{error.message}{hint}"))
    return problems


def listed(value: Any) -> list[Any]:
    """One value or a list of them."""
    return value if isinstance(value, list) else [value]


def _words(kind: type[BaseModel], path: KeyPath, words: str) -> str:
    if words != "unknown key":
        return words
    known: Mapping[str, Any] = schema_at(kind, path[:-1]).get("properties", {})
    return unknown_key(str(path[-1]), known, {})
