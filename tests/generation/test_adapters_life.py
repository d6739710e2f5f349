"""Adapters that are added, replaced, removed and paged out while requests run: nobody's text changes."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.method import Adapter
from graftlm.errors import UserError
from graftlm.generation import Completion, Engine, Request, SamplingSettings, filed
from graftlm.generation.filed import bytes_of, outline
from tests.adapters.grid import model_with_all
from tests.families import make_base, randomise
from tests.generation.test_batching import prompt_of, sampled
from tests.methods import METHODS

OLD, NEW = 1, 2
KINDS = ("lora", "dylora", "seq_bn", "prompt", "p-tuning-lstm", "prefix", "prefix-plain", "ia3", "full")


def version(model: AdaptedModel, name: str, seed: int, std: float = 0.1) -> Adapter:
    """An adapter of a method with parameters of its own, attached nowhere."""
    randomise(model.add("built", METHODS[name]), seed=seed, std=std)
    return model.remove("built")


@pytest.fixture
def model() -> AdaptedModel:
    built = AdaptedModel(make_base("llama", dtype=torch.float64))
    for name in (*KINDS, "other"):
        built.attach(name, version(built, (METHODS.get(name) and name) or "lora", OLD))
    return built


def requests_of(*adapters: Any, new: int = 10) -> list[Request]:
    return [
        Request(prompt_of(20 + n, n), name, sampled(new, seed=n), id=f"{n}:{name}") for n, name in enumerate(adapters)
    ]


def finish(engine: Engine) -> dict[Any, Completion]:
    done = {}
    while engine.busy:
        done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
    return done


def tokens(completions: Any, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    for request in requests:
        assert completions[request.id].error is None, completions[request.id].error
    return [completions[request.id].token_ids for request in requests]


def expected(model: AdaptedModel, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    return [Engine(model).run([request])[0].token_ids for request in requests]


ROUTINGS = [
    *((kind, kind) for kind in KINDS),
    ("dylora", "dylora@2"),
    ("lora", ("lora", "prefix")),
    ("prefix", ("lora", "prefix")),
    ("prompt", ("p-tuning-lstm", "prompt", "seq_bn")),
    ("seq_bn", ("other", "seq_bn")),
]


@pytest.mark.parametrize(("name", "adapters"), ROUTINGS)
def test_replaced_while_it_runs_is_read_and_waits(model: AdaptedModel, name: str, adapters: Any) -> None:
    old = requests_of(adapters, "other", adapters, None, adapters, adapters)
    new = [replace(request, id=f"new {request.id}") for request in old]
    before = expected(model, old)
    engine = Engine(model, max_batch_rows=3, prefill_tokens=8, keep_answers=True)
    for request in old:
        engine.submit(request)
    done = {}
    for _ in range(4):  # one runs, others are read or wait
        done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
    engine.adapters.replace(name, version(model, (METHODS.get(name) and name) or "lora", NEW))
    assert set(engine.adapters) == {*KINDS, "other"}
    for request in new:
        engine.submit(request)
    done |= finish(engine)
    assert tokens(done, old) == before
    assert tokens(done, new) == expected(model, new)
    assert tokens(done, new) != before
    assert set(model.adapters) == {*KINDS, "other"}  # the old version has gone
    again = Engine(model).run(new)
    assert [completion.token_ids for completion in again] == tokens(done, new)


@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "lora"), ("llama", "prompt"), ("t5", "lora"), ("bart", "prefix")]
)
def test_replaced_while_beams_run_also_in_encoder_decoders(family: str, kind: str) -> None:
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    model.attach(kind, version(model, kind, OLD))
    beams = SamplingSettings(max_new_tokens=9, num_beams=3, n=2, stop_ids=())
    old = [Request(prompt_of(9), kind, sampling, id=n) for n, sampling in enumerate((beams, sampled(9), beams))]
    before = [[c.token_ids for c in Engine(model).run([request])] for request in old]
    engine = Engine(model, max_batch_rows=4)
    done: dict[Any, list[Any]] = {}
    events = []
    for request in old:
        engine.submit(request)
    events += engine.step() + engine.step() + engine.step()
    engine.adapters.replace(kind, version(model, kind, NEW))
    new = [replace(request, id=f"new {request.id}") for request in old]
    for request in new:
        engine.submit(request)
    while engine.busy:
        events += engine.step()
    for event in events:
        if event.completion is not None:
            done.setdefault(event.request_id, []).append((event.index, event.completion.token_ids))
    found = [[ids for _, ids in sorted(done[request.id])] for request in (*old, *new)]
    assert found[:3] == before
    assert found[3:] == [[c.token_ids for c in Engine(model).run([request])] for request in new]
    assert found[3:] != before
    assert set(model.adapters) == {kind}


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt"])
def test_several_versions_at_once_and_removal(model: AdaptedModel, kind: str) -> None:
    engine = Engine(model)
    found, wanted = [], []
    for number in range(4):
        engine.adapters.replace(kind, version(model, kind, number))
        request = Request(prompt_of(40), kind, sampled(30), id=number)
        wanted += expected(model, [request])
        engine.submit(request)
        engine.step()
        engine.step()
        found.append(request)
    assert sum(name.startswith(f"{kind}~") for name in model.adapters) == 3
    engine.adapters.remove(kind)
    assert kind not in engine.adapters
    with pytest.raises(UserError, match=f"unknown adapter '{kind}'"):
        engine.submit(Request(prompt_of(4), kind, sampled()))
    with pytest.raises(UserError, match=f"unknown adapter '{kind}~1'"):
        engine.submit(Request(prompt_of(4), f"{kind}~1", sampled()))
    assert tokens(finish(engine), found) == wanted
    assert len(set(wanted)) == 4
    assert not any("~" in name for name in model.adapters)
    assert len(engine.prefixes) == 0


def test_a_cancelled_request_lets_its_version_go(model: AdaptedModel) -> None:
    engine = Engine(model)
    engine.submit(requests_of("lora")[0])
    engine.step()
    engine.adapters.replace("lora", version(model, "lora", NEW))
    assert "lora~1" in model.adapters
    engine.cancel("0:lora")
    assert "lora~1" not in model.adapters


def test_what_cannot_be_taken_in_changes_nothing(model: AdaptedModel, tmp_path: Path) -> None:
    engine = Engine(model)
    before = dict(model.adapters)
    with pytest.raises(UserError, match="there is already an adapter 'lora'"):
        engine.adapters.add("lora", version(model, "lora", NEW))
    with pytest.raises(UserError, match=r"unknown adapter 'lore'.*\n.*'lora'"):
        engine.adapters.replace("lore", version(model, "lora", NEW))
    with pytest.raises(UserError, match="unknown adapter 'lore'"):
        engine.adapters.remove("lore")
    with pytest.raises(UserError, match="there is no adapter folder"):
        engine.adapters.replace("lora", tmp_path / "none")
    with pytest.raises(UserError, match="cannot be an adapter's name"):
        engine.adapters.add("a/b", version(model, "lora", NEW))
    other = AdaptedModel(make_base("gpt2", dtype=torch.float64))
    with pytest.raises(UserError, match="which LlamaForCausalLM does not have"):
        engine.adapters.replace("lora", version(other, "lora", NEW))
    assert dict(model.adapters) == before


def test_a_folder_for_another_base(model: AdaptedModel, tmp_path: Path) -> None:
    other = AdaptedModel(make_base("llama", dtype=torch.float64, seed=9))
    other.add("a", LoRA(rank=2))
    other.save("a", tmp_path / "a")
    with pytest.raises(UserError, match="was trained on another base"):
        Engine(model).adapters.add("new", tmp_path / "a")


@pytest.mark.parametrize("name", METHODS)
def test_outlines_hold_no_numbers_and_know_what_requests_need(name: str) -> None:
    model = model_with_all("gpt2" if name == "bitfit" else "llama", methods=[name])
    adapter = model.adapter(name)
    found = outline(adapter)
    assert all(tensor.is_meta for tensor in (*found.parameters(), *found.buffers()))
    assert not any(tensor.is_meta for tensor in adapter.parameters())
    assert found.prefix_length == adapter.prefix_length
    assert (found.virtual and found.virtual.length) == (adapter.virtual and adapter.virtual.length)
    assert bytes_of(found) == bytes_of(adapter)


class TestPaging:
    @pytest.fixture
    def folders(self, tmp_path: Path) -> Callable[..., Path]:
        model = AdaptedModel(make_base("llama", dtype=torch.float64))

        def make(kind: str, seed: int, name: str | None = None) -> Path:
            model.attach("saved", version(model, kind, seed))
            folder = model.save("saved", tmp_path / (name or f"{kind}-{seed}"))
            model.remove("saved")
            return folder

        return make

    @staticmethod
    def engine(limit: int | None, **more: Any) -> Engine:
        return Engine(AdaptedModel(make_base("llama", dtype=torch.float64)), adapter_bytes=limit, **more)

    def test_come_back_on_demand_with_the_same_text(self, folders: Callable[..., Path]) -> None:
        kinds = ["lora", "dylora", "seq_bn", "prompt", "p-tuning-lstm", "prefix"]
        free = self.engine(None)
        for kind in kinds:
            free.adapters.add(kind, folders(kind, OLD))
        limit = max(bytes_of(adapter) for adapter in free.model.adapters.values()) + 1
        limited = self.engine(limit, max_batch_rows=2, prefill_tokens=16)
        for kind in kinds:
            limited.adapters.add(kind, folders(kind, OLD))
        assert set(limited.adapters) == set(kinds)
        assert limited.adapters.paged_out
        requests = requests_of(*kinds, "dylora@2", None, *kinds[::-1])
        found = limited.run(requests)
        assert [c.error for c in found] == [None] * len(requests)
        assert [c.token_ids for c in found] == [c.token_ids for c in free.run(requests)]
        assert limited.adapters.bytes <= limit
        assert limited.statistics.page_outs >= len(kinds)
        assert limited.statistics.loads > len(kinds)
        assert free.statistics.page_outs == 0
        assert free.statistics.loads == len(kinds)

    def test_the_least_recently_used_goes_first(self, folders: Callable[..., Path]) -> None:
        sizes = self.engine(None)
        sizes.adapters.add("0", folders("lora", 0))
        engine = self.engine(3 * sizes.adapters.bytes)
        for number in range(3):
            engine.adapters.add(str(number), folders("lora", number))
        assert engine.adapters.paged_out == frozenset()
        engine.run(requests_of("0"))
        engine.adapters.add("3", folders("lora", 3))
        assert engine.adapters.paged_out == {"1"}
        engine.run(requests_of("1"))
        assert engine.adapters.paged_out == {"2"}
        engine.run(requests_of(("2", "0")))
        assert engine.adapters.paged_out == {"3"}

    def test_those_that_run_stay_and_the_limit_holds_at_every_step(self, folders: Callable[..., Path]) -> None:
        sizes = self.engine(None)
        for number in range(4):
            sizes.adapters.add(str(number), folders("lora", number))
        limit = sizes.adapters.bytes // 2
        engine = self.engine(limit)
        for number in range(4):
            engine.adapters.add(str(number), folders("lora", number))
        requests = requests_of(*"01230123")
        wanted = expected(sizes.model, requests)
        for request in requests:
            engine.submit(request)
        done = {}
        while engine.busy:
            done |= {event.request_id: event.completion for event in engine.step() if event.completion is not None}
            assert engine.adapters.bytes <= limit
        assert tokens(done, requests) == wanted

    def test_what_does_not_fit_is_refused_with_the_numbers(self, folders: Callable[..., Path]) -> None:
        small = self.engine(None)
        small.adapters.add("a", folders("lora", 1))
        size = small.adapters.bytes
        engine = self.engine(int(1.5 * size))
        engine.adapters.add("a", folders("lora", 1))
        engine.adapters.add("b", folders("lora", 2))
        with pytest.raises(UserError, match=rf"'a \+ b' takes {2 * size:,} bytes, but adapter_bytes is"):
            engine.submit(Request(prompt_of(5), ("a", "b"), sampled()))
        with pytest.raises(UserError, match=r"'full' takes .* bytes, but adapter_bytes is"):
            engine.adapters.add("full", folders("full", 1))
        engine.adapters.add("stays", version(engine.model, "lora", 3))
        assert engine.adapters.paged_out == {"a", "b"}
        with pytest.raises(UserError, match=rf"of which adapters that are not from a folder take {size:,}"):
            engine.submit(Request(prompt_of(5), "a", sampled()))
        with pytest.raises(UserError, match="not from a folder"):
            engine.adapters.add("also", version(engine.model, "lora", 4))
        assert set(engine.adapters) == {"a", "b", "stays"}
        engine.adapters.remove("stays")
        assert engine.run(requests_of("a"))[0].error is None
        with pytest.raises(UserError, match="adapter_bytes must be at least 1"):
            self.engine(0)

    @pytest.mark.parametrize("change", ["gone", "changed"])
    def test_a_folder_that_is_no_longer_what_it_was(self, folders: Callable[..., Path], change: str) -> None:
        small = self.engine(None)
        small.adapters.add("a", folders("lora", 1))
        engine = self.engine(small.adapters.bytes)
        folder = folders("lora", 2, "b")
        engine.adapters.add("b", folder)
        engine.adapters.add("a", folders("lora", 1))
        if change == "gone":
            shutil.rmtree(folder)
        else:
            folders("lora", 3, "b")
        requests = requests_of("a", "b", "a", None)
        found = engine.run(requests)
        assert [c.error is None for c in found] == [True, False, True, True]
        assert ("is gone" if change == "gone" else "has changed since it was added") in (found[1].error or "")
        small_requests = [requests[n] for n in (0, 2, 3)]
        assert [found[n].token_ids for n in (0, 2, 3)] == expected(small.model, small_requests)
        if change == "changed":
            engine.adapters.replace("b", folder)
            small.adapters.add("b", folder)
            assert engine.run([requests[1]])[0].token_ids == expected(small.model, [requests[1]])[0]

    def test_replaced_while_paged_out_and_waited_for(self, folders: Callable[..., Path]) -> None:
        small = self.engine(None)
        for name, seed in (("a", 1), ("b", 2)):
            small.adapters.add(name, folders("lora", seed))
        engine = self.engine(small.adapters.bytes // 2)
        for name, seed in (("b", 2), ("a", 1)):
            engine.adapters.add(name, folders("lora", seed))
        old = requests_of("a", "b")
        wanted = expected(small.model, old)
        for request in old:
            engine.submit(request)
        engine.step()
        assert engine.adapters.paged_out == {"b"}
        newer = folders("lora", 3)
        engine.adapters.replace("b", newer)
        new = replace(old[1], id="new")
        engine.submit(new)
        small.adapters.replace("b", newer)
        done = finish(engine)
        assert tokens(done, old) == wanted
        assert tokens(done, [new]) == expected(small.model, [new])
        assert set(engine.adapters) == {"a", "b"}

    def test_what_was_trained_on_stays(self, folders: Callable[..., Path], tmp_path: Path) -> None:
        small = self.engine(None)
        small.adapters.add("a", folders("lora", 1))
        engine = self.engine(small.adapters.bytes)
        engine.adapters.add("a", folders("lora", 1))
        with torch.no_grad():
            for parameter in engine.model.adapter("a").parameters():
                parameter.mul_(2)
        with pytest.raises(UserError, match="not from a folder"):
            engine.adapters.add("b", folders("lora", 2))
        engine.adapters.replace("a", engine.model.save("a", tmp_path / "trained"))
        engine.adapters.add("b", folders("lora", 2))
        assert engine.adapters.paged_out == {"a"}

    def test_taken_away_from_the_model_directly(self, folders: Callable[..., Path]) -> None:
        engine = self.engine(None)
        engine.adapters.add("a", folders("lora", 1))
        engine.model.remove("a")
        assert list(engine.adapters) == []
        with pytest.raises(UserError, match="unknown adapter 'a'"):
            engine.submit(requests_of("a")[0])


def test_nothing_keeps_what_has_left(model: AdaptedModel) -> None:
    engine = Engine(model)
    kept = weakref.ref(model.adapters["lora"])
    engine.run(requests_of("lora", "dylora", "other", "lora", "other"))  # their factors were stacked
    engine.submit(requests_of("lora")[0])
    engine.step()
    engine.adapters.replace("lora", version(model, "lora", NEW))
    assert kept() is not None
    finish(engine)
    gc.collect()
    assert kept() is None


def test_a_request_costs_no_look_at_other_adapters(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save("lora", tmp_path / "lora")
    engine = Engine(model, adapter_bytes=10**9)
    for number in range(5):
        engine.adapters.add(f"filed-{number}", tmp_path / "lora")
    looks: list[Adapter] = []
    real = filed._versions
    monkeypatch.setattr(filed, "_versions", lambda adapter: looks.append(adapter) or real(adapter))
    engine.run(requests_of("filed-1", "filed-3", None))
    assert {id(adapter) for adapter in looks} == {id(model.adapters[name]) for name in ("filed-1", "filed-3")}
