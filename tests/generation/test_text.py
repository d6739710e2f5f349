from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from graftlm.generation.text import StopSearch, TextStream

TEXTS = [
    "Once upon a time, there was a little dog.  Two spaces,\nand lines.\n\n",
    "日本語のテキスト、中文文本。 👩‍👩‍👧‍👦 naïve café – «ça va» 🎉🎉 " * 3,
    "\ufffd in the middle and at the end \ufffd",
    "",
]


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    given = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        given.append(stream.push(token))
        if stream.stopped:
            break
    given.append(stream.finish())
    assert "".join(given) == stream.text
    return given


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_up_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    given = pieces(tokenizer, text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(given) == tokenizer.decode(ids, skip_special_tokens=True)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in given)


def test_text_comes_as_soon_as_it_is_certain(tokenizer: PreTrainedTokenizerBase) -> None:
    given = pieces(tokenizer, "Once upon a time there was a dog")
    assert all(given[:-1])
    assert given[-1] == ""


@pytest.mark.parametrize("text", TEXTS[:2])
def test_a_stop_text_anywhere(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    whole = tokenizer.decode(ids)
    for start in range(0, len(whole) - 4, 3):
        stop = whole[start : start + 4]
        given = pieces(tokenizer, text, ("nowhere", stop))
        assert "".join(given) == whole[: whole.index(stop)]


def test_the_first_of_several_stop_texts(tokenizer: PreTrainedTokenizerBase) -> None:
    assert "".join(pieces(tokenizer, "one two three four", ("four", "three", "wo t"))) == "one t"


def test_what_only_begins_like_a_stop_text_is_given_at_the_end(tokenizer: PreTrainedTokenizerBase) -> None:
    given = pieces(tokenizer, "so it goes: User", ("User:",))
    assert "".join(given) == "so it goes: User"
    assert given[-1].endswith("User")


def test_bytes_that_never_become_a_character(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("🎉", add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        pytest.skip("this tokenizer has a token for it")
    stream = TextStream(tokenizer)
    assert stream.push(ids[0]) == ""
    assert "\ufffd" in stream.finish()


# --- any tokens, any stop texts -------------------------------------------------------------------------------------

SAME_FIXTURES = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def byte_tokens() -> PreTrainedTokenizerBase:
    """Characters that it does not know are a token a byte, as in Llama 2 and Gemma."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "▁ab", "cd"]
    vocabulary = {word: number for number, word in enumerate(words)}
    model = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    model.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")


def cut_at_the_first_stop(text: str, stops: tuple[str, ...]) -> str:
    """The stop text that is complete first ends the text; the longest of those that end together is cut off."""
    for end in range(1, len(text) + 1):
        found = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(found)]
    return text


def streamed(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: tuple[str, ...]) -> str:
    stream, given = TextStream(tokenizer, stops), ""
    for token in ids:
        given += stream.push(token)
        if stream.stopped:
            break
    return given + stream.finish()


@SAME_FIXTURES
@given(some.data())
def test_any_tokens_make_the_text_of_all_of_them(tokenizer: PreTrainedTokenizerBase, data: some.DataObject) -> None:
    """Whole texts with characters of many bytes, and tokens at random, which leave characters broken."""
    ids: list[int] = []
    for _ in range(data.draw(some.integers(1, 4))):
        if data.draw(some.booleans()):
            ids += tokenizer(data.draw(some.text(max_size=20)), add_special_tokens=False)["input_ids"]
        else:
            ids += data.draw(some.lists(some.integers(0, len(tokenizer) - 1), max_size=30))
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    stops = data.draw(some.lists(some.text(min_size=1, max_size=3), max_size=3))
    for _ in range(data.draw(some.integers(0, 3)) if whole else 0):
        start = data.draw(some.integers(0, len(whole) - 1))
        stops.append(whole[start : start + data.draw(some.integers(1, 12))])
    assert streamed(tokenizer, ids, tuple(stops)) == cut_at_the_first_stop(whole, tuple(stops))


@SAME_FIXTURES
@given(some.text(some.sampled_from("ab cd日本語é👩🎉\ufffd"), max_size=40))
@example("日本語" * 20)
def test_characters_of_a_token_a_byte(byte_tokens: PreTrainedTokenizerBase, text: str) -> None:
    ids = byte_tokens(text.replace(" ", "▁"), add_special_tokens=False)["input_ids"]
    whole = byte_tokens.decode(ids, clean_up_tokenization_spaces=False)
    assert streamed(byte_tokens, ids, ()) == whole == text.removeprefix(" ")


@settings(max_examples=300, deadline=None)
@given(some.lists(some.text("ab", min_size=1, max_size=5), max_size=6), some.text("abc", max_size=60), some.data())
def test_stop_texts_that_overlap(stops: list[str], text: str, data: some.DataObject) -> None:
    """Whichever way the text is cut into tokens, it ends at the same place."""
    sizes = data.draw(some.lists(some.integers(1, 6), min_size=len(text), max_size=len(text)))
    given, search, place = "", StopSearch(tuple(stops)), 0
    for size in sizes:
        given += search.push(text[place : place + size])
        place += size
    given += search.finish()
    assert given == cut_at_the_first_stop(text, tuple(stops))
    assert search.found == (given != text)


def test_many_long_stop_texts_cost_little(tokenizer: PreTrainedTokenizerBase) -> None:
    """64 that begin alike, and a text that begins like them all the time: each character is looked at about once."""
    stops = tuple("a" * 900 + "b" * number for number in range(1, 65))
    search = StopSearch(stops)
    begun = time.process_time()
    for _ in range(10_000):
        search.push("aaa")
    assert time.process_time() - begun < 1.0
    assert search.push("bb") == ""
    assert search.found
    assert time.process_time() - begun < 1.0


def test_broken_characters_without_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """A model that writes the first byte of a character again and again: text comes, and time stays in proportion."""
    ids = tokenizer("🎉", add_special_tokens=False)["input_ids"][:1] * 3000
    stream = TextStream(tokenizer)
    begun = time.process_time()
    given = "".join(stream.push(token) for token in ids)
    assert time.process_time() - begun < 1.0
    assert len(given) > 2900
    assert given + stream.finish() == tokenizer.decode(ids)
