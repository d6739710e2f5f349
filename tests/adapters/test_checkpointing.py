"""Gradient checkpointing and threads: the routing is a value of the call, wherever and whenever it is recomputed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.training.forward import build_micro_batch, micro_batch_log_probs
from tests.adapters.test_invariants import (
    CONFIGS,
    HEAD,
    ROUTINGS,
    assert_gradients_close,
    loss_and_gradients,
    make_rows,
    nonlinear_loss,
    routed,
)
from tests.families import FAMILIES, add_random, gradients, make_base, overridden, relative

ALL = [0, 1, 2, 3, 4]


@pytest.fixture
def model(make_model: Callable[..., AdaptedModel]) -> AdaptedModel:
    adapted = make_model("llama")
    add_random(adapted, CONFIGS)
    return adapted


@pytest.mark.parametrize("head", [False, True], ids=["blocks", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_those_without(family: str, head: bool) -> None:
    model = AdaptedModel(make_base(family))
    add_random(model, CONFIGS | (HEAD if head else {}))
    rows = routed(make_rows(), ROUTINGS)
    log_probs, kept = loss_and_gradients(model, rows, ALL)
    model.gradient_checkpointing = True
    assert model.gradient_checkpointing
    again, recomputed = loss_and_gradients(model, rows, ALL)
    assert all(torch.equal(a, b) for a, b in zip(log_probs, again, strict=True))
    assert_gradients_close(recomputed, kept, 1e-7)
    model.gradient_checkpointing = False
    assert not set(overridden(model.base)) & set(model.places.blocks)


def test_blocks_do_run_again_and_only_for_gradients(model: AdaptedModel) -> None:
    calls: Counter[str] = Counter()
    for path in model.places.linears:
        model.base.get_submodule(path).register_forward_hook(lambda *_args, path=path: calls.update([path]))
    model.gradient_checkpointing = True
    with torch.no_grad():
        model(torch.full((2, 3), 5), adapters="a")
    assert set(calls.values()) == {1}
    calls.clear()
    model(torch.full((2, 3), 5), adapters="a").logits.sum().backward()
    assert calls[model.places.head] == 1
    assert {calls[path] for path in model.places.linears if path.endswith("q_proj")} == {2}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_call_fills_no_cache_twice(family: str) -> None:
    """transformers fills a cache of keys and values by default; a recomputed block would add to it again."""
    model = AdaptedModel(make_base(family))
    add_random(model, {"a": LoRA()})

    def run() -> dict[str, torch.Tensor]:
        model.adapter("a").zero_grad()
        mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        model(torch.full((2, 5), 7), mask, adapters="a").logits.square().sum().backward()
        return gradients([model.adapter("a")])

    kept = run()
    model.gradient_checkpointing = True
    assert_gradients_close(run(), kept, 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_backward_in_another_thread(model: AdaptedModel, checkpointing: bool) -> None:
    rows = routed(make_rows(), ROUTINGS)
    expected = loss_and_gradients(model, rows, ALL)[1]
    model.gradient_checkpointing = checkpointing
    for adapter in model.adapters.values():
        adapter.zero_grad()
    batch = build_micro_batch(model, rows, ALL)
    loss = nonlinear_loss(micro_batch_log_probs(model, batch), batch.padded.counts)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    found = {
        f"{name}/{key}": value
        for name, adapter in model.adapters.items()
        for key, value in gradients([adapter]).items()
    }
    assert_gradients_close(found, expected, 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_two_routings_in_flight(model: AdaptedModel, checkpointing: bool, reverse: bool) -> None:
    """Two forwards with different routings, then their two backwards, in either order."""
    rows = make_rows()
    routings = [routed(rows, ROUTINGS), routed(rows, list(reversed(ROUTINGS)))]
    expected = [loss_and_gradients(model, each, ALL)[1] for each in routings]
    model.gradient_checkpointing = checkpointing
    losses = []
    for each in routings:
        batch = build_micro_batch(model, each, ALL)
        losses.append(nonlinear_loss(micro_batch_log_probs(model, batch), batch.padded.counts))
    for number in (1, 0) if reverse else (0, 1):
        for adapter in model.adapters.values():
            adapter.zero_grad()
        losses[number].backward()
        found = {
            f"{name}/{key}": value
            for name, adapter in model.adapters.items()
            for key, value in gradients([adapter]).items()
        }
        assert_gradients_close(found, expected[number], 1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_threads_with_different_routings_at_the_same_time(model: AdaptedModel, checkpointing: bool) -> None:
    model.gradient_checkpointing = checkpointing
    ids = torch.tensor([make_rows([9])[0].ids] * 2)
    routings = [["a", "b"], [None, "c"], ["b", ("a", "b")], "c"]
    expected = [model(ids, adapters=routing).logits.detach() for routing in routings]
    started = threading.Barrier(len(routings))

    def run(number: int) -> list[torch.Tensor]:
        started.wait()
        return [model(ids, adapters=routings[number]).logits.detach() for _ in range(8)]

    with ThreadPoolExecutor(len(routings)) as pool:
        results = list(pool.map(run, range(len(routings))))
    for number, outputs in enumerate(results):
        for output in outputs:
            assert relative(output, expected[number]) < 1e-6


def test_an_error_in_the_middle_leaves_no_routing_behind(model: AdaptedModel) -> None:
    ids = torch.tensor([[3, 4]])
    bare = model(ids).logits
    with pytest.raises(IndexError):  # ids are looked at before a call, unless the routing is given as a value
        model(torch.tensor([[3, 4000]]), adapters=model.routing("a", 1, 2))
    torch.testing.assert_close(model(ids).logits, bare)
    torch.testing.assert_close(model.base(ids).logits, bare)


def test_adapters_added_later_are_checkpointed_too(make_model: Callable[..., AdaptedModel]) -> None:
    model = make_model("gpt2")
    model.gradient_checkpointing = True
    add_random(model, {"a": LoRA()})
    rows = routed(make_rows([6]), ["a"])
    recomputed = loss_and_gradients(model, rows, [0])[1]
    model.gradient_checkpointing = False
    assert_gradients_close(recomputed, loss_and_gradients(model, rows, [0])[1], 1e-7)
