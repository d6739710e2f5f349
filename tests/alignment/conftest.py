from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from graftlm import AdaptedModel
from graftlm.alignment.rollouts import Prompt, Rollout, Rollouts, Sampling
from graftlm.alignment.scoring import Deviation, Scores
from graftlm.data.instances import Message
from graftlm.data.templates import ChatTemplate
from tests.families import VOCABULARY, make_base


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerBase:
    """A tokenizer of words for the random models: token 3 is "w3"."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{number}": number for number in range(3, VOCABULARY)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="w3"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="w3", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


@pytest.fixture(scope="session")
def template() -> ChatTemplate:
    return ChatTemplate("words", start="w4 ", user="w5 {content} ", assistant="w6 {content} {end}", end="<eos>")


@pytest.fixture
def worded(words: PreTrainedTokenizerBase) -> Callable[..., AdaptedModel]:
    """A random model of a family that has a tokenizer."""

    def make(family: str = "llama", dtype: torch.dtype = torch.float32) -> AdaptedModel:
        return AdaptedModel(make_base(family, dtype=dtype), words, name=f"random-{family}")

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(files("graftlm.base") / "tiny"))


def asked(*texts: str) -> list[Prompt]:
    """A prompt for each text."""
    return [Prompt((Message("user", text),), row) for row, text in enumerate(texts, start=1)]


def answer(policy: str, row: int, index: int, tokens: Sequence[int], text: str = "", *, ended: bool = True) -> Rollout:
    """An answer with log-probabilities that do not matter."""
    (prompt,) = asked(f"question {row}")
    prompt = Prompt(prompt.messages, row)
    numbers = (-1.0,) * len(tokens)
    finish = "stop" if ended else "length"
    return Rollout(policy, (policy,), prompt, index, (5, 6), tuple(tokens), numbers, numbers, finish, text or "x")


def rollouts_of(*answers: Rollout) -> Rollouts:
    return Rollouts(answers, Sampling(n=2), step=1)


def scores_of(
    rollouts: Rollouts,
    log_probs: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]] | None = None,
    values: Sequence[Sequence[float]] | None = None,
) -> Scores:
    """Scores of given numbers, without a deviation."""
    none = tuple(None for _ in rollouts.answers)
    own = tuple(torch.tensor(row) for row in log_probs)
    return Scores(
        own,
        tuple(torch.ones(len(row)) for row in log_probs),
        none if reference is None else tuple(torch.tensor(row) for row in reference),
        none if values is None else tuple(torch.tensor(row) for row in values),
        {policy: Deviation(policy, 0.0, 0.0, 1, "") for policy in rollouts.policies},
        1,
    )
