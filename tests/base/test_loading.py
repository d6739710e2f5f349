"""Loading a base: frozen, in eval mode, safetensors only, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from graftlm import AdaptedModel
from graftlm.base.loading import choose_dtype, load_base, resolve_base
from graftlm.errors import UserError
from tests.families import make_base


def test_the_embedded_base_is_frozen_and_in_eval_mode() -> None:
    loaded = load_base("tiny")
    assert loaded.name == "tiny"
    assert Path(loaded.source, "config.json").exists()
    assert loaded.tokenizer.decode(loaded.tokenizer("Once upon a time").input_ids).endswith("Once upon a time")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert not any(module.training for module in loaded.model.modules())
    assert loaded.context_length == loaded.model.config.max_position_embeddings


def test_a_model_is_frozen_whatever_it_was_before() -> None:
    base = make_base("gpt2")
    base.train().requires_grad_(True)
    model = AdaptedModel(base)
    assert not any(parameter.requires_grad for parameter in model.base.parameters())
    assert not any(module.training for module in model.base.modules())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_dtype_by_name(dtype: str) -> None:
    assert load_base("tiny", dtype=dtype).model.dtype is getattr(torch, dtype)


def test_dtype_auto() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for stored, chosen in [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (None, torch.bfloat16),
    ]:
        config = LlamaConfig(dtype=stored)
        assert choose_dtype("auto", cpu, config) is torch.float32
        assert choose_dtype("auto", gpu, config) is chosen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "tinny"}, "tiny"),
        ({"name": "./nowhere"}, "no such folder"),
        ({"name": "a/b/c"}, "no such folder"),
        ({"name": "tiny", "dtype": "float23"}, "Did you mean 'float32'"),
        ({"name": "tiny", "device": "gpu!"}, "unknown device"),
    ],
)
def test_what_cannot_be_loaded(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_base(**arguments)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve_base(str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(UserError, match="is a file"):
        resolve_base(str(file))


def test_pickled_weights_are_not_opened(tmp_path: Path) -> None:
    base = make_base("llama")
    base.config.save_pretrained(tmp_path)
    torch.save(base.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be loaded") as raised:
        load_base(str(tmp_path))
    assert "safetensors" in str(raised.value)


def test_cut_short_weights(tmp_path: Path) -> None:
    make_base("llama").save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_base("tiny")).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="could not be loaded"):
        load_base(str(tmp_path))


def test_a_base_that_is_not_on_this_machine() -> None:
    with pytest.raises(UserError, match="could not be loaded"):
        load_base("nobody/no-such-model")
