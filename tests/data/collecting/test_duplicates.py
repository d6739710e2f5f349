"""What counts as a duplicate, against brute force over all pairs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.collecting.duplicates import VALUES, Kept, band_rows, beginning, normal, shingles, similarity


@pytest.fixture
def kept(tmp_path):
    made = []

    def make(prefix: int = 0, threshold: float = 0.8) -> Kept:
        made.append(Kept(tmp_path / f"{len(made)}.sqlite", prefix=prefix, threshold=threshold))
        return made[-1]

    yield make
    for store in made:
        store.close()


def take(store: Kept, text: str, user: str = "u") -> str | None:
    prompt = store.prompt(text)
    reason = store.duplicate(prompt)
    if reason is None:
        store.add(prompt, user, "train", text)
    return reason


def test_equal_but_for_case_and_signs(kept):
    store = kept()
    assert take(store, "Write a poem, please!") is None
    assert take(store, "  write a POEM   please") == "duplicate"
    assert take(store, "请写一首诗。") is None
    assert take(store, "请写一首诗 ！") == "duplicate"


def test_long_beginnings(kept):
    store = kept(prefix=40)
    start = "You are an assistant who answers letters of customers: "
    assert take(store, start + "where is my parcel") is None
    assert take(store, start + "how can I send these shoes back, they are too small") == "shares a long beginning"
    assert take(store, "You are an assistant") is None


def test_near_but_another_number(kept):
    store = kept()
    text = "Tell me in three short sentences what happened in the city of Lisbon in the year {} and why it matters"
    assert take(store, text.format(1755)) is None
    assert take(store, text.format(1756)) is None
    assert take(store, "Please tell" + text.format(1755)[4:]) == "near duplicate"


def test_as_brute_force_says(kept):
    """MinHash finds every pair that the Jaccard index calls near, and no other."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choice("abcdefghij") for _ in range(draw.randrange(2, 8))) for _ in range(60)]
    texts = []
    for _ in range(150):
        if texts and draw.random() < 0.5:
            parts = draw.choice(texts).split()
            for _ in range(draw.randrange(1, 6)):
                parts[draw.randrange(len(parts))] = draw.choice(vocabulary)
            texts.append(" ".join(parts))
        else:
            texts.append(" ".join(draw.choice(vocabulary) for _ in range(25)))
    store, rest = kept(threshold=0.7), list[str]()
    for text in texts:
        near = any(similarity(shingles(normal(text)), shingles(normal(other))) >= 0.7 for other in rest)
        assert (take(store, text) is not None) == near
        if not near:
            rest.append(text)
    assert 20 < len(rest) < 150


@given(st.text(max_size=80))
def test_a_text_is_its_own_duplicate(text):
    assert similarity(shingles(normal(text)), shingles(normal(text))) == 1


def test_signs_that_mean_something_stay():
    assert normal("What is C#?") == "what is c#"
    assert normal("What is C++?!") == "what is c++"
    assert normal("हिन्दी में") == "हिन्दी में"


def test_chinese_signs_count_as_three():
    assert beginning("写一首诗", 12) == "写一首诗"
    assert beginning("写一首诗", 13) is None
    assert beginning("abcdef", 4) == "abcd"
    assert shingles("写一首诗") == {"写一", "一首", "首诗"}


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_pairs_at_the_threshold(threshold):
    rows = band_rows(threshold)
    assert 1 - (1 - threshold**rows) ** (VALUES // rows) > 0.99
