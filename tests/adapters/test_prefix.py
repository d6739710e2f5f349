"""Prefix tuning against peft as an oracle, and alone against batched with prefixes of unequal length."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache

from graftlm import AdaptedModel, LoRA, Prefix, Routing
from graftlm.adapters.files import save_adapter, start_from
from graftlm.adapters.merge import export_merged
from graftlm.adapters.prefix import PrefixTable
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from tests.adapters.grid import (
    DECODERS,
    Row,
    add_up,
    assert_gradients_close,
    assert_states_close,
    make_row,
    pad,
    states,
    states_and_gradients,
)
from tests.families import ENCODER_DECODERS, ENCODERS, FAMILIES, add_random, make_base, overridden, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
IDS = torch.arange(3, 19).view(2, 8)
SOURCE = torch.arange(30, 42).view(2, 6)
PEFT_TASKS = dict.fromkeys(ENCODERS, "FEATURE_EXTRACTION") | dict.fromkeys(ENCODER_DECODERS, "SEQ_2_SEQ_LM")
ORACLE = ("llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "bert", "roberta", "t5", "bart")
REFUSED = ("falcon", "falcon_alibi")


def peft_model(family: str, **settings: Any) -> Any:
    """A peft model on the same base, every parameter of its prefix random."""
    task = PEFT_TASKS.get(family, "CAUSAL_LM")
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=3, **settings)
    model = peft.get_peft_model(base_of(family), config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def base_of(family: str) -> Any:
    """The base, without a setting that families of as many key heads as query heads ignore and peft goes by."""
    base = make_base(family)
    if family in ("gpt2", "gpt_neox", "opt", *ENCODERS):
        del base.config.num_key_value_heads
    return base


def inputs(family: str) -> dict[str, torch.Tensor]:
    return {"input_ids": SOURCE, "decoder_input_ids": IDS} if family in ENCODER_DECODERS else {"input_ids": IDS}


def logits(model: Any, family: str, **kwargs: Any) -> torch.Tensor:
    if family in ENCODERS:  # peft takes encoders with a mask only
        kwargs["attention_mask"] = torch.ones_like(IDS)
    found: torch.Tensor = model(**inputs(family), **kwargs).logits
    return found


def settings_like_peft(family: str) -> dict[str, Any]:
    return {"length": 3, "window": "peft"} | ({"where": ["decoder"]} if family in ENCODER_DECODERS else {})


def loss(found: torch.Tensor) -> torch.Tensor:
    targets = (IDS * 7 + 5) % found.shape[-1]
    return nn.functional.cross_entropy(found.flatten(0, 1).double(), targets.flatten())


@pytest.mark.parametrize("family", [family for family in ORACLE if family not in ENCODER_DECODERS])
def test_outputs_and_gradients_through_the_mlp(family: str) -> None:
    theirs = peft_model(family, prefix_projection=True, encoder_hidden_size=6)
    ours = AdaptedModel(make_base(family))
    prefix = ours.add("a", Prefix(projection_size=6, **settings_like_peft(family))).prefix
    assert isinstance(prefix, PrefixTable)
    assert prefix.inner is not None
    assert prefix.outer is not None
    encoder = theirs.prompt_encoder["default"]
    pairs = [
        (prefix.embedding, encoder.embedding.weight),
        (prefix.inner.weight, encoder.transform[0].weight),
        (prefix.inner.bias, encoder.transform[0].bias),
        (prefix.outer.weight, encoder.transform[2].weight),
        (prefix.outer.bias, encoder.transform[2].bias),
    ]
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(other)
    found, expected = logits(ours, family, adapters="a"), logits(theirs, family)
    assert relative(found, expected) < 1e-5
    assert relative(found, logits(ours, family)) > 1e-2
    loss(found).backward()
    loss(expected).backward()
    for own, other in pairs:
        assert own.grad is not None
        assert relative(own.grad, other.grad) < 1e-5


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_outputs_and_gradients_with_slots_that_layers_share(family: str) -> None:
    """Peft gives layer i the slots 4i and 4i + 1 modulo 4, of two layers: the same to both. Ours are apart."""
    theirs, ours = peft_model(family), AdaptedModel(make_base(family))
    prefix = ours.add("a", Prefix(projection=False, **settings_like_peft(family))).prefix
    assert isinstance(prefix, PrefixTable)
    weight = theirs.prompt_encoder["default"].embedding.weight
    half = weight.shape[1] // 2
    with torch.no_grad():
        prefix.embedding.copy_(weight[:, :half].repeat(1, 2))
    found, expected = logits(ours, family, adapters="a"), logits(theirs, family)
    assert relative(found, expected) < 1e-5
    assert relative(found, logits(ours, family)) > 1e-2
    loss(found).backward()
    loss(expected).backward()
    assert prefix.embedding.grad is not None
    both = prefix.embedding.grad[:, :half] + prefix.embedding.grad[:, half:]
    assert relative(both, weight.grad[:, :half]) < 1e-5
    assert not weight.grad[:, half:].any()


# --- files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("family", ORACLE)
def test_we_read_pefts_and_peft_reads_ours(family: str, projection: bool, tmp_path: Path) -> None:
    theirs = peft_model(family, prefix_projection=projection)
    theirs.save_pretrained(tmp_path / "theirs")
    model = AdaptedModel(make_base(family))
    model.load(tmp_path / "theirs", "a")
    with torch.no_grad():
        expected = logits(theirs, family)
        assert relative(logits(model, family, adapters="a"), expected) < 1e-5
        assert relative(logits(model, family), expected) > 1e-2
    model.save("a", tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(base_of(family), tmp_path / "ours").eval()
    with torch.no_grad():
        assert relative(logits(again, family), expected) < 1e-5
    model.load(tmp_path / "ours", "b")
    with torch.no_grad():
        assert torch.equal(logits(model, family, adapters="b"), logits(model, family, adapters="a"))


@pytest.mark.parametrize("family", ORACLE)
def test_the_mlp_is_dropped_when_saved(family: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base(family))
    config = Prefix(length=4, projection_size=5)
    randomise(model.add("a", config), std=0.5)
    model.save("a", tmp_path / "a")
    model.load(tmp_path / "a", "b")
    kept = model.adapters["b"].config
    assert isinstance(kept, Prefix)
    assert not kept.projection
    assert kept.window == "visible"
    assert [name for name, _ in model.adapters["b"].named_parameters()] == ["prefix.embedding"]
    with torch.no_grad():
        assert relative(logits(model, family, adapters="b"), logits(model, family, adapters="a")) < 1e-6
    # what peft would read otherwise than it was trained, it is not given
    slides = any(place.window for place in model.places.attentions)
    assert (tmp_path / "a" / "adapter_config.json").exists() == (family not in ENCODER_DECODERS and not slides)


def test_an_odd_number_of_decoder_layers_fits_into_pefts_file(tmp_path: Path) -> None:
    base = make_base("t5")
    base.decoder.block = base.decoder.block[:1]
    base.config.num_decoder_layers = base.config.num_layers = 1
    model = AdaptedModel(base)
    randomise(model.add("a", Prefix(length=3, projection=False, where=["decoder"])), std=0.5)
    model.save("a", tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    with torch.no_grad():
        expected = logits(theirs, "t5")
    model.load(tmp_path / "a", "b")
    with torch.no_grad():
        for name in "ab":
            assert relative(logits(model, "t5", adapters=name), expected) < 1e-5


def test_a_checkpoint_keeps_the_mlp() -> None:
    model = AdaptedModel(make_base("llama"))
    kept = randomise(model.add("a", Prefix(length=4, projection_size=5))).state_dict()
    assert set(kept) == {
        f"prefix.{name}"
        for name in ("embedding", *(f"{layer}.{part}" for layer in ("inner", "outer") for part in ("weight", "bias")))
    }
    again = model.add("b", Prefix(length=4, projection_size=5), seed=3)
    again.adopt(kept)
    with torch.no_grad():
        assert torch.equal(model(IDS, adapters="a").logits, model(IDS, adapters="b").logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.clear(), "missing"),
        (lambda tensors: tensors.update(prompt_embeddings=torch.zeros(3, 7)), "does not fit this base"),
        (lambda tensors: tensors.update(other=torch.zeros(3)), "'other' is not of a prefix"),
    ],
)
def test_broken_files(change: Any, message: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    peft_model("llama").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=message):
        AdaptedModel(make_base("llama")).load(tmp_path, "a")


# --- rows -------------------------------------------------------------------------------------------------------

UNEQUAL = {
    "five": Prefix(length=5, projection_size=6),
    "two": Prefix(length=2, projection=False, window="peft"),
}


def unequal(family: str) -> tuple[AdaptedModel, list[Row], list[Any]]:
    model = AdaptedModel(make_base(family))
    add_random(model, UNEQUAL)
    for adapter in model.adapters.values():
        randomise(adapter, seed=adapter.prefix_length, std=0.5)
    draw = random.Random(0)
    routings: list[Any] = ["five", None, "two", ("two", "five"), None, ("five", "two"), "two"]
    return model, [make_row(draw, two_sequences=family in ENCODER_DECODERS, longest=12) for _ in routings], routings


@pytest.mark.parametrize(
    "family", [*(family for family in FAMILIES if family not in REFUSED), *ENCODERS, *ENCODER_DECODERS]
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_alone_as_in_a_batch(family: str, checkpointing: bool) -> None:
    model, rows, routings = unequal(family)
    parts = [
        states_and_gradients(model, [row], [routing], [number])
        for number, (row, routing) in enumerate(zip(rows, routings, strict=True))
    ]
    model.gradient_checkpointing = checkpointing
    found, gradients = states_and_gradients(model, rows, routings)
    assert_states_close(found, [state for part in parts for state in part[0]], 1e-5)
    assert_gradients_close(gradients, add_up([part[1] for part in parts]), 1e-5)


@pytest.mark.parametrize("family", [*DECODERS, "gemma2"])
def test_rows_padded_on_the_right_need_no_mask(family: str) -> None:
    """As in training: attention without a mask stays causal."""
    model, rows, routings = unequal(family)
    ids, mask = pad([row.ids for row in rows], left=False)
    with torch.no_grad():
        expected = states(model, rows, routings)
        found = model.hidden(ids, adapters=routings, use_cache=False).last_hidden_state
    assert_states_close([found[n][mask[n].bool()] for n in range(len(rows))], expected, 1e-5)


@pytest.mark.parametrize("family", DECODERS)
def test_a_static_cache(family: str) -> None:
    """It is longer than what it holds, and attention gets no mask when it is filled for the first time."""
    from transformers import StaticCache

    model, _, routings = unequal(family)
    ids = torch.arange(3, 3 + 9 * len(routings)).view(len(routings), 9) % 60 + 3
    with torch.no_grad():
        expected = model(ids, adapters=routings).logits
        cache = StaticCache(config=model.base.config, max_cache_len=16)
        first = model(ids[:, :6], adapters=routings, past_key_values=cache, use_cache=True).logits
        rest = [
            model(ids[:, n : n + 1], adapters=routings, past_key_values=cache, use_cache=True).logits for n in (6, 7, 8)
        ]
    assert relative(torch.cat([first, *rest], dim=1), expected) < 1e-5


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_the_cache_of_an_encoder_decoder(family: str) -> None:
    model, rows, routings = unequal(family)
    sources, source_mask = pad([row.source or () for row in rows], left=False)
    targets = torch.arange(3, 3 + 7 * len(rows)).view(len(rows), 7) % 60 + 3
    common: dict[str, Any] = {"adapters": routings}
    with torch.no_grad():
        expected = model(sources, source_mask, decoder_input_ids=targets, **common).logits
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        found = [
            model(sources, source_mask, decoder_input_ids=part, past_key_values=cache, use_cache=True, **common).logits
            for part in (targets[:, :4], targets[:, 4:5], targets[:, 5:6], targets[:, 6:])
        ]
    assert relative(torch.cat(found, dim=1), expected) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_a_base_of_half_precision(family: str) -> None:
    model = AdaptedModel(make_base(family, dtype=torch.bfloat16))
    exact = AdaptedModel(make_base(family))
    for each in (model, exact):
        randomise(each.add("a", Prefix(length=3)), std=0.5)
    found = logits(model, family, adapters="a")
    assert found.dtype == torch.bfloat16
    assert relative(found.float(), logits(exact, family, adapters="a")) < 0.03
    loss(found.float()).backward()
    gradients = [parameter.grad for parameter in model.adapters["a"].parameters()]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in gradients)


def test_decoding_in_a_batch_is_a_whole_pass_each_step() -> None:
    model, _, routings = unequal("llama")
    prompts = [tuple(range(3 + n, 7 + 2 * n)) for n in range(len(routings))]
    settings = SamplingSettings(max_new_tokens=6, stop_ids=(), temperature=0.0)
    requests = [Request(prompt, routing, settings) for prompt, routing in zip(prompts, routings, strict=True)]
    for completion, prompt, routing in zip(Engine(model).run(requests), prompts, routings, strict=True):
        tokens = torch.tensor([prompt])
        with torch.no_grad():
            for _ in range(6):
                tokens = torch.cat([tokens, model(tokens, adapters=[routing]).logits[:, -1:].argmax(-1)], dim=1)
        assert completion.token_ids == tuple(tokens[0, len(prompt) :].tolist())


def test_decoding_ends_where_the_prefix_fills_the_context() -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", Prefix(length=50))
    settings = SamplingSettings(max_new_tokens=60, stop_ids=())
    with_prefix, bare = Engine(model).run([Request((3, 4, 5), name, settings) for name in ("a", None)])
    assert (len(with_prefix.token_ids), with_prefix.finish_reason) == (11, "context")
    assert (len(bare.token_ids), bare.finish_reason) == (60, "length")
    with pytest.raises(UserError, match="the context that its prefix leaves is 14"):
        Engine(model).run([Request((3,) * 14, "a", settings)])


# --- sliding windows --------------------------------------------------------------------------------------------


def test_the_prefix_stays_visible_or_leaves_the_window() -> None:
    """Window 4: under peft's rule a token sees the prefix only while it is within 4 of it, else for ever."""
    model = AdaptedModel(make_base("mistral"))
    seen = {}
    for window in ("visible", "peft"):
        adapter = randomise(model.add(window, Prefix(length=2, projection=False, window=window, layers=[1])), std=0.5)
        state = model.hidden(IDS[:1], adapters=window).last_hidden_state[0]
        # token i is at position 2 + i; the prefix is at 0 and 1
        seen[window] = [
            bool(torch.autograd.grad(row.sum(), list(adapter.parameters()), retain_graph=True)[0].any())
            for row in state
        ]
    assert seen == {"visible": [True] * 8, "peft": [True] * 3 + [False] * 5}


# --- the base ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5", "bart"])
def test_the_base_computes_its_own_attention_again(family: str) -> None:
    base = make_base(family)
    configs = {id(module.config): module.config for module in base.modules() if hasattr(module, "config")}
    model = AdaptedModel(base)
    before = {key: config._attn_implementation for key, config in configs.items()}
    with torch.no_grad():
        expected = logits(model, family)
    model.add("a", Prefix(length=3))
    model.add("b", Prefix(length=2))
    assert {config._attn_implementation for config in configs.values()} == {"graftlm"}
    model.remove("a")
    assert {config._attn_implementation for config in configs.values()} == {"graftlm"}
    model.remove("b")
    assert {key: config._attn_implementation for key, config in configs.items()} == before
    assert overridden(base) == []
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in base.modules())
    with torch.no_grad():
        assert torch.equal(logits(model, family), expected)


def test_what_does_not_change_is_made_once() -> None:
    model = AdaptedModel(make_base("llama"))
    adapter = randomise(model.add("a", Prefix(length=3)))
    prefix = adapter.prefix
    assert isinstance(prefix, PrefixTable)
    with torch.no_grad():
        first = prefix()
        assert prefix() is first
        prefix.embedding.add_(1.0)
        assert prefix() is not first
        changed = prefix()
    assert prefix() is not changed  # gradients are wanted
    adapter.requires_grad_(False)
    with torch.inference_mode():
        frozen = prefix()
    assert prefix() is frozen
    assert not next(iter(frozen.values()))[0].is_inference()


# --- errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", REFUSED)
def test_families_without_the_place(family: str) -> None:
    model = AdaptedModel(make_base(family))
    with pytest.raises(UserError, match="computes attention inside its own modules"):
        model.add("a", Prefix(length=3))
    assert not model.adapters


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"length": 64}, "a prefix of 64 leaves no room in the context of 64"),
        ("llama", {"where": ["decoder"]}, "one stack of blocks"),
        ("llama", {"layers": [2]}, "layers: 2 is no block of this base, which has 0 to 1"),
    ],
)
def test_settings_that_do_not_fit(family: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdaptedModel(make_base(family)).add("a", Prefix(**settings))


def test_rows_that_do_not_fit_behind_the_prefix() -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", Prefix(length=60))
    model(IDS[:, :4], adapters="a")
    with pytest.raises(
        UserError, match="5 tokens, 0 virtual tokens and a prefix of 60 do not fit into the context of 64"
    ):
        model(IDS[:, :5], adapters="a")
    model(IDS)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert", "roberta", "t5", "bart"])
@pytest.mark.parametrize("masked", [True, False])
def test_a_long_neighbour_takes_no_room(family: str, masked: bool) -> None:
    """A row of 60 without a prefix beside one of 4 with a prefix of 50: padding has no positions."""
    model = AdaptedModel(make_base(family))
    randomise(model.add("a", Prefix(length=50, projection=False)))
    rows = [Row(tuple(range(3, 63)), (3, 4)), Row((5, 6, 7, 8), (3, 4, 5))]
    if family not in ENCODER_DECODERS:
        rows = [Row(row.ids) for row in rows]
    with torch.no_grad():
        expected = [states(model, [row], [name])[0] for row, name in zip(rows, (None, "a"), strict=True)]
        if masked and family not in ENCODER_DECODERS:
            found = states(model, rows, [None, "a"])
        else:
            ids, _ = pad([row.ids for row in rows], left=False)
            routing: Any = Routing.of_rows([None, "a"], 60, lengths=[60, 4])
            kwargs: dict[str, Any] = {}
            if family in ENCODER_DECODERS:
                kwargs["decoder_input_ids"] = ids
                ids, mask = pad([row.source or () for row in rows], left=False)
                kwargs["attention_mask"] = mask
            elif family in ENCODERS:
                kwargs["attention_mask"] = pad([row.ids for row in rows], left=False)[1]
            state = model.hidden(ids, adapters=routing, use_cache=False, **kwargs).last_hidden_state
            found = [state[0], state[1, :4]]
    assert_states_close(found, expected, 1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("mistral", {}, "leave the sliding window"),
        ("t5", {"where": ["decoder"]}, "layers share one prefix"),
        ("bart", {}, "of the decoder alone"),
        ("llama", {"layers": [1]}, "of all layers alone"),
    ],
)
def test_what_peft_cannot_say_is_not_exported_to_it(
    family: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = AdaptedModel(make_base(family))
    model.add("a", Prefix(length=3, **settings))
    with pytest.raises(UserError, match=message):
        save_adapter(model, "a", tmp_path / "a", peft=True)
    assert not (tmp_path / "a").exists()


def test_a_prefix_is_not_merged(tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", Prefix(length=3))
    with pytest.raises(UserError, match="cannot be merged"):
        export_merged(model, ["a"], tmp_path / "merged")


# --- going on, and heads ----------------------------------------------------------------------------------------


def test_several_tasks_go_on_from_one_prompt_each_over_it_or_from_it(tmp_path: Path) -> None:
    model = AdaptedModel(make_base("bert"))
    shared = randomise(model.add("shared", Prefix(length=4), classes=3))
    model.save("shared", tmp_path / "shared")
    own = model.add("own", Prefix(length=4, projection=False), classes=2)
    assert own.head is not None
    drawn = own.head.state_dict()["weight"].clone()
    start_from(model, "own", tmp_path / "shared")
    assert own.prefix is not None
    assert shared.prefix is not None
    for path, (key, value) in own.prefix().items():
        expected = shared.prefix()[path]
        assert relative(key, expected[0]) < 1e-6
        assert relative(value, expected[1]) < 1e-6
    assert torch.equal(own.head.state_dict()["weight"], drawn)  # another number of labels
    ids = torch.ones_like(IDS)
    with torch.no_grad():
        found = model.hidden(IDS, ids, adapters=["own", "shared"]).last_hidden_state
        both = model.hidden(IDS, ids, adapters=[("shared", "own"), "own"]).last_hidden_state
        alone = model.hidden(IDS[:1], ids[:1], adapters="shared").last_hidden_state
    assert relative(model.hidden(IDS[:1], ids[:1], adapters="own").last_hidden_state, alone) < 1e-5
    assert relative(both[0], found[0]) > 1e-3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Prefix(length=4), r"prefix.embedding is \(4, 64\) there and \(4, 16\) here"),
        (Prefix(length=5, projection=False), r"prefix.embedding is \(4, 64\) there and \(5, 64\) here"),
        (LoRA(rank=2), "of the method prefix, and 'own' of lora"),
    ],
)
def test_what_is_of_another_shape_is_no_start(config: Any, message: str, tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("shared", Prefix(length=4))
    model.save("shared", tmp_path / "shared")
    own = model.add("own", config)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    with pytest.raises(UserError, match=message):
        start_from(model, "own", tmp_path / "shared")
    assert all(torch.equal(before[key], value) for key, value in own.state_dict().items())


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_broken_files_of_peft_are_refused(family: str, tmp_path: Path) -> None:
    theirs = peft_model(family)
    theirs.save_pretrained(tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    table, settings = load_file(weights)["prompt_embeddings"], config.read_text()
    model = AdaptedModel(make_base(family))
    for tensors, said in (
        ({"embeddings": table}, "prompt_embeddings is missing"),
        ({"prompt_embeddings": table, "more": table.clone()}, "the key 'more' is not of a prefix"),
        ({"prompt_embeddings": table[1:].contiguous()}, "does not fit this base"),
        ({"prompt_embeddings": table[:, 1:].contiguous()}, "does not fit this base"),
        ({"prompt_embeddings": table[:, : table.shape[1] // 2].contiguous()}, "does not fit this base"),
        ({}, "prompt_embeddings is missing"),
    ):
        save_file(tensors, weights)
        with pytest.raises(UserError, match=said):
            model.load(tmp_path, "a")
    save_file({"prompt_embeddings": table}, weights)
    config.write_text(settings.replace("num_virtual_tokens", "tokens"))
    with pytest.raises(UserError, match="num_virtual_tokens"):
        model.load(tmp_path, "a")
    assert not model.adapters
