"""Log-probabilities of chosen tokens: those of the full logits, and their gradients, whatever loss follows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from graftlm import AdaptedModel, LoRA, Routing
from graftlm.adapters.routing import RowAdapters
from graftlm.objectives import log_probs as module
from graftlm.objectives.log_probs import chunk_rows, token_log_probs, token_log_probs_and_hits
from tests.families import FAMILIES, VOCABULARY, add_random, gradients, make_base, relative

IDS = torch.randint(3, VOCABULARY, (4, 11), generator=torch.Generator().manual_seed(0))
POSITIONS = torch.tensor([0, 3, 4, 9, 12, 13, 14, 21, 23, 25, 30, 33, 34, 35, 40, 41, 42, 43])
TARGETS = (POSITIONS * 5 + 2) % VOCABULARY
ROUTINGS: list[RowAdapters] = ["a", None, ("b", "a"), "b"]


def full(model: AdaptedModel) -> torch.Tensor:
    """The plain way: all logits, then log_softmax."""
    logits = model(IDS, adapters=ROUTINGS).logits.flatten(0, 1)
    return logits.log_softmax(-1)[POSITIONS, TARGETS]


def chosen(model: AdaptedModel) -> torch.Tensor:
    routing = Routing.of_rows(ROUTINGS, IDS.shape[1])
    hidden = model.hidden(IDS, adapters=routing).last_hidden_state.flatten(0, 1)[POSITIONS]
    return token_log_probs(
        model.score,
        hidden,
        TARGETS,
        vocabulary=model.vocabulary,
        routing=routing.select(POSITIONS),
        head_is_trained=model.head_is_adapted,
    )


def nonlinear(log_probs: torch.Tensor) -> torch.Tensor:
    """Every token matters differently: a preference loss, a ratio, an entropy-like term."""
    first, second = log_probs[:9], log_probs[9:]
    preference = -nn.functional.logsigmoid(0.3 * (first.sum() - second.sum()))
    ratio = (log_probs - log_probs.detach() + 0.1 * torch.arange(len(log_probs))).exp().clamp(0.8, 1.5).mean()
    return preference + ratio + (log_probs.exp() * log_probs).sum() + log_probs.square().mean()


@pytest.mark.parametrize("head", [False, True], ids=["blocks", "head"])
@pytest.mark.parametrize("rows", [1000, 4, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_equal_to_log_softmax_of_all_logits(
    family: str, rows: int, head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda *_: rows)
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    add_random(model, {"a": LoRA(), "b": LoRA(rank=2, targets=["all-linear", *(["lm_head"] if head else [])])})
    results = []
    for function in (chosen, full):
        for adapter in model.adapters.values():
            adapter.zero_grad()
        values = function(model)
        nonlinear(values).backward()
        results.append((values.detach(), gradients(model.adapters.values())))
    (ours, our_gradients), (theirs, their_gradients) = results
    assert ours.dtype is torch.float64
    assert relative(ours, theirs) < 1e-10
    assert our_gradients.keys() == their_gradients.keys()
    assert any("lm_head" in key for key in our_gradients) == head
    for key, expected in their_gradients.items():
        assert relative(our_gradients[key], expected) < 1e-10, key


def test_chunks_are_cut_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chunk_rows(32_000, 4) == 48 * 2**20 // (32_000 * 4)
    assert chunk_rows(32_000, 2) == chunk_rows(32_000, 4), "logits are raised to float32"
    assert chunk_rows(10**9, 4) == 16
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    widths: list[int] = []
    weight = torch.randn(9, 5)

    def score(hidden: torch.Tensor, routing: Routing | None) -> torch.Tensor:
        widths.append(len(hidden))
        return hidden @ weight.T

    hidden = torch.randn(50, 5, requires_grad=True)
    targets = torch.arange(50) % 9
    actual = token_log_probs(score, hidden, targets, vocabulary=9)
    assert max(widths) <= 16
    assert sum(widths) == 50
    torch.testing.assert_close(actual, (hidden @ weight.T).log_softmax(-1)[torch.arange(50), targets])


@pytest.mark.parametrize(
    "finish",
    [
        lambda logits: logits,
        lambda logits: 3.0 * torch.tanh(logits / 3.0),
        lambda logits: torch.tanh(logits),
        lambda logits: logits.exp(),
        lambda logits: logits.bfloat16(),
    ],
    ids=["plain", "capped", "tanh", "exp", "bfloat16"],
)
def test_a_head_of_any_kind(finish: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Also one whose backward pass reads its own output, which must not be overwritten."""
    weight = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    targets = torch.arange(7)
    expected = finish(hidden @ weight.T).float().log_softmax(-1)[torch.arange(7), targets]
    (wanted,) = torch.autograd.grad(expected.square().sum(), hidden)
    actual = token_log_probs(lambda h, _: finish(h @ weight.T), hidden, targets, vocabulary=9)
    (gradient,) = torch.autograd.grad(actual.square().sum(), hidden)
    assert relative(actual.detach(), expected.detach()) < 1e-5
    assert relative(gradient, wanted) < (2e-2 if finish(weight).dtype is torch.bfloat16 else 1e-5)


def test_extreme_logits_stay_finite() -> None:
    hidden = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    values = token_log_probs(lambda h, _: h, hidden, torch.tensor([0, 0]), vocabulary=2)
    assert values.tolist() == [0.0, -1e4]
    values.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[0.0, 0.0], [1.0, -1.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precision(dtype: torch.dtype) -> None:
    model = AdaptedModel(make_base("llama", dtype=dtype))
    add_random(model, {"a": LoRA(), "b": LoRA()})
    values = chosen(model)
    assert values.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    values.sum().backward()
    reference = AdaptedModel(make_base("llama", dtype=torch.float64))
    add_random(reference, {"a": LoRA(), "b": LoRA()})
    assert relative(values.detach(), chosen(reference).detach()) < (3e-2 if dtype is torch.bfloat16 else 1e-5)


def test_without_gradients_nothing_is_kept() -> None:
    model = AdaptedModel(make_base("llama"))
    add_random(model, {"a": LoRA(), "b": LoRA(targets=["lm_head"])})
    with torch.no_grad():
        assert not chosen(model).requires_grad
        torch.testing.assert_close(chosen(model), full(model))


def test_a_head_alone_is_trained() -> None:
    """The hidden states want no gradient then, and the head does."""
    model = AdaptedModel(make_base("qwen2"))
    add_random(model, {"a": LoRA(targets=["lm_head"]), "b": LoRA(targets=["lm_head"])})
    nonlinear(chosen(model)).backward()
    ours = gradients(model.adapters.values())
    for adapter in model.adapters.values():
        adapter.zero_grad()
    nonlinear(full(model)).backward()
    for key, expected in gradients(model.adapters.values()).items():
        assert relative(ours[key], expected) < 1e-5


def test_hits_are_the_likeliest_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 5)
    model = AdaptedModel(make_base("gemma2"))
    add_random(model, {"a": LoRA(), "b": LoRA(targets=["lm_head"])})
    routing = Routing.of_rows(ROUTINGS, IDS.shape[1])
    with torch.no_grad():
        logits = model(IDS, adapters=routing).logits.flatten(0, 1)[POSITIONS]
        hidden = model.hidden(IDS, adapters=routing).last_hidden_state.flatten(0, 1)[POSITIONS]
    targets = TARGETS.clone()
    targets[::2] = logits.argmax(-1)[::2]
    log_probs, hits = token_log_probs_and_hits(
        model.score, hidden, targets, vocabulary=model.vocabulary, routing=routing.select(POSITIONS)
    )
    assert hits.tolist() == (logits.argmax(-1) == targets).tolist()
    assert hits[::2].all()
    torch.testing.assert_close(log_probs, logits.log_softmax(-1)[torch.arange(len(targets)), targets])


def test_no_positions_at_all() -> None:
    hidden, targets = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for trained in (False, True):
        values = token_log_probs(lambda h, _: h, hidden, targets, vocabulary=5, head_is_trained=trained)
        assert values.shape == (0,)
    log_probs, hits = token_log_probs_and_hits(lambda h, _: h, hidden, targets, vocabulary=5)
    assert log_probs.shape == hits.shape == (0,)


def test_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "chunk_rows", lambda *_: 2)
    weight = torch.randn(6, 4, dtype=torch.float64)
    targets = torch.tensor([0, 5, 2, 2, 1])
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def run(h: torch.Tensor) -> torch.Tensor:
        return token_log_probs(lambda x, _: 2 * torch.tanh(x @ weight.T / 2), h, targets, vocabulary=6)

    assert torch.autograd.gradcheck(run, (hidden,))


def test_peaked_logits_make_no_subnormal_numbers_and_right_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = 3 * torch.randn(64, 8, generator=generator)
    hidden = (12 * torch.randn(6, 8, generator=generator)).requires_grad_()
    targets = torch.arange(6)
    slopes: list[torch.Tensor] = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda out, inp, slope: slopes.append(slope.clone()) or grad(out, inp, slope)
    )
    log_probs = token_log_probs(lambda states, _routing: states @ weight.T, hidden, targets, vocabulary=64)
    log_probs.sum().backward()
    expected = hidden.detach().clone().requires_grad_()
    torch.log_softmax(expected @ weight.T, -1).gather(1, targets[:, None]).sum().backward()
    assert expected.grad is not None
    torch.testing.assert_close(hidden.grad, expected.grad)
    small = torch.cat(slopes).abs()
    assert not ((small > 0) & (small < torch.finfo(torch.float32).tiny)).any()
