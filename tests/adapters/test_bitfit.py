"""BitFit against a plain model whose biases alone are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from graftlm import AdaptedModel, BitFit, LoRA
from graftlm.adapters.bitfit import BiasChange
from graftlm.adapters.merge import export_merged
from graftlm.base.places import is_linear
from graftlm.errors import UserError
from tests.adapters.oracle import IDS, assert_as_plain, run
from tests.families import ENCODER_DECODERS, ENCODERS, FAMILIES, make_base, randomise, relative

WITH_BIASES = ("qwen2", "phi", "gpt2", "gpt_neox", "opt", "falcon", "falcon_alibi", *ENCODERS, "bart")
WITHOUT = tuple(family for family in (*FAMILIES, *ENCODER_DECODERS) if family not in WITH_BIASES)


def twin(model: AdaptedModel, family: str) -> tuple[nn.Module, dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    """A plain model with the changed biases, and what belongs together: (ours, theirs) by path."""
    plain = make_base(family, dtype=torch.float64).eval()
    pairs = {}
    for path, update in model.adapters["a"].linear.items():
        assert isinstance(update, BiasChange)
        theirs = plain.get_submodule(path).get_parameter("bias")
        pairs[path] = (update.bias, theirs)
        with torch.no_grad():
            theirs.add_(update.bias)
    return plain, pairs


def bitfit(family: str, biases: str = "all") -> AdaptedModel:
    model = AdaptedModel(make_base(family, dtype=torch.float64), name=f"random-{family}")
    randomise(model.add("a", BitFit(biases=biases)))
    return model


@pytest.mark.parametrize("family", WITH_BIASES)
def test_outputs_and_gradients_are_those_of_trained_biases(family: str) -> None:
    model = bitfit(family)
    plain, pairs = twin(model, family)
    in_blocks = {
        f"{path}.{name}".removesuffix(".bias")
        for path in model.places.blocks
        for name, _ in plain.get_submodule(path).named_parameters()
        if name.endswith("bias")
    }
    assert set(pairs) == in_blocks
    assert_as_plain(model, plain, family, pairs)


@pytest.mark.parametrize("biases", ["attention", "feed_forward", "norms"])
@pytest.mark.parametrize("family", ["gpt2", "bert", "bart"])
def test_a_part_of_the_biases(family: str, biases: str) -> None:
    model = bitfit(family, biases)
    plain, pairs = twin(model, family)
    kinds = {sublayer.kind for sublayer in model.places.sublayers for path in pairs if path in sublayer.linears}
    wanted = {"attention": {"attention", "cross_attention"}, "feed_forward": {"feed_forward"}, "norms": set()}
    assert kinds == {kind for kind in wanted[biases] if family == "bart" or kind != "cross_attention"}
    assert all(is_linear(plain.get_submodule(path)) == (biases != "norms") for path in pairs)
    assert_as_plain(model, plain, family, pairs)


@pytest.mark.parametrize("family", WITHOUT)
def test_a_base_without_biases_is_refused(family: str) -> None:
    with pytest.raises(UserError, match="has none"):
        AdaptedModel(make_base(family)).add("a", BitFit())


def test_a_part_without_biases_is_refused() -> None:
    with pytest.raises(UserError, match="none in its feed_forward"):
        AdaptedModel(make_base("qwen2")).add("a", BitFit(biases="feed_forward"))


def test_by_hand() -> None:
    """A bias of (1, −2) on two outputs: each token's output moves by just that."""
    change = BiasChange(torch.tensor([1.0, -2.0]))
    y = torch.tensor([[0.5, 0.5], [3.0, 4.0], [0.0, -1.0]])
    assert (y + change(torch.zeros(3, 7), y)).tolist() == [[1.5, -1.5], [4.0, 2.0], [1.0, -3.0]]
    change(torch.zeros(3, 7), y).sum().backward()
    assert change.bias.grad.tolist() == [3.0, 3.0]


def test_it_starts_as_the_base() -> None:
    model = AdaptedModel(make_base("gpt2"))
    model.add("a", BitFit())
    assert torch.equal(run(model, "gpt2"), run(model, "gpt2", None))


def test_stacked_on_a_lora_both_count() -> None:
    model = bitfit("gpt2")
    randomise(model.add("lora", LoRA(rank=3)), seed=5)
    plain = AdaptedModel(twin(model, "gpt2")[0])
    plain.attach("lora", model.copy("lora", "again"))
    expected = plain(IDS, adapters="lora").logits
    for stack in (("a", "lora"), ("lora", "a")):
        assert relative(model(IDS, adapters=stack).logits, expected) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "opt", "bert"])
def test_merged_and_saved(family: str, tmp_path: Path) -> None:
    model = bitfit(family)
    if family != "bert":
        assert export_merged(model, ["a"], tmp_path / "merged").relative < 1e-5
    model.save("a", tmp_path / "a")
    again = AdaptedModel(make_base(family, dtype=torch.float64), name=model.name)
    again.load(tmp_path / "a")
    assert relative(run(again, family), run(model, family)) == 0


def test_biases_of_another_size_are_refused() -> None:
    small, large = bitfit("gpt2"), bitfit("opt")
    stored = BitFit().store(small.adapters["a"], small.places, "x")
    with pytest.raises(UserError, match="is missing"):
        BitFit().restore(stored, large.places, device=large.device)
    key = next(iter(stored.tensors))
    stored.tensors[key] = stored.tensors[key][:5]
    with pytest.raises(UserError, match="does not fit this base"):
        BitFit().restore(stored, small.places, device=small.device)
