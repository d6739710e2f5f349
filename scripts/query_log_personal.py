"""Made-up personal data for the generated query log, in the forms that people of five languages write.

Shares nothing with the package: forms, checksums and lists are its own. ``plant`` gives a sentence, the piece of it
that is personal, and whether anything announces it.
"""

from __future__ import annotations

import base64
import json
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from ruamel.yaml import YAML

KINDS = ("email", "phone", "card", "iban", "key", "ip", "address", "id", "name")


@dataclass(frozen=True)
class Planted:
    """A sentence with a piece of personal data in it. ``announced`` is False for a name that stands alone."""

    kind: str
    value: str
    sentence: str
    announced: bool = True


ZH_FAMILY = "陈林黄吴刘徐孙马朱胡郭何高罗郑梁谢宋唐许邓冯韩曹曾彭萧蔡潘田董袁于余叶蒋杜苏魏程吕丁沈任姚卢"
ZH_GIVEN = "伟芳娜敏静丽强磊军洋勇艳杰娟涛明超秀霞平刚桂英华玉兰红建文志国海峰雪梅晓东宇浩欣怡子涵梓萱雨桐"


@cache
def words(language: str) -> dict[str, Any]:
    """Names, domains and sentences of a language."""
    text = (Path(__file__).parent / "query_log_words.yaml").read_text(encoding="utf-8")
    return dict(YAML(typ="safe").load(text)["personal"][language])


def digits(random: Random, count: int) -> str:
    return "".join(random.choice(string.digits) for _ in range(count))


def ascii_of(text: str) -> str:
    table = str.maketrans("äöüßéèêëïîíóáúñçÁÉÍÓÖÜ", "aousEeeeiiioauncAEIOOU".lower())
    return "".join(sign for sign in text.translate(table).lower() if sign.isascii() and (sign.isalnum() or sign == "-"))


def full_name(random: Random, language: str) -> str:
    if language == "zh":
        return random.choice(ZH_FAMILY) + "".join(random.choice(ZH_GIVEN) for _ in range(random.choice((1, 2, 2))))
    name = f"{random.choice(words(language)['first'])} {random.choice(words(language)['last'])}"
    if language == "es" and random.random() < 0.5:
        name += " " + random.choice(words("es")["last"])
    return name


def email(random: Random, language: str) -> str:
    latin = language if language != "zh" else "en"
    first, last = ascii_of(random.choice(words(latin)["first"])), ascii_of(random.choice(words(latin)["last"]))
    local = random.choice(
        [
            f"{first}.{last}",
            f"{first[0]}{last}{digits(random, 2)}",
            f"{last}_{first}",
            f"{first}+shop",
            digits(random, 9),
        ]
    )
    domain = random.choice(words(language)["domains"])
    if random.random() < 0.06:
        return f"{local} [at] {domain}"
    if random.random() < 0.06:
        return f"{local}(at){domain.rsplit('.', 1)[0]}(dot){domain.rsplit('.', 1)[1]}"
    return f"{local}@{domain}" if random.random() < 0.9 else f"{local}@{domain}".upper()


def phone(random: Random, language: str) -> str:
    def d(count: int) -> str:
        return digits(random, count)

    if language == "en" and random.random() < 0.65:
        area, office = random.choice(("212", "415", "617", "312", "206", "713")), random.choice("23456789") + d(2)
        form = random.choice(
            ("({}) {}-{}", "{}-{}-{}", "{}.{}.{}", "+1 {} {} {}", "1-{}-{}-{}", "+1{}{}{}", "{} {} {}")
        )
        return form.format(area, office, d(4))
    if language == "en":
        mobile = random.choice(("7700", "7911", "7520")) + d(6)
        return random.choice((f"+44 {mobile[:4]} {mobile[4:]}", f"0{mobile[:4]} {mobile[4:]}", f"020 7{d(3)} {d(4)}"))
    if language == "de":
        mobile, rest = random.choice(("151", "160", "170", "175", "176")), d(8)
        if mobile in ("160", "170", "175"):
            rest = rest[:7]
        return random.choice(
            (
                f"+49 {mobile} {rest}",
                f"0{mobile} {rest}",
                f"0{mobile}/{rest}",
                f"0049 {mobile} {rest}",
                f"030 {random.choice('2345689')}{d(6)}",
            )
        )
    if language == "fr":
        pairs = [d(2) for _ in range(4)]
        lead = random.choice(("6", "7", "1"))
        if lead == "1":
            pairs[0] = "4" + d(1)
        if lead == "7":
            pairs[0] = random.choice("5678") + d(1)
        joined = random.choice((" ", ".", "-", ""))
        return f"0{lead}{joined}{joined.join(pairs)}" if random.random() < 0.7 else f"+33 {lead} {' '.join(pairs)}"
    if language == "es":
        body = random.choice(("6", "6", "91")) + d(8)
        body = body[:9]
        form = random.choice(
            (
                "{0}{1}{2} {3}{4}{5} {6}{7}{8}",
                "{0}{1}{2} {3}{4} {5}{6} {7}{8}",
                "+34 {0}{1}{2}{3}{4}{5}{6}{7}{8}",
                "{0}{1}{2}-{3}{4}{5}-{6}{7}{8}",
            )
        )
        return form.format(*body)
    mobile = random.choice(("138", "139", "150", "186", "177", "199")) + d(8)
    form = random.choice(("{0}{1}{2}", "{0}-{1}-{2}", "{0} {1} {2}", "+86 {0}{1}{2}", "+86-{0}-{1}-{2}"))
    if random.random() < 0.2:
        return random.choice((f"010-6{d(7)}", f"(021) 5{d(7)}", f"0755-8{d(7)}"))
    return form.format(mobile[:3], mobile[3:7], mobile[7:])


def check_digit(body: str) -> str:
    doubled = [int(sign) * (2 if place % 2 == 0 else 1) for place, sign in enumerate(reversed(body))]
    return str(-sum(value - 9 if value > 9 else value for value in doubled) % 10)


def card(random: Random, language: str) -> str:
    start, length = random.choice(
        (
            ("4", 16),
            ("4", 16),
            ("53", 16),
            ("2340", 16),
            ("37", 15),
            ("6011", 16),
            ("3530", 16),
            ("6225", 16),
            ("6217", 19),
        )
    )
    body = start + digits(random, length - 1 - len(start))
    number = body + check_digit(body)
    between = random.choice(("", " ", "-"))
    if length == 15:
        return between.join((number[:4], number[4:10], number[10:]))
    return between.join(number[i : i + 4] for i in range(0, length, 4))


def iban(random: Random, language: str) -> str:
    def d(count: int) -> str:
        return digits(random, count)

    letters = "".join(random.choice(string.ascii_uppercase) for _ in range(4))
    country, account = random.choice(
        [
            ("DE", d(18)),
            ("FR", d(10) + d(11) + d(2)),
            ("ES", d(20)),
            ("GB", letters + d(14)),
            ("NL", letters + d(10)),
            ("IT", letters[0] + d(22)),
            ("CH", d(17)),
            ("AT", d(16)),
            ("PL", d(24)),
        ]
    )
    as_number = "".join(str(ord(sign) - 55) if sign.isalpha() else sign for sign in account + country) + "00"
    number = f"{country}{98 - int(as_number) % 97:02d}{account}"
    return number if random.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def key(random: Random, language: str) -> str:
    def some(count: int, signs: str = string.ascii_letters + string.digits) -> str:
        return "".join(random.choice(signs) for _ in range(count))

    head = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).decode().rstrip("=")
    return random.choice(
        [
            f"sk-{some(48)}",
            f"sk-proj-{some(40)}",
            f"ghp_{some(36)}",
            f"AKIA{some(16, string.ascii_uppercase + string.digits)}",
            f"AIza{some(35)}",
            f"xoxb-{digits(random, 11)}-{some(24)}",
            f"sk_live_{some(24)}",
            f"hf_{some(34)}",
            f"glpat-{some(20)}",
            f"{head}.{some(40)}.{some(43)}",
            some(32, "0123456789abcdef"),
            some(40),
        ]
    )


def ip(random: Random, language: str) -> str:
    if random.random() < 0.3:
        groups = [f"{random.randrange(1, 65536):x}" for _ in range(8)]
        groups[0] = random.choice(("2001", "2a02", "fe80"))
        return ":".join(groups) if random.random() < 0.6 else ":".join(groups[:3]) + "::" + ":".join(groups[6:])
    first = random.choice((10, 81, 93, 145, 172, 192, 203))
    return ".".join(str(part) for part in (first, *(random.randrange(256) for _ in range(2)), random.randrange(1, 255)))


def address(random: Random, language: str) -> str:
    number = random.randrange(1, 240)
    if language == "en" and random.random() < 0.65:
        street = random.choice(
            (
                "Maple Street",
                "W Oak Ave",
                "Lincoln Blvd",
                "Sycamore Lane",
                "5th Avenue",
                "Cedar Ridge Drive",
                "Elm Court",
                "North Main St.",
            )
        )
        town = random.choice(("Dayton, OH 45402", "Boise, ID 83702", "Santa Fe, NM 87501", "Portland, OR 97205"))
        flat = random.choice(("", "", f", Apt {random.randrange(1, 60)}", f", Suite {random.randrange(100, 400)}"))
        return f"{number * 7} {street}{flat}, {town}"
    if language == "en":
        street = random.choice(
            ("Station Road", "Church Lane", "Victoria Street", "The Crescent", "Mill Hill Road", "Kings Avenue")
        )
        return f"{number} {street}, " + random.choice(
            ("Leeds LS1 4AP", "Bristol BS1 5TR", "London SE10 9GB", "York YO1 7HH")
        )
    if language == "de":
        street = random.choice(
            (
                "Lindenstraße",
                "Goetheplatz",
                "Am Sportplatz",
                "Berliner Allee",
                "Rosenweg",
                "Kirchgasse",
                "Hauptstr.",
                "Karl-Marx-Straße",
                "Alte Landstraße",
            )
        )
        town = random.choice(
            ("80331 München", "50667 Köln", "04109 Leipzig", "60311 Frankfurt am Main", "20095 Hamburg")
        )
        return f"{street} {number}{random.choice(('', '', 'a', ' b'))}, {town}"
    if language == "fr":
        street = random.choice(
            (
                "rue Victor Hugo",
                "avenue des Champs-Élysées",
                "boulevard Saint-Michel",
                "rue de l'Église",
                "place de la République",
                "chemin des Vignes",
                "allée des Tilleuls",
            )
        )
        town = random.choice(("69002 Lyon", "33000 Bordeaux", "75011 Paris", "13001 Marseille", "59800 Lille"))
        return f"{number}{random.choice(('', '', ' bis'))}{random.choice(('', ','))} {street}, {town}"
    if language == "es":
        street = random.choice(
            (
                "Calle Mayor",
                "Avenida de la Constitución",
                "C/ Serrano",
                "Plaza de España",
                "Paseo de Gracia",
                "calle del Carmen",
                "Av. Diagonal",
            )
        )
        town = random.choice(("28013 Madrid", "41001 Sevilla", "08007 Barcelona", "46002 Valencia"))
        floor = random.choice(("", "", f", {random.randrange(1, 8)}º {random.choice('ABCD')}"))
        return f"{street}{random.choice((',', ' nº', ''))} {number}{floor}, {town}"
    city = random.choice(
        (
            "北京市海淀区中关村大街",
            "上海市浦东新区世纪大道",
            "广东省深圳市南山区科技园路",
            "浙江省杭州市西湖区文三路",
            "成都市武侯区人民南路",
            "江苏省南京市鼓楼区中山北路",
        )
    )
    tail = random.choice(
        (
            "",
            "",
            f"{random.randrange(1, 20)}号楼{random.randrange(1, 5)}单元{random.randrange(101, 2000)}室",
            f"{random.randrange(1, 30)}栋{random.randrange(101, 999)}室",
        )
    )
    return f"{city}{number}号{tail}"


def identity(random: Random, language: str) -> str:
    if language == "zh":
        region = random.choice(("110108", "310115", "440305", "330106", "510107", "320106"))
        day = f"{random.randrange(1945, 2008)}{random.randrange(1, 13):02d}{random.randrange(1, 29):02d}"
        body = region + day + digits(random, 3)
        total = sum(int(sign) * (2 ** (17 - place) % 11) for place, sign in enumerate(body))
        return body + "10X98765432"[total % 11]
    middle, last = random.randrange(1, 100), random.randrange(1, 10000)
    area = random.choice([n for n in range(1, 900) if n != 666])
    return (
        f"{area:03d}{'-'}{middle:02d}{'-'}{last:04d}"
        if random.random() < 0.8
        else f"{area:03d} {middle:02d} {last:04d}"
    )


MAKERS = {
    "email": email,
    "phone": phone,
    "card": card,
    "iban": iban,
    "key": key,
    "ip": ip,
    "address": address,
    "id": identity,
}


def plant(random: Random, language: str, kind: str) -> Planted:
    """A piece of personal data of a kind, in a sentence."""
    if kind == "name":
        value = full_name(random, language)
        if random.random() < 0.1:
            return Planted(kind, value, words(language)["alone"].format(value), announced=False)
        return Planted(kind, value, random.choice(words(language)["frames"]["name"]).format(value))
    value = MAKERS[kind](random, language)
    return Planted(kind, value, random.choice(words(language)["frames"][kind]).format(value))
