"""Likelihoods of choices against sums worked out from plain logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graftlm.adapters.lora import LoRA
from graftlm.adapters.model import AdaptedModel
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.evaluation.choices import Question, find_choices, read_choices, score_choices

PROMPT, ANSWERS = [5, 9, 200, 31], ([40, 41], [50], [60, 61, 62])


def question(prompt: list[int]) -> Question:
    rows = [
        EncodedRow([*prompt, *answer], [False] * len(prompt) + [True] * len(answer), "q", number)
        for number, answer in enumerate(ANSWERS)
    ]
    return Question(tuple(rows), (4, 2, 5))


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    for name in ("one", "two"):
        model.add(name, LoRA(rank=4), seed=3)
        generator = torch.Generator().manual_seed(len(name) + ord(name[0]))
        with torch.no_grad():
            for parameter in model.adapter(name).parameters():
                parameter.normal_(std=0.05, generator=generator)
    return model


@torch.no_grad()
def by_hand(model: AdaptedModel, prompt: list[int], answer: list[int], adapter: str | None) -> float:
    logits = model(torch.tensor([[*prompt, *answer]]), adapters=adapter).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + place, token]) for place, token in enumerate(answer))


@pytest.mark.parametrize("normalise", ["sum", "token", "byte"])
def test_adapters_and_choices_in_one_pass_equal_each_alone(model: AdaptedModel, normalise) -> None:
    prompts = [PROMPT, [7, 8], [300, 2, 2, 90, 14, 6]]
    stacks = [(), ("one",), ("two",)]
    found = score_choices(model, [question(prompt) for prompt in prompts], stacks, 64, normalise)
    sizes = {"sum": (1, 1, 1), "token": (2, 1, 3), "byte": (4, 2, 5)}[normalise]
    for stack in stacks:
        expected = [
            [by_hand(model, prompt, a, stack[0] if stack else None) / n for a, n in zip(ANSWERS, sizes, strict=True)]
            for prompt in prompts
        ]
        np.testing.assert_allclose(found[stack], expected, rtol=1e-4)


def test_an_answer_without_room_is_never_chosen(model: AdaptedModel) -> None:
    full = question(PROMPT)
    cut = Question((full.candidates[0], None, full.candidates[2]), full.sizes)
    found = score_choices(model, [cut], [()], 64)[()]
    whole = score_choices(model, [full], [()], 64)[()]
    assert found[0, 1] == -np.inf
    np.testing.assert_allclose(found[0, [0, 2]], whole[0, [0, 2]], rtol=1e-5)


def test_a_question_without_choices_is_none() -> None:
    with pytest.raises(ValueError, match="0 candidates"):
        Question((), ())


def test_choices_are_answers_that_are_few_and_come_again() -> None:
    assert find_choices(["b", "a", "b", "a"]) == ("a", "b")
    assert find_choices(["a", "b", "c"]) == ()  # each once: texts
    assert find_choices(["a"] * 9) == ()
    assert find_choices([str(number) for number in range(21)] * 4) == ()


def test_given_choices_must_cover_the_data() -> None:
    assert read_choices("yes, no", ["no", "yes", "no"]) == ("yes", "no")
    assert read_choices("none", ["a", "b"] * 4) == ()
    for text in ("", "yes", "yes,", "yes, yes"):
        with pytest.raises(UserError, match="needs two different answers or more"):
            read_choices(text, ["yes"])
    with pytest.raises(UserError, match="the data has the answer 'perhaps', which is not among them"):
        read_choices("yes, no", ["yes", "perhaps"])
