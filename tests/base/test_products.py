"""Products by oneDNN: the same numbers and gradients as torch's own, and nothing else about a model changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear as expected_linear
from transformers.pytorch_utils import Conv1D

from graftlm import AdaptedModel, LoRA
from graftlm.base import products
from graftlm.errors import UserError
from tests.families import FAMILIES, add_random, make_base, relative

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")), reason="no oneDNN"
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product by oneDNN, however small it is."""
    monkeypatch.setattr(products, "prefers_onednn", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 1)


@needs_onednn
@pytest.mark.usefixtures("always")
class TestLinear:
    @settings(max_examples=30, deadline=None)
    @given(
        shape=st.lists(st.integers(1, 5), min_size=1, max_size=2),
        sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        with_bias=st.booleans(),
        turned=st.booleans(),
    )
    def test_outputs_and_gradients(
        self, shape: list[int], sizes: tuple[int, int], with_bias: bool, turned: bool
    ) -> None:
        width, out = sizes
        x = torch.randn(*shape, width)
        weight = torch.randn(width, out).T if turned else torch.randn(out, width)
        bias = torch.randn(out) if with_bias else None
        found, wanted = [], []
        for multiply, kept in ((products.linear, found), (expected_linear, wanted)):
            leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
            y = multiply(leaves[0], leaves[1], leaves[2] if with_bias else None)
            y.square().sum().backward()
            kept += [y, *(leaf.grad for leaf in leaves)]
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == theirs.shape
            assert relative(ours, theirs) < 1e-5

    def test_matmul(self) -> None:
        a, b = torch.randn(7, 5), torch.randn(5, 9)
        assert relative(products.matmul(a, b), a @ b) < 1e-6
        assert relative(products.matmul(b.T, a.T), b.T @ a.T) < 1e-6

    def test_gradients_of_frozen_tensors_are_not_made(self) -> None:
        x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
        y = products.linear(x, weight)
        y.sum().backward()
        assert weight.grad is None
        assert x.grad is not None
        assert not products.linear(x.detach(), weight).requires_grad

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_other_precisions_are_left_to_torch(self, dtype: torch.dtype) -> None:
        x, weight = torch.randn(3, 4, dtype=dtype), torch.randn(5, 4, dtype=dtype)
        assert torch.equal(products.linear(x, weight), expected_linear(x, weight))

    def test_autocast_is_respected(self) -> None:
        x, weight = torch.randn(3, 4), torch.randn(5, 4)
        with torch.autocast("cpu", torch.bfloat16):
            assert products.linear(x, weight).dtype == torch.bfloat16

    def test_no_rows(self) -> None:
        assert products.linear(torch.randn(0, 4), torch.randn(5, 4)).shape == (0, 5)


@needs_onednn
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_computes_the_same(family: str) -> None:
    plain = make_base(family)
    fast = copy.deepcopy(plain)
    results = []
    for base, on in ((plain, False), (fast, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(products, "prefers_onednn", lambda on=on: on)
            model = AdaptedModel(base)
            add_random(model, {"a": LoRA(rank=2)})
            ids = torch.arange(3, 27).view(2, 12)
            output = model(ids, adapters=[None, "a"])
            logits = output.logits if "logits" in output else output.last_hidden_state
            logits.square().mean().backward()
            gradients = [p.grad for a in model.adapters.values() for p in a.parameters() if p.grad is not None]
            results.append([logits.detach(), *gradients])
    assert any(products.is_fast(module.__dict__.get("forward")) for module in fast.modules())
    assert len(results[0]) == len(results[1]) > 1
    for theirs, ours in zip(*results, strict=True):
        assert relative(ours, theirs) < 1e-4


@needs_onednn
@pytest.mark.usefixtures("always")
class TestLayers:
    def test_what_another_library_put_there_stays(self) -> None:
        layers = nn.ModuleList([nn.Linear(4, 4), Conv1D(4, 4), nn.LayerNorm(4)])
        layers[0].forward = foreign = lambda x: x
        products.multiply_fast(layers)
        assert layers[0].forward is foreign
        assert products.foreign_forward(layers[0]) is foreign
        assert products.is_fast(layers[1].forward)
        assert products.foreign_forward(layers[1]) is None
        assert "forward" not in layers[2].__dict__

    def test_a_copy_multiplies_with_its_own_weight(self) -> None:
        layer = nn.Linear(4, 4)
        products.multiply_fast(layer)
        for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            with torch.no_grad():
                twin.weight.zero_()
                twin.bias.zero_()
            assert not twin(torch.ones(2, 4)).any()
        assert layer(torch.ones(2, 4)).any()


class TestChoice:
    @pytest.fixture(autouse=True)
    def ask_again(self) -> Iterator[None]:
        products.prefers_onednn.cache_clear()
        yield
        products.prefers_onednn.cache_clear()

    @needs_onednn
    @pytest.mark.parametrize(("value", "chosen"), [("1", True), ("0", False)])
    def test_the_environment_decides(self, monkeypatch: pytest.MonkeyPatch, value: str, chosen: bool) -> None:
        monkeypatch.setenv(products.VARIABLE, value)
        assert products.prefers_onednn() is chosen

    def test_another_value_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(products.VARIABLE, "yes")
        with pytest.raises(UserError, match="GRAFTLM_ONEDNN is 'yes'"):
            products.prefers_onednn()

    @needs_onednn
    @pytest.mark.parametrize(
        ("vendor", "instructions", "chosen"),
        [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
    )
    def test_the_cpu_decides(
        self, monkeypatch: pytest.MonkeyPatch, vendor: str, instructions: str, chosen: bool
    ) -> None:
        monkeypatch.delenv(products.VARIABLE, raising=False)
        monkeypatch.setattr(products, "_vendor", lambda: f"vendor_id : {vendor}")
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
        assert products.prefers_onednn() is chosen
