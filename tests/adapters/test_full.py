"""Full fine-tuning of a copy against fine-tuning a deep copy of the base with plain autograd."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from graftlm import IA3, AdaptedModel, BitFit, Bottleneck, Full, LoRA
from graftlm.adapters.full import Full as FullConfig
from graftlm.adapters.merge import export_merged
from graftlm.adapters.method import MethodConfig
from graftlm.adapters.own_module import OwnModule
from graftlm.adapters.stored import own_tensors
from graftlm.base.fingerprint import exact_digest
from graftlm.errors import UserError
from graftlm.generation import Engine, Request, SamplingSettings
from graftlm.objectives.log_probs import token_log_probs
from graftlm.training import loop
from graftlm.training.checkpoints import latest_checkpoint, save_checkpoint
from graftlm.training.events import Stepped
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from tests.adapters.oracle import IDS, assert_as_plain, run
from tests.families import ENCODER_DECODERS, ENCODERS, FAMILIES, make_base, overridden, randomise, relative
from tests.training.test_reference import mean_loss
from tests.training.work import make_rows, model_with
from tests.training.work import run as run_tasks

ALL = (*FAMILIES, *ENCODERS, *ENCODER_DECODERS)
#: parts of the names of parameters of modules that are not called token by token: they stay frozen
FROZEN = ("relative_attention_bias", "pooler", "model.decoder.embed_positions", "model.encoder.embed_positions")


def full(family: str, *, noise: float = 0.05, **settings: bool) -> AdaptedModel:
    """A base with the adapter "a", a copy of all weights, moved at random."""
    model = AdaptedModel(make_base(family), name=f"random-{family}")
    move(model, model.add("a", Full(**settings)), noise)
    return model


@torch.no_grad()
def move(model: AdaptedModel, adapter: nn.Module, noise: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in adapter.parameters():
        parameter.add_(noise * torch.randn(parameter.shape, generator=generator))


def twin(model: AdaptedModel, family: str) -> tuple[nn.Module, dict[str, tuple[nn.Parameter, nn.Parameter]]]:
    """A plain model with the adapter's weights, and what belongs together: (ours, theirs) by name."""
    plain = make_base(family, dtype=model.dtype).eval()
    pairs = {}
    for path, update in model.adapters["a"].linear.items():
        assert isinstance(update, OwnModule)
        for name, ours in update.module.named_parameters():
            theirs = plain.get_submodule(path).get_parameter(name)
            pairs[f"{path}.{name}"] = (ours, theirs)
            with torch.no_grad():
                theirs.copy_(ours)
    return plain, pairs


@pytest.mark.parametrize("family", ALL)
def test_outputs_and_gradients_are_those_of_plain_fine_tuning(family: str) -> None:
    model = full(family)
    plain, pairs = twin(model, family)
    trained = {id(theirs) for _, theirs in pairs.values()}
    left = [name for name, parameter in plain.named_parameters() if id(parameter) not in trained]
    assert all(any(part in name for part in FROZEN) for name in left), left
    assert_as_plain(model, plain, family, pairs)


@pytest.mark.parametrize("family", ALL)
def test_as_many_parameters_as_the_base(family: str) -> None:
    """Tied weights are tied in the copy, and counted once."""
    base = make_base(family)
    frozen = sum(p.numel() for name, p in base.named_parameters() if any(part in name for part in FROZEN))
    adapter = AdaptedModel(base).add("a", Full())
    assert adapter.trained_parameters == sum(p.numel() for p in base.parameters()) - frozen


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
def test_it_starts_as_the_base(family: str) -> None:
    model = AdaptedModel(make_base(family))
    model.add("a", Full())
    assert relative(run(model, family), run(model, family, None)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "qwen2", "t5"])
def test_steps_of_an_optimizer_are_those_of_plain_fine_tuning(family: str) -> None:
    """In float64: five steps of AdamW end at the same weights."""
    model = AdaptedModel(make_base(family, dtype=torch.float64))
    before = exact_digest(model.base)
    adapter = model.add("a", Full())
    plain = make_base(family, dtype=torch.float64).eval()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN))
    ours = torch.optim.AdamW(adapter.parameters(), lr=1e-3, eps=1e-3)
    theirs = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-3, eps=1e-3)
    more = {"decoder_input_ids": IDS} if family == "t5" else {}
    for _ in range(5):
        for optimizer, output in ((ours, model(IDS, adapters="a", **more)), (theirs, plain(IDS, **more))):
            optimizer.zero_grad()
            nn.functional.cross_entropy(output.logits.flatten(0, 1), (IDS * 7 % 60).flatten()).backward()
            optimizer.step()
    for path, update in adapter.linear.items():
        for name, parameter in update.module.named_parameters():
            wanted = plain.get_submodule(path).get_parameter(name)
            assert float((parameter - wanted).detach().abs().max()) < 1e-9, f"{path}.{name}"
    assert exact_digest(model.base) == before


def test_without_embeddings_the_blocks_alone_are_trained() -> None:
    model = full("llama", embeddings=False)
    assert all(".layers." in f".{path}" for path in model.adapters["a"].linear)
    plain, pairs = twin(model, "llama")
    assert_as_plain(model, plain, "llama", pairs)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_copy_takes_nothing_of_other_adapters_along(family: str) -> None:
    """Other adapters are attached to the modules that are copied, and go before the copy does."""
    model = AdaptedModel(make_base(family))
    randomise(model.add("other", LoRA(rank=3)))
    model.gradient_checkpointing = True
    model.add("a", Full())
    assert overridden(model.adapters["a"]) == []
    assert relative(run(model, family), run(model, family, None)) < 1e-6
    move(model, model.adapters["a"])
    model.remove("other")
    plain, pairs = twin(model, family)
    assert_as_plain(model, plain, family, pairs)
    model.copy("a", "b")
    assert relative(run(model, family, "b"), run(model, family, "a")) == 0
    with torch.no_grad():
        first = next(model.adapters["b"].parameters())
        first.add_(1.0)
    assert not torch.equal(first, next(model.adapters["a"].parameters()))


def test_a_copied_adapter_stays_tied() -> None:
    model = full("qwen2")
    duplicate = model.copy("a", "b")
    head, embedding = duplicate.linear["lm_head"], duplicate.linear["model.embed_tokens"]
    assert head.module.weight is embedding.module.weight
    assert copy.deepcopy(duplicate).trained_parameters == model.adapters["a"].trained_parameters


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_log_probabilities_train_the_head(family: str) -> None:
    """The path of training: hidden states, then the head's scores of some positions only, in chunks."""
    model = full(family)
    plain, pairs = twin(model, family)
    assert model.head_is_adapted
    hidden = model.hidden(IDS, adapters="a").last_hidden_state.flatten(0, 1)
    where = torch.tensor([1, 2, 6, 9, 10, 15])
    targets = (IDS.flatten() * 5 % 60)[where]
    routing = model.routing("a", 2, 8).select(where)
    ours = token_log_probs(
        model.score, hidden[where], targets, vocabulary=model.vocabulary, routing=routing, head_is_trained=True
    )
    logits = plain(IDS).logits.flatten(0, 1)[where]
    theirs = logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
    assert relative(ours, theirs) < 1e-5
    weights = torch.linspace(0.5, 2, len(where))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for key, (mine, peers) in pairs.items():
        assert relative(mine.grad, peers.grad) < 2e-5, key


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_merged_it_is_an_ordinary_model(family: str, tmp_path: Path) -> None:
    model = full(family)
    before = exact_digest(model.base)
    assert export_merged(model, ["a"], tmp_path / "merged").relative < 1e-5
    assert exact_digest(model.base) == before
    plain, _ = twin(model, family)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.config.tie_word_embeddings == plain.config.tie_word_embeddings
    for (name, one), (_, other) in zip(merged.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ["qwen2", "bert", "t5"])
def test_saved_and_loaded_tied_weights_are_written_once(family: str, tmp_path: Path) -> None:
    model = full(family)
    model.save("a", tmp_path / "a")
    size = sum(tensor.numel() for tensor in load_file(tmp_path / "a" / "adapter_model.safetensors").values())
    assert size == model.adapters["a"].trained_parameters
    again = AdaptedModel(make_base(family), name=model.name)
    again.load(tmp_path / "a")
    assert relative(run(again, family), run(model, family)) == 0
    assert again.adapters["a"].trained_parameters == model.adapters["a"].trained_parameters


def test_a_copy_of_another_base_is_refused(tmp_path: Path) -> None:
    model = full("llama")
    model.save("a", tmp_path / "a")
    with pytest.raises(UserError, match="trained on another base"):
        AdaptedModel(make_base("llama", seed=1)).load(tmp_path / "a")
    with pytest.raises(UserError, match="trained on another base"):
        AdaptedModel(make_base("gpt2")).load(tmp_path / "a")


def test_what_a_folder_lacks_is_named() -> None:
    model = full("llama")
    stored = FullConfig().store(model.adapters["a"], model.places, "x")
    del stored.tensors[next(key for key in stored.tensors if "q_proj" in key)]
    with pytest.raises(UserError, match=r"q_proj.* is missing"):
        FullConfig().restore(stored, model.places, device=model.device)


@pytest.mark.parametrize("family", ["qwen2", "t5"])
def test_a_checkpoint_holds_tied_weights_once(family: str, tmp_path: Path) -> None:
    model = full(family)
    adapter = model.adapters["a"]
    save_checkpoint(tmp_path, 1, {}, own_tensors(adapter), keep=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    expected = run(model, family)
    move(model, adapter, noise=0.5)
    assert relative(run(model, family), expected) > 1e-3
    adapter.adopt(found.tensors)
    assert relative(run(model, family), expected) == 0


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_step_of_the_loop_is_one_of_plain_fine_tuning(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient, the head's too, beside a LoRA in the same micro-batches."""
    model = model_with({"a": Full(), "b": LoRA(rank=2)}, family)
    plain, pairs = twin(model, family)
    rows = make_rows(8, seed=1)
    expected = mean_loss(lambda ids: plain(ids).logits, rows)
    expected.backward()
    seen: dict[int, torch.Tensor] = {}

    def keep(parameters: list[nn.Parameter], norm: float, limit: float) -> None:
        seen.update({id(p): p.grad.clone() for p in parameters if p.grad is not None})

    monkeypatch.setattr(loop, "clip_gradients", keep)
    tasks = [Task("a", rows, AdapterTraining(batch_rows=8, epochs=1)), Task("b", make_rows(5, seed=2))]
    _, recorder = run_tasks(model, tasks, RunSettings(micro_batch_tokens=20))
    (stepped,) = recorder.of(Stepped, "a")
    assert stepped.loss == pytest.approx(float(expected.detach()), rel=1e-9)
    for key, (mine, peers) in pairs.items():
        assert peers.grad is not None
        assert relative(seen[id(mine)], peers.grad) < 1e-9, key


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_generated_tokens_are_those_of_the_plain_model(family: str) -> None:
    model = full(family)
    plain, _ = twin(model, family)
    prompts = [(3, 4, 5), (9, 8, 7, 6, 5)]
    sampling = SamplingSettings(max_new_tokens=6, stop_ids=())
    for stack, other in (("a", plain), (None, make_base(family).eval())):
        found = Engine(model).run([Request(prompt, stack, sampling) for prompt in prompts])
        for prompt, completion in zip(prompts, found, strict=True):
            ids = torch.tensor([prompt])
            for _ in range(6):
                ids = torch.cat([ids, other(ids).logits[:, -1:].argmax(-1)], dim=1)
            assert list(completion.token_ids) == ids[0, len(prompt) :].tolist()[: len(completion.token_ids)]
            assert completion.token_ids


@pytest.mark.parametrize("config", [Full(), BitFit(), IA3(), Bottleneck(), Bottleneck(placement="stream")])
@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert", "bart"])
def test_beside_a_base_in_half_precision(family: str, config: MethodConfig) -> None:
    """Adapters are kept in float32, and what comes out is the base's kind of number."""
    half, single = (AdaptedModel(make_base(family, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    for model in (half, single):
        move(model, model.add("a", config))
    output = run(half, family)
    assert output.dtype == torch.bfloat16
    assert relative(output.float(), run(single, family)) < 0.1
    output.float().square().mean().backward()
    for parameter in half.adapters["a"].parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.isfinite().all()
