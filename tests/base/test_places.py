"""Where adapters attach: blocks, linear layers in the order in which they run, sublayers, the head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from graftlm import AdaptedModel, LoRA
from graftlm.base.places import find_places, is_linear
from graftlm.errors import UserError
from tests.families import FAMILIES, LAYERS, VOCABULARY, make_base, randomise

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
NEOX = ["query_key_value", "dense"], ["dense_h_to_4h", "dense_4h_to_h"]
EXPECTED = {
    **dict.fromkeys(["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "granite", "cohere"], LLAMA),
    "phi": (["q_proj", "k_proj", "v_proj", "dense"], ["fc1", "fc2"]),
    "phi3": (["qkv_proj", "o_proj"], ["gate_up_proj", "down_proj"]),
    "gpt2": (["c_attn", "c_proj"], ["c_fc", "c_proj"]),
    "opt": (["q_proj", "k_proj", "v_proj", "out_proj"], ["fc1", "fc2"]),
    **dict.fromkeys(["gpt_neox", "falcon", "falcon_alibi"], NEOX),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_places_of_a_family(family: str) -> None:
    base = make_base(family)
    places = find_places(base)
    attention, feed_forward = EXPECTED[family]

    assert len(places.blocks) == LAYERS
    for number, block in enumerate(places.blocks):
        assert block.endswith(f".{number}")
    for sublayer, (block_number, kind, names) in zip(
        places.sublayers,
        [(n, *pair) for n in range(LAYERS) for pair in (("attention", attention), ("feed_forward", feed_forward))],
        strict=True,
    ):
        assert (sublayer.block, sublayer.kind) == (block_number, kind)
        assert [path.rpartition(".")[2] for path in sublayer.linears] == names

    in_blocks = {
        path
        for block in places.blocks
        for path, module in base.named_modules()
        if path.startswith(block + ".") and is_linear(module)
    }
    assert set(places.linears) == in_blocks | {places.head}
    assert list(places.linears)[-1] == places.head == "lm_head"
    assert [place.index for place in places.linears.values()] == list(range(len(places.linears)))
    blocks = [place.block for place in places.linears.values()]
    assert blocks == [*sorted(block for block in blocks if block is not None), None]
    for path, place in places.linears.items():
        assert place.module is base.get_submodule(path)
        assert place.path == path


@pytest.mark.parametrize("family", FAMILIES)
def test_linear_layers_come_in_the_order_in_which_they_run(family: str) -> None:
    base = make_base(family)
    places = find_places(base)
    ran: list[str] = []
    for path, module in base.named_modules():
        if is_linear(module):
            module.register_forward_hook(lambda *_args, path=path: ran.append(path))
    with torch.no_grad():
        base(torch.tensor([[3, 4, 5]]), use_cache=False)
    assert ran == list(places.linears)


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_and_dense_weight(family: str) -> None:
    for place in find_places(make_base(family)).linears.values():
        weight = place.dense_weight()
        assert weight is not None
        assert weight.shape == (place.out_features, place.in_features)
        x = torch.randn(3, place.in_features)
        with torch.no_grad():
            expected = nn.functional.linear(x, weight, getattr(place.module, "bias", None))
            torch.testing.assert_close(place.module(x), expected)


def test_conv1d_sizes_are_read_the_right_way_round() -> None:
    c_attn = find_places(make_base("gpt2")).linears["transformer.h.0.attn.c_attn"]
    assert (c_attn.in_features, c_attn.out_features) == (32, 96)


class Quantised(nn.Linear):
    """Eight bits: the weight that it keeps is not the one that it multiplies with."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step = self.weight.abs().max() / 127
        return nn.functional.linear(x, (self.weight / step).round() * step, self.bias)


class Renamed(nn.Linear):
    pass


@pytest.mark.parametrize(("kind", "plain"), [(Quantised, False), (Renamed, True)])
def test_a_subclass_of_linear_is_asked_what_it_does(kind: type[nn.Linear], plain: bool) -> None:
    base = make_base("llama")
    base.model.layers[0].mlp.up_proj = kind(32, 48)
    assert (find_places(base).linears["model.layers.0.mlp.up_proj"].dense_weight() is not None) == plain


def test_the_probe_leaves_nothing_behind() -> None:
    base = make_base("llama")
    find_places(base)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    assert all(parameter.grad is None for parameter in base.parameters())


def test_a_mixture_of_experts_is_refused() -> None:
    config = MixtralConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    with pytest.raises(UserError, match="expert layers") as raised:
        find_places(MixtralForCausalLM(config))
    assert "Use a dense model" in str(raised.value)


# --- families that nobody has seen -----------------------------------------------------------------------------


class HomeConfig(PreTrainedConfig):
    model_type = "home"

    def __init__(self, hidden_size: int = 16, nested: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vocab_size = VOCABULARY
        self.hidden_size = hidden_size
        self.nested = nested


class HomeAttention(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.out = nn.Linear(d, d)  # registered first, run last
        self.mixed = nn.Linear(d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.mixed(x).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        return self.out(mean)


class HomeBlock(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.attention = HomeAttention(d)
        self.wide = nn.Linear(d, 2 * d)
        self.narrow = nn.Linear(2 * d, d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.narrow(self.wide(x).relu())


class HomeBase(PreTrainedModel):
    config_class = HomeConfig

    def __init__(self, config: HomeConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(VOCABULARY, config.hidden_size)
        blocks = [HomeBlock(config.hidden_size) for _ in range(3)]
        if config.nested:  # no list of equal modules to find
            self.first, self.second, self.third = blocks
        else:
            self.tower = nn.ModuleList(blocks)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> BaseModelOutputWithPast:
        x = self.embed(input_ids)
        for block in [self.first, self.second, self.third] if self.config.nested else self.tower:
            x = block(x)
        return BaseModelOutputWithPast(last_hidden_state=x)


class HomeModel(PreTrainedModel):
    config_class = HomeConfig
    base_model_prefix = "body"

    def __init__(self, config: HomeConfig) -> None:
        super().__init__(config)
        self.body = HomeBase(config)
        self.speak = nn.Linear(config.hidden_size, VOCABULARY)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.speak

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        return CausalLMOutputWithPast(logits=self.speak(self.body(input_ids).last_hidden_state))


def test_an_unknown_family_is_found_by_its_structure() -> None:
    model = AdaptedModel(HomeModel(HomeConfig()))
    assert model.places.blocks == ("body.tower.0", "body.tower.1", "body.tower.2")
    assert model.places.head == "speak"
    assert [path for path in model.places.linears if ".1." in path] == [
        "body.tower.1.attention.mixed",
        "body.tower.1.attention.out",
        "body.tower.1.wide",
        "body.tower.1.narrow",
    ]
    assert [(sublayer.kind, len(sublayer.linears)) for sublayer in model.places.sublayers[:2]] == [
        ("attention", 2),
        ("feed_forward", 2),
    ]
    model.add("a", LoRA(rank=2))
    randomise(model.adapters["a"])
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    mixed = model(ids, adapters=["a", None]).logits
    torch.testing.assert_close(mixed[:1], model(ids[:1], adapters="a").logits)
    torch.testing.assert_close(mixed[1:], model(ids[1:]).logits)
    assert not torch.allclose(mixed[:1], model(ids[:1]).logits)


def test_blocks_that_are_not_found_are_named_by_the_user() -> None:
    base = HomeModel(HomeConfig(nested=True))
    with pytest.raises(UserError, match="found no transformer blocks in HomeModel") as raised:
        AdaptedModel(base)
    assert "blocks='model.layers.*'" in str(raised.value)

    model = AdaptedModel(base, blocks="body.[fst]*")
    assert model.places.blocks == ("body.first", "body.second", "body.third")


def test_a_pattern_of_blocks_that_matches_nothing() -> None:
    with pytest.raises(UserError, match=r"'layers\.\*' matches no module") as raised:
        find_places(make_base("llama"), blocks="layers.*")
    assert "model.layers" in str(raised.value)


def test_named_blocks_equal_the_found_ones() -> None:
    base = make_base("llama")
    assert find_places(base, blocks="model.layers.*") == find_places(base)
