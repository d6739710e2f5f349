"""DoRA, LoRA on embeddings, modules trained as copies and LoRA+: against peft, in stacks, merged, and in training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.optimizers import create_loraplus_optimizer
from pydantic import ValidationError
from torch import nn

import graftlm
from graftlm import AdaptedModel, LoRA
from graftlm.adapters.dora import DoRA
from graftlm.adapters.lora_embedding import LowRankEmbedding
from graftlm.adapters.merge import export_merged
from graftlm.adapters.method import Adapter, Change, LowRank, Update
from graftlm.adapters.own_module import OwnModule
from graftlm.adapters.routing import Routing, routed
from graftlm.errors import UserError
from graftlm.objectives.log_probs import token_log_probs
from tests.families import add_random, gradients, make_base, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
IDS = torch.tensor([[3, 4, 5, 6, 7, 8, 9, 10], [11, 3, 3, 12, 0, 13, 14, 15]])  # the padding id among them
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte", "gemma3": "embed_tokens", "qwen3": "embed_tokens"}
HEAD = {"llama": "lm_head", "gpt2": "lm_head", "gemma3": "lm_head", "qwen3": "lm_head"}
LINEAR = {"llama": "q_proj", "gpt2": "c_fc", "gemma3": "down_proj", "qwen3": "q_proj"}
NORM = {"llama": "model.norm", "gpt2": "ln_2", "gemma3": "q_norm", "qwen3": "input_layernorm"}
FAMILIES = list(EMBEDDING)


def cases(family: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Our settings and peft's, by name."""
    linear, embedding, head, norm = LINEAR[family], EMBEDDING[family], HEAD[family], NORM[family]
    return {
        "dora": ({"dora": True}, {"use_dora": True}),
        "dora with rslora and patterns": (
            {"dora": True, "rslora": True, "rank_pattern": {linear: 2}, "alpha_pattern": {linear: 5}},
            {"use_dora": True, "use_rslora": True, "rank_pattern": {linear: 2}, "alpha_pattern": {linear: 5}},
        ),
        "embedding": ({"targets": [linear, embedding]}, {"target_modules": [linear, embedding]}),
        "embedding alone": ({"targets": embedding}, {"target_modules": [embedding]}),
        "dora on the embedding": (
            {"dora": True, "targets": [linear, embedding], "rslora": True},
            {"use_dora": True, "target_modules": [linear, embedding], "use_rslora": True},
        ),
        "head": ({"modules_to_save": [head]}, {"modules_to_save": [head]}),
        "norms": ({"modules_to_save": [norm], "dora": True}, {"modules_to_save": [norm], "use_dora": True}),
        "copy of the embedding": ({"modules_to_save": [embedding]}, {"modules_to_save": [embedding]}),
        "copies of both": (
            {"modules_to_save": [embedding, head], "targets": [linear]},
            {"modules_to_save": [embedding, head], "target_modules": [linear]},
        ),
        "copy of a layer": (
            {"modules_to_save": [linear]},
            {"modules_to_save": [linear]},
        ),
    }


CASES = [(family, case) for family in FAMILIES for case in cases(family)]


def peft_model(family: str, **settings: Any) -> Any:
    """A peft model, everything that it trains random."""
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 7, "target_modules": "all-linear", **settings}
    model = peft.get_peft_model(make_base(family), peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def pairs(adapter: Adapter, theirs: Any) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
    """Our parameters beside peft's, which are all that it trains."""
    trained = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    for path, update in adapter.linear.items():
        for mine, name in _names(update):
            key = f"base_model.model.{path}.{name}"
            yield key, update.get_parameter(mine), trained.pop(key)
    assert not trained, list(trained)


def _names(update: Update) -> list[tuple[str, str]]:
    if isinstance(update, LowRank):
        return [(f"lora_{letter}", f"lora_{letter}.default.weight") for letter in "AB"]
    if isinstance(update, LowRankEmbedding):
        return [(f"lora_{letter}", f"lora_embedding_{letter}.default") for letter in "AB"]
    if isinstance(update, DoRA):
        inner = [(f"low_rank.{mine}", theirs) for mine, theirs in _names(update.low_rank)]
        return [*inner, ("magnitude", "lora_magnitude_vector.default.weight")]
    assert isinstance(update, OwnModule)
    return [(f"module.{name}", f"modules_to_save.default.{name}") for name, _ in update.module.named_parameters()]


def loss(logits: torch.Tensor) -> torch.Tensor:
    targets = (IDS * 7 + 5) % logits.shape[-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets.flatten())


@pytest.mark.parametrize(("family", "case"), CASES)
def test_outputs_and_gradients(family: str, case: str) -> None:
    mine, peers = cases(family)[case]
    ours, theirs = AdaptedModel(make_base(family)), peft_model(family, **peers)
    adapter = ours.add("a", LoRA(rank=4, alpha=7, **mine))
    with torch.no_grad():
        for _, parameter, peer in pairs(adapter, theirs):
            parameter.copy_(peer)
    logits, expected = ours(IDS, adapters="a").logits, theirs(input_ids=IDS).logits
    assert relative(logits.detach(), expected.detach()) < 1e-5
    assert relative(logits.detach(), ours(IDS).logits.detach()) > 1e-3
    loss(logits).backward()
    loss(expected).backward()
    for key, parameter, peer in pairs(adapter, theirs):
        assert peer.grad is not None, key
        assert relative(parameter.grad, peer.grad) < 1e-5, key


@pytest.mark.parametrize(("family", "case"), CASES)
def test_the_start_is_that_of_peft(family: str, case: str) -> None:
    """Nothing changes at first, and the magnitudes are peft's."""
    mine, peers = cases(family)[case]
    ours = AdaptedModel(make_base(family))
    adapter = ours.add("a", LoRA(rank=4, alpha=7, **mine))
    with torch.no_grad():
        assert relative(ours(IDS, adapters="a").logits, ours(IDS).logits) < 1e-5
    settings = {"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 7, "target_modules": "all-linear", **peers}
    theirs = peft.get_peft_model(make_base(family), peft.LoraConfig(**settings))
    for key, parameter, peer in pairs(adapter, theirs):
        assert parameter.shape == peer.shape, key
        if "magnitude" in key or "modules_to_save" in key:
            assert relative(parameter, peer) < 1e-6, key
        assert bool(parameter.any()) == bool(peer.any()), key


def load_in_peft(family: str, folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing|unexpected).*keys.*")
        return peft.PeftModel.from_pretrained(make_base(family), folder).eval()


@pytest.mark.parametrize(("family", "case"), CASES)
def test_peft_reads_ours_and_so_do_we(family: str, case: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family), name=family)
    model.add("a", LoRA(rank=4, alpha=7, **cases(family)[case][0]))
    randomise(model.adapters["a"], std=0.2)
    model.save("a", tmp_path / "a")
    theirs = load_in_peft(family, tmp_path / "a")
    model.load(tmp_path / "a", "b")
    assert model.adapters["b"].config == model.adapters["a"].config
    with torch.no_grad():
        expected = model(IDS, adapters="a").logits
        assert relative(theirs(input_ids=IDS).logits, expected) < 1e-5
        assert torch.equal(model(IDS, adapters="b").logits, expected)


@pytest.mark.parametrize(("family", "case"), CASES)
def test_we_read_pefts(family: str, case: str, tmp_path: Path) -> None:
    theirs = peft_model(family, **cases(family)[case][1])
    theirs.save_pretrained(tmp_path)
    model = AdaptedModel(make_base(family))
    model.load(tmp_path, "a")
    with torch.no_grad():
        expected = theirs(input_ids=IDS).logits
        assert relative(model(IDS, adapters="a").logits, expected) < 1e-5
    model.save("a", tmp_path / "again")
    with torch.no_grad():
        assert relative(load_in_peft(family, tmp_path / "again")(input_ids=IDS).logits, expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dora_with_dropout_is_pefts(family: str) -> None:
    """peft drops out the input of the base's product, too; here with one mask for both."""
    theirs = peft_model(family, use_dora=True, lora_dropout=0.5).train()
    model = AdaptedModel(make_base(family))
    adapter = model.add("a", LoRA(rank=4, alpha=7, dora=True, dropout=0.5))
    with torch.no_grad():
        for _, parameter, peer in pairs(adapter, theirs):
            parameter.copy_(peer)
    for path, update in adapter.linear.items():
        assert isinstance(update, DoRA)
        layer, place = theirs.base_model.model.get_submodule(path), model.places.linears[path]
        x = torch.randn(5, place.in_features)
        mask = (torch.rand_like(x) > 0.5) * 2.0
        layer.lora_dropout["default"] = _Times(mask)
        expected = layer(x)
        base = layer.base_layer(x)
        assert relative(base + update.with_dropout(x, x * mask, base), expected) < 1e-5, path


class _Times(nn.Module):
    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask


def test_dora_dropout_is_the_rows_own(llama: AdaptedModel) -> None:
    randomise(llama.add("a", LoRA(rank=4, dora=True, dropout=0.5)))
    seeds = [{"a": 3}, {"a": 4}]
    both = llama.hidden(IDS, adapters=Routing.of_rows(["a", "a"], 8, seeds=seeds)).last_hidden_state
    for row in (0, 1):
        alone = Routing.of_rows(["a"], 8, seeds=[seeds[row]])
        assert relative(llama.hidden(IDS[row : row + 1], adapters=alone).last_hidden_state, both[row : row + 1]) < 1e-5
    assert relative(llama.hidden(IDS, adapters="a").last_hidden_state, both) > 1e-2


STACK = {
    "lora": LoRA(rank=3),
    "dora": LoRA(rank=2, dora=True, dropout=0.1),
    "ia3": graftlm.IA3(),
    "copies": LoRA(rank=2, modules_to_save=["lm_head", "*norm*"]),
}


@pytest.mark.parametrize("stack", [("lora", "dora"), ("copies", "lora"), ("dora", "copies", "lora"), ("ia3", "lora")])
def test_stacks_add_up_in_any_order(stack: tuple[str, ...], llama: AdaptedModel) -> None:
    add_random(llama, STACK)
    with torch.no_grad():
        one = llama(IDS, adapters=stack).logits
        other = llama(IDS, adapters=tuple(reversed(stack))).logits
    assert relative(one, other) < 1e-5
    for name in stack:
        assert relative(one, llama(IDS, adapters=name).logits.detach()) > 1e-3


def test_dora_over_lora_by_hand(llama: AdaptedModel) -> None:
    """One layer of the stack: both are changes of the base's own output."""
    add_random(llama, {"lora": LoRA(rank=3), "dora": LoRA(rank=2, dora=True)})
    path = "model.layers.0.mlp.up_proj"
    caught: dict[str, torch.Tensor] = {}
    layer = llama.base.get_submodule(path)
    layer.register_forward_hook(lambda _, args, output: caught.update(x=args[0], y=output))
    with torch.no_grad():
        llama(IDS, adapters=("lora", "dora"))
    x, weight = caught["x"], layer.weight
    lora, dora = llama.adapters["lora"].linear[path], llama.adapters["dora"].linear[path]
    assert isinstance(lora, LowRank)
    assert isinstance(dora, DoRA)
    V = weight + dora.low_rank.scale * dora.low_rank.lora_B @ dora.low_rank.lora_A
    directed = dora.magnitude[:, None] * V / V.norm(dim=1, keepdim=True)
    expected = x @ (directed + lora.scale * lora.lora_B @ lora.lora_A).T
    assert relative(caught["y"], expected) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_the_same(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family), name=family)
    linear, embedding, head, norm = LINEAR[family], EMBEDDING[family], HEAD[family], NORM[family]
    add_random(
        model,
        {
            "dora": LoRA(rank=3, dora=True, targets=["all-linear", embedding]),
            "embedding": LoRA(rank=3, targets=[linear, embedding]),
            "copies": LoRA(rank=3, modules_to_save=[head, norm]),
            "table": LoRA(rank=3, modules_to_save=[embedding]),
        },
    )
    for stack in [("dora",), ("embedding",), ("copies",), ("table", "dora"), ("dora", "copies", "embedding", "table")]:
        assert export_merged(model, stack, tmp_path / "-".join(stack)).relative < 1e-5, stack


def test_merging_a_stack_with_scaled_outputs_and_inputs(llama: AdaptedModel, tmp_path: Path) -> None:
    add_random(llama, STACK)
    for stack in [("lora", "ia3"), ("ia3", "dora"), ("dora", "ia3", "copies")]:
        assert export_merged(llama, stack, tmp_path / "-".join(stack)).relative < 1e-5, stack


def test_an_own_head_is_trained_through_chunks_and_beside_others(llama: AdaptedModel) -> None:
    add_random(llama, {"a": LoRA(rank=2, modules_to_save=["lm_head"]), "b": LoRA(rank=2, modules_to_save=["lm_head"])})
    hidden, targets = torch.randn(70, 32), torch.randint(0, 67, (70,))
    routing = Routing.of_rows(["a", None, "b"], [30, 10, 30])
    found = token_log_probs(
        llama.score, hidden, targets, vocabulary=500_000, routing=routing, head_is_trained=llama.head_is_adapted
    )
    (found * torch.linspace(-1, 1, 70)).sum().backward()
    actual = gradients(llama.adapters.values())
    heads = [
        llama.adapters["a"].linear["lm_head"].get_parameter("module.weight"),
        llama.base.lm_head.weight,
        llama.adapters["b"].linear["lm_head"].get_parameter("module.weight"),
    ]
    logits = torch.cat([part @ head.T for part, head in zip(hidden.split([30, 10, 30]), heads, strict=True)])
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)
    assert relative(found, expected) < 1e-5
    wanted = torch.autograd.grad((expected * torch.linspace(-1, 1, 70)).sum(), [heads[0], heads[2]])
    assert relative(actual["0.lm_head.module.weight"], wanted[0]) < 1e-5
    assert relative(actual["1.lm_head.module.weight"], wanted[1]) < 1e-5


def test_virtual_tokens_beside_an_adapted_embedding(llama: AdaptedModel) -> None:
    """They are no rows of the embedding, and nothing is added to them."""
    add_random(
        llama,
        {
            "prompt": graftlm.Prompt(length=3),
            "low": LoRA(rank=2, targets=["embed_tokens"]),
            "own": LoRA(rank=2, targets=["q_proj"], modules_to_save=["embed_tokens"]),
        },
    )
    virtual = llama.adapters["prompt"].virtual
    assert virtual is not None
    low, own = llama.adapters["low"].linear["model.embed_tokens"], llama.adapters["own"].linear["model.embed_tokens"]
    table = llama.base.get_input_embeddings().weight
    assert isinstance(low, LowRankEmbedding)
    tables = {"low": table + low.delta().T, "own": own.get_parameter("module.weight")}
    with torch.no_grad():
        for name, changed in tables.items():
            found = llama(IDS, adapters=("prompt", name)).logits
            embeds = torch.cat([virtual().expand(2, -1, -1), changed[IDS]], dim=1)
            adapters = Routing.of_rows([name, name], 11)
            expected = _with_embeddings(llama, embeds, adapters)[:, 3:]
            assert relative(found, expected) < 1e-5, name


def _with_embeddings(model: AdaptedModel, embeds: torch.Tensor, routing: Routing) -> torch.Tensor:
    """Logits where the embedding is given, and the adapters' other parts work."""
    from graftlm.adapters.routing import routed

    with routed(routing):
        logits: torch.Tensor = model.base(inputs_embeds=embeds).logits
    return logits


def test_learning_rates_of_lora_plus(llama: AdaptedModel) -> None:
    """The groups of peft's optimizer, which keeps one rate for A and another for B."""
    adapter = llama.add("a", LoRA(rank=4, b_learning_rate_ratio=16.0))
    theirs = peft.get_peft_model(make_base("llama"), peft.LoraConfig(r=4, target_modules="all-linear"))
    optimizer = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    named = dict(theirs.named_parameters())
    for path, update in adapter.linear.items():
        for letter in "AB":
            name = f"{path.replace('.', '/')}.lora_{letter}"
            assert dict(adapter.named_parameters())[name] is getattr(update, f"lora_{letter}")
            peer = named[f"base_model.model.{path}.lora_{letter}.default.weight"]
            assert rates[id(peer)] == pytest.approx(1e-3 * adapter.learning_rate_scale(name))
    usual = llama.add("b", LoRA(dora=True))
    assert {usual.learning_rate_scale(name) for name, _ in usual.named_parameters()} == {1.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["lm_haed"]}, "modules_to_save: 'lm_haed' matches no module(.|\n)*Did you mean 'lm_head'"),
        ({"targets": ["embed_token"]}, "'embed_token' matches no linear layer"),
        ({"targets": ["embed_tokens"], "rank": 33}, "rank 33 is larger than model.embed_tokens allows"),
        ({"targets": ["embed_tokens"], "init": "pissa"}, "pissa has no meaning for the embedding"),
        ({"targets": ["embed_tokens"], "exclude": ["embed_tokens"]}, "no linear layer is left"),
    ],
)
def test_what_does_not_fit(llama: AdaptedModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        llama.add("a", LoRA(**settings))
    assert not llama.adapters


def test_dora_needs_a_dense_weight(llama: AdaptedModel) -> None:
    path = "model.layers.0.mlp.up_proj"
    place = llama.places.linears[path]
    object.__setattr__(place, "plain", False)
    with pytest.raises(UserError, match=f"dora needs the dense weight of {path}"):
        llama.add("a", LoRA(dora=True))
    llama.add("a", LoRA())


@pytest.mark.parametrize("settings", [{"dora": True, "init": "pissa"}, {"b_learning_rate_ratio": 0}])
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoRA(**settings)


@pytest.mark.parametrize("drop", ["lora_magnitude_vector", "lora_B.weight", "lora_embedding_A"])
def test_missing_keys_are_named(drop: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peft_model("llama", use_dora=True, target_modules=["q_proj", "embed_tokens"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(key for key in tensors if key.endswith(drop))]
    save_file(tensors, file)
    with pytest.raises(UserError, match="is missing"):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


def test_copies_of_another_base_are_refused(tmp_path: Path) -> None:
    peft_model("qwen3", modules_to_save=["q_norm"]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="q_norm, which this base does not have"):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


def test_a_copy_shares_the_base_and_nothing_else(llama: AdaptedModel) -> None:
    randomise(llama.add("a", LoRA(rank=2, dora=True)))
    twin = llama.copy("a", "b")
    assert twin.trained_parameters == llama.adapters["a"].trained_parameters
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in llama.adapters["a"].parameters()}
    with torch.no_grad():
        assert torch.equal(llama(IDS, adapters="a").logits, llama(IDS, adapters="b").logits)
    update = twin.linear["model.layers.0.mlp.up_proj"]
    assert isinstance(update, DoRA)
    assert update._weight().data_ptr() == llama.base.get_parameter("model.layers.0.mlp.up_proj.weight").data_ptr()


def test_one_line_on_what_it_is() -> None:
    assert LoRA(rank=4).describe() == "LoRA rank 4, all-linear"
    full = LoRA(dora=True, targets=["q_proj", "wte"], modules_to_save=["lm_head"], b_learning_rate_ratio=16)
    assert full.describe() == "DoRA rank 8, q_proj, wte, copies of lm_head, B learns 16 ×"
    assert graftlm.IA3().describe() == "ia3"
    assert graftlm.IA3(targets=["k_proj", "v_proj"]).describe() == "ia3, targets k_proj, v_proj"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_the_short_way_without_gradients_is_the_long_one(family: str, dtype: torch.dtype) -> None:
    """One adapter for all rows, without gradients; with few tokens, and with so many that W + sBA is made."""
    model = AdaptedModel(make_base(family, dtype=dtype))
    add_random(model, {"a": LoRA(rank=3, targets=["all-linear", "lm_head"])})
    for length in (1, 2, 50):
        ids = torch.arange(2 * length).view(2, length) % 60
        kwargs = {"decoder_input_ids": ids + 1} if family == "t5" else {}
        expected = model(ids, adapters="a", **kwargs).logits
        assert expected.requires_grad
        with torch.no_grad():
            found = model(ids, adapters="a", **kwargs).logits
        assert relative(found, expected) < (1e-5 if dtype != torch.bfloat16 else 2e-2)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_short_way_in_half_precision_adds_as_the_long_one_does(family: str) -> None:
    """To the last bit: W + sBA, rounded to bfloat16, would be another update."""
    model = AdaptedModel(make_base(family, dtype=torch.bfloat16))
    randomise(model.add("a", LoRA(rank=3), dtype=torch.bfloat16))
    ids = torch.arange(100).view(2, 50) % 60
    expected = model(ids, adapters="a").logits
    with torch.no_grad():
        assert torch.equal(model(ids, adapters="a").logits, expected)


@pytest.mark.parametrize("length", [1, 50])
def test_the_short_way_under_autocast(length: int) -> None:
    model = AdaptedModel(make_base("llama"))
    randomise(model.add("a", LoRA(rank=3)))
    ids = torch.arange(2 * length).view(2, length) % 60
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(ids, adapters="a").logits
        with torch.no_grad():
            found = model(ids, adapters="a").logits
    assert relative(found, expected) < 2e-2


def test_a_change_that_cannot_be_merged_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Change().merge_into(nn.Linear(2, 2))


class _HalfOutput(nn.Linear):
    """A linear layer that is no plain product, as quantised ones are: its output has another precision."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (2 * super().forward(x)).bfloat16()


@pytest.mark.parametrize("length", [1, 50])
def test_the_short_way_behind_a_layer_that_is_no_plain_product(length: int) -> None:
    base = make_base("llama")
    base.lm_head.__class__ = _HalfOutput
    model = AdaptedModel(base)
    assert model.places.linears["lm_head"].dense_weight() is None
    randomise(model.add("a", LoRA(rank=3, targets=["lm_head"])))
    ids = torch.arange(2 * length).view(2, length) % 60
    expected = model(ids, adapters="a").logits
    with torch.no_grad():
        found = model(ids, adapters="a").logits
    assert found.dtype == expected.dtype == torch.bfloat16
    assert relative(found, expected) < 1e-2
    assert relative(found, model(ids).logits) > 1e-1


@pytest.mark.parametrize("tokens", [3, 50])
@pytest.mark.parametrize("grad", [False, True])
def test_a_layer_that_runs_on_other_tokens_than_the_routing_is_an_error(tokens: int, grad: bool) -> None:
    model = AdaptedModel(make_base("llama"))
    randomise(model.add("a", LoRA(rank=3)))
    place = model.places.linears["model.layers.0.self_attn.q_proj"]
    said = pytest.raises(RuntimeError, match=rf"q_proj ran on {tokens + 7} tokens, but the routing covers {tokens}")
    with torch.set_grad_enabled(grad), routed(Routing.of_rows(["a"], tokens)), said:
        place.module(torch.randn(1, tokens + 7, place.in_features))
