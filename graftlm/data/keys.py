"""Keys of labelled rows: which have the same input, which answer it the same, and which belong together.

White space and case do not count. A prompt tells none of this where its description and its demonstrations are drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

QUESTION = 8  # digits of an answer's key that say what is asked


def plain_text(value: Any) -> str:
    """A value as a text in which white space and case do not count."""
    return " ".join(str(value).split()).lower()


def digest(parts: Sequence[str], size: int = 16) -> bytes:
    return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=size).digest()


def values_key(place: int, values: Sequence[Any], options: Sequence[str] = ()) -> bytes:
    """What equal questions have in common, in whatever order their alternatives stand; nothing where there is none.

    ``place`` keeps questions of different kinds about one row apart. A field that a row lacks does not count, so that
    a text alone is the same for a template that would show its title too.
    """
    texts = [*filter(None, map(plain_text, values)), *sorted(map(plain_text, options))]
    return digest([str(place), *texts]) if texts else b""


def input_key(key: bytes) -> str:
    """A key of :func:`values_key` as an instance holds it: 16 digits."""
    return key.hex()[:16]


def question_key(*parts: str) -> str:
    """What is asked about an input: eight digits."""
    return digest(parts, QUESTION // 2).hex()


def answer_key(question: str, answer: str) -> str:
    """The digits of what is asked, of :func:`question_key`, and eight of what is answered."""
    return question + digest([plain_text(answer)], QUESTION // 2).hex()


def group_key(value: Any) -> str:
    """What rows with an equal value in the column that groups them have in common: 16 digits."""
    return digest(["group", plain_text(value)], 8).hex()
