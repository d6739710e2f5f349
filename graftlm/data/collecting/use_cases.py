"""What a prompt is for, by the rules of ``use_cases.yaml``, each decision with the name of its rule."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML

from graftlm.data.collecting.duplicates import width

HEAD, TAIL = 240, 160  # where people say what they want; a pasted text stands between
PASSAGE = 220  # letters: so long, a prompt holds more than a question
SHORT = 60


@dataclass(frozen=True, slots=True)
class Rule:
    """``pattern`` decides for ``use_case``; see the head of the rules' file for ``passage`` and ``short``."""

    name: str
    use_case: str
    pattern: re.Pattern[str]
    passage: bool = False
    short: bool = False


def use_cases() -> tuple[str, ...]:
    """The names of all use cases."""
    return _load()[0]


def use_case(prompt: str) -> tuple[str, str]:
    """The use case of a prompt and the rule that decided."""
    asked = prompt if len(prompt) <= HEAD + TAIL else f"{prompt[:HEAD]}\n{prompt[-TAIL:]}"
    letters = width(prompt)
    for rule in _load()[1]:
        if (rule.passage and letters < PASSAGE) or (rule.short and letters > SHORT):
            continue
        if rule.pattern.search(asked):
            return rule.use_case, rule.name
    raise AssertionError("the last rule matches everything")


@cache
def _load() -> tuple[tuple[str, ...], tuple[Rule, ...]]:
    text = (files("graftlm.data.collecting") / "use_cases.yaml").read_text(encoding="utf-8")
    data = YAML(typ="safe").load(text)
    rules = tuple(
        Rule(
            rule["name"],
            rule["use_case"],
            re.compile(rule["pattern"], re.IGNORECASE | re.MULTILINE),
            rule.get("passage", False),
            rule.get("short", False),
        )
        for rule in data["rules"]
    )
    return tuple(data["use_cases"]), rules
