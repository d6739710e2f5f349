"""What always holds, for every family: the base is never written to, rows are independent, one forward serves all."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftlm import AdaptedModel, LoRA, Routing
from graftlm.adapters.routing import RowAdapters, as_stack
from graftlm.base.fingerprint import base_fingerprint, exact_digest
from graftlm.data.batches import EncodedRow
from graftlm.errors import UserError
from graftlm.training.forward import RoutedRow, build_micro_batch, micro_batch_log_probs
from tests.adapters import grid
from tests.adapters.grid import add_up
from tests.families import FAMILIES, VOCABULARY, add_random, gradients, make_base, overridden, relative

ROUTINGS: list[RowAdapters] = ["a", "b", ("a", "b"), None, "c"]
LENGTHS = [9, 5, 7, 6, 8]
CONFIGS = {"a": LoRA(rank=4), "b": LoRA(rank=3, alpha=5.0, rslora=True), "c": LoRA(rank=2, rank_pattern={"*.0.*": 5})}
HEAD = {"c": LoRA(rank=2, targets=["all-linear", "lm_head"])}


def make_rows(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[EncodedRow]:
    draw = random.Random(seed)
    return [
        EncodedRow(
            [draw.randrange(3, VOCABULARY) for _ in range(length)],
            [False, *(draw.random() < 0.6 for _ in range(length - 2)), True],
            "test",
            number,
        )
        for number, length in enumerate(lengths)
    ]


def routed(rows: list[EncodedRow], stacks: Sequence[RowAdapters]) -> list[RoutedRow]:
    return [RoutedRow(row, as_stack(stack)) for row, stack in zip(rows, stacks, strict=True)]


def nonlinear_loss(log_probs: torch.Tensor, counts: list[int], offset: int = 0) -> torch.Tensor:
    """−log σ of each row's sum, each row with a weight of its own: the gradients of two tokens are never equal."""
    sums = torch.stack([part.sum() for part in log_probs.split(counts)])
    weights = torch.arange(1, len(counts) + 1, dtype=sums.dtype) + offset
    return (weights * -nn.functional.logsigmoid(0.1 * sums + 2.0)).sum()


def loss_and_gradients(
    model: AdaptedModel, rows: list[RoutedRow], order: list[int], offset: int = 0
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Log-probabilities of each row, and the gradients that a non-linear loss over these rows gives."""
    for adapter in model.adapters.values():
        adapter.zero_grad()
    batch = build_micro_batch(model, rows, order)
    log_probs = micro_batch_log_probs(model, batch)
    if log_probs.requires_grad:
        nonlinear_loss(log_probs, batch.padded.counts, offset).backward()
    found = {
        f"{name}/{key}": value
        for name, adapter in model.adapters.items()
        for key, value in gradients([adapter]).items()
    }
    return [part.detach() for part in log_probs.split(batch.padded.counts)], found


assert_gradients_close = partial(grid.assert_gradients_close, negligible=1e-3)


# --- 1. the base is never written to ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_never_written_to(family: str, tmp_path: Path) -> None:
    base = make_base(family)
    names = [name for name, _ in base.named_parameters()]
    before = exact_digest(base), base_fingerprint(base)
    model = AdaptedModel(base)
    add_random(model, CONFIGS | HEAD)
    assert exact_digest(base) == before[0]

    rows = routed(make_rows(), ROUTINGS)
    for step in range(2):
        model.gradient_checkpointing = step == 1
        loss_and_gradients(model, rows, [0, 1, 2, 3, 4])
        for adapter in model.adapters.values():
            torch.optim.AdamW(adapter.parameters(), lr=0.1).step()
    model.gradient_checkpointing = False
    assert all(parameter.grad is None for parameter in base.parameters())

    model.save("c", tmp_path / "c")
    model.remove("c")
    model.load(tmp_path / "c")
    model.rename("a", "d")
    model.copy("d", "e")
    model(torch.tensor([[3, 4]]), adapters=("d", "c"))
    assert overridden(base)
    for name in list(model.adapters):
        model.remove(name)
    assert overridden(base) == []
    assert (exact_digest(base), base_fingerprint(base)) == before
    assert [name for name, _ in base.named_parameters()] == names


def test_the_fingerprint_of_the_model_does_not_see_adapters() -> None:
    model = AdaptedModel(make_base("llama"))
    add_random(model, CONFIGS | HEAD)
    assert base_fingerprint(model.base) == model.fingerprint == base_fingerprint(make_base("llama"))


def test_a_forward_of_another_library_comes_back() -> None:
    """Such as the hooks that accelerate puts on a layer: they are called, and are still there afterwards."""
    base = make_base("llama")
    layer = base.model.layers[0].mlp.up_proj
    original, calls = layer.forward, []

    def hooked(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return original(x)

    layer.forward = hooked
    block = base.model.layers[1]
    block_forward = block.forward
    block.forward = lambda *args, **kwargs: block_forward(*args, **kwargs)
    block_hook = block.forward

    model = AdaptedModel(base)
    add_random(model, {"a": LoRA()})
    ids = torch.tensor([[3, 4, 5]])
    plain = AdaptedModel(make_base("llama"))
    add_random(plain, {"a": LoRA()})
    calls.clear()
    torch.testing.assert_close(model(ids, adapters="a").logits, plain(ids, adapters="a").logits)
    assert len(calls) == 1
    rows = routed(make_rows([5]), ["a"])
    expected = loss_and_gradients(model, rows, [0])[1]
    model.gradient_checkpointing = True
    calls.clear()
    assert_gradients_close(loss_and_gradients(model, rows, [0])[1], expected)
    assert len(calls) == 2, "checkpointing runs the block twice"
    model.gradient_checkpointing = False
    model.remove("a")
    assert layer.forward is hooked
    assert block.forward is block_hook


# --- 2. rows are independent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [False, True], ids=["blocks", "head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_equals_each_row_alone(family: str, head: bool) -> None:
    model = AdaptedModel(make_base(family))
    add_random(model, CONFIGS | (HEAD if head else {}))
    rows = routed(make_rows(), ROUTINGS)
    together, mixed = loss_and_gradients(model, rows, [0, 1, 2, 3, 4])
    alone = [loss_and_gradients(model, rows, [number], offset=number) for number in range(5)]
    for number in range(5):
        assert relative(together[number], alone[number][0][0]) < 1e-5
    assert_gradients_close(mixed, add_up([part for _, part in alone]))
    assert {key.partition("/")[0] for key in mixed} == {"a", "b", "c"}
    # Each routing says something of its own, or the test would see nothing.
    ids = torch.tensor([rows[0].row.ids])
    logits = [model(ids, adapters=stack).logits for stack in ROUTINGS]
    for number, one in enumerate(logits):
        assert all(relative(one, other) > 1e-2 for other in logits[:number])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_with_a_mask_changes_nothing(family: str, side: str) -> None:
    model = AdaptedModel(make_base(family))
    add_random(model, CONFIGS | HEAD)
    rows = make_rows()
    ids, mask = torch.zeros(5, 11, dtype=torch.int64), torch.zeros(5, 11, dtype=torch.int64)
    places = [slice(0, n) if side == "right" else slice(11 - n, 11) for n in LENGTHS]
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        ids[number, place] = torch.tensor(row.ids)
        mask[number, place] = 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        takes_positions = family not in ("opt", "falcon_alibi")  # these make their own from the mask
        extra = {"position_ids": positions} if takes_positions else {}
        logits = model(ids, mask, adapters=ROUTINGS, **extra).logits
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            expected = model(torch.tensor([row.ids]), adapters=ROUTINGS[number]).logits[0]
            assert relative(logits[number, place], expected) < 1e-5


_llama: AdaptedModel | None = None


def shared_llama() -> AdaptedModel:
    """One model for the many examples of hypothesis."""
    global _llama
    if _llama is None:
        _llama = AdaptedModel(make_base("llama", dtype=torch.float64))
        add_random(_llama, CONFIGS | HEAD)
    return _llama


@given(
    stacks=st.lists(st.sampled_from([*ROUTINGS, ("b", "a"), ("c", "a", "b")]), min_size=1, max_size=7),
    data=st.data(),
)
def test_any_rows_in_any_order(stacks: list[RowAdapters], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(2, 9), min_size=len(stacks), max_size=len(stacks)))
    order = data.draw(st.permutations(range(len(stacks))))
    model = shared_llama()
    rows = routed(make_rows(lengths), stacks)
    sums = {}
    together, mixed = loss_and_gradients(model, rows, list(order))
    parts = [loss_and_gradients(model, rows, [row], offset=place) for place, row in enumerate(order)]
    for place in range(len(order)):
        sums[place] = relative(together[place], parts[place][0][0])
    assert max(sums.values()) < 1e-12
    assert_gradients_close(mixed, add_up([part for _, part in parts]), 1e-12)


def test_a_packed_batch_is_a_padded_one_to_an_adapter(llama: AdaptedModel) -> None:
    """One flat sequence with a routing over its parts: each linear layer gives what it gives to the rows alone."""
    add_random(llama, CONFIGS | HEAD)
    packed = Routing.of_rows(ROUTINGS, LENGTHS)
    assert packed.tokens == sum(LENGTHS)
    from graftlm.adapters.routing import routed as with_routing

    for place in llama.places.linears.values():
        x = torch.randn(1, packed.tokens, place.in_features)
        with torch.no_grad(), with_routing(packed):
            together = place.module(x)
        start = 0
        for stack, length in zip(ROUTINGS, LENGTHS, strict=True):
            part = x[:, start : start + length]
            with torch.no_grad(), with_routing(Routing.of_rows([stack], length)):
                alone = place.module(part)
            assert relative(together[:, start : start + length], alone) < 1e-5
            start += length


def test_a_routing_may_change_within_a_sequence(llama: AdaptedModel) -> None:
    """Causal: what stands before the change does not depend on what comes after."""
    add_random(llama, CONFIGS)
    ids = torch.tensor([make_rows([9])[0].ids])
    with torch.no_grad():
        split = llama(ids, adapters=Routing.of_rows(["a", "b"], [4, 5])).logits
        whole = llama(ids, adapters="a").logits
    assert relative(split[:, :4], whole[:, :4]) < 1e-5
    assert relative(split[:, 4:], whole[:, 4:]) > 1e-2


def test_a_stack_is_the_sum_of_its_updates(llama: AdaptedModel) -> None:
    add_random(llama, CONFIGS | HEAD)
    for path, place in llama.places.linears.items():
        deltas = [a.linear[path].delta() for a in llama.adapters.values() if path in a.linear]
        x = torch.randn(1, 3, place.in_features)
        with torch.no_grad():
            expected = place.module(x) + x @ sum(deltas).T
            from graftlm.adapters.routing import routed as with_routing

            with with_routing(Routing.of_rows([("c", "a", "b")], 3)):
                actual = place.module(x)
        assert relative(actual, expected) < 1e-5


# --- 3. a wrong routing raises ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ("nope", "unknown adapter 'nope'; there are: a, b, c"),
        (["a", "bb"], "Did you mean 'b'"),
        (("a", "x"), "unknown adapter 'x'"),
        (["a"], "names 1 rows, but the batch has 2"),
        (["a", "b", None], "names 3 rows, but the batch has 2"),
        (("a", "a"), "names an adapter twice"),
        ([("a", "b", "a"), None], "names an adapter twice"),
        (Routing.of_rows(["a", "nope"], 3), "unknown adapter 'nope'"),
        (Routing.of_rows(["a"], 3), "3 tokens, but the batch has 6"),
        (Routing.of_rows([None], 3), "3 tokens, but the batch has 6"),
    ],
)
@pytest.mark.parametrize("method", ["__call__", "hidden"])
def test_a_wrong_routing_raises(llama: AdaptedModel, method: str, adapters: object, message: str) -> None:
    add_random(llama, CONFIGS)
    with pytest.raises(UserError, match=message):
        getattr(llama, method)(torch.full((2, 3), 5), adapters=adapters)


def test_a_removed_adapter_is_unknown(llama: AdaptedModel) -> None:
    add_random(llama, CONFIGS)
    llama.remove("b")
    with pytest.raises(UserError, match="there are: a, c"):
        llama(torch.full((1, 3), 5), adapters="b")
    with pytest.raises(UserError, match="unknown adapter 'b'"):
        llama.remove("b")


# --- 7. one forward ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_many_adapters_cost_one_base_forward(family: str) -> None:
    model = AdaptedModel(make_base(family))
    add_random(model, CONFIGS | HEAD)
    calls: Counter[str] = Counter()
    for path, place in model.places.linears.items():
        place.module.register_forward_hook(lambda *_args, path=path: calls.update([path]))
    with torch.no_grad():
        model(torch.full((5, 4), 7), adapters=ROUTINGS)
    assert calls == dict.fromkeys(model.places.linears, 1)


def test_many_adapters_cost_one_base_product(make_model: Callable[..., AdaptedModel]) -> None:
    """As many products with the base's weights for five routings as for none."""
    model = make_model("llama")
    add_random(model, CONFIGS)
    ids = torch.full((5, 4), 7)

    def base_products(adapters: object) -> int:
        weights = {id(place.dense_weight()) for place in model.places.linears.values()}
        seen = 0
        linear = nn.functional.linear

        def counting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            nonlocal seen
            seen += id(weight) in weights
            return linear(x, weight, bias)

        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr(nn.functional, "linear", counting)
            model(ids, adapters=adapters)
        return seen

    assert base_products(ROUTINGS) == base_products(None) == len(model.places.linears)
