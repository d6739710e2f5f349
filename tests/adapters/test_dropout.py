"""Adapter dropout: seeded by adapter, step, row and layer, so that nothing else can change it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from graftlm import AdaptedModel, LoRA, Routing
from graftlm.adapters.grouped import Group, Product, adapted_linear
from graftlm.adapters.routing import RowAdapters, Span, as_stack, mix_seed
from graftlm.adapters.routing import routed as with_routing
from graftlm.data.batches import EncodedRow
from graftlm.training.forward import RoutedRow
from graftlm.training.task import Task
from tests.adapters.test_invariants import add_up, assert_gradients_close, loss_and_gradients, make_rows
from tests.families import add_random, relative

CONFIGS = {"a": LoRA(rank=4, dropout=0.4), "b": LoRA(rank=3, dropout=0.25), "c": LoRA(rank=2)}
STACKS: list[RowAdapters] = ["a", "b", ("a", "b"), None, ("c", "a"), "a"]
LENGTHS = [9, 5, 7, 6, 8, 9]


@pytest.fixture
def model(make_model: Callable[..., AdaptedModel]) -> AdaptedModel:
    adapted = make_model("llama", dtype=torch.float64)
    add_random(adapted, CONFIGS)
    return adapted


def seeded(rows: list[EncodedRow], step: int = 0) -> list[RoutedRow]:
    return [
        RoutedRow(row, as_stack(stack), tuple((name, mix_seed(name, step, row.row)) for name in as_stack(stack)))
        for row, stack in zip(rows, STACKS, strict=True)
    ]


def mask(
    seed: int | None, probability: float = 0.5, *, length: int = 50, width: int = 40, place: int = 0
) -> torch.Tensor:
    seeds = [{"a": seed}] if seed is not None else None
    drawn = Routing.of_rows(["a"], length, seeds=seeds).keep_mask(
        "a", Span(0, length), width, place, probability, torch.empty(0)
    )
    return torch.ones(length, width) if drawn is None else drawn


@pytest.mark.parametrize("checkpointing", [False, True])
def test_neighbours_padding_and_order_change_nothing(model: AdaptedModel, checkpointing: bool) -> None:
    rows = seeded(make_rows(LENGTHS))
    parts = [loss_and_gradients(model, rows, [number], offset=number) for number in range(6)]
    model.gradient_checkpointing = checkpointing
    together, mixed = loss_and_gradients(model, rows, [0, 1, 2, 3, 4, 5])
    for number in range(6):
        assert relative(together[number], parts[number][0][0]) < 1e-12
    assert_gradients_close(mixed, add_up([part for _, part in parts]), 1e-12)
    backwards, _ = loss_and_gradients(model, rows, [5, 3, 4, 1, 2, 0])
    for number, place in zip([5, 3, 4, 1, 2, 0], range(6), strict=True):
        assert relative(backwards[place], together[number]) < 1e-12


def test_steps_rows_adapters_and_layers_draw_differently(model: AdaptedModel) -> None:
    rows = make_rows(LENGTHS)
    first, second = (loss_and_gradients(model, seeded(rows, step), list(range(6)))[0] for step in (0, 1))
    off = loss_and_gradients(model, [RoutedRow(r.row, r.stack) for r in seeded(rows)], list(range(6)))[0]
    for number, stack in enumerate(STACKS):
        dropped = bool(set(as_stack(stack)) & {"a", "b"})
        assert (relative(first[number], second[number]) > 1e-3) == dropped
        assert (relative(first[number], off[number]) > 1e-3) == dropped
    drawn = [mask(seed, place=place) for seed in (1, 2) for place in (0, 1)]
    for number, one in enumerate(drawn):
        for other in drawn[:number]:
            assert 0.4 < float((one == other).double().mean()) < 0.6, "two draws agree by chance only"


def test_a_task_seeds_adapter_step_and_row() -> None:
    rows = tuple(make_rows([5, 5, 5]))
    tasks = [Task(name, rows) for name in ("a", "b")]
    seeds = [
        seed
        for task in tasks
        for step in range(len(task.steps))
        for row in task.step_rows(step)
        for _, seed in row.seeds
    ]
    assert len(set(seeds)) == len(seeds) == sum(len(step) for task in tasks for step in task.steps)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_inverted_with_the_right_share(probability: float) -> None:
    drawn = mask(7, probability, length=400, width=250)
    kept = drawn != 0
    assert torch.unique(drawn[kept]).tolist() == pytest.approx([1 / (1 - probability)])
    deviation = (probability * (1 - probability) / drawn.numel()) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - probability)) < 4 * deviation
    assert float(drawn.double().mean()) == pytest.approx(1.0, abs=0.05)


def test_no_dropout_without_a_seed_or_a_probability() -> None:
    assert bool((mask(None) == 1).all())
    assert bool((mask(3, 0.0) == 1).all())


def test_padding_does_not_change_a_rows_draw() -> None:
    alone = mask(5, length=6)
    padded = Routing.of_rows([None, "a"], 10, seeds=[{}, {"a": 5}], lengths=[10, 6])
    drawn = padded.keep_mask("a", Span(10, 20), 40, 0, 0.5, torch.empty(0))
    assert drawn is not None
    assert torch.equal(drawn[:6], alone)


def test_only_the_seeded_adapter_of_a_stack_drops(model: AdaptedModel) -> None:
    """An adapter that is stacked upon stays as it is while another one trains."""
    routing = Routing.of_rows([("a", "b")], 4, seeds=[{"b": 3}])
    like = torch.empty(0)
    assert routing.keep_mask("a", Span(0, 4), 8, 0, 0.4, like) is None
    assert routing.keep_mask("b", Span(0, 4), 8, 0, 0.4, like) is not None


def test_gradients_are_those_of_the_formula() -> None:
    """y = xWᵀ + s (x∘m) Aᵀ Bᵀ, with m written out."""
    routing = Routing.of_rows(["a", None, "a"], [3, 2, 4], seeds=[{"a": 1}, {}, {"a": 2}])
    group = Group("a", routing.spans["a"], 1.5, 0.5)
    x, W, A, B = (
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
        for n, shape in enumerate([(9, 6), (5, 6), (2, 6), (5, 2)])
    )
    for tensor in (x, A, B):
        tensor.requires_grad_()
    y = adapted_linear(x, W, None, Product((group,), routing, 4), [(A, B)])
    factors = torch.zeros(9, 6, dtype=torch.float64)
    for span in group.spans:
        drawn = routing.keep_mask("a", span, 6, 4, 0.5, x)
        assert drawn is not None
        factors[span.start : span.stop] = drawn
    assert set(factors.unique().tolist()) == {0.0, 2.0}
    expected = x @ W.T + 1.5 * ((x * factors) @ A.T) @ B.T
    torch.testing.assert_close(y, expected)
    upstream = torch.randn(9, 5, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(y, [x, A, B], upstream), torch.autograd.grad(expected, [x, A, B], upstream)
    )


def test_the_mean_over_many_draws_is_the_call_without(model: AdaptedModel) -> None:
    place = model.places.linears["model.layers.0.mlp.up_proj"]
    x = torch.randn(1, 3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        draws = []
        for seed in range(600):
            with with_routing(Routing.of_rows(["a"], 3, seeds=[{"a": mix_seed(seed)}])):
                draws.append(place.module(x))
        with with_routing(Routing.of_rows(["a"], 3)):
            expected = place.module(x)
    mean, deviation = torch.stack(draws).mean(0), torch.stack(draws).std(0) / 600**0.5
    assert float(((mean - expected) / deviation).abs().max()) < 5


def test_the_head_drops_too(make_model: Callable[..., AdaptedModel]) -> None:
    """An adapted language head is scored in chunks, at the learnt positions only: each row draws as it would alone."""
    model = make_model("llama", dtype=torch.float64)
    add_random(
        model, {"a": LoRA(targets=["lm_head"], dropout=0.5), "b": LoRA(targets=["lm_head", "q_proj"], dropout=0.3)}
    )
    rows = [RoutedRow(r.row, r.stack, r.seeds) for r in seeded(make_rows(LENGTHS)) if "c" not in r.stack]
    order = list(range(len(rows)))
    parts = [loss_and_gradients(model, rows, [number], offset=number) for number in order]
    dropped, mixed = loss_and_gradients(model, rows, order)
    off = loss_and_gradients(model, [RoutedRow(r.row, r.stack) for r in rows], order)[0]
    assert relative(dropped[0], off[0]) > 1e-3
    for number in order:
        assert relative(dropped[number], parts[number][0][0]) < 1e-12
    assert_gradients_close(mixed, add_up([part for _, part in parts]), 1e-12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graftlm.objectives.log_probs.chunk_rows", lambda *_: 3)
        chunked, split = loss_and_gradients(model, rows, order)
    for number in order:
        assert relative(chunked[number], dropped[number]) < 1e-12
    assert_gradients_close(split, mixed, 1e-12)


def test_half_precision_scales_the_gradient_as_it_scales_the_input() -> None:
    """1/(1 − 0.1), rounded to bfloat16, would make every gradient of the input 0.16 % too small."""
    routing = Routing.of_rows(["a"], 400, seeds=[{"a": 7}])
    product = Product((Group("a", routing.spans["a"], 1.0, 0.1),), routing, 0)
    draw = torch.Generator().manual_seed(0)
    A, B = torch.randn(4, 40, generator=draw), torch.randn(30, 4, generator=draw)
    g = torch.randn(400, 30, generator=draw).bfloat16()
    x = torch.zeros(400, 40, dtype=torch.bfloat16, requires_grad=True)
    adapted_linear(x, torch.zeros(30, 40, dtype=torch.bfloat16), None, product, [(A, B)]).backward(g)
    kept = routing.keep_mask("a", Span(0, 400), 40, 0, 0.1, torch.empty(0))
    assert kept is not None
    expected = (g.float() @ B @ A) * kept
    assert x.grad is not None
    share = float((x.grad.float() * expected).sum() / expected.square().sum())
    assert abs(share - 1) < 2e-4
