"""The script that pretrains a small T5: gaps lose nothing, and its folder is read as an encoder-decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from graftlm import AdaptedModel, LoRA
from graftlm.base.loading import load_base
from graftlm.errors import UserError
from scripts import make_tiny_t5 as script


def test_source_and_target_together_are_the_text() -> None:
    taken, count = script.gaps()
    sentinels, eos = list(range(900, 900 + count)), 2
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for seed in range(20):
        ids = torch.randint(3, 800, (script.LENGTH,), generator=torch.Generator().manual_seed(seed))
        source, target = script.corrupt(ids, sentinels, eos, generator)
        assert source.pop() == target.pop() == eos
        gone: dict[int, list[int]] = {}
        last = 0
        for token in target:
            if token >= 900:
                last = token
                gone[last] = []
            else:
                gone[last].append(token)
        restored = [piece for token in source for piece in gone.get(token, [token])]
        assert restored == ids.tolist()
        assert all(gone.values())
        lengths.add((len(source), len(target)))
    assert lengths == {(script.LENGTH - taken + count, taken + count)}


def test_the_folder_is_an_encoder_decoder(tmp_path: Path) -> None:
    texts = [f"Once upon a time there were {number} cats. They lived in a big house." for number in range(300)]
    script.make(data_of(tmp_path, texts), tmp_path / "t5", minutes=0.01, seed=0)
    loaded = load_base(str(tmp_path / "t5"))
    assert loaded.kind == "encoder-decoder"
    assert len(loaded.tokenizer("<extra_id_0>")["input_ids"]) == 1
    assert loaded.model.config.vocab_size == len(loaded.tokenizer)
    model = AdaptedModel(loaded.model, loaded.tokenizer)
    model.add("a", LoRA(rank=2))
    with pytest.raises(UserError, match="more than 200 are needed"):
        script.make(data_of(tmp_path, texts[:10]), tmp_path / "other", minutes=0.01, seed=0)


def data_of(folder: Path, texts: list[str]) -> Path:
    path = folder / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path
