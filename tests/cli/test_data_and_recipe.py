"""`graftlm data preview` and `graftlm recipe`."""

from __future__ import annotations

import json
from pathlib import Path

from graftlm.recipe import parse_recipe
from tests.cli.conftest import Cli
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
