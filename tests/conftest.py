"""Fixtures for every test: offline, one thread, and tiny random models of each family."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

from graftlm import AdaptedModel
from tests.families import make_base

torch.set_num_threads(1)
settings.register_profile("graftlm", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("graftlm")


@pytest.fixture
def make_model() -> Callable[..., AdaptedModel]:
    """A fresh adapted model of a family: ``make_model("llama", dtype=torch.float64)``."""

    def make(family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0) -> AdaptedModel:
        return AdaptedModel(make_base(family, dtype=dtype, seed=seed), name=f"random-{family}")

    return make


@pytest.fixture
def llama(make_model: Callable[..., AdaptedModel]) -> AdaptedModel:
    """A fresh tiny Llama with random weights, in float32."""
    return make_model("llama")
