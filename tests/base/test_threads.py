"""Which operations take all threads in a step of decoding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from graftlm import AdaptedModel
from graftlm.base import threads
from graftlm.base.products import linear
from graftlm.base.threads import few_threads, threads_for
from graftlm.generation import Engine, Request, SamplingSettings
from tests.families import make_base


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_large_operations_take_all_and_others_one() -> None:
    with few_threads():
        assert torch.get_num_threads() == 1
        with threads_for(threads.WORTH_WAKING):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
        with threads_for(threads.WORTH_WAKING - 1):
            assert torch.get_num_threads() == 1
        with few_threads():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_elsewhere_nothing_changes() -> None:
    for size in (1, threads.WORTH_WAKING):
        with threads_for(size):
            assert torch.get_num_threads() == 2


def test_one_thread_stays_one() -> None:
    torch.set_num_threads(1)
    with few_threads(), threads_for(threads.WORTH_WAKING):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1


def test_an_error_gives_the_threads_back() -> None:
    with pytest.raises(RuntimeError), few_threads(), threads_for(threads.WORTH_WAKING):
        linear(torch.ones(2, 3), torch.ones(2, 4))
    assert torch.get_num_threads() == 2


def test_after_a_step_of_the_engine_they_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[int] = set()
    model = AdaptedModel(make_base("llama"))
    engine = Engine(model)
    score = model._score
    monkeypatch.setattr(model, "_score", lambda hidden: (seen.add(torch.get_num_threads()), score(hidden))[1])
    engine.submit(Request((5, 6, 7), None, SamplingSettings(max_new_tokens=4)))
    while engine.busy:
        engine.step()
        assert torch.get_num_threads() == 2
    assert seen == {1, 2}  # the prompt is read on all, the rest on one
