"""`graftlm data preview` and `graftlm recipe`."""

from __future__ import annotations

import json
from pathlib import Path

from graftlm.base.loading import load_tokenizer
from graftlm.recipe import parse_recipe
from tests.cli.conftest import Cli
from tests.data.words import wordpiece
from tests.families import make_base
from tests.runs.small import colour_rows, write_rows


def test_preview(cli: Cli, tmp_path: Path):
    rows = [*colour_rows(3), {"instruction": "Who?", "output": ""}, {"instruction": "Talk.", "output": "word " * 3000}]
    write_rows(tmp_path / "[bold]rows.jsonl", [*rows, {"instruction": "Who are you?", "output": "{{name}}"}])
    ended = cli("data", "preview", "[bold]rows.jsonl", "--rows", "1")
    assert ended.code == 0
    assert ended.out.startswith("[bold]rows.jsonl: read as Alpaca: 6 rows\n")
    assert "row 1: " in ended.out
    assert "⟦" in ended.out
    assert "kept       5 of 6\n" in ended.out
    assert "dropped    1: empty answer ([bold]rows.jsonl:4)" in ended.out
    assert "1 rows are longer than the context of tiny (2,048 tokens)" in ended.out
    assert "{{name}} (1)" in ended.err
    assert cli("data", "preview", "[bold]rows.jsonl", "--set", "name=Ada").err == ""
    assert "row 2 is broken JSON" in broken(cli, tmp_path)


def test_preview_of_what_an_encoder_reads(cli: Cli, tmp_path: Path):
    make_base("bert").save_pretrained(str(tmp_path / "bert"))
    wordpiece().save_pretrained(str(tmp_path / "bert"))
    write_rows(
        tmp_path / "rows.jsonl", [{"prompt": "the film", "completion": "pos"}, {"prompt": "a", "completion": "neg"}]
    )
    ended = cli("data", "preview", "rows.jsonl", "--base", "bert")
    assert "row 1: 4 tokens, 1 learnt\n⟦[CLS]⟧|the|film|[SEP]\n" in ended.out
    assert "kept       2 of 2" in ended.out
    write_rows(tmp_path / "tags.jsonl", [{"tokens": ["the", "film"], "tags": ["D", "N"]}])
    assert "[CLS]|⟦the|film⟧|[SEP]\n" in cli("data", "preview", "tags.jsonl", "--base", "bert").out
    asked = cli("data", "preview", "rows.jsonl", "--base", "bert", "--chat-template", "alpaca")
    assert (asked.code, "this base is an encoder, which reads texts without roles" in asked.err) == (2, True)


def test_preview_of_two_sequences(cli: Cli, tmp_path: Path):
    make_base("t5").save_pretrained(str(tmp_path / "t5"))
    load_tokenizer("tiny").save_pretrained(str(tmp_path / "t5"))
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "the film", "completion": "good"}])
    ended = cli("data", "preview", "rows.jsonl", "--base", "t5")
    source, answer = ended.out.split("learnt\n")[1].splitlines()[:2]
    assert "film" in source
    assert "⟦" not in source
    assert "⟦" in answer


def broken(cli: Cli, tmp_path: Path) -> str:
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"te')
    ended = cli("data", "preview", "broken.jsonl")
    assert ended.code == 2
    return ended.err


def test_recipe(cli: Cli, tmp_path: Path):
    text = cli("recipe").out
    assert parse_recipe(text).base == "tiny"
    assert json.loads(cli("recipe", "--schema").out)["type"] == "object"
    assert cli("recipe", "--out", "mine.yaml").code == 0
    assert (tmp_path / "mine.yaml").read_text() == text
    assert "mine.yaml exists already" in cli("recipe", "--out", "mine.yaml").err
    assert cli("recipe", "--out", "mine.yaml", "--force").code == 0
