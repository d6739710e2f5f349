"""Templates with virtual tokens on encoders and encoder-decoders, token by token."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.data.batches import EncodedRow
from graftlm.data.heads import HeadSettings, with_labels
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering, render_source
from graftlm.data.prepare import RowCounts
from graftlm.data.prompt_template import prompt_template
from graftlm.data.templates import BARE
from graftlm.errors import UserError
from tests.data.words import bytes_of, wordpiece

FIRST = 9000
WORDS = {"pos": "good", "neg": "bad"}


def pair(prompt: str, answer: str) -> Instance:
    return Instance((Message("user", prompt), Message("assistant", answer)), "rows", 1)


REVIEWS = [pair("The film is good", "pos"), pair("the film is bad .", "neg ")]


def render(
    kind: Any, text: str, tokenizer: PreTrainedTokenizerBase, *, instances: list[Instance] = REVIEWS, **options: Any
) -> tuple[list[EncodedRow], RowCounts]:
    template = prompt_template(text, tokenizer, FIRST, framed=False)
    head = with_labels(HeadSettings(type="verbalizer", words=WORDS), REVIEWS) if kind == "encoder" else None
    counts = RowCounts()
    rendering = choose_rendering(kind, head, template, tokenizer, **options)
    return [row for _, row in rendering.rows(instances, counts)], counts


def shown(ids: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [f"P{token - FIRST}" if token >= FIRST else tokenizer.convert_ids_to_tokens(token) for token in ids]


def learnt(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    assert row.targets is not None
    return {n: tokenizer.convert_ids_to_tokens(target) for n, target in enumerate(row.targets) if target >= 0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[P2] {input} [P] it was {target} .", "P0 P1 [CLS] the film is good P2 it was [MASK] . [SEP]"),
        ("it [P2] was {input} {target} [P]", "[CLS] it P0 P1 was the film is good [MASK] P2 [SEP]"),
        ("{input} [P]{target}", "[CLS] the film is good P0 [MASK] [SEP]"),
    ],
)
def test_a_masked_word(text: str, expected: str) -> None:
    tokenizer = wordpiece()
    rows, _ = render("encoder", text, tokenizer)
    tokens = expected.split()
    assert shown(rows[0].ids, tokenizer) == tokens
    assert learnt(rows[0], tokenizer) == {tokens.index("[MASK]"): "good"}
    assert list(learnt(rows[1], tokenizer).values()) == ["bad"]


def test_a_masked_word_of_bytes_has_the_space_before_it(tiny: PreTrainedTokenizerBase) -> None:
    tokenizer = bytes_of(tiny)
    rows, _ = render("encoder", "[P2] Review: {input} [P] It was {target}.", tokenizer)
    assert list(rows[0].ids[:2]) == [FIRST, FIRST + 1]
    assert tokenizer.decode([token for token in rows[0].ids if token < FIRST]) == (
        "<s>Review: The film is good It was<mask>.</s>"
    )
    (word,) = [target for target in rows[0].targets or () if target >= 0]
    assert tokenizer.decode([word]) == " good"


def test_a_long_input_is_cut_and_counted() -> None:
    tokenizer = wordpiece()
    rows, counts = render("encoder", "[P2] {input} [P] it was {target} .", tokenizer, max_length=11)
    assert " ".join(shown(rows[0].ids, tokenizer)) == "P0 P1 [CLS] the film P2 it was [MASK] . [SEP]"
    assert learnt(rows[0], tokenizer) == {8: "good"}
    assert sum(counts.truncated.values()) == 2


def test_the_source_of_an_encoder_decoder() -> None:
    tokenizer = wordpiece()
    rows, _ = render("encoder-decoder", "[P2] {input} [P] it was {target}", tokenizer, decoder_start=0)
    plain = choose_rendering("encoder-decoder", None, BARE, tokenizer, decoder_start=0)
    (_, expected), *_ = plain.rows(REVIEWS, RowCounts())
    assert " ".join(shown(rows[0].source_ids, tokenizer)) == "P0 P1 [CLS] the film is good P2 it was [SEP]"
    assert (rows[0].ids, rows[0].supervised) == (expected.ids, expected.supervised)
    template = prompt_template("[P2] {input} [P] it was {target}", tokenizer, FIRST, framed=False)
    assert render_source(template, REVIEWS[0].messages[:-1], tokenizer) == tuple(rows[0].source_ids or ())
    with pytest.raises(UserError, match="cannot render this prompt: more than one question"):
        render_source(template, [*REVIEWS[0].messages, REVIEWS[0].messages[0]], tokenizer)


def test_what_has_no_place_is_counted() -> None:
    twice = Instance((*REVIEWS[0].messages, *REVIEWS[1].messages), "rows", 2)
    rows, counts = render("encoder", "[P2] {input} {target}", wordpiece(), instances=[*REVIEWS, twice])
    assert len(rows) == 2
    assert counts.dropped == {"more than one question": 1}


def test_what_cannot_be_is_refused() -> None:
    tokenizer = wordpiece()
    template = prompt_template("[P2] {input} {target}", tokenizer, FIRST, framed=False)
    labelled = with_labels(HeadSettings(type="verbalizer", words=WORDS), REVIEWS)
    with pytest.raises(UserError, match="a verbalizer needs one with"):
        choose_rendering("encoder", labelled, BARE, tokenizer)
    both = labelled.model_copy(update={"pattern": "{text} {mask}"})
    with pytest.raises(UserError, match="both a pattern and the template"):
        choose_rendering("encoder", both, template, tokenizer)
    for kind, type_ in (("encoder", "classifier"), ("encoder", "tagger"), ("decoder", "tagger")):
        head = with_labels(HeadSettings(type=type_), REVIEWS)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"the target of a {type_} is no word"):
            choose_rendering(kind, head, template, tokenizer)  # type: ignore[arg-type]
