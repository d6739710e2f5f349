"""graftlm generate with adapters that predict labels, beside those that write text."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from graftlm.cli.train import run_recipe
from graftlm.recipe import recipe_from_dict
from tests.cli.conftest import Cli
from tests.data.words import wordpiece
from tests.families import make_base
from tests.runs.small import write_rows

WORDS = {"type": "verbalizer", "pattern": "it was {mask} .", "words": {"pos": "great", "neg": "terrible"}}
PROMPTS = ["the film was good", "a film is terrible", "it was bad"]


def train(place: Path, base: str, adapters: dict[str, Any]) -> Path:
    looks = {"good": "pos", "great": "pos", "bad": "neg", "terrible": "neg"}
    rows = [
        {"text": f"{start} film {verb} {word}", "label": label, "tags": f"D N V {label}"}
        for start in ("the", "a")
        for verb in ("is", "was")
        for word, label in looks.items()
    ]
    write_rows(place / "reviews.jsonl", rows)
    write_rows(place / "tags.jsonl", [{"tokens": r["text"].split(), "tags": r["tags"].split()} for r in rows])
    values = {
        "base": base,
        "data": {
            "reviews": {"path": "reviews.jsonl", "prompt": "{text}", "answer": "{label}", "held_out": 4},
            "tags": {"path": "tags.jsonl", "held_out": 4},
        },
        "adapters": {name: {"method": "lora", "data": "reviews", **keys} for name, keys in adapters.items()},
        "training": {"batch_rows": 4, "max_steps": 2, "learning_rate": 0.01},
    }
    here = Path.cwd()
    os.chdir(place)
    try:
        return run_recipe(recipe_from_dict(values, folder=place), place / "run", with_plan=False).path
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def encoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("encoder")
    make_base("bert").save_pretrained(str(place / "bert"))
    wordpiece().save_pretrained(str(place / "bert"))
    adapters = {
        "class": {"head": {"type": "classifier"}},
        "tags": {"method": "bottleneck", "data": "tags", "head": {"type": "tagger"}},
        "word": {"head": WORDS},
    }
    return train(place, str(place / "bert"), adapters)


@pytest.fixture(scope="module")
def decoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapters = {"text": {"method": "prefix", "length": 2}, "class": {"head": {"type": "classifier"}}}
    return train(tmp_path_factory.mktemp("decoder"), "tiny", adapters)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_labels_with_their_probability(cli: Cli, encoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    ended = cli("generate", "prompts.txt", "--adapter", encoder_run, "--out", "labels.jsonl")
    assert (ended.code, ended.err.splitlines()[-1]) == (0, "9 answers (9 labels)")
    records = read(tmp_path / "labels.jsonl")
    assert [(record["row"], record["adapter"]) for record in records] == [
        (row, name) for row in (1, 2, 3) for name in ("class", "tags", "word")
    ]
    for record in records:
        assert record["finish_reason"] == "label"
        if record["adapter"] == "tags":
            words = record["prompt"].split()
            assert len(record["answer"].split()) == len(record["probabilities"]) == len(words)
            assert set(record["answer"].split()) <= {"D", "N", "V", "pos", "neg"}
        else:
            assert record["answer"] in ("pos", "neg")
            assert 0.5 <= record["probability"] <= 1


def test_words_that_are_still_to_be_tagged(cli: Cli, encoder_run: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "words.jsonl", [{"tokens": ["the", "film"]}, {"words": ["a", "good", "film"], "tags": None}])
    tags = encoder_run / "adapters" / "tags"
    assert cli("generate", "words.jsonl", "--adapter", tags, "--out", "tags.jsonl").code == 0
    assert [len(record["answer"].split()) for record in read(tmp_path / "tags.jsonl")] == [2, 3]


def test_no_head_is_merged(cli: Cli, encoder_run: Path, tmp_path: Path) -> None:
    ended = cli("export", encoder_run / "adapters" / "class", "--out", "merged")
    assert (ended.code, "(lora with a head of its own) is no change of weights alone" in ended.err) == (2, True)
    ended = cli("export", encoder_run / "adapters" / "word", "--out", "merged")
    assert "BertForMaskedLM.from_pretrained" in ended.out
    assert "graftlm chat" not in ended.out


def test_labels_are_resumed(cli: Cli, encoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    command = ["generate", "prompts.txt", "--adapter", encoder_run, "--out", "labels.jsonl"]
    assert cli(*command).code == 0
    whole = (tmp_path / "labels.jsonl").read_text()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "labels.jsonl").write_text("".join(lines[:4]) + lines[4][:20])
    ended = cli(*command, "--resume")
    assert "5 answers (5 labels), 4 were there" in ended.err
    assert (tmp_path / "labels.jsonl").read_text() == whole


def test_labels_beside_text(cli: Cli, decoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join([PROMPTS[0], "word " * 3000]))
    command = ["generate", "prompts.txt", "--adapter", decoder_run, "--with-base", "--out", "both.jsonl"]
    ended = cli(*command, "--max-new-tokens", "3")
    assert ended.code == 0
    assert "3 answers (" in ended.err
    assert "1 labels" in ended.err
    assert "no answer to row 2: prompt fills the context" in ended.err
    kinds = {record["adapter"]: sorted(record) for record in read(tmp_path / "both.jsonl")[:3]}
    shared = ["adapter", "answer", "finish_reason", "prompt"]
    assert kinds["class"] == sorted([*shared, "probability", "row"])
    assert kinds["text"] == kinds[None] == sorted([*shared, "row", "tokens"])  # type: ignore[index]


def test_what_cannot_answer_says_so(cli: Cli, encoder_run: Path, decoder_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    ended = cli("generate", "prompts.txt", "--adapter", encoder_run, "--with-base", "--out", "x")
    assert (ended.code, "'base' has nothing to answer with" in ended.err) == (2, True)
    assert "write no text: class, tags and word" in cli("chat", encoder_run, "--message", "hello").err
    talk = cli("chat", decoder_run, "--message", "hello", "--max-new-tokens", "2")
    assert talk.code == 0
    assert "note: class left out" in talk.err
    config = json.loads((encoder_run / "adapters" / "class" / "graftlm.json").read_text())
    assert config["head"]["labels"] == ["neg", "pos"]
    assert "one label a row: neg, pos" in cli("adapters", "show", encoder_run / "adapters" / "class").out


def test_the_next_commands_fit_the_adapters(cli: Cli, encoder_run: Path, decoder_run: Path, tmp_path: Path) -> None:
    """Labels are asked for, and what cannot be merged is not exported."""
    for run, names in ((encoder_run, ["generate", "export"]), (decoder_run, ["chat", "generate"])):
        report = (run / "report.html").read_text()
        commands = [html.unescape(found) for found in re.findall(r'data-copy="([^"]*)"', report)]
        assert [line.split()[1] for line in commands if line.split()[1] in ("chat", "generate", "export")] == names
        (labels,) = [line for line in commands if line.startswith("graftlm generate")]
        assert cli(*shlex.split(labels)[1:]).code == 0
        (tmp_path / "labels.jsonl").unlink()
