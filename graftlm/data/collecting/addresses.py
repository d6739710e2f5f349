"""Postal addresses: a street with a house number, and the flat, code and town behind it, in five languages."""

from __future__ import annotations

import re
from collections.abc import Iterator

_U = "A-ZÀ-ÖØ-Þ"
_W = "A-Za-zÀ-ÖØ-öø-ÿß"
_CAP = rf"[{_U}][{_W}'.-]*"
# ", Springfield, IL 62704", ", London SW1A 2AA", ", 10115 Berlin", ", 75001 Paris", ", Madrid"
_US_UK = (
    rf"(?:,?[ \n]+(?i:apt|apartment|suite|ste|unit|flat|floor|room|#)\.?[ ]?#?[A-Za-z0-9-]{{1,6}}(?![A-Za-z0-9]))?"
    rf"(?:,?[ \n]+{_CAP}(?: {_CAP}){{0,2}},?[ \n]+(?:[A-Z]{{2}},?[ ]\d{{5}}(?:-\d{{4}})?"
    rf"|[A-Z]{{1,2}}\d[A-Z\d]?[ ]?\d[A-Z]{{2}}|[A-Z]{{2}}\b)"
    rf"|,?[ \n]+[A-Z]{{1,2}}\d[A-Z\d]?[ ]\d[A-Z]{{2}}\b)?"
)
_TOWN = (
    rf"(?:,?[ \n]+(?:[A-Z]{{1,2}}-)?\d{{4,5}},?[ ]{_CAP}(?:(?:[ -](?:am|an der|im|sur|en|de|de la|la|le"
    rf"|el|los|las|do))?[ -]{_CAP}){{0,2}})?"
)

_ENGLISH = re.compile(
    rf"(?<![\w.,-])(?:(?i:flat|apt|apartment|unit"
    rf"|suite)\.? ?#?\w{{1,5}},? )?\d{{1,5}}[A-Za-z]?,? (?:[NSEW]\.? |(?:North|South|East|West) )?"
    rf"(?:(?:{_CAP}|\d{{1,3}}(?:st|nd|rd|th)) ){{1,4}}"
    r"(?i:street|str|st|avenue|ave|av|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|place|pl|way|terrace"
    r"|ter|square|sq|circle|cir"
    r"|parkway|pkwy|highway|hwy|close|crescent|row|mews|gardens|grove|hill|trail|loop|walk|broadway|plaza|alley)\b\.?"
    r"(?: (?:NE|NW|SE|SW|N|S|E|W)\b)?" + _US_UK
)
_BOX = re.compile(r"\b(?i:p\.? ?o\.? box|postfach|apartado(?: de correos)?|b\.?p\.?) \d{2,7}" + _US_UK + _TOWN)
_WORD = rf"[{_U}][{_W}'-]*"
_NO_STREET = (
    r"(?!(?:Der|Die|Das|Dem|Den|Ein|Eine|Einen|Mein|Unser|Am|Im|Zum|Zur|Vom|Beim|In|Auf|Bahnsteig|Bahnhof|Supermarkt"
    r"|Parkplatz|Spielplatz|Umweg|Heimweg|Arbeitsmarkt|Hering) )"
)
_NUMBER = (
    r",? (?:Nr\. ?)?\d{1,4}(?: ?[a-zA-Z](?![A-Za-z]))?(?:[-/]\d{1,4})?"
    r"(?![\d%€:]|[.,]\d| ?(?:km|m|Uhr|Euro|Meter|Kilometer|Minuten|Prozent|Jahre)\b)"
)
_GERMAN = re.compile(
    rf"(?<![{_W}]){_NO_STREET}(?:(?:{_WORD}[ -])?{_NO_STREET}[{_U}][{_W}-]*(?:straße|strasse|str\.|weg"
    rf"|platz|allee|gasse|damm|ufer|chaussee)"
    rf"|(?:{_WORD}[ -]){{1,2}}(?:Straße|Strasse|Str\.|Weg|Platz|Allee|Gasse|Ring|Damm|Ufer|Chaussee)"
    rf"){_NUMBER}{_TOWN}"
    # "Am Markt 5, 10115 Berlin": without a town it might be "Im Jahr 1990", and "Kohlmarkt 5" might be "Spring 5"
    rf"|(?<![{_W}])(?:[{_U}][{_W}-]*(?:ring|steig|markt|hof|pfad|graben)"
    rf"|(?:Am|An der|An den|Auf dem|Auf der|Im|In der|Zum|Zur|Unter den|Unter der) {_WORD}(?: {_WORD})?)"
    rf"{_NUMBER}{_TOWN.removesuffix('?')}"
)
_OF = r"(?:(?:de la|de l'|des|du|de las|de los|del|de|la|le|les|el|d'|l'|los|las|St\.?|Saint) ?){0,3}"
_FRENCH = re.compile(
    rf"(?<![\w.,-])\d{{1,4}}(?: ?(?:bis|ter|[A-D]))?,? (?i:rue|avenue|av\.|boulevard|bd\.?|place|impasse"
    rf"|all[ée]e|chemin|quai|route"
    rf"|square|passage|faubourg|sentier|esplanade) {_OF}{_CAP}(?:[ -]{_OF}{_CAP}){{0,4}}" + _TOWN
)
_SPANISH = re.compile(
    rf"(?<![{_W}])(?i:calle|c/|avenida|avda?\.?|av\.|plaza|pza\.?|pl\.|paseo|p\.º|camino|carrera|carretera"
    rf"|ctra\.|ronda|traves[ií]a|v[ií]a|glorieta|callej[oó]n)"
    rf" ?{_OF}{_CAP}(?:[ -]{_OF}{_CAP}){{0,4}},? (?:(?i:n\.?[º°]|n[úu]m(?:ero|\.)?|no\.|#) ?)?\d{{1,4}}(?![\d%€:])"
    r"(?:,? (?:piso )?\d{1,2}[.ºª°]{0,2} ?(?:[A-Z]|izq(?:uierda|\.)?|dcha\.?|derecha|puerta \w)(?![A-Za-z]))?"
    + _TOWN
    + rf"(?:,? (?:Col\.|Colonia) {_CAP}(?: {_CAP}){{0,2}})?"
)

_H = "\u4e00-\u9fff"
_CHINESE = re.compile(
    rf"(?:[{_H}]{{2,8}}?(?:省|自治区|特别行政区))?(?:[{_H}]{{1,7}}?(?:市|自治州|地区"
    rf"|盟))?(?:[{_H}]{{1,7}}?(?:区|县|旗|市))?(?:[{_H}]{{1,6}}?(?:镇|乡|街道))?"
    rf"[{_H}]{{1,12}}?(?:路|街|大道|巷|弄|胡同|道|里|村|小区|新村|花园|苑|城|公寓|大厦"
    rf"|广场)(?:[东南西北中]?[一二三四五六七八九十]{{0,2}}段|[东南西北]路?)?"
    r" ?(?:\d{1,5}|[一二三四五六七八九十百]{1,4})(?:-\d{1,4})? ?(?:号楼?|弄|巷|栋|幢|座|单元|室|组)"
    r"(?:[ ,]?(?:[A-Z]|\d{1,5}|[一二三四五六七八九十]{1,3})(?:-\d{1,5})? ?(?:号楼|栋|幢|座|单元|室|层|楼|号|弄|门)"
    rf"|[ ,]?[{_H}]{{2,8}}?(?:小区|花园|公寓|大厦|广场|苑|城|家园|新村)){{0,5}}(?:\d{{3,4}}(?!\d))?"
)
# What may stand before an address within the same run of signs: "我住在", "请寄到", "地址是".
_LEAD = re.compile(
    rf"[{_H}]{{0,12}}(?:住在|地址是|地址为|地址|寄到|送到|发到|位于|搬到|家在|坐落于|住址是|住址|居住在|住"
    rf"|在|到|是|寄|为|从|去|于|给)(?=[{_H}]{{3}})"
)


def find_addresses(text: str) -> Iterator[tuple[int, int]]:
    for form in (_ENGLISH, _BOX, _GERMAN, _FRENCH, _SPANISH):
        for match in form.finditer(text):
            yield match.span()
    for match in _CHINESE.finditer(text):
        lead = _LEAD.match(match[0])
        yield match.start() + (lead.end() if lead else 0), match.end()
