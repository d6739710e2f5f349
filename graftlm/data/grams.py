"""Hashes of words in a row, with which a text can be looked for where the texts themselves are gone.

A gram is ``width`` words in a row (of Chinese, signs; see :func:`graftlm.data.filters.units`), hashed to 64 bits. How
many are kept is bounded: beyond that only those with small hashes stay, one in 2, 4, 8 …, which the hash decides and
not the order of the texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from graftlm.data.filters import units

WORDS = 1 << 20  # hashed at once
Hashes = NDArray[np.uint64]
_STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no bit of a word is lost


@dataclass(frozen=True)
class Grams:
    """Sorted hashes of all grams of some texts, or of one in ``one_in`` (a power of two) of them, ``most`` at most."""

    width: int
    most: int
    hashes: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))
    one_in: int = 1

    def with_more(self, hashes: Hashes) -> Grams:
        """These and others."""
        found, one_in = np.union1d(self.hashes, _kept(hashes, self.one_in)), self.one_in
        while len(found) > self.most:
            one_in *= 2
            found = _kept(found, one_in)
        return replace(self, hashes=found, one_in=one_in)

    def joined(self, other: Grams) -> Grams:
        """The grams of both."""
        sparse, dense = sorted((self, other), key=lambda each: -each.one_in)
        return sparse.with_more(dense.hashes)

    def holds(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Which of these are among them."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        places = np.searchsorted(self.hashes, hashes)
        found: NDArray[np.bool_] = self.hashes[np.minimum(places, len(self.hashes) - 1)] == hashes
        return found

    def of_words(self, words: Hashes) -> Hashes:
        """The grams of one text of so many words, in order; none where it is shorter."""
        return _hashes(words, self.width)

    def looked_at(self, hashes: Hashes) -> Hashes:
        """Those of the hashes that would have been kept."""
        return _kept(hashes, self.one_in)


def _kept(hashes: Hashes, one_in: int) -> Hashes:
    return hashes if one_in == 1 else hashes[hashes < np.uint64(2**64 // one_in)]


class Hasher:
    """Hashes the grams of texts; remembers the hash of each word."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}

    def words(self, text: str) -> list[int]:
        """The hash of each word of a text, in order."""
        known = self._words
        found = []
        for word in units(text):
            number = known.get(word)
            if number is None:
                digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
                number = known[word] = int.from_bytes(digest, "little")
            found.append(number)
        return found

    def words_array(self, text: str) -> Hashes:
        """The hash of each word of a text, to make grams of."""
        return np.array(self.words(text), np.uint64)

    def collect(self, texts: Iterable[str], empty: Sequence[Grams]) -> list[Grams]:
        """The grams of many texts, for each of the empty ones that are given."""
        found = list(empty)
        for words, ends in self._batches(texts):
            for place, grams in enumerate(found):
                found[place] = grams.with_more(_hashes(words, grams.width, ends))
        return found

    def _batches(self, texts: Iterable[str]) -> Iterator[tuple[Hashes, NDArray[np.int64]]]:
        words: list[int] = []
        ends: list[int] = []
        for text in texts:
            words += self.words(text)
            ends.append(len(words))
            if len(words) >= WORDS:
                yield np.array(words, np.uint64), np.array(ends)
                words, ends = [], []
        yield np.array(words, np.uint64), np.array(ends, np.int64)


def _hashes(words: Hashes, width: int, ends: NDArray[np.int64] | None = None) -> Hashes:
    """The hash of each ``width`` words in a row. ``ends``: where texts end, which no gram reaches across."""
    number = len(words) - width + 1
    if number <= 0:
        return np.empty(0, np.uint64)
    result = np.zeros(number, np.uint64)
    for place in range(width):
        result = result * _STEP + words[place : place + number]
    if ends is not None:
        text = np.searchsorted(ends, np.arange(len(words)), side="right")
        result = result[text[:number] == text[width - 1 :]]
    return _mixed(result)


def _mixed(values: Hashes) -> Hashes:
    """Every bit of each value in every bit (the finish of splitmix64): sampling looks at the high bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
