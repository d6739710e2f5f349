"""The number that an answer gives: its last one, however it is written."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from graftlm.evaluation.chinese_numbers import chinese_numbers

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w.)])[-+])?[$€£¥]?\s?(?:(?P<whole>\d+)\s+(?=\d+/\d))?"
    rf"(?P<digits>{_DIGITS}(?:\.\d+)?|(?<!\d)\.\d+)"
    rf"(?:[eE](?P<power>[-+]?\d{{1,2}})(?!\w))?(?:\s?/\s?(?P<under>\d+(?:\.\d+)?))?(?P<unit>[万萬亿億])?"
)
_VULGAR = re.compile("[¼-¾⅐-⅞]")
_UNITS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_LONGEST = 300  # digits; what is longer is noise, and slow
_CLOSE = Fraction(1, 10**6)


def last_number(text: str) -> Fraction | None:
    """The last number of a text; of one that marks its result by ``####``, the first behind the mark.

    Thousands may have commas, digits may be of full width, a fraction may follow a whole number (1 1/2), and a number
    may be counted in 万 or 亿. Numbers in Chinese words count where there are no digits.
    """
    plain = unicodedata.normalize("NFKC", _VULGAR.sub(r" \g<0>", text)).replace("−", "-").replace("⁄", "/")
    if "####" in plain:
        marked = _numbers(plain.split("####", 1)[1])
        if marked:
            return marked[0]
    found = _numbers(plain) or chinese_numbers(plain)
    return found[-1] if found else None


def same_number(answer: str, reference: str) -> bool:
    """Whether two texts give the same number, to a millionth of it."""
    own, other = last_number(answer), last_number(reference)
    return own is not None and other is not None and abs(own - other) <= _CLOSE * abs(other)


def _numbers(text: str) -> list[Fraction]:
    return [value for found in _NUMBER.finditer(text) if (value := _value(found)) is not None]


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > _LONGEST:
        return None
    value = Fraction(found["digits"].replace(",", "")) * Fraction(10) ** int(found["power"] or 0)
    under = Fraction(found["under"] or 1)
    value = value / under if under else value
    value = (value + int(found["whole"] or 0)) * _UNITS.get(found["unit"] or "", 1)
    return -value if found["sign"] == "-" else value
