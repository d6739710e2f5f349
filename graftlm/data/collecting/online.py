"""E-mail addresses, API keys and other secrets, by form."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

# Letters of Latin script: \w would swallow Chinese text that stands before an address without a space.
_L = "A-Za-z\u00c0-\u024f"
_EMAIL = re.compile(
    rf"(?<![{_L}0-9._%+-])[{_L}0-9_%+-][{_L}0-9._%+'-]{{0,63}}@(?:[{_L}0-9-]{{1,63}}\.)+(?:xn--[a-z0-9]+"
    rf"|[{_L}]{{2,24}})"
)
# "ada (at) example (dot) org", "ada [at] example.org", "ada at example dot org"
_SPELT = re.compile(
    rf"(?<![{_L}0-9._-])[{_L}0-9][{_L}0-9._+-]*"
    rf"(?:\s*[\[({{<]\s*(?:at|arroba|arobase|@|ät)\s*[\])}}>]\s*[{_L}0-9-]+(?:(?:\s*[\[({{<]\s*(?:dot|punkt"
    rf"|point|punto|\.)\s*[\])}}>]\s*|\s+dot\s+|\.)[{_L}0-9-]+)+"
    rf"|\s+(?:at|AT|arroba|arobase)\s+[{_L}0-9-]+(?:\s+(?:dot|DOT|punkt|point|punto)\s+[{_L}0-9-]{{2,}})+)",
    re.IGNORECASE,
)

_B = r"(?<![A-Za-z0-9_])"  # not inside a word; Chinese signs may stand before
_KEYS = [
    re.compile(form)
    for form in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$(?!\n))",
        _B + r"eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]*",  # JSON web tokens
        _B + r"(?:sk|pk|rk)[-_](?:(?:live|test|proj|ant|or|svcacct)[-_])?[A-Za-z0-9_-]{16,}",
        _B + r"(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
        r"|npm_[A-Za-z0-9]{20,})",
        _B + r"(?:AKIA|ASIA|AGPA|AIDA|AROA)[A-Z0-9]{16}(?![A-Za-z0-9])",
        _B + r"AIza[\w-]{30,}",
        _B + r"ya29\.[\w-]{20,}",
        _B + r"xox[abeoprs]-[\w-]{10,}",
        _B + r"SG\.[\w-]{16,}\.[\w-]{16,}",
        _B + r"(?:pypi|dop_v1|shpat|shpss|LTAI|AC|SK)[-_]?[A-Za-z0-9_-]{24,}",
        r"(?<=://)[^\s/:@]+:[^\s/@]+(?=@)",  # https://user:password@host
    )
]
_KEYS[0] = re.compile(_KEYS[0].pattern, re.DOTALL)
_ANNOUNCED = re.compile(
    r"(?:api[ _-]?key|secret|access[ _-]?key|access[ _-]?token|auth[ _-]?token|token|bearer|passw(?:or)?d"
    r"|passwort|pwd|kennwort"
    r"|mot de passe|clé(?: d'api| api)?|contraseña|clave(?: de api| api)?|schlüssel|密码|密钥|口令|令牌|秘钥)[\"']?"
    r"\s*(?:is|ist|est|es|lautet|为|是|=|:)*\s*[\"'`]?(?P<value>[A-Za-z0-9_+/=.!@#$%^&*~-]{6,})",
    re.IGNORECASE,
)
_LONG = re.compile(r"(?<![A-Za-z0-9_./#@-])[A-Za-z0-9_+/-]{24,}={0,2}(?![A-Za-z0-9_])")
_UUID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")


def find_emails(text: str) -> Iterator[tuple[int, int]]:
    for match in (*_EMAIL.finditer(text), *_SPELT.finditer(text)):
        yield match.span()


def find_keys(text: str) -> Iterator[tuple[int, int]]:
    """Tokens of known services, what "password:" or "api key" announces, and long strings that look drawn at random."""
    for form in _KEYS:
        for match in form.finditer(text):
            yield match.span()
    for match in _ANNOUNCED.finditer(text):
        value = match["value"].rstrip(".!")
        if len(value) >= 6 and _mixed(value):
            yield match.start("value"), match.start("value") + len(value)
    for match in _LONG.finditer(text):
        if _looks_random(match[0]):
            yield match.span()


def _mixed(value: str) -> bool:
    """Letters beside digits or signs: a word of a language is not a password that one could tell."""
    return any(sign.isalpha() for sign in value) and any(not sign.isalpha() and sign not in "-_./" for sign in value)


def _looks_random(value: str) -> bool:
    """Letters and digits in turn, hardly a sign twice; not a path, a UUID or a name with hyphens."""
    digits = sum(sign.isdigit() for sign in value)
    if not 0 < digits < len(value) or value.count("/") > 2 or value.count("-") > 3 or _UUID.fullmatch(value):
        return False
    kinds = ["d" if sign.isdigit() else "u" if sign.isupper() else "l" if sign.islower() else "" for sign in value]
    changes = sum(a != b for a, b in pairwise(kinds)) / len(value)
    if changes < (0.15 if re.fullmatch("[0-9a-f]+|[0-9A-F]+", value) else 0.4):  # words beside numbers change seldom
        return False
    cases = any(sign.isupper() for sign in value) and any(sign.islower() for sign in value)
    counts = Counter(value)
    entropy = -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())
    return entropy > (3.6 if cases else 4.1) or (len(value) in (32, 40, 64) and entropy > 3.3 and not cases)
