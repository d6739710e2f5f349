"""Scorer of the instruction tasks: whether an answer keeps to the form that was asked for.

The column ``check`` of a row is a mapping of checks to what they want, such as ``{"words": 1, "case": "upper"}``; an
answer follows where it passes all of them. Counts are a number, or [least, most].
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FENCE = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_ITEM = re.compile(r"\s*(?:[-*•]|\d+[.)、．]|[(（]\d+[)）])\s*\S")
_SENTENCE = re.compile(r"[^.!?。！？]*[^\W_][^.!?。！？]*(?:[.!?。！？]+[\"'”’」）)]*(?=\s|$|[^\x00-\x7f])|$)")
_WORD = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_QUOTES = {'"': '"', "“": "”", "「": "」", "'": "'"}


def follows(answer: str, references: Sequence[str], row: Mapping[str, Any]) -> float:
    """1 where the answer passes all checks of its row, else 0; ``references`` are examples only.

    Raises:
        ValueError: the row has no checks, or one that there is not.
    """
    wanted = row.get("check")
    if not isinstance(wanted, Mapping) or not wanted:
        raise ValueError("the column check must map checks to what they want")
    unknown = sorted(set(wanted) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check '{unknown[0]}'; there are: {', '.join(CHECKS)}")
    text = answer.strip()
    return float(bool(text) and all(CHECKS[name](text, value) for name, value in wanted.items()))


def _counted(count: int, wanted: Any) -> bool:
    least, most = wanted if isinstance(wanted, list) else (wanted, wanted)
    return bool(least <= count <= most)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(text: str, wanted: Any) -> bool:
    return _counted(len(_WORD.findall(text)), wanted)


def _characters(text: str, wanted: Any) -> bool:
    """Letters and digits; blanks and punctuation do not count."""
    return _counted(sum(character.isalnum() for character in text), wanted)


def _sentences(text: str, wanted: Any) -> bool:
    return _counted(len(_SENTENCE.findall(" ".join(text.split()))), wanted)


def _lines(text: str, wanted: Any) -> bool:
    return _counted(sum(bool(line.strip()) for line in text.splitlines()), wanted)


def _line_characters(text: str, wanted: Any) -> bool:
    """Letters and digits of every line, as in a poem."""
    return all(_characters(line, wanted) for line in text.splitlines() if line.strip())


def _paragraphs(text: str, wanted: Any) -> bool:
    return _counted(len(re.split(r"\n\s*\n", text)), wanted)


def _items(text: str, wanted: Any) -> bool:
    """Lines that begin with a hyphen, a bullet or a number."""
    return _counted(sum(_ITEM.match(line) is not None for line in text.splitlines()), wanted)


def _only_items(text: str, wanted: Any) -> bool:
    return wanted is all(_ITEM.match(line) for line in text.splitlines() if line.strip())


def _parts(text: str, wanted: Any) -> bool:
    """``{"by": ",", "count": 3}``: so many parts between a mark, none of them empty, all on one line."""
    parts = text.rstrip(".。").split(wanted["by"])
    return _counted(len(parts), wanted["count"]) and all(map(str.strip, parts)) and "\n" not in text


def _json(text: str, wanted: Any) -> bool:
    """One JSON object with these keys and no others, and nothing around it but a fence of code."""
    found = _FENCE.fullmatch(text)
    try:
        value = json.loads(found[1] if found else text)
    except ValueError:
        return False
    return isinstance(value, dict) and set(value) == set(wanted)


def _json_list(text: str, wanted: Any) -> bool:
    """One JSON list of so many values."""
    found = _FENCE.fullmatch(text)
    try:
        value = json.loads(found[1] if found else text)
    except ValueError:
        return False
    return isinstance(value, list) and _counted(len(value), wanted)


def _contains(text: str, wanted: Any) -> bool:
    return all(each.casefold() in text.casefold() for each in _listed(wanted))


def _contains_one(text: str, wanted: Any) -> bool:
    return any(each.casefold() in text.casefold() for each in wanted)


def _avoids(text: str, wanted: Any) -> bool:
    return not any(each.casefold() in text.casefold() for each in _listed(wanted))


def _times(text: str, wanted: Any) -> bool:
    """``{"text": "tea", "count": 3}``: how often a text stands in the answer."""
    return _counted(text.casefold().count(wanted["text"].casefold()), wanted["count"])


def _case(text: str, wanted: Any) -> bool:
    """upper or lower: all letters; title: the first of every word."""
    if wanted == "title":
        return all(word[0].isupper() for word in _WORD.findall(text) if word[0].isalpha())
    return text.isupper() if wanted == "upper" else text.islower()


def _initial(text: str, wanted: Any) -> bool:
    """Every word begins with this letter."""
    words = _WORD.findall(text)
    return bool(words) and all(word.casefold().startswith(wanted.casefold()) for word in words)


def _quoted(text: str, wanted: Any) -> bool:
    return wanted is (len(text) > 1 and _QUOTES.get(text[0]) == text[-1])


def _one_of(text: str, wanted: Any) -> bool:
    """Nothing but one of these; case and a full stop do not matter."""
    return text.rstrip(".。").casefold() in {each.casefold() for each in wanted}


def _sorted(text: str, wanted: Any) -> bool:
    """Lines, or parts between commas on one line, in the order of the alphabet."""
    parts = text.splitlines() if "\n" in text else text.rstrip(".").split(",")
    words = [part.strip(" -*•").casefold() for part in parts if part.strip()]
    return wanted is (len(words) > 1 and words == sorted(words))


CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "words": _words,
    "characters": _characters,
    "sentences": _sentences,
    "lines": _lines,
    "line_characters": _line_characters,
    "paragraphs": _paragraphs,
    "items": _items,
    "only_items": _only_items,
    "parts": _parts,
    "json": _json,
    "json_list": _json_list,
    "starts": lambda text, wanted: text.startswith(wanted),
    "ends": lambda text, wanted: text.endswith(wanted),
    "contains": _contains,
    "contains_one": _contains_one,
    "avoids": _avoids,
    "times": _times,
    "case": _case,
    "initial": _initial,
    "quoted": _quoted,
    "one_of": _one_of,
    "sorted": _sorted,
    "pattern": lambda text, wanted: re.fullmatch(wanted, text) is not None,
}
