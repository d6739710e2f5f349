"""The text of a template with virtual tokens anywhere: ``[P×3] {input} [P×2] is {target}``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from graftlm.errors import UserError, nearest

INPUT, TARGET = "input", "target"
EXAMPLE = "[P×3] {input} [P×2] {target}"
_PARTS = re.compile(r"(\[\s*P\s*(?:[×x*]?\s*\d+|[×x*])?\s*\]|\{[^{}]*\})")
_COUNT = re.compile(r"\[\s*P\s*(?:[×x*]?\s*(\d+))?\s*\]")


@dataclass(frozen=True, slots=True)
class Part:
    """Text as it is, the place of the input or of the target, or ``count`` virtual tokens."""

    kind: Literal["text", "virtual", "input", "target"]
    text: str = ""
    count: int = 0


def parse_template(text: str) -> tuple[Part, ...]:
    """The parts of a template, in order. ``[P×3]``, ``[P*3]``, ``[Px3]`` and ``[P3]`` are three virtual tokens.

    Raises:
        UserError: {input} or {target} is missing, twice there or in the other order; an unknown placeholder; or no
            virtual token.
    """
    parts = tuple(_part(found, text) for found in _PARTS.split(text) if found)
    for kind in (INPUT, TARGET):
        number = sum(part.kind == kind for part in parts)
        if number != 1:
            raise UserError(
                f"template '{text}' holds {{{kind}}} {number} times; it must stand there once",
                hint=f"Write it like this: '{EXAMPLE}'",
            )
    kinds = [part.kind for part in parts]
    if kinds.index("target") < kinds.index("input"):
        raise UserError(f"template '{text}': {{target}} stands before {{input}}", hint="What is learnt comes last.")
    if not count_virtual(parts):
        raise UserError(f"template '{text}' has no virtual tokens", hint=f"[P×3] stands for three: '{EXAMPLE}'")
    return parts


def _part(found: str, text: str) -> Part:
    if found.startswith("{") and found.endswith("}"):
        name = found[1:-1].strip()
        if name == INPUT:
            return Part("input")
        if name == TARGET:
            return Part("target")
        guess = nearest(name, [INPUT, TARGET])
        raise UserError(
            f"template '{text}': unknown placeholder {found}; there are {{input}}, {{target}} and [P×3]",
            hint=f"Did you mean {{{guess}}}?" if guess else None,
        )
    if not _PARTS.fullmatch(found):
        return Part("text", found)
    count = _COUNT.fullmatch(found)
    if count is None:
        raise UserError(f"template '{text}': {found} lacks the number of virtual tokens", hint="Write [P×3] for three.")
    return Part("virtual", count=1 if count[1] is None else int(count[1]))


def count_virtual(parts: tuple[Part, ...]) -> int:
    """How many virtual tokens there are."""
    return sum(part.count for part in parts)


def is_in_front(parts: tuple[Part, ...]) -> bool:
    """Whether all virtual tokens stand before everything else."""
    return not any(part.count for part in parts[1:])


def is_behind(parts: tuple[Part, ...]) -> bool:
    """Whether a virtual token stands behind the target."""
    place = [part.kind for part in parts].index("target")
    return any(part.count for part in parts[place:])
