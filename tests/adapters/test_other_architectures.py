"""A base without attention: every method does something there, or says why it cannot."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import MambaConfig, MambaForCausalLM

from graftlm import IA3, AdaptedModel, Bottleneck, LoRA
from graftlm.adapters.method import MethodConfig
from graftlm.adapters.routing import RowAdapters
from graftlm.errors import UserError
from tests.adapters.test_grid import count_hooks
from tests.families import gradients, make_base, overridden, randomise, relative
from tests.methods import METHODS

REASONS = {
    "lora": "dt_proj allows",
    "copies": "'embed_tokens' matches no linear layer",
    "adalora": "dt_proj allows",
    "dylora": "dt_proj allows",
    "ia3": "has no attention, and so no keys and values",
    "bitfit": "MambaForCausalLM has none",
    "prefix": "computes attention inside its own modules",
    "prefix-plain": "computes attention inside its own modules",
}


@cache
def model() -> AdaptedModel:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=67, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0)
    found = AdaptedModel(MambaForCausalLM(config))
    for name in METHODS.keys() - REASONS.keys():
        randomise(found.add(name, METHODS[name]))
    return found


@pytest.mark.parametrize("name", REASONS)
def test_a_method_that_lacks_its_place_says_so(name: str) -> None:
    with pytest.raises(UserError, match=REASONS[name]):
        model().add(name, METHODS[name])
    assert name not in model().adapters


@pytest.mark.parametrize("name", sorted(METHODS.keys() - REASONS.keys()))
def test_the_others_change_what_comes_out(name: str) -> None:
    ids = torch.tensor([[3, 4, 5, 6]])
    adapter = model().adapters[name]
    adapter.zero_grad()
    logits = model()(ids, adapters=name).logits
    logits.square().sum().backward()
    with torch.no_grad():
        assert relative(logits, model()(ids).logits) > 1e-3
    served = gradients([adapter])
    unused = {key for key, _ in adapter.named_parameters() if "dt_proj" in key}  # Mamba takes its weight alone
    assert len(served) >= len([*adapter.parameters()]) - len(unused)


def test_rows_are_each_alone() -> None:
    names: list[RowAdapters] = [*sorted(model().adapters), None]
    ids = torch.arange(3, 3 + 5 * len(names)).view(len(names), 5) % 60 + 3
    with torch.no_grad():
        for name, row in zip(names, ids, strict=True):
            alone = model()(row[None], adapters=name).logits[0]
            beside = model()(torch.stack([row, ids[0]]), adapters=[name, "dora"]).logits[0]
            assert relative(beside, alone) < 1e-5, name


def test_layers_may_be_named_where_there_are_no_keys() -> None:
    adapter = model().add("named", IA3(targets=["in_proj"], feed_forward=["out_proj"]))
    randomise(adapter)
    ids = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert relative(model()(ids, adapters="named").logits, model()(ids).logits) > 1e-3
    model().remove("named")


@pytest.mark.parametrize("config", [LoRA(rank=2), Bottleneck(size=4, kind="double_seq_bn")], ids=["lora", "bottleneck"])
def test_an_adapter_of_another_base_leaves_nothing_behind(config: MethodConfig) -> None:
    adapter = AdaptedModel(make_base("llama")).add("a", config)
    base = MambaForCausalLM(MambaConfig(vocab_size=67, hidden_size=32, state_size=4, num_hidden_layers=2))
    hooks = count_hooks(base)
    other = AdaptedModel(base)
    with pytest.raises(UserError, match=r"changes (model\.layers\.0\S*|0\.attention), which MambaForCausalLM does not"):
        other.attach("a", adapter)
    assert not other.adapters
    assert overridden(base) == []
    assert count_hooks(base) == hooks
