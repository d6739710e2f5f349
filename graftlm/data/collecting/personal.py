"""Personal data in a text: found, counted by kind and replaced by placeholders such as ``<EMAIL>``.

Numbers with a checksum are told by it; keys, names and addresses by how people write them. What nothing
announces (a lone first name, a nickname, a health story) is not found: see docs/how-to/collect.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from graftlm.data.collecting.addresses import find_addresses
from graftlm.data.collecting.names import find_names
from graftlm.data.collecting.numbers import find_cards, find_ibans, find_ids, find_ips
from graftlm.data.collecting.online import find_emails, find_keys
from graftlm.data.collecting.phones import find_phones

Finder = Callable[[str], Iterator[tuple[int, int]]]

# What stands first wins where two overlap.
FINDERS: dict[str, Finder] = {
    "email": find_emails,
    "key": find_keys,
    "iban": find_ibans,
    "id": find_ids,
    "card": find_cards,
    "ip": find_ips,
    "phone": find_phones,
    "address": find_addresses,
    "name": find_names,
}
PLACEHOLDERS = {kind: f"<{kind.upper()}>" for kind in FINDERS}

# One sign for one, so that places stay: full-width signs, odd spaces and dashes as in ASCII.
_PLAIN = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
_PLAIN |= dict.fromkeys((0x3000, 0xA0, 0x2007, 0x2009, 0x202F), 0x20)
_PLAIN |= dict.fromkeys((0x2010, 0x2011, 0x2012, 0x2013, 0x2212), 0x2D)
_PLAIN |= dict.fromkeys((0x2018, 0x2019, 0x02BC), 0x27)


@dataclass(frozen=True, slots=True)
class Found:
    """One piece of personal data: its kind and where it stands, ``text[begin:end]``."""

    kind: str
    begin: int
    end: int


def find(text: str) -> list[Found]:
    """The personal data of a text, in order, without overlaps."""
    plain = text.translate(_PLAIN)
    taken: list[Found] = []
    for kind, finder in FINDERS.items():
        for begin, end in finder(plain):
            if begin < end and all(end <= other.begin or other.end <= begin for other in taken):
                taken.append(Found(kind, begin, end))
    return sorted(taken, key=lambda found: found.begin)


def remove(text: str) -> tuple[str, Counter[str]]:
    """The text with placeholders for its personal data, and how many of each kind there were."""
    parts, end = list[str](), 0
    counts = Counter[str]()
    for found in find(text):
        parts += [text[end : found.begin], PLACEHOLDERS[found.kind]]
        counts[found.kind] += 1
        end = found.end
    return "".join([*parts, text[end:]]), counts
