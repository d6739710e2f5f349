"""The design's invariants over every method on every architecture, all of them mixed in one batch."""

from __future__ import annotations

import gc
import random
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import DynamicCache

from graftlm import AdaptedModel
from graftlm.adapters.routing import RowAdapters
from graftlm.base.fingerprint import exact_digest
from graftlm.base.head import backbone
from tests.adapters.grid import (
    ARCHITECTURES,
    DECODERS,
    Row,
    add_random,
    add_up,
    assert_gradients_close,
    assert_states_close,
    make_row,
    model_with_all,
    states,
    states_and_gradients,
)
from tests.families import ENCODER_DECODERS, make_base, overridden
from tests.methods import METHODS


def mixed(family: str, model: AdaptedModel, seed: int = 0) -> tuple[list[Row], list[RowAdapters]]:
    """A row for every adapter, one for the bare base, and some for stacks of two."""
    draw = random.Random(seed)
    names = list(model.adapters)
    routings: list[RowAdapters] = [*names, None]
    for _ in range(3):
        first, second = draw.sample(names, 2) if len(names) > 1 else (names[0], None)
        routings.append((first, second) if second else first)
    rows = [make_row(draw, two_sequences=family in ENCODER_DECODERS) for _ in routings]
    return rows, routings


def alone(
    model: AdaptedModel, rows: list[Row], routings: list[RowAdapters], **kwargs: Any
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    found, parts = [], []
    for number, (row, routing) in enumerate(zip(rows, routings, strict=True)):
        state, part = states_and_gradients(model, [row], [routing], [number], **kwargs)
        found += state
        parts.append(part)
    return found, add_up(parts)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_rows_of_all_kinds_together_are_each_alone(family: str) -> None:
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    expected, expected_gradients = alone(model, rows, routings)
    found, found_gradients = states_and_gradients(model, rows, routings)
    assert_states_close(found, expected, 1e-5)
    assert_gradients_close(found_gradients, expected_gradients, 1e-5)
    served = {key.partition("/")[0] for key, value in found_gradients.items() if value.any()}
    assert served == set(model.adapters)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_recomputed_activations_change_nothing(family: str) -> None:
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    expected, expected_gradients = states_and_gradients(model, rows, routings)
    model.gradient_checkpointing = True
    found, found_gradients = states_and_gradients(model, rows, routings)
    assert_states_close(found, expected, 1e-6)
    assert_gradients_close(found_gradients, expected_gradients, 1e-6)


@pytest.mark.parametrize("family", [f for f in ARCHITECTURES if f not in ENCODER_DECODERS])
def test_padding_on_the_left_changes_nothing(family: str) -> None:
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    with torch.no_grad():
        expected = states(model, rows, routings)
        assert_states_close(states(model, rows, routings, left=True), expected, 1e-5)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_a_row_without_adapters_is_transformers_own(family: str) -> None:
    """Positions and masks included, beside rows that have adapters; padding is on the right."""
    model = model_with_all(family)
    plain, draw = make_base(family), random.Random(5)
    two = family in ENCODER_DECODERS
    rows = [make_row(draw, two_sequences=two) for _ in range(3)]
    with torch.no_grad():
        *found, _ = states(model, [*rows, rows[0]], [None, None, None, "lora"])
        for row, ours in zip(rows, found, strict=True):
            ids = torch.tensor([row.ids])
            inputs = {"input_ids": torch.tensor([row.source]), "decoder_input_ids": ids} if two else {"input_ids": ids}
            theirs = backbone(plain.eval())(**inputs).last_hidden_state[0]
            assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_method_does_something(family: str) -> None:
    model = model_with_all(family)
    draw = random.Random(1)
    row = make_row(draw, two_sequences=family in ENCODER_DECODERS)
    names: list[RowAdapters] = [*model.adapters, None]
    with torch.no_grad():
        *found, bare = states(model, [row] * len(names), names)
    for name, state in zip(model.adapters, found, strict=True):
        assert float((state - bare).norm() / bare.norm()) > 1e-3, name


@pytest.mark.parametrize("family", DECODERS)
def test_the_cache_gives_what_a_whole_pass_gives(family: str) -> None:
    """Prefill of all but three tokens, padded on the left, then three steps."""
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    rows = [Row((*row.ids, 3, 4, 5)) for row in rows]
    with torch.no_grad():
        expected = states(model, rows, routings)
        cache = DynamicCache(config=model.base.config)
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row.ids)) + list(row.ids) for row in rows])
        mask = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
        cut = longest - 3
        parts = [(0, cut), (cut, cut + 1), (cut + 1, cut + 2), (cut + 2, longest)]
        found = [
            model.hidden(
                ids[:, start:stop], mask[:, :stop], adapters=routings, past_key_values=cache, use_cache=True
            ).last_hidden_state
            for start, stop in parts
        ]
    whole = torch.cat(found, dim=1)
    assert_states_close([whole[n][mask[n].bool()] for n in range(len(rows))], expected, 1e-5)


@settings(max_examples=6)
@given(order=st.permutations(range(6)), lengths=st.lists(st.integers(1, 8), min_size=6, max_size=6))
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_any_order_and_length(family: str, order: list[int], lengths: list[int]) -> None:
    model = _models.setdefault(family, model_with_all(family))
    draw = random.Random(sum(lengths))
    names = list(model.adapters)
    routings: list[RowAdapters] = [draw.choice([*names, None]) for _ in range(6)]
    rows = [make_row(draw, two_sequences=family in ENCODER_DECODERS, longest=2 + length) for length in lengths]
    with torch.no_grad():
        expected = [states(model, [row], [routing])[0] for row, routing in zip(rows, routings, strict=True)]
        found = states(model, [rows[n] for n in order], [routings[n] for n in order])
    assert_states_close(found, [expected[n] for n in order], 1e-5)


_models: dict[str, AdaptedModel] = {}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_base_is_never_written_to_and_comes_back(family: str) -> None:
    base = make_base(family)
    before = exact_digest(base)
    row = make_row(random.Random(3), two_sequences=family in ENCODER_DECODERS)
    plain = AdaptedModel(base)
    with torch.no_grad():
        expected = states(plain, [row], [None])[0]
    implementation, hooks = base.config._attn_implementation, count_hooks(base)
    model = plain
    for name, config in METHODS.items():
        add_random(model, name, config)
    rows, routings = mixed(family, model)
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        states_and_gradients(model, rows, routings)
        for adapter in model.adapters.values():
            torch.optim.AdamW(adapter.parameters(), lr=0.1).step()
    model.gradient_checkpointing = False
    assert exact_digest(base) == before
    assert all(parameter.grad is None for parameter in base.parameters())
    names = list(model.adapters)
    random.Random(0).shuffle(names)
    for name in names:
        model.remove(name)
    assert overridden(base) == []
    assert count_hooks(base) == hooks
    assert base.config._attn_implementation == implementation
    with torch.no_grad():
        assert torch.equal(states(model, [row], [None])[0], expected)
    assert exact_digest(base) == before


def count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_one_forward_serves_all(family: str) -> None:
    """Each block runs once, however many kinds of adapters the rows have."""
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    calls: Counter[str] = Counter()
    handles = [
        model.base.get_submodule(path).register_forward_hook(lambda *_, path=path: calls.update([path]))
        for path in model.places.blocks
    ]
    with torch.no_grad():
        states(model, rows, routings)
    for handle in handles:
        handle.remove()
    assert calls == dict.fromkeys(model.places.blocks, 1)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_saved_comes_back(family: str, tmp_path: Path) -> None:
    model = model_with_all(family)
    draw = random.Random(4)
    row = make_row(draw, two_sequences=family in ENCODER_DECODERS)
    names = list(model.adapters)
    again = AdaptedModel(make_base(family), name=model.name)
    for name in names:
        model.save(name, tmp_path / name)
        again.load(tmp_path / name)
    with torch.no_grad():
        expected = states(model, [row] * len(names), list(names))
        found = states(again, [row] * len(names), list(names))
    for name, one, other in zip(names, found, expected, strict=True):
        assert float((one - other).norm() / other.norm()) <= 1e-6, name


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
def test_nothing_holds_a_base_that_is_let_go(family: str) -> None:
    """Neither what is registered with transformers, nor what a call or a method keeps."""
    model = model_with_all(family)
    rows, routings = mixed(family, model)
    states_and_gradients(model, rows, routings)
    with torch.no_grad():
        states(model, rows, routings)
    base = weakref.ref(model.base)
    del model
    gc.collect()
    assert base() is None
