"""The schema told to people and editors: a commented recipe with every key, and a JSON schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from graftlm.recipe.parse import SWEPT
from graftlm.recipe.places import write_yaml
from graftlm.recipe.problems import describe_bounds, describe_kind, properties
from graftlm.recipe.schema import AdapterKeys, DataSet, RunKeys, known_methods
from graftlm.training.settings import AdapterTraining, RunSettings

WIDTH = 100
HEAD = """\
# A recipe of graftlm: every key, with its default. Only base, data and adapters are needed.
# graftlm plan recipe.yaml     what it will cost
# graftlm train recipe.yaml    all adapters in one pass

"""


def commented_recipe() -> str:
    """A recipe that names every key with its description and default; :func:`parse_recipe` reads it."""
    blocks = [HEAD, *_entries(RunKeys, "")]
    blocks += [_title("Data sets, each under a name of your choice.", ""), "data:\n  reviews:\n"]
    blocks += _entries(DataSet, "    ")
    title = "What is trained, each under a name of your choice. Any setting under training may stand here too, for one"
    blocks += [_title(f"{title} adapter alone.", ""), "adapters:\n"]
    for number, (name, config) in enumerate(known_methods().items()):
        summary = (config.__doc__ or "").strip().partition("\n")[0]
        entry = [_comment(summary, "  ") + f"  {name}:\n", *_entries(AdapterKeys, "    ")]
        entry += [f"    method: {name}\n\n", *_entries(config, "    ", leave_out="method")]
        blocks.append("".join(entry) if number == 0 else _left_out("".join(entry)))
    blocks += [_title("Settings of the run.", ""), "training:\n", *_entries(RunSettings, "  ")]
    blocks += [_title("Defaults for all adapters.", "  "), *_entries(AdapterTraining, "  ")]
    return "".join(blocks).rstrip("\n") + "\n"


def describe(schema: dict[str, Any]) -> str:
    """What a value may be: "a number, more than 0"."""
    bounds = describe_bounds(schema)
    return describe_kind(schema) + (f", {bounds}" if bounds else "")


def json_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12) of a recipe, for editors that complete and check YAML."""
    methods = {name: _adapter_schema(name, config) for name, config in known_methods().items()}
    adapter = next(iter(methods.values())) if len(methods) == 1 else {"oneOf": list(methods.values())}
    top = {
        **properties(RunKeys),
        "data": {
            "description": "Data sets, each under a name of your choice.",
            **_named(_closed(properties(DataSet), ["path"])),
        },
        "adapters": {"description": "What is trained, each under a name of your choice.", **_named(adapter)},
        "training": {
            "description": "Settings of the run, and defaults for all adapters.",
            **_closed({**properties(RunSettings), **properties(AdapterTraining)}, []),
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "graftlm recipe",
        **_closed(top, ["base", "data", "adapters"]),
    }


def _adapter_schema(name: str, config: type[BaseModel]) -> dict[str, Any]:
    method = {"const": name, "description": (config.__doc__ or "").strip().partition("\n")[0]}
    required = [key for key, field in config.model_fields.items() if field.is_required()]
    keys = {**properties(AdapterKeys), **properties(config), "method": method, **properties(AdapterTraining)}
    for key in SWEPT:
        either = [{"type": keys[key]["type"]}, {"type": "array", "minItems": 1, "items": {"type": keys[key]["type"]}}]
        keys[key] = {"description": keys[key]["description"], "default": keys[key]["default"], "anyOf": either}
    return _closed(keys, ["method", *(key for key in required if key != "method")])


def _closed(keys: dict[str, Any], required: Iterable[str]) -> dict[str, Any]:
    return {"type": "object", "properties": keys, "required": list(required), "additionalProperties": False}


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "minProperties": 1, "additionalProperties": entry}


def _entries(model: type[BaseModel], indent: str, *, leave_out: str = "") -> list[str]:
    """Each key below its description; the value is the example if there is one, else the default."""
    entries = []
    for key, schema in properties(model).items():
        if key == leave_out:
            continue
        value = schema["examples"][0] if "examples" in schema else schema.get("default")
        kind = f" [{describe(schema)}]" if _worth_saying(schema) else ""
        words = f"{schema.get('description', '')}{kind}".lstrip()
        line = textwrap.indent(write_yaml({key: value}), indent)
        if value is None and "default" not in schema and "examples" not in schema:
            line = f"{indent}# {key}:\n"  # required, and only the user can say it
        entries.append(f"{_comment(words, indent)}{line}\n")
    return entries


def _worth_saying(schema: dict[str, Any]) -> bool:
    """Whether the kind of value says more than the description and the default do."""
    forms = [form for form in schema.get("anyOf", [schema]) if form.get("type") != "null"]
    return len(forms) > 1 or forms[0].get("type") not in ("string", "boolean", "object")


def _comment(words: str, indent: str) -> str:
    lines = textwrap.wrap(words, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(f"{indent}# {line}\n" for line in lines)


def _left_out(text: str) -> str:
    """Lines that stand there to be taken in: a recipe with every method would fit no base."""
    return "".join(f"  # {line[2:]}" if line.strip() else "  #\n" for line in text.splitlines(keepends=True)) + "\n"


def _title(words: str, indent: str) -> str:
    return f"{indent}# {'-' * 40}\n{_comment(words, indent)}"
