"""Memory: the table of keys and values keeps to its limit, nothing stays of rows that left, and too little of it ends
no request but those that need it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.generation import Engine, Request
from graftlm.generation import engine as engine_module
from graftlm.generation import prefill as prefill_module
from graftlm.generation.cache import Columns, Piece, _Layer, _move
from graftlm.generation.prefixes import chain
from tests.families import add_random, make_base
from tests.generation.test_batching import prompt_of, sampled, tokens_of

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def failing(function: Callable[..., Any], on_call: int) -> Callable[..., Any]:
    """The function, with one call for which there is no memory."""
    calls = [0]

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == on_call:
            raise NO_MEMORY
        return function(*args, **kwargs)

    return call


def test_a_table_is_as_high_or_as_wide_as_its_rows(tiny: AdaptedModel) -> None:
    many = [Request(prompt_of(4, seed), None, sampled(4, seed=seed)) for seed in range(32)]
    long = [Request(prompt_of(200, seed), None, sampled(3, seed=seed)) for seed in range(3)]
    expected = tokens_of(Engine(tiny).run([*many, *long]))
    engine = Engine(tiny, cache_tokens=1000)
    table: Any = engine._slots._table
    found, sizes = [], []
    for requests in (many, long, many):
        found += tokens_of(engine.run(requests))
        sizes.append((table.rows, table.width))
    assert found == [*expected, *expected[:32]]
    assert [rows for rows, _ in sizes] == [32, 3, 32]
    assert sizes[0] == sizes[2]


def test_a_table_becomes_narrow_around_what_it_holds() -> None:
    pieces = [Piece(((torch.randn(2, length, 4), torch.randn(2, length, 4)),)) for length in (150, 5)]
    table = Columns(4, 200, most=300)
    table.join(pieces, [0, 1])
    table.leave([0])
    table.compact([1])
    table.reserve(32, 10)
    assert (table.rows, table.width) == (32, 64)
    for found, given in zip(table.piece(0).layers[0], pieces[1].layers[0], strict=True):
        assert torch.equal(found, given)


def test_rows_that_run_keep_their_place_when_a_table_becomes_narrow(llama: AdaptedModel) -> None:
    requests = [
        Request(prompt_of(30, 1), None, sampled(2)),
        Request(prompt_of(20, 2), None, sampled(14)),
        *(Request(prompt_of(3, seed), None, sampled(12, seed=seed)) for seed in range(3, 12)),
    ]
    expected = tokens_of(Engine(llama).run(requests))
    for limit in (34, 64, 100, 150):
        assert tokens_of(Engine(llama, cache_tokens=limit, prefill_tokens=8).run(requests)) == expected


def test_nothing_stays_of_a_row_whose_numbers_were_none() -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    add_random(model, {"a": LoRA(rank=2), "b": LoRA(rank=5)})
    later = [Request(prompt_of(3, seed), "b" if seed == 7 else None, sampled(12)) for seed in (7, 8)]
    expected = tokens_of(Engine(model).run(later))
    engine = Engine(model, max_batch_rows=3)
    engine.submit(Request(prompt_of(5, 1), None, sampled(40)))
    for seed in (2, 3):
        engine.submit(Request(prompt_of(25, seed), "a", sampled(20)))
    for _ in range(3):
        engine.step()
    with torch.no_grad():
        for parameter in model.adapters["a"].parameters():
            parameter.fill_(float("nan"))
    reasons = [event.completion.finish_reason for event in engine.step() if event.completion is not None]
    assert reasons == ["error", "error"]
    for _ in range(6):  # what they wrote is now further back than the prompts to come
        engine.step()
    assert tokens_of(engine.run(later)) == expected


def test_no_memory_for_one_request(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt_of(n, n), None, sampled(seed=n)) for n in (5, 30, 8, 3)]
    expected = Engine(llama).run(requests)
    real = engine_module.read

    def read(model: AdaptedModel, jobs: Any, tokens: int) -> Any:
        if any(len(job.prompt) == 30 for job in jobs):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")
        return real(model, jobs, tokens)

    monkeypatch.setattr(engine_module, "read", read)
    found = Engine(llama).run(requests)
    assert tokens_of([found[n] for n in (0, 2, 3)]) == tokens_of([expected[n] for n in (0, 2, 3)])
    assert "not enough memory for a request of 30 tokens" in (found[1].error or "")


def test_no_memory_for_a_step(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt_of(n, n), None, sampled(seed=n)) for n in (5, 30, 8)]
    expected = Engine(llama).run(requests)
    engine = Engine(llama)
    monkeypatch.setattr(llama, "hidden", failing(llama.hidden, on_call=4))
    found = engine.run(requests)
    assert tokens_of([found[n] for n in (0, 2)]) == tokens_of([expected[n] for n in (0, 2)])
    assert found[1].finish_reason == "error"
    assert found[1].token_ids == expected[1].token_ids[: len(found[1].token_ids)]


@pytest.mark.parametrize("call", [1, 4])
def test_no_memory_for_a_wider_table(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """The table must grow for the next token, and cannot: the longest row ends, the others go on in the old one."""
    requests = [Request(prompt_of(n, n), None, sampled(seed=n)) for n in (5, 30, 8)]
    expected = Engine(llama).run(requests)
    engine = Engine(llama)
    monkeypatch.setattr(Columns, "make_room", failing(Columns.make_room, on_call=call))
    found = engine.run(requests)
    assert tokens_of([found[n] for n in (0, 2)]) == tokens_of([expected[n] for n in (0, 2)])
    assert "not enough memory" in (found[1].error or "")
    assert found[1].token_ids == expected[1].token_ids[: len(found[1].token_ids)]


@pytest.mark.parametrize(
    ("old", "new", "size"), [(7, 0, 20), (7, 6, 9), (0, 5, 22), (3, 4, 20), (20, 2, 5), (1, 20, 6)]
)
def test_columns_move_over_themselves(old: int, new: int, size: int) -> None:
    table = torch.randn(2, 3, 30, 4)
    expected = table[:, :, old : old + size].clone()
    _move(table, old, new, size)
    assert torch.equal(table[:, :, new : new + size], expected)


def test_no_memory_for_the_table(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (Request(prompt_of(6, n), None, sampled(9, seed=n), id=n) for n in (1, 2))
    third = Request(prompt_of(30, 3), None, sampled(30), id=3)
    expected = tokens_of(Engine(llama).run([first, second]))
    engine = Engine(llama)
    engine.submit(first)
    engine.step()
    monkeypatch.setattr(_Layer, "resize", failing(_Layer.resize, on_call=2))  # a layer has grown, the others not
    engine.submit(third)
    events = engine.step()
    monkeypatch.undo()
    done = {event.request_id: event.completion for event in events if event.completion is not None}
    done |= {event.request_id: event.completion for event in engine.stream(second) if event.completion is not None}
    done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
    assert "not enough memory" in (done[3].error or "")
    assert [done[1].token_ids, done[2].token_ids] == expected


@pytest.mark.parametrize("call", [1, 2, 3])
def test_no_memory_for_log_probs(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    requests = [Request(prompt_of(n, n), None, sampled(seed=n, prompt_log_probs=True)) for n in (9, 8, 9, 8)]
    expected = Engine(llama).run(requests)
    monkeypatch.setattr(prefill_module, "_prompt_scores", failing(prefill_module._prompt_scores, call))
    found = Engine(llama).run(requests)
    assert tokens_of(found) == tokens_of(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.prompt_log_probs or ())[1:] == pytest.approx((other.prompt_log_probs or ())[1:])


def test_no_memory_for_a_prefix(llama: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(prompt_of(40, n), None, sampled(seed=n)) for n in (1, 2)]
    expected = Engine(llama).run(requests)
    monkeypatch.setattr(Piece, "copied", failing(Piece.copied, on_call=1))
    engine = Engine(llama)
    assert tokens_of(engine.run(requests)) == tokens_of(expected)
    assert len(engine.prefixes) == 1


def test_a_beginning_is_found_in_whichever_prompt_is_left(llama: AdaptedModel) -> None:
    system = prompt_of(32, 1)
    prompts = [(*system, *prompt_of(20, seed)) for seed in (2, 3, 4)]
    engine = Engine(llama)
    engine.run([Request(prompts[0], None, sampled(1))])
    size = engine.prefixes.bytes
    engine.run([Request(prompts[1], None, sampled(1))])
    engine.run([Request(prompts[0], None, sampled(1))])  # used again: the second is to go first
    engine.prefixes.limit = 2 * size
    engine.run([Request(prompt_of(50, 5), None, sampled(1))])
    before = engine.statistics.reused
    engine.run([Request(prompts[2], None, sampled(1))])
    assert engine.statistics.reused - before == 32
    assert engine.prefixes.find((), prompts[0], chain((), prompts[0])) is not None
