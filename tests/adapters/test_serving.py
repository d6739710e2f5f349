"""Without gradients tokens are gathered by adapter: the same numbers as the loop over spans, as in training."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import graftlm
from graftlm import AdaptedModel, Routing
from graftlm.adapters import serving
from graftlm.adapters.routing import RowAdapters
from graftlm.generation import Engine, Request, SamplingSettings
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


@pytest.fixture(params=["side by side", "stacked"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How factors are put together: as where ranks are few, and as where they are many."""
    monkeypatch.setattr(serving, "MOST_SIDE_BY_SIDE", 100 if request.param == "side by side" else 0)
    return str(request.param)


def step(model: AdaptedModel, routings: list[RowAdapters], kept: dict[Any, Any] | None) -> torch.Tensor:
    """Hidden states (rows, hidden) of one token a row."""
    ids = torch.arange(3, 3 + len(routings))[:, None]
    found: torch.Tensor = model.hidden(ids, adapters=Routing.of_rows(routings, 1, kept=kept)).last_hidden_state[:, 0]
    return found.detach()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.usefixtures("way")
def test_what_is_kept_changes_nothing(family: str, dtype: torch.dtype, tolerance: float) -> None:
    """Rows come and go, in any order, and all share what was made of parameters before."""
    model = model_with_all(family, dtype=dtype)
    kept: dict[Any, Any] = {}
    for seed in range(6):
        draw = random.Random(seed)
        _, routings = interleaved(model, family, seed)
        routings = draw.sample(routings, draw.randint(6, len(routings)))
        routings = routings if seed % 2 else [row for row in routings for _ in range(2)]
        draw.shuffle(routings)
        expected = step(model, routings, None)
        with torch.inference_mode():
            assert_states_close(list(step(model, routings, kept)), list(expected), tolerance)
    assert kept


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("counts", [(1, 1, 14), (5, 5, 5), (2, 9, 1), (3, 0, 2)])
def test_adapters_of_unequal_rank_and_number_of_rows(counts: tuple[int, ...]) -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    for rank, name in enumerate("abc", 1):
        add_random(model, name, graftlm.LoRA(rank=rank))
    kept: dict[Any, Any] = {}
    with torch.no_grad():
        step(model, ["a", "b", "a", "b", "c", "a"], kept)
    routings: list[RowAdapters] = [name for name, count in zip("abc", counts, strict=True) for _ in range(count)]
    random.Random(0).shuffle(routings)
    expected = step(model, routings, None)
    with torch.no_grad():
        assert_states_close(list(step(model, routings, kept)), list(expected), 1e-12)


@pytest.mark.usefixtures("way")
def test_an_adapter_that_took_anothers_name_is_seen_at_once() -> None:
    model = AdaptedModel(make_base("llama"))
    for name in ("a", "b"):
        add_random(model, name, graftlm.LoRA(rank=2))
    kept: dict[Any, Any] = {}
    with torch.no_grad():
        before = step(model, ["a", "b", "a", "b"], kept)
        model.remove("a")
        model.add("a", graftlm.LoRA(rank=2))  # the identity, at first
        after, bare = step(model, ["a", "b", "a", "b"], kept), step(model, [None, "b", None, "b"], None)
    assert_states_close(list(after), list(bare), 1e-5)
    assert float((after - before).norm() / before.norm()) > 1e-3


def test_a_step_of_eight_adapters_makes_few_products(way: str) -> None:
    """Two products at a layer, however many adapters and in whatever order; factors are put together once."""
    model = AdaptedModel(make_base("llama"))
    for number in range(8):
        add_random(model, f"{number}", graftlm.LoRA(rank=2))
    routings: list[RowAdapters] = [str(number % 8) for number in range(32)]
    kept: dict[Any, Any] = {}
    with torch.no_grad():
        step(model, routings, kept)
        with CountCalls() as counted:
            step(model, routings[3:] + routings[:3], kept)
    layers = len(model.adapter("0").linear)
    few = 4  # transformers has some of its own, in rotary embeddings
    if way == "stacked":
        assert 2 * layers <= counted.calls["bmm"] <= 2 * layers + few
    else:
        products = len(model.places.linears) - 1  # of the base, without its head
        assert counted.calls["bmm"] <= few
        assert counted.calls["mm"] + counted.calls["addmm"] == products + 2 * layers
    assert counted.calls["addmm_"] == counted.calls["stack"] == counted.calls["isfinite"] == 0


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_an_adapter_that_holds_no_numbers_reaches_its_own_rows_alone(factor: str, bad: float) -> None:
    model = AdaptedModel(make_base("llama"))
    for name in ("a", "b", "c"):
        add_random(model, name, graftlm.LoRA(rank=2))
    routings: list[RowAdapters] = ["a", "b", None, "c", "a", "b"]
    with torch.no_grad():
        expected = step(model, routings, None)
        for update in model.adapter("b").linear.values():
            update.get_parameter(factor).fill_(bad)
        kept: dict[Any, Any] = {}
        for _ in range(2):
            found = step(model, routings, kept)
    for number, name in enumerate(routings):
        if name == "b":
            assert not found[number].isfinite().all()
        else:
            assert_states_close([found[number]], [expected[number]], 1e-5)


class CountCalls(TorchDispatchMode):
    """Counts the operations that torch runs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


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


def test_an_engine_sees_parameters_that_changed_unseen_between_two_runs() -> None:
    """The fused optimizer counts no versions: what was made of parameters goes when the last row does."""
    model = AdaptedModel(make_base("llama"))
    for name in ("a", "b"):
        add_random(model, name, graftlm.LoRA(rank=2))
    requests = [Request((5, 6, 7), name, SamplingSettings(max_new_tokens=6, stop_ids=(), seed=0)) for name in "abab"]
    engine = Engine(model)
    before = engine.run(requests)
    for parameter in model.adapter("a").parameters():
        parameter.data.neg_()[:1].mul_(3)
    after, fresh = engine.run(requests), Engine(model).run(requests)
    for one, other in zip(after, fresh, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
    assert after[0].log_probs != pytest.approx(before[0].log_probs, abs=1e-4)
