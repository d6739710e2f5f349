from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.generation.text import TextStream

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
