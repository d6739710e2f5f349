"""Payment cards, IBANs, identity numbers and IP addresses: told by checksum or by what is valid."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

from graftlm.data.collecting import checksums

_FREE = r"(?<![A-Za-z0-9])"
_END = r"(?![A-Za-z0-9])"
_DIGITS = re.compile(r"(?<![A-Za-z0-9.])\d(?:[ -]?\d){11,}")
_IBAN = re.compile(_FREE + r"[A-Za-z]{2}\d{2}(?=[ -]?[A-Za-z0-9])")
_SSN = re.compile(r"(?<![\dA-Za-z-])\d{3}([ -])\d{2}\1\d{4}(?![\d-])")
_SSN_ANNOUNCED = re.compile(r"(?:\bssn\b|social security)[^\d\n]{0,25}(\d{9})(?!\d)", re.IGNORECASE)
_CHINESE = re.compile(_FREE + r"\d{17}[\dXx]" + _END)
_SPANISH = re.compile(_FREE + r"(?:\d{2}\.?\d{3}\.?\d{3}|[XYZxyz]-?\d{7})[ -]?[A-Za-z]" + _END)
_FRENCH = re.compile(_FREE + r"[12] ?\d{2} ?\d{2} ?\d{2} ?\d{3} ?\d{3} ?\d{2}" + _END)
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![A-Za-z0-9_]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![A-Za-z0-9_:])")
_VERSION = re.compile(r"(?:\bv|versi[oó]n|release|section|kapitel|chapter|版本)\s*:?\s*$", re.IGNORECASE)


def find_cards(text: str) -> Iterator[tuple[int, int]]:
    """Numbers of a known network's form and length that pass the Luhn check, bare or in groups."""
    for run in _DIGITS.finditer(text):
        places = [i for i in range(run.start(), run.end()) if text[i].isdigit()]
        digits = "".join(text[i] for i in places)
        begin = 0
        while begin + 12 <= len(digits):
            starts = begin == 0 or places[begin] - places[begin - 1] > 1
            end = _card_end(digits, places, begin) if starts else None
            if end is None:
                begin += 1
            else:
                yield places[begin], places[end - 1] + 1
                begin = end


def _card_end(digits: str, places: list[int], begin: int) -> int | None:
    for length in checksums.card_lengths(digits[begin : begin + 4]):
        end = begin + length
        whole = end == len(digits) or (end < len(digits) and places[end] - places[end - 1] > 1)
        number = digits[begin:end]
        if whole and len(set(number)) > 1 and checksums.luhn(number):
            return end
    return None


def find_ibans(text: str) -> Iterator[tuple[int, int]]:
    """From a country and two digits on, as many signs as that country's IBANs have."""
    for match in _IBAN.finditer(text):
        length = checksums.IBAN_LENGTHS.get(match[0][:2].upper())
        end, signs = match.start(), ""
        while length and end < len(text) and len(signs) < length:
            if text[end].isascii() and text[end].isalnum():
                signs += text[end].upper()
            elif text[end] not in " -" or text[end - 1] in " -":
                break
            end += 1
        after = text[end : end + 1]
        if len(signs) == length and checksums.iban(signs) and not (after.isascii() and after.isalnum()):
            yield match.start(), end


def find_ids(text: str) -> Iterator[tuple[int, int]]:
    """US social security numbers, Chinese resident numbers, Spanish DNI and NIE, French NIR."""
    checks: list[tuple[re.Pattern[str], Callable[[str], bool]]] = [
        (_CHINESE, checksums.chinese_id),
        (_SSN, checksums.social_security),
        (_SPANISH, checksums.spanish_id),
        (_FRENCH, checksums.french_id),
    ]
    for form, check in checks:
        for match in form.finditer(text):
            if check(re.sub(r"[ .-]", "", match[0])):
                yield match.span()
    for match in _SSN_ANNOUNCED.finditer(text):
        if checksums.social_security(match[1]):
            yield match.span(1)


def find_ips(text: str) -> Iterator[tuple[int, int]]:
    """IPv4 and IPv6, but for those that are the same everywhere (loopback, unspecified, netmasks) and versions."""
    for form in (_IPV4, _IPV6):
        for match in form.finditer(text):
            try:
                address = ipaddress.ip_address(match[0])
            except ValueError:
                continue
            nobody = address.is_loopback or address.is_unspecified or match[0].startswith("255.")
            code = address.version == 6 and sum(bool(part) for part in match[0].split(":")) < 3
            if not nobody and not code and not _VERSION.search(text[max(0, match.start() - 12) : match.start()]):
                yield match.span()
