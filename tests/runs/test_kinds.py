"""Whole runs on an encoder, an encoder-decoder, and with heads beside written answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from graftlm import AdaptedModel
from graftlm.adapters.merge import export_merged
from graftlm.base.loading import load_tokenizer
from graftlm.cli.generate import generate
from graftlm.errors import UserError
from graftlm.evaluation.speakers import open_adapters
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Request
from graftlm.recipe import recipe_from_dict
from graftlm.runs import PreparedRun, RunFolder, execute, locked, set_up
from graftlm.training.plan import plan
from tests.data.words import wordpiece
from tests.families import make_base
from tests.runs.small import write_rows

LABELS = {"good": "pos", "great": "pos", "bad": "neg", "terrible": "neg"}
SHORT = {"batch_rows": 4, "learning_rate": 0.01, "epochs": 2, "eval_every": 4}


def reviews(folder: Path) -> Path:
    rows = [
        {"text": f"{start} film {verb} {word}{end}", "label": label}
        for start in ("the", "a")
        for verb in ("is", "was")
        for word, label in LABELS.items()
        for end in ("", " .", " it")
    ]
    return write_rows(folder / "reviews.jsonl", rows)


def recipe_of(folder: Path, base: str, adapters: dict[str, Any], **training: Any) -> Any:
    data = {"path": str(reviews(folder)), "prompt": "{text}", "answer": "{label}", "held_out": 8}
    lora = {"method": "lora", "rank": 2}
    adapters = {name: keys if "method" in keys else {**lora, **keys} for name, keys in adapters.items()}
    values = {"base": base, "data": {"reviews": data}, "adapters": adapters, "training": {**SHORT, **training}}
    return recipe_from_dict(values, folder=folder)


def carry_out(recipe: Any, folder: Path) -> tuple[PreparedRun, RunFolder, list[str]]:
    said: list[str] = []
    run = set_up(recipe, said.append)
    out = RunFolder(folder / "out")
    planned = plan(run.model, run.tasks, recipe.training)
    with locked(out):
        result = execute(run, out, plan=planned)
    assert result.report is not None
    assert out.report.is_file()
    return run, out, said


@pytest.fixture
def encoder(tmp_path: Path) -> str:
    folder = tmp_path / "bert"
    make_base("bert").save_pretrained(str(folder))
    wordpiece().save_pretrained(str(folder))
    return str(folder)


def test_a_run_on_an_encoder(encoder: str, tmp_path: Path) -> None:
    words = {"type": "verbalizer", "pattern": "it was {mask} .", "words": {"pos": "great", "neg": "terrible"}}
    adapters = {"label": {"head": {"type": "classifier"}}, "word": {"head": words}}
    run, out, said = carry_out(recipe_of(tmp_path, encoder, adapters), tmp_path)
    assert [line.partition(":")[0] for line in said[1:4]] == [
        "texts of an encoder",
        "data reviews for label",
        "data reviews for word",
    ]
    notes = json.loads((out.adapters / "label" / "graftlm.json").read_text())
    assert notes["head"] == {"type": "classifier", "labels": ["neg", "pos"], "pattern": None, "words": {}}
    assert notes["metrics"]["base_accuracy"] == pytest.approx(0.5, abs=0.25)  # the most frequent label
    again = AdaptedModel.from_pretrained(encoder)
    again.load(out.adapters / "label")
    ids = torch.tensor([[2, 5, 6, 3]])
    states = [
        model.hidden(ids, torch.ones_like(ids), adapters="label").last_hidden_state for model in (run.model, again)
    ]
    assert torch.equal(*states)
    heads = [model.adapter("label").head for model in (run.model, again)]
    assert all(head is not None for head in heads)
    assert torch.equal(*(head.get_parameter("weight") for head in heads if head is not None))
    with pytest.raises(UserError, match="is an encoder, which writes no text"):
        Engine(run.model)


def test_heads_and_answers_from_one_data_set(tmp_path: Path) -> None:
    adapters = {
        "label": {"head": {"type": "classifier"}},
        "text": {},
        "tags": {"head": {"type": "tagger", "labels": ["pos", "neg"]}},
    }
    values = recipe_of(tmp_path, "tiny", {name: adapters[name] for name in ("label", "text")}, max_steps=2)
    run, out, _ = carry_out(values, tmp_path)
    assert sorted(run.data) == ["reviews", "reviews for label"]
    assert run.held_out["label"] == run.held_out["text"]
    assert run.parts["label"]["reviews"].counts()["kept"] == run.parts["text"]["reviews"].counts()["kept"] == 48
    summary = json.loads(out.summary.read_text())
    assert set(summary["data"]) == set(run.data)
    with pytest.raises(UserError, match="'label' has a head of its own"):
        Engine(run.model, run.tokenizer).submit(Request((5, 6), "label"))
    with pytest.raises(UserError, match=r"data set 'reviews'(.|\n)*not as many labels as words"):
        set_up(recipe_of(tmp_path, "tiny", {"tags": adapters["tags"]}))


def test_a_run_on_an_encoder_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=8192, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(str(folder))
    load_tokenizer("tiny").save_pretrained(str(folder))
    _, out, said = carry_out(recipe_of(tmp_path, str(folder), {"a": {"rank": 4}}, epochs=8), tmp_path)
    metrics = json.loads((out.adapters / "a" / "graftlm.json").read_text())["metrics"]
    assert "texts of an encoder-decoder" in said
    assert out.report.read_text().count('<article class="card example">') == 8
    assert metrics["held_out_loss"] < 0.7 * metrics["base_loss"]
    opened = open_adapters([out.adapters / "a"], device="cpu")
    check = export_merged(opened.model, ["a"], tmp_path / "merged")
    assert check.relative < 1e-4
    assert check.largest_logit > 0
    generate(
        str(reviews(tmp_path)), tmp_path / "answers.jsonl", [out.adapters / "a"], prompt="{text}", max_new_tokens=4
    )
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(records) > 4
    assert sum(record["answer"] in ("good", "bad", "pos", "neg") for record in records) > 0.5 * len(records)
    with pytest.raises(UserError, match="writes its labels as text"):
        set_up(recipe_of(tmp_path, str(folder), {"a": {"head": {"type": "classifier"}}}))


def test_templates_with_virtual_tokens_on_an_encoder(encoder: str, tmp_path: Path) -> None:
    template, front = "[P×2] {input} [P×3] it was {target} .", "it was {mask} ."
    words = {"type": "verbalizer", "words": {"pos": "great", "neg": "terrible"}}
    adapters = {
        "inside": {"method": "p-tuning", "template": template, "encoder_hidden": 8, "head": words},
        "front": {"method": "p-tuning", "length": 5, "encoder_hidden": 8, "head": {**words, "pattern": front}},
    }
    run, out, _ = carry_out(recipe_of(tmp_path, encoder, adapters, epochs=6), tmp_path)
    for name in adapters:
        notes = json.loads((out.adapters / name / "graftlm.json").read_text())
        assert notes["metrics"]["held_out_loss"] < 0.9 * notes["metrics"]["base_loss"]
    vocabulary = run.model.places.embedding.vocabulary
    ids = [max(row.ids) for row in run.tasks[0].rows]
    assert set(ids) == {vocabulary + 4}


def test_templates_with_virtual_tokens_on_an_encoder_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(vocab_size=8192, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(str(folder))
    load_tokenizer("tiny").save_pretrained(str(folder))
    adapter = {"method": "p-tuning", "template": "{input} [P×3] It was [P] {target}", "encoder": "none"}
    run, out, _ = carry_out(recipe_of(tmp_path, str(folder), {"a": adapter}), tmp_path)
    metrics = json.loads((out.adapters / "a" / "graftlm.json").read_text())["metrics"]
    assert metrics["held_out_loss"] < metrics["base_loss"]
    row = run.tasks[0].rows[0]
    assert [token - 8192 for token in row.source_ids or () if token >= 8192] == [0, 1, 2, 3]
    assert max(row.ids) < 8192


def test_what_stands_before_a_row_must_fit_beside_it(encoder: str, tmp_path: Path) -> None:
    prompt = {"method": "prompt", "length": 60, "head": {"type": "classifier"}}
    data = {"path": str(reviews(tmp_path)), "prompt": "{text}", "answer": "{label}"}
    recipe = recipe_from_dict(
        {"base": encoder, "data": {"reviews": data}, "adapters": {"long": prompt}}, folder=tmp_path
    )
    with pytest.raises(UserError, match=r"adapter 'long': its 60 virtual tokens .* leave room for 4 tokens"):
        set_up(recipe)


def test_an_adapter_without_a_head_predicts_with_the_one_beneath(tmp_path: Path) -> None:
    """Its rows are those of the head, and not texts whose tokens would be taken for classes."""
    (tmp_path / "first").mkdir()
    head = {"type": "classifier", "labels": ["pos", "neg", "none"]}
    _, first, _ = carry_out(recipe_of(tmp_path, "tiny", {"shared": {"head": head}}, max_steps=2), tmp_path / "first")
    shared = first.adapters / "shared"
    over = {"method": "prefix", "length": 2, "under": str(shared)}
    recipe = recipe_of(tmp_path, "tiny", {"over": over}, max_steps=2)
    run, out, _ = carry_out(recipe, tmp_path)
    assert run.heads["over"].labels == ("pos", "neg", "none")
    assert run.model.adapter("over").head is None
    assert run.model.head_of(run.tasks[0].stack) == run.tasks[0].under[0]
    assert {max(row.targets or ()) for row in run.tasks[0].rows} == {0, 1}
    assert not (out.adapters / "over" / "head.safetensors").exists()
    opened = open_adapters([out.adapters / "over"], device="cpu")
    assert [speaker.head for speaker in opened.adapters] == [run.heads["over"]]
    notes = json.loads((shared / "graftlm.json").read_text())
    del notes["head"]
    (shared / "graftlm.json").write_text(json.dumps(notes))
    with pytest.raises(
        UserError, match=r"adapter 'over': under: .*shared has a head, and its graftlm.json does not name"
    ):
        set_up(recipe)


def test_labels_of_which_none_is_in_the_data(tmp_path: Path) -> None:
    adapters = {"label": {"head": {"type": "classifier", "labels": ["good", "bad"]}}}
    with pytest.raises(UserError, match=r"none of the labels \(good, bad\) is in the data; its answers are: neg, pos"):
        set_up(recipe_of(tmp_path, "tiny", adapters))
