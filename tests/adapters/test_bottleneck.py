"""Bottleneck adapters against the recorded numbers of another library, and the sublayers that they sit at."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from graftlm import AdaptedModel, Bottleneck, LoRA
from graftlm.adapters.bottleneck import BottleneckNet
from graftlm.adapters.method import Adapter, SublayerChange
from graftlm.base.keys_values import key_value_units
from graftlm.base.places import find_places
from graftlm.errors import UserError
from tests.adapters.oracle import batch, run
from tests.adapters.test_bottleneck_fixtures import ABOUT, base_model, below, expected, recorded
from tests.families import ENCODER_DECODERS, ENCODERS, FAMILIES, LAYERS, make_base, randomise, relative

ALL = (*FAMILIES, *ENCODERS, *ENCODER_DECODERS)
POST_NORM = (*ENCODERS, "bart")

# --- against the recorded library -------------------------------------------------------------------------------


def configs(label: str) -> list[Bottleneck]:
    """What the recorded settings are called here; of more than one, a stack."""
    theirs = ABOUT["configs"][label]
    if label in ("seq_bn", "double_seq_bn", "par_bn"):
        return [Bottleneck(kind=label)]
    switches = {"mh_adapter": "attention", "output_adapter": "feed_forward", "cross_adapter": "cross_attention"}
    parallel = theirs["is_parallel"]
    settings: dict[str, Any] = {
        "placement": "parallel" if parallel else "serial" if theirs["original_ln_after"] else "stream",
        "sublayers": [part for switch, part in switches.items() if theirs[switch]],
        "activation": theirs["non_linearity"],
        "scaling": theirs["scaling"],
        "layer_norm_before": theirs["ln_before"],
        "layer_norm_after": theirs["ln_after"],
        "residual": "before_norm" if theirs["adapter_residual_before_ln"] else "after_norm",
    }
    if settings["placement"] == "serial":
        settings["reads"] = "sum" if theirs["original_ln_before"] else "output"
        if theirs["original_ln_before"]:
            settings["adds_to"] = {True: "output", False: "read", "post_add": "sum"}[theirs["residual_before_ln"]]
    factor = theirs["reduction_factor"]
    if not isinstance(factor, dict):
        return [Bottleneck(**settings, reduction_factor=factor)]
    blocks = [block for block in range(4) if block not in theirs["leave_out"]]
    others = [block for block in blocks if str(block) not in factor]
    parts = [Bottleneck(**settings, reduction_factor=factor[key], blocks=[int(key)]) for key in factor if key.isdigit()]
    return [*parts, *([Bottleneck(**settings, reduction_factor=factor["default"], blocks=others)] if others else [])]


CASES = [
    (name, label) for name in ABOUT["models"] for label in ABOUT["configs"] if f"{name}/{label}/output" in recorded()
]


def add_recorded(model: AdaptedModel, name: str, label: str) -> dict[str, nn.Parameter]:
    """Adapters with the recorded parameters; gives these under their recorded names."""
    stored = below(f"{name}/{label}/parameter/")
    blocks = len(model.places.blocks)
    named: dict[str, nn.Parameter] = {}
    for number, config in enumerate(configs(label)):
        if config.blocks is not None:
            config = config.model_copy(update={"blocks": [block for block in config.blocks if block < blocks]})
            if not config.blocks:
                continue
        for place, net in model.add(f"a{number}", config).sublayers.items():
            named |= {f"{place}.{key.removeprefix('learned_')}": value for key, value in net.named_parameters()}
    assert set(named) == set(stored)
    with torch.no_grad():
        for key, parameter in named.items():
            parameter.copy_(stored[key].view(parameter.shape))
    return named


@pytest.mark.parametrize(("name", "label"), CASES)
def test_outputs_and_gradients_are_the_recorded_ones(name: str, label: str) -> None:
    model = AdaptedModel(base_model(name))
    parameters = add_recorded(model, name, label)
    inputs = below(f"{name}/input/")
    tokens = recorded()[f"{name}/probe"].abs().sum(-1, keepdim=True) > 0
    ids = inputs.pop("input_ids")
    output = model(ids, adapters=tuple(model.adapters), **inputs).logits * tokens
    want = expected(name, f"{name}/{label}/output")
    assert relative(output, want) < 1e-5
    assert relative(expected(name, f"{name}/output"), want) > 1e-4
    (output * recorded()[f"{name}/probe"]).sum().backward()
    largest = max(float(recorded()[f"{name}/{label}/gradient/{key}"].norm()) for key in parameters)
    for key, parameter in parameters.items():
        gradient = recorded()[f"{name}/{label}/gradient/{key}"].view(parameter.shape).double()
        assert parameter.grad is not None
        room = 1e-5 * max(float(gradient.norm()), 1e-2 * largest)
        assert float((parameter.grad - gradient).norm()) < room, key


# --- the sublayers ----------------------------------------------------------------------------------------------

_PRE = "input_layernorm", "self_attn.o_proj", "post_attention_layernorm", "mlp.down_proj"
_BERT = (None, "attention.output.dense", None, "output.dense")
#: by family: the norm before attention, attention's output, the norm before feed-forward, its output
PRE_NORM: dict[str, tuple[str, str, str, str]] = {
    **dict.fromkeys(["llama", "qwen2", "qwen3", "mistral", "phi3", "granite"], _PRE),
    **dict.fromkeys(
        ["gemma2", "gemma3"],
        ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    "phi": ("input_layernorm", "self_attn.dense", "input_layernorm", "mlp.fc2"),
    "cohere": ("input_layernorm", "self_attn.o_proj", "input_layernorm", "mlp.down_proj"),
    "gpt2": ("ln_1", "attn.c_proj", "ln_2", "mlp.c_proj"),
    "gpt_neox": ("input_layernorm", "attention.dense", "post_attention_layernorm", "mlp.dense_4h_to_h"),
    "opt": ("self_attn_layer_norm", "self_attn.out_proj", "final_layer_norm", "fc2"),
    "falcon": ("input_layernorm", "self_attention.dense", "input_layernorm", "mlp.dense_4h_to_h"),
    "falcon_alibi": ("input_layernorm", "self_attention.dense", "post_attention_layernorm", "mlp.dense_4h_to_h"),
}


@pytest.mark.parametrize("family", PRE_NORM)
def test_places_in_pre_norm_decoders(family: str) -> None:
    model = AdaptedModel(make_base(family))
    before_attention, attention, before_feed_forward, feed_forward = PRE_NORM[family]
    for number, block in enumerate(model.places.blocks):
        first, second = model.places.sublayers[2 * number : 2 * number + 2]
        assert (first.kind, second.kind) == ("attention", "feed_forward")
        assert (first.norm_before, first.output) == (f"{block}.{before_attention}", f"{block}.{attention}")
        assert (second.norm_before, second.output) == (f"{block}.{before_feed_forward}", f"{block}.{feed_forward}")
        assert first.norm_after is second.norm_after is None
        assert first.width == second.width == 32


POST: dict[str, dict[str, tuple[str, str]]] = {
    "bert": {
        "attention": ("attention.output.dense", "attention.output.LayerNorm"),
        "feed_forward": ("output.dense", "output.LayerNorm"),
    },
    "bart": {
        "attention": ("self_attn.out_proj", "self_attn_layer_norm"),
        "cross_attention": ("encoder_attn.out_proj", "encoder_attn_layer_norm"),
        "feed_forward": ("fc2", "final_layer_norm"),
    },
}


@pytest.mark.parametrize("family", POST_NORM)
def test_places_in_post_norm_models(family: str) -> None:
    model = AdaptedModel(make_base(family))
    for sublayer in model.places.sublayers:
        block = model.places.blocks[sublayer.block]
        output, norm = POST["bart" if family == "bart" else "bert"][sublayer.kind]
        assert (sublayer.output, sublayer.norm_after) == (f"{block}.{output}", f"{block}.{norm}")
        assert sublayer.norm_before is None
    kinds = [sublayer.kind for sublayer in model.places.sublayers]
    if family == "bart":
        encoder = ["attention", "feed_forward"] * LAYERS
        assert kinds == encoder + ["attention", "cross_attention", "feed_forward"] * LAYERS
        assert [sublayer.source for sublayer in model.places.sublayers] == [True] * 2 * LAYERS + [False] * 3 * LAYERS


def test_places_in_t5() -> None:
    model = AdaptedModel(make_base("t5"))
    for sublayer in model.places.sublayers:
        block = model.places.blocks[sublayer.block]
        decoder = block.startswith("decoder")
        layer = {"attention": 0, "cross_attention": 1, "feed_forward": 2 if decoder else 1}[sublayer.kind]
        output = {"attention": "SelfAttention.o", "cross_attention": "EncDecAttention.o"}
        assert sublayer.output == f"{block}.layer.{layer}.{output.get(sublayer.kind, 'DenseReluDense.wo')}"
        assert sublayer.norm_before == f"{block}.layer.{layer}.layer_norm"
        assert sublayer.norm_after is None
        assert sublayer.source == (not decoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ALL)
def test_places_are_the_same_in_every_precision(family: str, dtype: torch.dtype) -> None:
    expected = find_places(make_base(family).eval())
    found = find_places(make_base(family, dtype=dtype).eval())
    assert found.sublayers == expected.sublayers
    units = key_value_units(expected)
    others = key_value_units(found)
    assert {key: value.tolist() for key, value in others.items()} == {key: units[key].tolist() for key in units}


class Spy(SublayerChange):
    """Keeps what a place gives, and adds nothing."""

    def __init__(self, seen: dict[str, tuple[torch.Tensor, torch.Tensor]], key: str) -> None:
        super().__init__()
        self.seen, self.key = seen, key

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: Any) -> torch.Tensor:
        self.seen[self.key] = (h, x)
        return torch.zeros_like(h)


@torch.no_grad()
@pytest.mark.parametrize("family", ALL)
def test_output_and_stream_add_up_to_what_the_blocks_give(family: str) -> None:
    """Pre-norm: a block's input plus its sublayers' outputs is its output. Post-norm: norm(x + h) is what follows."""
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    keys = [sublayer.key for sublayer in model.places.sublayers]
    model.attach("a", Adapter(Bottleneck(), sublayers={key: Spy(seen, key) for key in keys}))
    streams: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for number, path in enumerate(model.places.blocks):

        def note(_module: Any, args: Any, output: Any, number: int = number) -> None:
            after = output[0] if isinstance(output, tuple) else output
            streams[number] = (args[0].flatten(0, 1), after.flatten(0, 1))

        model.base.get_submodule(path).register_forward_hook(note)
    run(model, family)
    assert set(seen) == set(keys)
    for number in range(len(model.places.blocks)):
        own = [sublayer for sublayer in model.places.sublayers if sublayer.block == number]
        stream, after = streams[number]
        for sublayer, following in itertools.zip_longest(own, own[1:]):
            h, x = seen[sublayer.key]
            if sublayer.norm_after is not None:
                closed = model.base.get_submodule(sublayer.norm_after)(x + h)
                assert relative(closed, after if following is None else seen[following.key][1]) < 1e-5
            elif sublayer is own[0]:
                assert relative(x, stream) < 1e-6
        if own[0].norm_after is None:
            assert relative(stream + sum(seen[sublayer.key][0] for sublayer in own), after) < 1e-5
            x = seen[own[1].key][1]
            parallel = family in ("phi", "cohere", "falcon", "gpt_neox")
            assert relative(x, stream if parallel else stream + seen[own[0].key][0]) < 1e-5


@pytest.mark.parametrize("family", ALL)
@pytest.mark.parametrize("kind", ["seq_bn", "double_seq_bn", "par_bn"])
def test_every_family_trains_every_kind(family: str, kind: str) -> None:
    model = AdaptedModel(make_base(family))
    adapter = randomise(model.add("a", Bottleneck(kind=kind, size=4)))
    found = {}
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        adapter.zero_grad()
        output = run(model, family)
        output.square().sum().backward()
        found[checkpointing] = [parameter.grad.clone() for parameter in adapter.parameters()]
    assert all(gradient.any() for gradient in found[False])
    for one, other in zip(found[False], found[True], strict=True):
        assert relative(other, one) < 1e-6
    assert relative(output.detach(), run(model, family, None)) > 1e-3
    model.remove("a")
    assert sum(len(module._forward_hooks) for module in model.base.modules()) == 0


# --- by hand ----------------------------------------------------------------------------------------------------


def net(**settings: Any) -> BottleneckNet:
    """Two wide, one inside: down (1, 1) with bias −1, up (2, −1) with bias (0, 1)."""
    defaults: dict[str, Any] = {
        "activation": "relu",
        "scaling": 1.0,
        "reads": "output",
        "norm_before": False,
        "norm_after": False,
        "residual_first": False,
    }
    made = BottleneckNet(2, 1, **(defaults | settings))
    with torch.no_grad():
        made.down.weight.copy_(torch.tensor([[1.0, 1.0]]))
        made.down.bias.copy_(torch.tensor([-1.0]))
        made.up.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        made.up.bias.copy_(torch.tensor([0.0, 1.0]))
    return made


H, X = torch.tensor([[1.0, 2.0], [0.5, 0.0]]), torch.tensor([[3.0, -1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [[4.0, -1.0], [0.0, 1.0]]),  # of h: 1 + 2 − 1 = 2, and relu(−0.5) = 0
        ({"reads": "stream"}, [[2.0, 0.0], [2.0, 0.0]]),  # of x: 1 and 1
        ({"reads": "sum"}, [[8.0, -3.0], [3.0, -0.5]]),  # of h + x: 4 and 1.5
        ({"scaling": 4.0}, [[16.0, -4.0], [0.0, 4.0]]),  # the outer bias is scaled too
        ({"activation": "linear"}, [[4.0, -1.0], [-1.0, 1.5]]),
        ({"reads": "sum", "norm": True}, [[3.0, -0.5], [0.5, 0.75]]),  # of half of it: 1.5 and 0.25
        ({"adds_to": "sum"}, [[7.0, -2.0], [1.0, 2.0]]),  # x once more
        ({"reads": "sum", "adds_to": "read"}, [[11.0, -4.0], [4.0, 0.5]]),
    ],
)
def test_by_hand(settings: dict[str, Any], expected: list[list[float]]) -> None:
    norm = (lambda z: z / 2) if settings.pop("norm", False) else None
    assert net(**settings)(H, X, norm).tolist() == expected


def test_own_norms_by_hand() -> None:
    """A norm of two numbers that differ gives ±1."""
    after = net(norm_after=True)
    wanted = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert torch.allclose(after(H, X, None), wanted, atol=1e-4)  # of (4, −1) and (0, 1)
    first = net(norm_after=True, residual_first=True)
    both = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])  # of (4 + 1, −1 + 2) and (0.5, 1)
    assert torch.allclose(first(H, X, None) + H, both, atol=1e-3)


# --- starts and settings ----------------------------------------------------------------------------------------


def test_it_starts_near_the_identity() -> None:
    model = AdaptedModel(make_base("llama"))
    base = run(model, "llama", None)
    for kind in ("seq_bn", "double_seq_bn", "par_bn"):
        adapter = model.add(kind, Bottleneck(kind=kind, size=16))
        difference = relative(run(model, "llama", kind).detach(), base)
        if kind == "par_bn":
            assert difference == 0
        else:
            assert 0 < difference < 2e-2
            weights = torch.cat([p.detach().flatten() for p in adapter.parameters() if p.dim() == 2])
            assert abs(float(weights.std()) - 0.02) < 0.002
        assert not any(p.any() for name, p in adapter.named_parameters() if name.endswith("bias"))
    again = AdaptedModel(make_base("llama")).add("seq_bn", Bottleneck(size=16))
    for one, other in zip(again.parameters(), model.adapters["seq_bn"].parameters(), strict=True):
        assert torch.equal(one, other)


def test_presets_and_sizes() -> None:
    model = AdaptedModel(make_base("llama"))
    assert {part.rpartition(".")[2] for part in model.add("a", Bottleneck()).sublayers} == {"feed_forward"}
    double = model.add("b", Bottleneck(kind="double_seq_bn"))
    assert {part.rpartition(".")[2] for part in double.sublayers} == {"attention", "feed_forward"}
    assert [net.down.out_features for net in double.sublayers.values()] == [2] * 4
    parallel = model.add("c", Bottleneck(kind="par_bn"))
    assert [net.down.out_features for net in parallel.sublayers.values()] == [16] * 2
    assert [net.scaling for net in parallel.sublayers.values()] == [4.0] * 2
    assert len(model.add("d", Bottleneck(blocks=[1])).sublayers) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 4, "reduction_factor": 2}, "size or reduction_factor, not both"),
        ({"placement": "parallel", "reads": "sum"}, "reads: sum"),
        ({"placement": "parallel", "adds_to": "sum"}, "adds_to"),
        ({"residual": "before_norm"}, "layer_norm_after"),
        ({"size": 0}, "greater than or equal to 1"),
        ({"kind": "seq"}, "seq_bn"),
        ({"sublayers": []}, "at least 1 item"),
        ({"width": 3}, "width"),
    ],
)
def test_settings_that_do_not_fit_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Bottleneck(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sublayers": ["cross_attention"]}, "LlamaForCausalLM has no cross_attention"),
        ({"size": 33}, "size 33 is wider than the base"),
        ({"blocks": [2]}, "blocks: there is no block 2"),
    ],
)
def test_what_a_base_lacks(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaptedModel(make_base("llama")).add("a", Bottleneck(**settings))


@pytest.mark.parametrize("family", ["llama", "bert", "bart"])
def test_a_stack_counts_in_any_order(family: str) -> None:
    model = AdaptedModel(make_base(family))
    for number, (name, config) in enumerate({"a": Bottleneck(kind="par_bn"), "b": LoRA(rank=2)}.items()):
        randomise(model.add(name, config), seed=number)
    inputs = batch(family)
    ids = inputs.pop("input_ids")
    with torch.no_grad():
        one = model.hidden(ids, adapters=("a", "b"), **inputs).last_hidden_state
        other = model.hidden(ids, adapters=("b", "a"), **inputs).last_hidden_state
    assert relative(one, other) < 1e-6


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family), name="random")
    config = Bottleneck(kind="double_seq_bn", scaling="channel", layer_norm_before=True, placement="stream")
    randomise(model.add("a", config))
    model.save("a", tmp_path / "a")
    again = AdaptedModel(make_base(family), name="random")
    again.load(tmp_path / "a")
    assert again.adapters["a"].config == config
    assert relative(run(again, family), run(model, family)) == 0
    stored = config.store(model.adapters["a"], model.places, "x")
    key = next(key for key in stored.tensors if key.endswith("down.weight"))
    stored.tensors[key] = stored.tensors[key][:, :5]
    with pytest.raises(UserError, match="does not fit this base"):
        config.restore(stored, model.places, device=model.device)
