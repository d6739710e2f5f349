"""Prompt tuning: equal to peft in outputs, gradients and files; starts; what is refused."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from graftlm import AdaptedModel, LoRA, Prompt
from graftlm.errors import UserError
from tests.adapters.prompt_oracle import FAMILIES, IDS, TARGETS, loss, our_logits, peft_logits, peft_model
from tests.families import ENCODER_DECODERS, add_random, make_base, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def with_vectors_of(theirs: Any, family: str) -> AdaptedModel:
    ours = AdaptedModel(make_base(family))
    ours.add("a", Prompt(length=4))
    with torch.no_grad():
        ours.adapter("a").virtual.prompt_embeddings.copy_(theirs.prompt_encoder.default.embedding.weight[:4])
    return ours


@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_those_of_peft(family: str) -> None:
    theirs = peft_model(family, peft.PromptTuningConfig)
    ours = with_vectors_of(theirs, family)
    found, expected = our_logits(family, ours), peft_logits(family, theirs)
    assert relative(found, expected) < 1e-5
    assert relative(found, our_logits(family, ours, None)) > 1e-3
    loss(found).backward()
    loss(expected).backward()
    gradient = theirs.prompt_encoder.default.embedding.weight.grad[:4]
    assert relative(ours.adapter("a").virtual.prompt_embeddings.grad, gradient) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_what_we_write(family: str, tmp_path: Path) -> None:
    ours = AdaptedModel(make_base(family))
    add_random(ours, {"a": Prompt(length=4)})
    ours.save("a", tmp_path / "a")
    assert load_file(tmp_path / "a" / "adapter_model.safetensors").keys() == {"prompt_embeddings"}
    theirs = peft.PeftModel.from_pretrained(make_base(family), str(tmp_path / "a")).eval()
    assert relative(our_logits(family, ours), peft_logits(family, theirs)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_what_peft_writes(family: str, tmp_path: Path) -> None:
    theirs = peft_model(family, peft.PromptTuningConfig)
    theirs.save_pretrained(tmp_path / "a")
    ours = AdaptedModel(make_base(family))
    ours.load(tmp_path / "a")
    assert relative(our_logits(family, ours), peft_logits(family, theirs)) < 1e-5
    # and again, by way of our own folder
    ours.save("a", tmp_path / "b")
    ours.load(tmp_path / "b")
    assert torch.equal(our_logits(family, ours, "b"), our_logits(family, ours))
    assert ours.adapter("b").config == ours.adapter("a").config


@pytest.mark.parametrize("family", ["llama", "gemma3", "bart"])
def test_a_start_from_tokens_is_as_if_they_stood_there(family: str) -> None:
    """The scale that Gemma puts on its embeddings is in the start, and not put on again."""
    model = AdaptedModel(make_base(family))
    model.add("a", Prompt(length=5, init="text", init_ids=[7, 8, 9]))
    ids = torch.cat([torch.tensor([[7, 8, 9, 7, 8]] * 2), IDS], dim=1)
    kwargs = {"decoder_input_ids": TARGETS} if family in ENCODER_DECODERS else {}
    expected = model(ids, **kwargs).logits
    expected = expected if kwargs else expected[:, 5:]
    assert relative(our_logits(family, model), expected) < 1e-5


def test_text_is_tokenised_when_the_adapter_is_added() -> None:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    tokenizer = AutoTokenizer.from_pretrained(str(files("graftlm.base") / "tiny"))
    ids = tokenizer("Say whether it is good or bad.", add_special_tokens=False)["input_ids"]
    adapter = model.add("a", Prompt(length=len(ids), init="text", init_text="Say whether it is good or bad."))
    assert adapter.config.init_ids == ids
    table = model.base.get_input_embeddings().weight
    assert torch.equal(adapter.virtual.prompt_embeddings.detach(), table[ids])


def test_starts_from_the_vocabulary_and_at_random_depend_on_the_seed_alone() -> None:
    model = AdaptedModel(make_base("llama"))
    table = model.base.get_input_embeddings().weight
    first = model.add("a", Prompt(length=9), seed=1).virtual.prompt_embeddings
    rows = [int((table == vector).all(1).nonzero()) for vector in first]
    assert len(set(rows)) == 9
    model.remove("a")
    assert torch.equal(model.add("a", Prompt(length=9), seed=1).virtual.prompt_embeddings, first)
    other = model.add("b", Prompt(length=9), seed=1).virtual.prompt_embeddings
    assert not torch.equal(other, first)
    uniform = model.add("c", Prompt(length=900 // 32, init="random")).virtual.prompt_embeddings
    assert uniform.abs().max() <= 0.5
    assert abs(float(uniform.std()) - 12**-0.5) < 0.02


def test_virtual_tokens_of_a_stack_count_on() -> None:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    add_random(model, {"a": Prompt(length=2), "l": LoRA(rank=2), "b": Prompt(length=3)})
    first, second = (model.adapter(name).virtual() for name in ("a", "b"))
    embedding = model.base.get_input_embeddings()
    for stack, vectors in ((("a", "l", "b"), (first, second)), (("b", "l", "a"), (second, first))):
        own = torch.cat([torch.cat(vectors).expand(2, -1, -1), embedding(IDS)], dim=1)
        routing = model.routing(("l",), 2, own.shape[1])
        expected = model.base(inputs_embeds=own)
        from graftlm.adapters.routing import routed

        with routed(routing):
            expected = model.base(inputs_embeds=own).logits[:, 5:]
        assert relative(model(IDS, adapters=stack).logits, expected) < 1e-12


def test_virtual_tokens_may_stand_anywhere_and_train() -> None:
    """Against the same vectors put into ``inputs_embeds`` by hand."""
    model = AdaptedModel(make_base("gpt2", dtype=torch.float64))
    add_random(model, {"a": Prompt(length=3)})
    virtual = model.adapter("a").virtual.prompt_embeddings
    ids = torch.tensor([[5, 67, 9, 68, 69, 11], [67, 68, 4, 5, 69, 7]])
    found = model(ids, adapters="a").logits
    vectors = virtual.detach().clone().requires_grad_()
    table = torch.cat([model.base.get_input_embeddings().weight, vectors])
    expected = model.base(inputs_embeds=table[ids]).logits
    assert relative(found, expected) < 1e-12
    loss(found).backward()
    loss(expected).backward()
    assert relative(virtual.grad, vectors.grad) < 1e-10


def test_a_row_that_holds_its_virtual_tokens_stands_beside_one_that_does_not() -> None:
    model = AdaptedModel(make_base("llama"))
    add_random(model, {"a": Prompt(length=3), "b": Prompt(length=2)})
    ids = torch.tensor([[67, 68, 69, 5, 9, 11], [4, 5, 6, 7, 8, 9], [3, 4, 5, 6, 7, 8]])
    adapters = ["a", "a", "b"]
    found = model(ids, adapters=adapters).logits
    for row, name in enumerate(adapters):
        assert relative(found[row], model(ids[row : row + 1], adapters=name).logits[0]) < 1e-5
    assert relative(found[0, 3:], model(ids[:1, 3:], adapters="a").logits[0]) < 1e-5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length"),
        ({"length": 1001}, "length"),
        ({"init": "text"}, "init_text"),
        ({"init_text": "x"}, "init: text"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Prompt(**settings)


def test_what_does_not_fit_is_refused() -> None:
    model = AdaptedModel(make_base("llama"))
    with pytest.raises(UserError, match="64 virtual tokens fill the context of 64"):
        model.add("a", Prompt(length=64))
    with pytest.raises(UserError, match="needs a tokenizer"):
        model.add("a", Prompt(init="text", init_text="x"))
    with pytest.raises(UserError, match="67 is outside the vocabulary of 67"):
        model.add("a", Prompt(init="text", init_ids=[67]))
    model.add("a", Prompt(length=60))
    with pytest.raises(UserError, match="8 tokens, 60 virtual tokens"):
        model(IDS, adapters="a")
    model.remove("a")
    with pytest.raises(UserError, match=r"the id 70 is no token: the vocabulary has 67, .* no virtual tokens"):
        model(torch.tensor([[3, 70]]))
    model.add("a", Prompt(length=3))
    for adapters, said in (("a", "the id 70 .* 3 virtual tokens"), (None, "the id 70 .* no virtual tokens")):
        with pytest.raises(UserError, match=said):
            model(torch.tensor([[3, 70]]), adapters=adapters)
    with pytest.raises(UserError, match=r"the id 69 .* no virtual"):
        model(torch.tensor([[3, 69], [3, 69]]), adapters=["a", None])


def test_a_base_without_an_input_embedding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = make_base("llama")

    def unknown(_self: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(type(base), "get_input_embeddings", unknown)
    with pytest.raises(UserError, match="no input embedding"):
        AdaptedModel(base).add("a", Prompt())


def test_broken_files_are_refused(tmp_path: Path) -> None:
    model = AdaptedModel(make_base("llama"))
    model.add("a", Prompt(length=4))
    folder = model.save("a", tmp_path / "a")
    weights = folder / "adapter_model.safetensors"
    values = load_file(weights)["prompt_embeddings"]
    (folder / "graftlm.json").unlink()  # as if peft had written it
    for tensors, said in (
        ({"embeddings": values}, "prompt_embeddings is missing"),
        ({"prompt_embeddings": values, "more": values.clone()}, "more, which graftlm cannot read"),
        ({"prompt_embeddings": values[:3].clone()}, r"is \(3, 32\), and \(4, 32\) is needed"),
        ({"prompt_embeddings": values[:, :30].contiguous()}, r"is \(4, 30\)"),
    ):
        save_file(tensors, weights)
        with pytest.raises(UserError, match=said):
            model.load(folder, name="b")
    save_file({"prompt_embeddings": values}, weights)
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["num_virtual_tokens"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="num_virtual_tokens"):
        model.load(folder, name="b")


def test_all_hidden_states_line_up_with_the_ids_that_were_given() -> None:
    model = AdaptedModel(make_base("llama"))
    randomise(model.add("p", Prompt(length=3)))
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    with torch.no_grad():
        both = model.hidden(ids, adapters=["p", None], output_hidden_states=True)
        bare = model.hidden(ids[1:], adapters=None, output_hidden_states=True)
    assert len(both.hidden_states) == len(bare.hidden_states)
    for ours, alone in zip(both.hidden_states, bare.hidden_states, strict=True):
        assert ours.shape == (2, *alone.shape[1:])
        assert relative(ours[1], alone[0]) < 1e-5
    assert torch.equal(both.hidden_states[-1], both.last_hidden_state)


def test_labels_line_up_as_in_peft() -> None:
    theirs = peft_model("llama", peft.PromptTuningConfig)
    ours = with_vectors_of(theirs, "llama")
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])
    labels = torch.tensor([[-100, -100, 5, 6], [7, 8, 9, 10]])
    expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    assert relative(ours(ids, adapters="a", labels=labels).loss, expected) < 1e-5
