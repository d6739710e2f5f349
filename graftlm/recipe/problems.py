"""What is wrong in a recipe, in plain words and with its place; kinds of values in words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from graftlm.errors import UserError, nearest

KeyPath = tuple[str | int, ...]
Schema = Mapping[str, Any]
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
_CONTEXT = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_SCALARS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "string": "text"}
_SCALARS_MANY = {"integer": "whole numbers", "number": "numbers", "boolean": "true or false", "string": "texts"}


@dataclass(frozen=True)
class Problem:
    """One mistake. ``line`` and ``column`` count from 1, or are None where there is no file."""

    message: str
    path: KeyPath = ()
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}, "
        return f"{line}{key_path(self.path)}: {self.message}" if self.path else f"{line}{self.message}"


class RecipeError(UserError):
    """All mistakes of a recipe at once, in the order of the file."""

    def __init__(self, source: str, problems: Iterable[Problem], *, hint: str | None = None) -> None:
        self.problems = sorted(problems, key=lambda p: (p.line or 0, p.column or 0))
        count = len(self.problems)
        head = f"{source} has {count} error{'s' * (count != 1)}:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]), hint=hint)


def key_path(path: KeyPath) -> str:
    """``adapters.lora-8.betas, entry 2``: entries of a list count from 1."""
    words = ""
    for part in path:
        if isinstance(part, int):
            words += f", entry {part + 1}"
        else:
            words += f".{part}" if words else part
    return words


def unknown_key(key: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> str:
    """What to say of an unknown key; ``elsewhere`` tells where a key of that name does belong."""
    allowed = list(known)
    if key in elsewhere:
        return f"does not belong here, but {elsewhere[key]}"
    guess = nearest(key, allowed)
    if guess:
        return f"unknown key; did you mean '{guess}'?"
    return f"unknown key; there are: {', '.join(allowed)}"


def unknown_name(kind: str, word: str, known: Iterable[str]) -> str:
    """What to say of a name that refers to nothing."""
    names = list(known)
    guess = nearest(word, names)
    end = f"; did you mean '{guess}'?" if guess and len(names) > 1 else ""
    return f"no {kind} '{word}'; there are: {', '.join(names) or 'none'}{end}"


def show(value: Any) -> str:
    """A value of the file in a few words."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 40 else f"'{value[:37]}…'"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return str(value)


def translate(error: ValidationError, model: type[BaseModel], given: Any) -> Iterator[tuple[KeyPath, str]]:
    """The errors of one validation as paths into ``given`` and plain words; one for each path."""
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_real_path(detail, given), []).append(detail)
    for path, details in grouped.items():
        if path and any(len(other) > len(path) and other[: len(path)] == path for other in grouped):
            continue  # another form of the value: the one that fits further says more
        detail = details[0]
        if detail["type"] == "value_error" and not path:
            message = detail["msg"].removeprefix("Value error, ")
            key, colon, rest = message.partition(": ")
            if colon and key in model.model_fields:  # validators name the key that they are about
                yield (key,), rest
            else:
                yield (), message
        elif not _is_infinite(_value_at(given, path)):  # the parser says that of any number, everywhere
            yield path, _words(detail, schema_at(model, path), _value_at(given, path))


def _words(detail: ErrorDetails, schema: Schema, value: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if "prefixItems" in schema and isinstance(value, list):
        return f"must be {describe_kind(schema)}, has {len(value)} entr{'ies' if len(value) != 1 else 'y'}"
    if kind == "missing":
        return missing(str(detail["loc"][-1]), schema)
    if kind == "extra_forbidden":
        return "unknown key"
    for name, words in _CONTEXT.items():
        if name in context:
            return f"must be {words} {context[name]:g}, is {show(value)}"
    if "min_length" in context or "max_length" in context:
        if value in ("", [], {}):
            return "must not be empty"
        if isinstance(value, str | list):
            unit = "characters" if isinstance(value, str) else "entries"
            words = "at least" if "min_length" in context else "at most"
            limit = context.get("min_length", context.get("max_length"))
            return f"must have {words} {limit} {unit}, has {len(value)}"
    if not schema:
        return detail["msg"][0].lower() + detail["msg"][1:]
    return f"must be {describe_kind(schema)}, is {show(value)}" + _advice(schema, value)


def _advice(schema: Schema, value: Any) -> str:
    options = list(_options(schema))
    if isinstance(value, str) and options:
        guess = nearest(value, options)
        if guess == value:
            return f"; write [{value}]"
        return f"; did you mean '{guess}'?" if guess else ""
    types = {form.get("type") for form in schema.get("anyOf", [schema])}
    if isinstance(value, bool | int | float) and "string" in types and not options:
        return " (put it in quotes)"
    if isinstance(value, str) and types & {"integer", "number"}:
        return " (without quotes)" if value.replace(".", "", 1).isdigit() else ""
    return ""


def missing(key: str, schema: Schema) -> str:
    """What to say of a required key that is not there."""
    example = next(iter(schema.get("examples", [])), None)
    return "this key is missing" + (f"; for example {key}: {example}" if example is not None else "")


def describe_kind(schema: Schema) -> str:
    """What a value must be, in words: "a whole number", "one of: a, b", "text or a list of texts"."""
    if "anyOf" in schema:
        kinds = [describe_kind(form) for form in schema["anyOf"] if form.get("type") != "null"]
        if "a number" in kinds:
            kinds = [kind for kind in kinds if kind != "a whole number"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        if "prefixItems" in schema:
            return f"a list of {len(schema['prefixItems'])} {_many(schema['prefixItems'][0])}"
        return f"a list of {_many(schema.get('items', {}))}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"a mapping of names to {_many(inner)}" if isinstance(inner, Mapping) else "a mapping"
    return _SCALARS.get(str(kind), "another kind of value")


def describe_bounds(schema: Schema) -> str:
    """The limits of a number in words, or nothing."""
    forms = [form for form in schema.get("anyOf", [schema]) if form.get("type") != "null"]
    return ", ".join(f"{words} {forms[0][key]:g}" for key, words in BOUNDS.items() if key in forms[0])


def _many(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    return _SCALARS_MANY.get(str(schema.get("type")), "values")


def _options(schema: Schema) -> Iterator[str]:
    for form in schema.get("anyOf", [schema]):
        yield from (str(option) for option in form.get("enum", []))
        yield from _options(form["items"]) if "items" in form else ()


@cache
def properties(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """The JSON schema of every field: kind, bounds, default, description, examples; references filled in."""
    whole = model.model_json_schema()
    shared = whole.get("$defs", {})

    def fill(part: Any) -> Any:
        if isinstance(part, list):
            return [fill(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            return fill({**shared[name], **{k: v for k, v in part.items() if k != "$ref"}})
        return {k: fill(v) for k, v in part.items() if k != "title" or not isinstance(v, str)}

    return {name: fill(schema) for name, schema in whole["properties"].items()}


def schema_at(model: type[BaseModel], path: KeyPath) -> Schema:
    schema: Schema = {"properties": properties(model)}
    for part in path:
        forms = schema.get("anyOf", [schema])
        inside = [_inside(form, part) for form in forms]
        schema = next((form for form in inside if form), {})
    return schema


def _inside(schema: Schema, part: str | int) -> Schema:
    if isinstance(part, int):
        prefix = schema.get("prefixItems", [])
        chosen = prefix[part] if part < len(prefix) else schema.get("items")
    else:
        chosen = schema.get("properties", {}).get(part) or schema.get("additionalProperties")
    return chosen if isinstance(chosen, Mapping) else {}


def _real_path(detail: ErrorDetails, given: Any) -> KeyPath:
    """pydantic's location without the marks that tell the forms of a union apart."""
    path: KeyPath = ()
    value = given
    for part in detail["loc"]:
        if _has(value, part):
            value = value[part]
        elif detail["type"] == "missing" and isinstance(value, dict):
            return (*path, part)  # a list that is too short is itself at fault
        else:
            continue
        path = (*path, part)
    return path


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _value_at(given: Any, path: KeyPath) -> Any:
    for part in path:
        given = given[part] if _has(given, part) else None
    return given
