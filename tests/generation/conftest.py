from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from graftlm import AdaptedModel, LoRA
from tests.families import add_random, make_base

ADAPTERS = {"a": LoRA(rank=2), "b": LoRA(rank=5)}


@pytest.fixture(scope="session")
def family_model() -> Callable[[str], AdaptedModel]:
    """A random model of a family with the random adapters "a" and "b"; in float64, so that nothing is tied."""
    built: dict[str, AdaptedModel] = {}

    def get(family: str) -> AdaptedModel:
        if family not in built:
            # Eager attention, which Gemma 2 uses, makes NaN of masked rows in float64 in transformers 5.23.
            dtype = torch.float32 if family == "gemma2" else torch.float64
            built[family] = AdaptedModel(make_base(family, dtype=dtype))
            add_random(built[family], ADAPTERS)
        return built[family]

    return get


@pytest.fixture
def llama(family_model: Callable[[str], AdaptedModel]) -> AdaptedModel:
    return family_model("llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(str(files("graftlm.base") / "tiny"))


@pytest.fixture(scope="session")
def tiny() -> AdaptedModel:
    """The embedded base with two random adapters."""
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    add_random(model, ADAPTERS)
    return model
