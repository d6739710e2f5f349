"""Phone numbers: international ones, and national ones of countries whose forms tell them from other numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

import phonenumbers

_RUN = re.compile(r"(?<![A-Za-z0-9_+.,])(?:\+ ?|\()?\+?\d(?:[ ./()-]{0,3}\d){5,18}(?![A-Za-z0-9_]|[.,]\d)")
_GROUP = re.compile(r"[+(]*\d+\)?")
_WORDS = re.compile(
    r"(?:phone|\btel\b|\btel[.:]|telefon|téléphone|teléfono|telephone|\bcall\b|\bcell\b|mobile|móvil|mobil"
    r"|portable|handy|rufnummer|nummer"
    r"|whatsapp|\btext (?:me|us|him|her)\b|\btext\s*$|my number|\bnumber is|numéro|número|\bring\b|\bfax\b"
    r"|\bsms\b|appel|joindre|llám|llama|ruf|erreich|reach|contact"
    r"|contáct|微信|电话|手机|致电|联系|号码|拨打)",
    re.IGNORECASE,
)
_NATIONAL = ("US", "GB", "DE", "FR", "ES", "CN", "IT", "AT", "CH", "MX", "IN", "AU")
_TRUNK = ("GB", "DE", "FR", "CN", "AT", "CH", "AU", "IT")  # a national number begins with 0
_SPANISH = re.compile(
    r"[6-9]\d{2}[ .-]\d{3}[ .-]\d{3}|[6-9]\d{2}[ .-]\d{2}[ .-]\d{2}[ .-]\d{2}|[89]\d[ .-]\d{3}[ .-]\d{2}[ .-]\d{2}"
)
_DATE = re.compile(r"(?:19|20)\d\d[./-]\d\d?[./-]\d\d?|\d\d?[./-]\d\d?[./-](?:19|20)\d\d")
_DECIMAL = re.compile(r"\d{1,2}\.\d{4,}")
_PERIOD = re.compile(r"(?:1[0-9]|20)\d\d ?[-/] ?(?:1[0-9]|20)\d\d")


def find_phones(text: str) -> Iterator[tuple[int, int]]:
    """Of each run of digits and separators the longest part that is a number of some country."""
    for run in _RUN.finditer(text):
        if re.fullmatch(r"97[89]\d{10}", re.sub(r"[ -]", "", run[0])):  # an ISBN
            continue
        announced = bool(_WORDS.search(text[max(0, run.start() - 45) : run.start()]))
        groups = [(match.start() + run.start(), match.end() + run.start()) for match in _GROUP.finditer(run[0])]
        yield from _parts(text, groups, announced)


def _parts(text: str, groups: list[tuple[int, int]], announced: bool) -> Iterator[tuple[int, int]]:
    first = 0
    while first < len(groups):
        for last in range(len(groups), first, -1):
            begin, end = groups[first][0], groups[last - 1][1]
            if _is_phone(text[begin:end], announced):
                yield begin, end
                first = last
                break
        else:
            first += 1


def _is_phone(text: str, announced: bool) -> bool:
    digits = re.sub(r"\D", "", text)
    if not 7 <= len(digits) <= 15 or _DATE.fullmatch(text) or _PERIOD.fullmatch(text) or _DECIMAL.fullmatch(text):
        return False
    if text.startswith("+") or text.startswith("(+"):
        return _is_possible(text.lstrip("("), None)
    if digits.startswith("00"):
        return _is_valid("+" + digits[2:], None)
    if announced and any(_is_possible(text, region) for region in _NATIONAL):
        return True
    grouped = len(digits) != len(text)
    if digits.startswith("0"):
        return len(digits) >= 9 and any(_is_valid(text, region) for region in _TRUNK)
    if len(digits) == 11 and digits[0] == "1" and digits[1] >= "3" and _is_valid(text, "CN"):
        return True
    if not grouped:
        return False
    if len(digits) == 10 or (len(digits) == 11 and digits[0] == "1"):
        return bool(re.fullmatch(r"(?:1[ .-]?)?\(?\d{3}\)?[ .-]{0,2}\d{3}[ .-]\d{4}", text)) and _is_valid(text, "US")
    return bool(_SPANISH.fullmatch(text)) and _is_valid(text, "ES")


def _is_valid(text: str, region: str | None) -> bool:
    number = _parse(text, region)
    return number is not None and phonenumbers.is_valid_number(number)


def _is_possible(text: str, region: str | None) -> bool:
    number = _parse(text, region)
    return number is not None and phonenumbers.is_possible_number(number)


def _parse(text: str, region: str | None) -> phonenumbers.PhoneNumber | None:
    try:
        return phonenumbers.parse(text, region)
    except phonenumbers.NumberParseException:
        return None
