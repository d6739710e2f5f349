"""Log-likelihoods, greedy flags and written answers are those of the harness's own Hugging Face model."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.base.loading import load_base
from graftlm.data.templates import BARE
from graftlm.evaluation.harness.answers import Answers
from graftlm.evaluation.speakers import Opened, Speaker, open_adapters
from tests.families import randomise

pytest.importorskip("lm_eval")

CONTEXTS = [
    "The capital of France is",
    "Question: what is 2 + 3?\nAnswer:",
    "ends with a space ",
    "ends with lines\n\n",
    "",
    "<s>begins with a special token",
    "Bäume und Wälder: 森林里有很多树。",
    "a",
]
CONTINUATIONS = [" Paris", " five", "five", " a longer answer, with a comma", "树", "\nnew line", " 5"]
LONG = " ".join(f"word{number} and" for number in range(200))


@pytest.fixture(scope="module")
def opened() -> Opened:
    return open_adapters([], "tiny", dtype="float32")


@pytest.fixture(scope="module")
def peer() -> Callable[..., Any]:
    """The harness's own model over a base of its own."""
    from lm_eval.models.huggingface import HFLM

    loaded = load_base("tiny", dtype="float32")

    def make(**settings: Any) -> Any:
        return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4, **settings)

    return make


def instances(*asked: tuple[Any, ...]) -> Any:
    return [SimpleNamespace(args=arguments, task_name="t") for arguments in asked]


def short(opened: Opened, monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    monkeypatch.setattr(opened.model, "context_length", length)


def check(found: list[Any], wanted: list[Any]) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in wanted], abs=1e-4)


def test_log_likelihoods_of_contexts_and_continuations(opened: Opened, peer: Callable[..., Any]) -> None:
    asked = [(context, rest) for context in CONTEXTS for rest in CONTINUATIONS]
    found = Answers(opened, [opened.base]).of("base", "loglikelihood", asked)
    check(found, peer().loglikelihood(instances(*asked), disable_tqdm=True))


def test_greedy_continuations_are_known(opened: Opened, peer: Callable[..., Any]) -> None:
    (text,) = peer().generate_until(instances((CONTEXTS[0], {"until": [], "max_gen_toks": 6})), disable_tqdm=True)
    asked = [(CONTEXTS[0], text), (CONTEXTS[0], text + " no")]
    found = Answers(opened, [opened.base]).of("base", "loglikelihood", asked)
    check(found, peer().loglikelihood(instances(*asked), disable_tqdm=True))
    assert [greedy for _, greedy in found] == [True, False]


@pytest.mark.parametrize("extra", [0, 1, 2, 3, 50])
def test_long_contexts_lose_their_beginning(
    opened: Opened, peer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    tokens = len(opened.tokenizer(LONG + " done")["input_ids"])
    short(opened, monkeypatch, tokens - extra)
    asked = [(LONG, " done"), (LONG, " done, done"), (LONG[5:], " done")]
    found = Answers(opened, [opened.base]).of("base", "loglikelihood", asked)
    check(found, peer(max_length=tokens - extra).loglikelihood(instances(*asked), disable_tqdm=True))


@pytest.mark.parametrize("length", [16, 33, 2048])
def test_whole_texts_in_windows(
    opened: Opened, peer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    short(opened, monkeypatch, length)
    asked = [("One short text.",), (LONG,), ("Bäume. 森林里有很多树。",)]
    found = Answers(opened, [opened.base]).of("base", "loglikelihood_rolling", asked)
    wanted = peer(max_length=length).loglikelihood_rolling(instances(*asked), disable_tqdm=True)
    assert found == pytest.approx(wanted, abs=1e-3, rel=1e-5)


def test_written_answers(opened: Opened, peer: Callable[..., Any]) -> None:
    keywords = [
        {"until": ["."], "max_gen_toks": 12},
        {"until": ["\n", " the"], "max_new_tokens": 12, "do_sample": False, "temperature": 0.7},
        {"max_gen_toks": 5},
    ]
    asked = [(context, given) for given in keywords for context in CONTEXTS if context]
    found = Answers(opened, [opened.base]).of("base", "generate_until", asked)
    # One by one: the harness pads on the left, which changes its float32 rounding, and with it close calls.
    wanted = [peer().generate_until(instances(one), disable_tqdm=True)[0] for one in asked]
    assert found == wanted


def test_prompts_leave_room_for_the_answer(
    opened: Opened, peer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    short(opened, monkeypatch, 64)
    asked = [(LONG, {"until": [], "max_gen_toks": 10})]
    found = Answers(opened, [opened.base]).of("base", "generate_until", asked)
    assert found == peer(max_length=64).generate_until(instances(*asked), disable_tqdm=True)


def test_adapters_against_peft(peer: Callable[..., Any], tmp_path: Any) -> None:
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel

    model = AdaptedModel.from_pretrained("tiny", dtype="float32")
    speakers = []
    for number in range(2):
        name = f"lora-{number}"
        randomise(model.add(name, LoRA(rank=4)), seed=number)
        model.save(name, tmp_path / name)
        speakers.append(Speaker(name, (name,), BARE, (), ()))
    assert model.tokenizer is not None
    base = Speaker(None, (), BARE, (), ())
    several = Opened(model, model.tokenizer, base, tuple(speakers))
    answers = Answers(several, [base, *speakers])
    generator = random.Random(0)
    asked = [(context, generator.choice(CONTINUATIONS)) for context in CONTEXTS]
    check(answers.of("base", "loglikelihood", asked), peer().loglikelihood(instances(*asked), disable_tqdm=True))
    for speaker in speakers:
        loaded = load_base("tiny", dtype="float32")
        adapted = PeftModel.from_pretrained(loaded.model, str(tmp_path / speaker.label))
        own = HFLM(pretrained=adapted, tokenizer=loaded.tokenizer, batch_size=4)
        with torch.no_grad():
            wanted = own.loglikelihood(instances(*asked), disable_tqdm=True)
        check(answers.of(speaker.label, "loglikelihood", asked), wanted)


def test_an_encoder_decoder(opened: Opened) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=len(opened.tokenizer), pad_token_id=0, eos_token_id=2, **sizes)
    base = T5ForConditionalGeneration(config).eval()
    model = AdaptedModel(T5ForConditionalGeneration(config), opened.tokenizer)
    model.base.load_state_dict(base.state_dict())
    answers = Answers(Opened(model, opened.tokenizer, opened.base, ()), [opened.base])
    peer = HFLM(pretrained=base, tokenizer=opened.tokenizer, batch_size=4, max_length=model.context_length)
    asked = [(context, rest) for context in CONTEXTS for rest in CONTINUATIONS]
    check(answers.of("base", "loglikelihood", asked), peer.loglikelihood(instances(*asked), disable_tqdm=True))
    texts = [("One short text.",), ("Another.",)]
    wanted = peer.loglikelihood_rolling(instances(*texts), disable_tqdm=True)
    assert answers.of("base", "loglikelihood_rolling", texts) == pytest.approx(wanted, abs=1e-3)
