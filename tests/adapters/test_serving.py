"""Without gradients tokens are gathered by adapter: the same numbers as the loop over spans in training."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

import graftlm
from graftlm import AdaptedModel, Routing
from graftlm.adapters.routing import RowAdapters
from tests.adapters.grid import ARCHITECTURES, Row, add_random, assert_states_close, make_row, model_with_all, states
from tests.families import ENCODER_DECODERS, make_base


def interleaved(model: AdaptedModel, family: str, seed: int) -> tuple[list[Row], list[RowAdapters]]:
    """Two rows or more of every adapter, of the bare base and of stacks, in random order."""
    draw = random.Random(seed)
    names = list(model.adapters)
    stacks: list[RowAdapters] = list(pairwise(names))
    routings: list[RowAdapters] = [*names, *names, None, None, *draw.sample(stacks, min(4, len(stacks))), names[0]]
    draw.shuffle(routings)
    return [make_row(draw, two_sequences=family in ENCODER_DECODERS, longest=5) for _ in routings], routings


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_equal_to_the_loop_over_spans(family: str, dtype: torch.dtype, tolerance: float) -> None:
    model = model_with_all(family, dtype=dtype)
    rows, routings = interleaved(model, family, seed=1)
    expected = [state.detach() for state in states(model, rows, routings)]
    with torch.no_grad():
        assert_states_close(states(model, rows, routings), expected, tolerance)


@pytest.mark.parametrize("names", [["a", "b", "a", "b"], [("a", "b"), "b", None, ("b", "a")], ["a", "b", "b"]])
def test_which_tokens_are_gathered(names: list[RowAdapters]) -> None:
    routing = Routing.of_rows(names, 2)
    found = routing.gathered(("a", "b"), torch.device("cpu"))
    if names == ["a", "b", "b"]:
        assert found is None  # one span each
        return
    assert found is not None
    for name, start, stop in found.parts:
        rows = [number for number, row in enumerate(names) if name in (row if isinstance(row, tuple) else (row,))]
        assert found.index[start:stop].tolist() == [token for row in rows for token in (2 * row, 2 * row + 1)]


def test_long_spans_are_not_gathered() -> None:
    assert Routing.of_rows(["a", "b", "a", "b"], 40).gathered(("a", "b"), torch.device("cpu")) is None


def test_changed_parameters_are_seen() -> None:
    model = AdaptedModel(make_base("llama"))
    for name in ("a", "b"):
        add_random(model, name, graftlm.LoRA(rank=2))
    rows, routings = [Row((5, 6, 7))] * 4, ["a", "b", "a", "b"]
    with torch.inference_mode():
        before = states(model, rows, routings)
    states(model, rows, routings)[0].square().sum().backward()
    torch.optim.SGD(model.adapter("a").parameters(), lr=0.5).step()
    expected = [state.detach() for state in states(model, rows, routings)]
    with torch.inference_mode():
        after = states(model, rows, routings)
    assert_states_close(after, expected, 1e-5)
    assert float((after[0] - before[0]).norm() / before[0].norm()) > 1e-3
    assert_states_close([after[1]], [before[1]], 1e-6)
