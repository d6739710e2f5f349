"""Rows for heads, encoders and encoder-decoders, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.data.batches import EncodedRow
from graftlm.data.heads import HeadSettings, with_labels
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering, render_source
from graftlm.data.prepare import RowCounts, load_instances
from graftlm.data.templates import BARE, resolve_chat_template
from graftlm.errors import UserError
from tests.data.words import bytes_of, wordpiece


def pair(prompt: str, answer: str, row: int = 1) -> Instance:
    return Instance((Message("user", prompt), Message("assistant", answer)), "rows", row)


REVIEWS = [pair("The film is good", "pos", 1), pair("the film is bad .", "neg ", 2)]


def render(
    kind: Any,
    head: HeadSettings | None,
    tokenizer: PreTrainedTokenizerBase,
    instances: Sequence[Instance] = REVIEWS,
    **options: Any,
) -> tuple[list[EncodedRow], RowCounts]:
    """Rows of instances with the labels that they have."""
    counts = RowCounts()
    template = resolve_chat_template("plain", tokenizer) if kind == "decoder" else None
    filled = None if head is None else with_labels(head, instances)
    rendering = choose_rendering(kind, filled, template, tokenizer, **options)  # type: ignore[arg-type]
    return [row for _, row in rendering.rows(instances, counts)], counts


def texts(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return tokenizer.convert_ids_to_tokens(list(row.ids))


def learnt(row: EncodedRow) -> dict[int, int]:
    assert row.targets is not None
    return {place: target for place, target in enumerate(row.targets) if target >= 0}


def test_class_of_a_decoders_prompt(tiny: PreTrainedTokenizerBase) -> None:
    """The ids are those of the prompt, up to where the answer would begin."""
    rows, _ = render("decoder", HeadSettings(type="classifier"), tiny)
    template = resolve_chat_template("plain", tiny)
    for row, instance, label in zip(rows, REVIEWS, [1, 0], strict=True):
        assert row.ids == template.render_prompt(instance.messages[:-1], tiny)
        assert learnt(row) == {len(row.ids) - 1: label}
        assert not any(row.supervised)
    few, counts = render("decoder", HeadSettings(type="classifier"), tiny, max_length=len(rows[0].ids))
    assert len(few) == 1
    assert counts.dropped == {"prompt fills the context": 1}


def test_class_of_an_encoders_text() -> None:
    tokenizer = wordpiece()
    rows, _ = render("encoder", HeadSettings(type="classifier"), tokenizer)
    assert texts(rows[0], tokenizer) == ["[CLS]", "the", "film", "is", "good", "[SEP]"]
    assert [learnt(row) for row in rows] == [{0: 1}, {0: 0}]
    cut, counts = render("encoder", HeadSettings(type="classifier"), tokenizer, max_length=5)
    assert texts(cut[1], tokenizer) == ["[CLS]", "the", "film", "is", "[SEP]"]
    assert counts.truncated == {"longer than the context": 2}


def test_special_tokens_in_a_text_are_text() -> None:
    tokenizer = wordpiece()
    rows, _ = render("encoder", HeadSettings(type="classifier", labels=("x", "y")), tokenizer, [pair("[MASK] .", "x")])
    assert texts(rows[0], tokenizer) == ["[CLS]", "[", "mask", "]", ".", "[SEP]"]


def test_an_answer_that_is_no_label_is_dropped() -> None:
    head = HeadSettings(type="classifier", labels=("neg", "other"))
    rows, counts = render("encoder", head, wordpiece())
    assert [row.row for row in rows] == [2]
    assert counts.dropped == {"answer is no label": 1}


@pytest.mark.parametrize("pattern", ["{text} It was {mask}.", "It was {mask}."])
def test_masked_word_with_words_of_a_list(pattern: str) -> None:
    tokenizer = wordpiece()
    head = HeadSettings(type="verbalizer", pattern=pattern, words={"pos": "great", "neg": "terrible"})
    rows, _ = render("encoder", head, tokenizer)
    assert texts(rows[0], tokenizer) == ["[CLS]", "the", "film", "is", "good", "it", "was", "[MASK]", ".", "[SEP]"]
    assert [learnt(row) for row in rows] == [
        {7: tokenizer.convert_tokens_to_ids("great")},
        {8: tokenizer.convert_tokens_to_ids("terrible")},
    ]
    cut, counts = render("encoder", head, tokenizer, max_length=8)
    assert texts(cut[0], tokenizer) == ["[CLS]", "the", "film", "it", "was", "[MASK]", ".", "[SEP]"]
    assert counts.truncated == {"longer than the context": 2}


def test_masked_word_with_bytes(tiny: PreTrainedTokenizerBase) -> None:
    """The word has the space that stands before the mask, as the base has seen it."""
    tokenizer = bytes_of(tiny)
    head = HeadSettings(type="verbalizer", pattern="Review: {text} It was {mask}.", words={"pos": "good", "neg": "bad"})
    rows, _ = render("encoder", head, tokenizer)
    assert tokenizer.decode(rows[0].ids) == "<s>Review: The film is good It was<mask>.</s>"
    (target,) = learnt(rows[0]).values()
    assert tokenizer.convert_ids_to_tokens([target]) == ["Ġgood"]


@pytest.mark.parametrize(("word", "parts"), [("unwise", "un, ##wise"), ("zebra", r"\[UNK\]")])
def test_a_word_of_several_tokens_is_named(word: str, parts: str) -> None:
    head = HeadSettings(type="verbalizer", pattern="{mask}", words={"pos": word, "neg": "bad"})
    with pytest.raises(UserError, match=f"the word '{word}' for the label 'pos' is no single token.*{parts}"):
        render("encoder", head, wordpiece())


def test_two_labels_of_one_word() -> None:
    head = HeadSettings(type="verbalizer", pattern="{mask}", words={"pos": "good", "neg": "Good"})
    with pytest.raises(UserError, match="'neg' and 'pos' have the same word"):
        render("encoder", head, wordpiece())


TAGGED = [pair("John lives in Paris", "PER O O LOC")]


def test_tags_at_the_first_token_of_each_word() -> None:
    tokenizer = wordpiece()
    rows, _ = render("encoder", HeadSettings(type="tagger"), tokenizer, TAGGED)
    assert texts(rows[0], tokenizer) == ["[CLS]", "jo", "##hn", "lives", "in", "paris", "[SEP]"]
    assert learnt(rows[0]) == {1: 2, 3: 1, 4: 1, 5: 0}
    cut, counts = render("encoder", HeadSettings(type="tagger"), tokenizer, TAGGED, max_length=5)
    assert learnt(cut[0]) == {1: 2, 3: 1}
    assert counts.truncated == {"longer than the context": 1}


def test_tags_at_the_last_token_of_each_word_in_a_decoder(tiny: PreTrainedTokenizerBase) -> None:
    rows, _ = render("decoder", HeadSettings(type="tagger"), tiny, TAGGED)
    assert tiny.decode(rows[0].ids) == "<bos>John lives in Paris"
    read = [tiny.decode(rows[0].ids[1 : place + 1]) for place in learnt(rows[0])]
    assert read == ["John", "John lives", "John lives in", "John lives in Paris"]


def test_tags_and_words_must_agree() -> None:
    instances = [*TAGGED, pair("John lives", "O", 2), pair("in", "PLACE", 3)]
    head = HeadSettings(type="tagger", labels=("O", "PER", "LOC"))
    rows, counts = render("encoder", head, wordpiece(), instances)
    assert len(rows) == 1
    assert counts.dropped == {"not as many labels as words": 1, "answer is no label": 1}


def test_words_and_tags_are_read_from_columns(write: Callable[..., Path]) -> None:
    rows = [{"tokens": ["John", "sings"], "ner_tags": [1, 0]}, {"tokens": ["New York"], "ner_tags": [1]}]
    found = load_instances(write("tags.jsonl", rows))
    assert found.format == "words and tags"
    assert [tuple(m.content for m in each.messages) for each in found.items] == [("John sings", "1 0")]
    assert found.counts.dropped == {"an entry of field 'tokens' is empty or has a space in it": 1}


def test_two_sequences(tiny: PreTrainedTokenizerBase) -> None:
    rows, _ = render("encoder-decoder", None, tiny, decoder_start=0)
    row = rows[0]
    assert row.source_ids is not None
    assert tiny.decode(row.source_ids) == "The film is good<eos>"
    assert row.ids[0] == 0
    assert tiny.decode(row.ids[1:]) == "pos<eos>"
    assert row.supervised == [False, *[True] * (len(row.ids) - 1)]
    assert row.targets is None
    cut, counts = render("encoder-decoder", None, tiny, decoder_start=0, max_length=4)
    assert tiny.decode(cut[0].source_ids or []) == "The film is<eos>"
    assert counts.truncated == {"longer than the context": 2}
    long = [pair("the film", "good and bad and good")]
    cut, counts = render("encoder-decoder", None, tiny, long, decoder_start=0, max_length=4)
    assert tiny.decode(cut[0].ids[1:]) == "good and", "an answer that is cut does not end there"
    assert counts.truncated == {"longer than the context": 1}


def test_two_sequences_of_a_tokenizer_that_frames_its_texts() -> None:
    """As BART's: the answer begins with its own token of begin, after the decoder's."""
    tokenizer = wordpiece()
    rows, _ = render("encoder-decoder", None, tokenizer, [pair("the film", "good")], decoder_start=3)
    assert texts(rows[0], tokenizer) == ["[SEP]", "[CLS]", "good", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(list(rows[0].source_ids or ())) == ["[CLS]", "the", "film", "[SEP]"]
    assert render_source(BARE, [Message("user", "the film")], tokenizer) == tuple(rows[0].source_ids or ())


@pytest.mark.parametrize(
    ("kind", "head", "message"),
    [
        ("encoder", None, "an encoder, which writes no text"),
        ("encoder-decoder", {"type": "classifier"}, "an encoder-decoder writes its labels as text"),
        ("decoder", {"type": "verbalizer", "pattern": "{mask}"}, "this base is a decoder"),
    ],
)
def test_heads_that_a_base_cannot_have(
    kind: str, head: dict[str, Any] | None, message: str, tiny: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(UserError, match=message):
        render(kind, None if head is None else HeadSettings.model_validate(head), tiny)


def test_labels_of_the_data() -> None:
    head = HeadSettings(type="classifier")
    assert with_labels(head, REVIEWS).labels == ("neg", "pos")
    assert with_labels(HeadSettings(type="tagger"), TAGGED).labels == ("LOC", "O", "PER")
    with pytest.raises(UserError, match="these are texts, not labels"):
        with_labels(head, [pair("x", f"answer {number}") for number in range(40)])
    with pytest.raises(UserError, match="two labels at least; there is pos"):
        with_labels(head, REVIEWS[:1])
    odd = HeadSettings(type="verbalizer", pattern="{mask}", words={"posi": "good"})
    with pytest.raises(UserError, match="words names 'posi'"):
        with_labels(odd, REVIEWS)
