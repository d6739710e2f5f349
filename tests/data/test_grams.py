from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.grams import Grams, Hasher

TEXTS = [" ".join(f"w{number * 7 % 91}x{start}" for number in range(40)) for start in range(30)]


def collect(texts: list[str], width: int, most: int = 1 << 17) -> Grams:
    return Hasher().collect(texts, [Grams(width, most)])[0]


def test_grams_are_those_of_each_text_and_none_across_two():
    assert len(collect(["a b c d", "e f", "g h i"], 3).hashes) == 3
    found, hasher = collect(["a b c d", "e f", "g h i"], 3), Hasher()
    assert found.holds(found.of_words(hasher.words_array("A b, c!"))).all()
    assert not found.holds(found.of_words(hasher.words_array("c d e f g"))).any()
    assert not len(found.of_words(hasher.words_array("a b")))
    assert not Grams(3, 9).holds(found.hashes).any()


def test_signs_of_chinese_are_words():
    found, hasher = collect(["今天的天气非常好，我们去公园。"], 8), Hasher()
    assert found.holds(found.of_words(hasher.words_array("天气非常好我们去公"))).all()
    assert len(found.hashes) == 13 - 8 + 1


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch):
    whole = collect(TEXTS, 5)
    monkeypatch.setattr("graftlm.data.grams.WORDS", 64)
    assert np.array_equal(collect(TEXTS, 5).hashes, whole.hashes)


@given(st.permutations(TEXTS), st.integers(0, len(TEXTS)))
def test_sampling_is_bounded_and_knows_no_order(texts: list[str], cut: int):
    whole, few = collect(TEXTS, 5), collect(texts, 5, most=100)
    assert len(few.hashes) <= 100
    assert few.one_in > 1
    assert np.array_equal(few.hashes, collect(TEXTS, 5, most=100).hashes)
    assert np.array_equal(few.hashes, few.looked_at(whole.hashes))
    parts = collect(texts[:cut], 5, most=100), collect(texts[cut:], 5, most=100)
    both = parts[0].joined(parts[1])
    assert both.one_in == few.one_in
    assert np.array_equal(both.hashes, few.hashes)


def test_about_one_in_so_many_is_kept():
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 10**9, 200))) for _ in range(200)]
    whole, few = collect(texts, 13), collect(texts, 13, most=8_000)
    assert len(whole.hashes) == 200 * 188
    assert few.one_in == 8
    assert abs(len(few.hashes) - len(whole.hashes) / 8) < 300
