"""Numbers written in Chinese words: 二十一, 三百零五, 一万二, 三点五, 四分之三, 百分之十."""

from __future__ import annotations

import re
from fractions import Fraction

_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_SMALL = {"十": 10, "百": 100, "千": 1000}
_LARGE = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_DIGIT, _ANY = "".join(_DIGITS), "".join((*_DIGITS, *_SMALL, *_LARGE))
_NUMBER = re.compile(
    rf"(?P<sign>[负負])?(?:(?P<under>[{_ANY}]+)分之)?(?P<whole>[{_ANY}]+)"
    rf"(?:[点點](?P<decimals>[{_DIGIT}]+)(?![{_ANY}分刻]))?"
)
# Words that hold a numeral and count nothing: 一共 (in all), 十分 (very), 千万别 (by no means).
_WORDS = re.compile(
    rf"(?<![{_ANY}点點])(?:一[共样樣起些定般下直切旦边邊来方种部会會步看遍算]|[万萬]一|十分(?!钟|鐘|之)|千[万萬](?=[不别別要]))"
    "|[统統同唯每]一|(?<!分)之一|[几幾]十|十[几幾]|三角形"
)


def chinese_numbers(text: str) -> list[Fraction]:
    """The numbers of a text that are written in Chinese words, in their order; of 百分之十 it is 10, as of 10%."""
    return [_value(found) for found in _NUMBER.finditer(_WORDS.sub("，", text))]


def _value(found: re.Match[str]) -> Fraction:
    value = Fraction(_whole(found["whole"]))
    if found["decimals"]:
        value += Fraction(int("".join(str(_DIGITS[each]) for each in found["decimals"])), 10 ** len(found["decimals"]))
    if found["under"] and found["under"] != "百":
        value /= _whole(found["under"]) or 1
    return -value if found["sign"] else value


def _whole(text: str) -> int:
    """Of a run of numerals: digit by digit (二〇二四), or by units; a last digit counts the next unit (一万二)."""
    if all(character in _DIGITS for character in text):
        return int("".join(str(_DIGITS[character]) for character in text))
    total = section = 0  # of the units from 万, and below them
    digit, last = 0, 1
    for character in text:
        if character in _DIGITS:
            digit, last = _DIGITS[character], 1 if character in "零〇" else last
        elif character in _SMALL:
            last = _SMALL[character]
            section, digit = section + (digit or 1) * last, 0
        else:
            last, count = _LARGE[character], section + digit
            total = (total + count or 1) * last if last > 10**4 else total + (count or 1) * last
            section = digit = 0
    return total + section + digit * (last // 10 or 1)
