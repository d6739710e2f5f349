"""The embedded base and the script that makes it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from graftlm.errors import UserError
from scripts import make_tiny_base as script
from tests.families import make_base

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "graftlm" / "base" / "tiny"
STORY = (
    "Once upon a time, there was a little girl named Anna. She had a small red ball. One day, the ball rolled under "
    "the bed. Anna was sad. Her mom helped her to find it, and they played together all day."
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(TINY)
    return loaded


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    return loaded.eval()


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    found: list[int] = tokenizer(text)["input_ids"]
    return found


def test_the_files_are_a_small_llama_in_bfloat16() -> None:
    stored = AutoModelForCausalLM.from_pretrained(TINY, dtype="auto")
    assert stored.config.model_type == "llama"
    assert stored.num_parameters() == 5_724_928
    assert {parameter.dtype for parameter in stored.parameters()} == {torch.bfloat16}


def test_the_script_builds_the_shipped_architecture(model: PreTrainedModel) -> None:
    built = script.build_model(seed=0)
    shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    assert shapes == {name: parameter.shape for name, parameter in model.named_parameters()}
    saved_alone = {"_name_or_path", "architectures", "dtype", "transformers_version"}
    built_config, shipped = built.config.to_dict(), model.config.to_dict()
    assert {key for key in built_config if built_config[key] != shipped[key]} <= saved_alone


def test_package_data_stays_small() -> None:
    files = [path for path in (ROOT / "graftlm").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert TINY / "README.md" in files
    assert sum(path.stat().st_size for path in files) < 30e6


@pytest.mark.parametrize(
    "text",
    [
        STORY,
        " two  spaces ",
        "line\n\nline\ttab",
        "从前有一只小猫。",
        "a 🐈 and a 👩‍👩‍👧",
        "naïve café – “quoted”",
        "\x00\x7f",
    ],
)
def test_tokenizer_gives_back_any_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = ids_of(tokenizer, text)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert min(ids) >= len(script.SPECIAL_TOKENS)


def test_chinese_falls_to_bytes(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(ids_of(tokenizer, "小猫")) == 6


def test_special_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    assert tokenizer.convert_tokens_to_ids(list(script.SPECIAL_TOKENS)) == list(range(16))
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert [getattr(model.config, f"{name}_token_id") for name in ("pad", "bos", "eos")] == [0, 1, 2]
    assert ids_of(tokenizer, "<|user|>Hi<|end|>")[0] == 4
    assert tokenizer.chat_template is None


def test_role_tokens_are_untrained(model: PreTrainedModel) -> None:
    """Why the template of this base is plain text: to the model they are one and the same."""
    rows = model.get_input_embeddings().weight[3:16].detach()
    alike = torch.nn.functional.cosine_similarity(rows, rows.mean(0, keepdim=True))
    assert alike.min() > 0.95


def test_it_knows_simple_english(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    told = script.evaluate(model, tokenizer, [STORY] * 8)
    shuffled = script.evaluate(model, tokenizer, [" ".join(sorted(STORY.split()))] * 8)
    assert told.story_loss < 2.5
    assert shuffled.story_loss > told.story_loss + 2.0
    # Bits a byte are the same nats on another scale.
    nats = told.story_loss * told.story_tokens
    assert told.bits_per_byte == pytest.approx(nats / math.log(2) / (8 * len(STORY.encode())))


def test_evaluation_counts_each_prediction_once(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """The oracle is transformers' own loss on each document."""
    texts = [STORY, STORY[:80], STORY * 10]
    documents = script.encode(tokenizer, texts)
    found = script.evaluate(model, tokenizer, texts)
    weights = [len(document) - 1 for document in documents]
    with torch.no_grad():
        losses = [model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in documents]
    expected = sum(loss * weight for loss, weight in zip(losses, weights, strict=True)) / sum(weights)
    assert found.story_tokens == sum(weights)
    assert found.story_loss == pytest.approx(expected, rel=1e-5)
    assert found.packed_tokens == sum(map(len, documents)) // 384 * 383


@pytest.mark.slow
def test_held_out_loss_is_that_of_the_card(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    folder = Path(os.environ.get("GRAFTLM_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "pretraining").is_dir():
        pytest.skip(f"no real data at {folder}; set GRAFTLM_DATA")
    texts = script.read_texts(folder)
    assert len(texts.held_out) == 300
    assert not set(texts.held_out) & set(texts.stories)
    found = script.evaluate(model, tokenizer, texts.held_out)
    assert found.packed_loss == pytest.approx(2.6400, abs=2e-4)
    assert found.story_loss == pytest.approx(2.6327, abs=2e-4)
    card = (TINY / "README.md").read_text(encoding="utf-8")
    assert f"{found.packed_loss:.3f}" in card
    assert f"{found.story_loss:.3f}" in card


def test_evaluation_of_too_little_text_is_an_error(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="fewer than 384 tokens"):
        script.evaluate(model, tokenizer, [STORY])


def test_packing_keeps_every_token_in_order() -> None:
    packed = script.pack([[1, 5, 6, 2], [1, 7, 2], [1, 8, 9, 10, 2]], length=5)
    assert packed.tolist() == [[1, 5, 6, 2, 1], [7, 2, 1, 8, 9]]  # 10, 2 do not fill a row


def test_every_row_is_seen_before_any_is_seen_again() -> None:
    rows = torch.arange(7, dtype=torch.int32).view(7, 1)
    seen = script.repeat_rows(rows, 17, torch.Generator().manual_seed(0)).view(-1).tolist()
    assert sorted(seen[:7]) == sorted(seen[7:14]) == list(range(7))
    assert seen[:7] != seen[7:14]
    assert len(set(seen[14:])) == 3


def test_the_share_of_stories_grows_evenly() -> None:
    stories, books = torch.ones(30, 4, dtype=torch.int32), torch.zeros(20, 4, dtype=torch.int32)
    mixed = script.mix(stories, books, count=1000, seed=0)
    is_story = mixed[:, 0].double()
    assert mixed.shape == (1000, 4)
    assert is_story.mean().item() == pytest.approx(0.525, abs=2e-3)
    assert is_story[:100].mean().item() == pytest.approx(0.3675, abs=0.011)
    assert is_story[-100:].mean().item() == pytest.approx(0.6825, abs=0.011)
    eights = is_story.view(-1, 8).sum(1)
    assert eights[:20].max() <= 4  # interleaved: no step is all stories or all books
    assert eights[-20:].max() <= 6


def test_the_order_follows_from_the_seed() -> None:
    stories, books = torch.arange(30, dtype=torch.int32).view(10, 3), -torch.arange(30, dtype=torch.int32).view(10, 3)
    first, again, other = (script.mix(stories, books, 40, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_too_little_text_is_an_error() -> None:
    nothing, some = torch.empty(0, 4, dtype=torch.int32), torch.ones(3, 4, dtype=torch.int32)
    with pytest.raises(UserError, match="too few"):
        script.mix(nothing, some, 10, 0)


def test_a_tokenizer_is_trained_as_the_shipped_one(tokenizer: PreTrainedTokenizerBase) -> None:
    trained = script.train_tokenizer([STORY] * 3, vocabulary=300)
    assert len(trained) == 300
    assert trained.convert_tokens_to_ids(list(script.SPECIAL_TOKENS)) == list(range(16))
    ids = script.encode(trained, [STORY, "猫"])
    assert ids[0][0] == 1
    assert ids[0][-1] == 2
    assert trained.decode(ids[0][1:-1]) == STORY
    assert len(ids[1]) == 2 + 3
    for part in ("pre_tokenizer", "normalizer"):
        assert str(getattr(trained.backend_tokenizer, part)) == str(getattr(tokenizer.backend_tokenizer, part))
    # The bytes come right after the special tokens, in one order in both.
    assert trained.convert_ids_to_tokens(range(272)) == tokenizer.convert_ids_to_tokens(range(272))


def test_training_goes_on_after_a_stop_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = torch.randint(3, 60, (6 * script.BATCH, 12), generator=torch.Generator().manual_seed(0)).int()
    whole, stopped, resumed = (make_base("llama", seed=seed) for seed in (0, 0, 1))
    before = {name: parameter.clone() for name, parameter in whole.named_parameters()}
    script.train(whole, sequences, tmp_path / "whole", every=100)

    save = script.save_checkpoint

    def save_and_stop(*arguments: Any, **named: Any) -> None:
        save(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(script, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            script.train(stopped, sequences, tmp_path / "stopped", every=3)
    script.train(resumed, sequences, tmp_path / "stopped", every=3)

    assert any(not torch.equal(before[name], parameter) for name, parameter in whole.named_parameters())
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name
    with pytest.raises(UserError, match="another run"):
        script.train(make_base("llama"), sequences + 1, tmp_path / "stopped")


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tinystories\.jsonl\.gz"):
        script.read_texts(tmp_path)
