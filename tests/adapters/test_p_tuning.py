"""P-tuning: encoders as peft's and as modules built by hand, dropped from files, kept in checkpoints; any placement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PromptEncoder
from pydantic import ValidationError
from safetensors.torch import load_file

from graftlm import AdaptedModel, Prompt, PTuning
from graftlm.adapters.p_tuning import EncodedVectors
from graftlm.adapters.prompt_files import Vectors
from graftlm.errors import UserError
from graftlm.training.optimizers import build_optimizer
from graftlm.training.settings import AdapterTraining
from tests.adapters.prompt_oracle import FAMILIES, IDS, loss, our_logits, peft_logits, peft_model
from tests.families import ENCODER_DECODERS, add_random, make_base, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ENCODERS = ("lstm", "mlp")
ANYWHERE = "[P×2] {input} [P] is [P×3] {target}"


def settings(encoder: str) -> dict[str, Any]:
    return {"encoder_reparameterization_type": encoder.upper(), "encoder_hidden_size": 7, "encoder_num_layers": 2}


def names(encoder: str) -> dict[str, str]:
    """Our parameters' names by peft's."""
    if encoder == "mlp":
        return {"mlp_head.": "encoder."}
    return {"lstm_head.": "encoder.lstm.", "mlp_head.": "encoder.mlp."}


def as_ours(theirs: dict[str, torch.Tensor], encoder: str) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in theirs.items():
        if key == "embedding.weight":
            found["start"] = value[:4]  # encoder-decoders: the first half is used
            continue
        for old, new in names(encoder).items():
            if key.startswith(old):
                found[new + key.removeprefix(old)] = value
    return found


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_peft(family: str, encoder: str) -> None:
    # An LSTM that reads the second half too, which peft makes for encoder-decoders and never uses, gives other vectors.
    own = {"num_transformer_submodules": 1} if family in ENCODER_DECODERS else {}
    theirs = peft_model(family, peft.PromptEncoderConfig, **settings(encoder), **own)
    ours = AdaptedModel(make_base(family))
    adapter = ours.add("a", PTuning(length=4, encoder=encoder, encoder_hidden=7))
    prompt_encoder = theirs.prompt_encoder.default
    adapter.virtual.load_state_dict(as_ours(prompt_encoder.state_dict(), encoder))
    found, expected = our_logits(family, ours), peft_logits(family, theirs)
    assert relative(found, expected) < 1e-5
    assert relative(found, our_logits(family, ours, None)) > 1e-4
    loss(found).backward()
    loss(expected).backward()
    wanted = as_ours({key: value.grad for key, value in prompt_encoder.named_parameters()}, encoder)
    gradients = {key: value.grad for key, value in adapter.virtual.named_parameters()}
    assert gradients.keys() == wanted.keys()
    largest = max(float(gradient.norm()) for gradient in wanted.values())
    for key, gradient in gradients.items():
        assert float((gradient - wanted[key]).norm()) < 1e-5 * max(float(wanted[key].norm()), 1e-2 * largest), key


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_lstm_is_the_formula(layers: int) -> None:
    """Against cells stepped by hand, both ways, in float64."""
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    adapter = randomise(model.add("a", PTuning(length=5, encoder_hidden=6, encoder_layers=layers)), std=0.5)
    named = dict(adapter.virtual.named_parameters())
    x = list(named["start"])
    for layer in range(layers):
        ways = []
        for suffix, order in (("", range(5)), ("_reverse", range(4, -1, -1))):
            W, U, b, c = (
                named[f"encoder.lstm.{part}_l{layer}{suffix}"]
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = cell = torch.zeros(6, dtype=torch.float64)
            states: dict[int, torch.Tensor] = {}
            for place in order:
                i, f, g, o = (W @ x[place] + b + U @ h + c).chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                h = o.sigmoid() * cell.tanh()
                states[place] = h
            ways.append(states)
        x = [torch.cat([ways[0][place], ways[1][place]]) for place in range(5)]
    hidden = (torch.stack(x) @ named["encoder.mlp.0.weight"].T + named["encoder.mlp.0.bias"]).relu()
    expected = hidden @ named["encoder.mlp.2.weight"].T + named["encoder.mlp.2.bias"]
    assert relative(adapter.virtual(), expected) < 1e-12
    assert hidden.shape == (5, 12)


def test_the_mlp_is_the_formula() -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    adapter = randomise(model.add("a", PTuning(length=5, encoder="mlp", encoder_hidden=6)), std=0.5)
    named = dict(adapter.virtual.named_parameters())
    x = named["start"]
    for number in (0, 2, 4):
        x = x @ named[f"encoder.{number}.weight"].T + named[f"encoder.{number}.bias"]
        x = x.relu() if number < 4 else x
    assert relative(adapter.virtual(), x) < 1e-12


@pytest.mark.parametrize("encoder", ENCODERS)
def test_parameters_are_as_many_as_those_of_peft(encoder: str) -> None:
    config = peft.PromptEncoderConfig(
        num_virtual_tokens=4, token_dim=32, num_transformer_submodules=1, **settings(encoder)
    )
    expected = sum(parameter.numel() for parameter in PromptEncoder(config).parameters())
    adapter = AdaptedModel(make_base("llama")).add("a", PTuning(length=4, encoder=encoder, encoder_hidden=7))
    assert adapter.trained_parameters == expected


@pytest.mark.parametrize("encoder", [*ENCODERS, "none"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_files_go_both_ways_without_the_encoder(family: str, encoder: str, tmp_path: Path) -> None:
    ours = AdaptedModel(make_base(family))
    add_random(ours, {"a": PTuning(length=4, encoder=encoder, encoder_hidden=7)})
    ours.save("a", tmp_path / "a")
    assert load_file(tmp_path / "a" / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
    theirs = peft.PeftModel.from_pretrained(make_base(family), str(tmp_path / "a")).eval()
    assert relative(our_logits(family, ours), peft_logits(family, theirs)) < 1e-5
    ours.load(tmp_path / "a", name="b")
    assert isinstance(ours.adapter("b").virtual, Vectors)
    assert ours.adapter("b").config == ours.adapter("a").config
    assert relative(our_logits(family, ours, "b"), our_logits(family, ours)) < 1e-6
    theirs.save_pretrained(tmp_path / "c")
    ours.load(tmp_path / "c")
    assert relative(our_logits(family, ours, "c"), our_logits(family, ours)) < 1e-6


def test_we_read_what_peft_trained(tmp_path: Path) -> None:
    theirs = peft_model("llama", peft.PromptEncoderConfig, **settings("lstm"))
    theirs.save_pretrained(tmp_path / "a")
    ours = AdaptedModel(make_base("llama"))
    ours.load(tmp_path / "a")
    assert relative(our_logits("llama", ours), peft_logits("llama", theirs)) < 1e-5


def test_another_placement_than_the_front_is_ours_alone(tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"))
    add_random(
        model, {"a": PTuning(template=ANYWHERE, encoder_hidden=5), "f": PTuning(template="[P×4] {input} {target}")}
    )
    folder = model.save("a", tmp_path / "a")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_model.safetensors", "graftlm.json"]
    model.load(folder, name="b")
    assert relative(model.adapter("b").virtual(), model.adapter("a").virtual()) < 1e-6
    with pytest.raises(UserError, match="peft puts virtual tokens in front only"):
        model.save("a", tmp_path / "p", peft=True)
    assert not (tmp_path / "p").exists()
    model.save("f", tmp_path / "f", peft=True)
    assert (tmp_path / "f" / "adapter_config.json").exists()


def test_vectors_follow_every_step_of_the_optimizer() -> None:
    """Of the fused one too, which changes parameters without counting their versions."""
    model = AdaptedModel(make_base("llama"))
    adapter = model.add("a", PTuning(length=3, encoder_hidden=5))
    with torch.no_grad():
        before = our_logits("llama", model)
    optimizer = build_optimizer(list(adapter.parameters()), AdapterTraining(learning_rate=0.1))
    loss(our_logits("llama", model)).backward()
    optimizer.step()
    with torch.no_grad():
        after = our_logits("llama", model)
    assert relative(after, before) > 1e-2
    assert relative(our_logits("llama", model), after) < 1e-6


def test_a_checkpoint_keeps_the_encoder() -> None:
    model = AdaptedModel(make_base("llama"))
    add_random(model, {"a": PTuning(length=3, encoder_hidden=5)})
    fresh = AdaptedModel(make_base("llama")).add("a", PTuning(length=3, encoder_hidden=5))
    fresh.adopt(model.adapter("a").state_dict())
    assert isinstance(fresh.virtual, EncodedVectors)
    assert torch.equal(fresh.virtual(), model.adapter("a").virtual())


def test_one_seed_gives_one_start_and_leaves_other_draws_alone() -> None:
    model = AdaptedModel(make_base("llama"))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.add("a", PTuning(length=3), seed=1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    model.remove("a")
    second = model.add("a", PTuning(length=3), seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "bert"])
def test_anywhere_it_trains(family: str) -> None:
    """Outputs and gradients against vectors put into ``inputs_embeds`` by hand."""
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    add_random(model, {"a": PTuning(template=ANYWHERE, encoder_hidden=5)})
    adapter = model.adapter("a")
    ids = torch.tensor([[67, 68, 9, 4, 69, 11, 70, 71, 72, 3], [67, 68, 8, 5, 6, 69, 70, 71, 72, 7]])
    found = model(ids, adapters="a").logits
    loss(found).backward()
    gradients = {key: value.grad.clone() for key, value in adapter.named_parameters()}
    adapter.zero_grad()
    vectors = adapter.virtual()
    words = model.base.get_input_embeddings()(ids.masked_fill(ids >= 67, 0))
    inputs = torch.where((ids >= 67)[..., None], vectors[(ids - 67).clamp(min=0)], words)
    expected = model.base(inputs_embeds=inputs).logits
    assert relative(found, expected) < 1e-12
    loss(expected).backward()
    for key, value in adapter.named_parameters():
        assert float((gradients[key] - value.grad).norm()) < 1e-9 * max(float(value.grad.norm()), 1e-3), key


def test_stacked_on_a_prompt() -> None:
    model = AdaptedModel(make_base("gpt2"))
    add_random(model, {"a": Prompt(length=2), "b": PTuning(length=3, encoder="mlp", encoder_hidden=5)})
    found = model(IDS, adapters=("a", "b")).logits
    vectors = torch.cat([model.adapter("a").virtual(), model.adapter("b").virtual()])
    inputs = torch.cat([vectors.expand(2, -1, -1), model.base.get_input_embeddings()(IDS)], dim=1)
    assert relative(found, model.base(inputs_embeds=inputs).logits[:, 5:]) < 1e-5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"length": 0}, "length"),
        ({"length": 1001}, "length"),
        ({"length": 3, "template": ANYWHERE}, "the template says how many"),
        ({"template": "[P×3] {target}"}, r"\{input\} 0 times"),
        ({"template": "[P×3] {input}"}, r"\{target\} 0 times"),
        ({"template": "[P×3] {inptu} {target}"}, r"unknown placeholder \{inptu\}"),
        ({"template": "{input} is {target}"}, "no virtual tokens"),
        ({"template": "[P×600] {input} [P×401] {target}"}, "1,001 virtual tokens; 1,000 are the most"),
    ],
)
def test_settings_that_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        PTuning(**values)


def test_what_does_not_fit_the_base_is_refused() -> None:
    model = AdaptedModel(make_base("llama"))
    with pytest.raises(UserError, match="70 virtual tokens fill the context of 64"):
        model.add("a", PTuning(length=70))
    with pytest.raises(UserError, match=r"behind \{target\} are read by nothing"):
        model.add("a", PTuning(template="[P] {input} {target} [P]"))
    AdaptedModel(make_base("bert")).add("a", PTuning(template="[P] {input} {target} [P]"))
