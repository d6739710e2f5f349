"""Labels for prompts against heads applied by hand, each prompt alone and without padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA, Prefix, Prompt
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Message
from graftlm.data.templates import BARE, resolve_chat_template
from graftlm.errors import UserError
from graftlm.evaluation.labels import Labels, Predictor, predict_labels
from tests.data.words import wordpiece
from tests.families import make_base, randomise

LABELS = ("neg", "other", "pos")
WORDS = {"neg": "terrible", "other": "it", "pos": "great"}
TEXTS = ["the film was good", "a film", "it is bad . it was unwise", "the film is good good good bad"]
PROMPTS = [[Message("user", text)] for text in TEXTS]


@pytest.fixture(scope="module")
def bert() -> AdaptedModel:
    """A random encoder in float64 with a random adapter for each kind of head."""
    tokenizer = wordpiece()
    model = AdaptedModel(make_base("bert", dtype=torch.float64), tokenizer)
    for number, (name, method) in enumerate(
        {"class": LoRA(rank=3), "tags": Prefix(length=4), "word": Prompt()}.items()
    ):
        model.add(name, method, classes=None if name == "word" else len(LABELS))
        randomise(model.adapters[name], seed=number)
    return model


def heads() -> dict[str, HeadSettings]:
    return {
        "class": HeadSettings(type="classifier", labels=LABELS),
        "tags": HeadSettings(type="tagger", labels=LABELS),
        "word": HeadSettings(type="verbalizer", labels=LABELS, pattern="{text} it is {mask} .", words=WORDS),
    }


def predictors(model: AdaptedModel) -> dict[str, Predictor]:
    assert model.tokenizer is not None
    return {name: Predictor.of(model, model.tokenizer, (name,), head, BARE) for name, head in heads().items()}


def by_hand(model: AdaptedModel, name: str, text: str) -> tuple[list[str], list[float]]:
    """Tokens as they stand in the row, the head's formula, and a softmax."""
    tokenizer = model.tokenizer
    assert tokenizer is not None
    ids = tokenizer(text)["input_ids"]
    if name == "word":
        ids = [*ids[:-1], *tokenizer.convert_tokens_to_ids(["it", "is", "[MASK]", ".", "[SEP]"])]
        logits = model(torch.tensor([ids]), adapters=name).logits[0, ids.index(tokenizer.mask_token_id)]
        shares = logits[tokenizer.convert_tokens_to_ids(list(WORDS.values()))].softmax(-1)[None]
    else:
        head = model.adapter(name).head
        assert head is not None
        states = model.hidden(torch.tensor([ids]), adapters=name).last_hidden_state[0]
        words = [
            place for place, token in enumerate(tokenizer.convert_ids_to_tokens(ids)) if not token.startswith("##")
        ]
        states = states[[0]] if name == "class" else states[words[1:-1]]
        shares = (states @ head.get_parameter("weight").T + head.get_parameter("bias")).softmax(-1)
    best = shares.max(-1)
    return [LABELS[number] for number in best.indices], best.values.tolist()


def check(found: Labels | str, expected: tuple[Sequence[str], Sequence[float]]) -> None:
    assert isinstance(found, Labels)
    assert list(found.labels) == list(expected[0])
    assert found.probabilities == pytest.approx(expected[1], rel=1e-9)
    assert not found.cut


@torch.no_grad()
def test_all_heads_of_an_encoder_in_one_pass(bert: AdaptedModel) -> None:
    own = predictors(bert)
    asked = [(own[name], prompt) for prompt in PROMPTS for name in own]
    found = predict_labels(bert, asked, max_tokens=64)
    said = [(name, text) for text in TEXTS for name in own]
    for labels, (name, text) in zip(found, said, strict=True):
        check(labels, by_hand(bert, name, text))
    assert len({labels.labels for labels in found if isinstance(labels, Labels)}) > 2


@torch.no_grad()
def test_a_decoders_class_is_read_at_the_end_of_the_prompt() -> None:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    assert model.tokenizer is not None
    head = model.add("class", LoRA(rank=2), classes=3) and randomise(model.adapters["class"], std=0.02).head
    assert head is not None
    template = resolve_chat_template("plain", model.tokenizer)
    predictor = Predictor.of(
        model, model.tokenizer, ("class",), HeadSettings(type="classifier", labels=LABELS), template
    )
    prompts = [[Message("system", "Judge."), *prompt] for prompt in PROMPTS]
    for labels, prompt in zip(
        predict_labels(model, [(predictor, prompt) for prompt in prompts], 256), prompts, strict=True
    ):
        ids = torch.tensor([template.render_prompt(prompt, model.tokenizer)])
        last = model.hidden(ids, adapters="class").last_hidden_state[0, -1:]
        best = head(last).softmax(-1).max(-1)
        assert isinstance(labels, Labels)
        assert labels.labels == (LABELS[int(best.indices)],)
        assert labels.probabilities == pytest.approx(best.values.tolist(), rel=1e-4)


def test_prompts_that_are_too_long(bert: AdaptedModel) -> None:
    """An encoder reads what fits and says so; words that were not read have no tag."""
    own = predictors(bert)
    long = [Message("user", "the film was good " * 40)]
    found = predict_labels(bert, [(own["class"], long), (own["tags"], long), (own["word"], long)], 256)
    assert all(isinstance(labels, Labels) and labels.cut for labels in found)
    tags = found[1]
    assert isinstance(tags, Labels)
    assert len(tags.labels) == bert.room("tags") - 2


def test_prompts_that_a_template_has_no_place_for() -> None:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    assert model.tokenizer is not None
    model.add("class", Prompt(length=3), classes=3)
    template = resolve_chat_template("plain", model.tokenizer)
    settings = HeadSettings(type="classifier", labels=LABELS)
    predictor = Predictor.of(model, model.tokenizer, ("class",), settings, template)
    long = [Message("user", "word " * 3000)]
    found = predict_labels(model, [(predictor, long), (predictor, PROMPTS[0])], 256)
    assert found[0] == "prompt fills the context"
    assert isinstance(found[1], Labels)


@pytest.mark.parametrize("head", [{"type": "classifier", "labels": ("a", "b")}, {"type": "classifier"}])
def test_labels_that_are_not_those_of_the_weights(bert: AdaptedModel, head: dict[str, Any]) -> None:
    assert bert.tokenizer is not None
    with pytest.raises(UserError, match="'class' has 3 classes, and"):
        Predictor.of(bert, bert.tokenizer, ("class",), HeadSettings.model_validate(head), BARE)
