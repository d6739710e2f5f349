"""`graftlm adapters` and `graftlm export`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import graftlm
from tests.cli.conftest import Cli


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "mine")


def test_list(cli: Cli, mine: Path):
    (mine / "adapters" / "cut").mkdir()
    (mine / "adapters" / "cut" / "adapter_config.json").write_text("{")
    shutil.copytree(mine / "adapters" / "both", mine / "adapters" / ".both.x1.part")
    ended = cli("adapters", "list", "mine")
    rows = [line.split() for line in ended.out.splitlines()[1:]]
    assert [row[0] for row in rows] == [f"mine/adapters/{name}" for name in ("both", "colours", "cut")]
    assert rows[0][1:6] == ["LoRA", "rank", "2,", "all-linear", "tiny"]
    assert rows[0][-1] == "kB"
    assert "unreadable" in " ".join(rows[2])
    (mine / "empty").mkdir()
    assert "no adapters below mine/empty" in cli("adapters", "list", "mine/empty").err


def test_show(cli: Cli, mine: Path):
    shown = cli("adapters", "show", "mine/adapters/both").out
    notes = json.loads((mine / "adapters" / "both" / "graftlm.json").read_text())
    for text in ("LoRA rank 2", "plain", "24 rows kept, 0 truncated, 1 dropped", notes["base"]["fingerprint"][:32]):
        assert text in shown
    assert f"{notes['trained_on']['rows']:,} rows of 2 files" in shown
    assert f"{notes['metrics']['held_out_loss']:.4f}" in shown
    assert json.loads(cli("adapters", "show", "mine/adapters/both", "--json").out) == notes
    assert "mine/adapters/both" in cli("adapters", "show", "mine").err


def test_rename(cli: Cli, mine: Path):
    ended = cli("adapters", "rename", "mine/adapters/both", "other")
    assert ended.out == "mine/adapters/both → mine/adapters/other\n"
    assert json.loads((mine / "adapters" / "other" / "graftlm.json").read_text())["name"] == "other"
    assert not (mine / "adapters" / "both").exists()
    assert "exists already" in cli("adapters", "rename", "mine/adapters/other", "colours").err
    assert "is not a folder name" in cli("adapters", "rename", "mine/adapters/other", "../x").err
    assert "a, b" not in cli("chat", "mine", stdin="/list\n").out


def test_remove(cli: Cli, mine: Path):
    assert cli("adapters", "remove", "mine/adapters/both", stdin="n\n").code == 1
    assert cli("adapters", "remove", "mine", "--yes").code == 2  # a run is no adapter
    assert (mine / "adapters" / "both").exists()
    assert cli("adapters", "remove", "mine/adapters/both", "--yes").code == 0
    assert not (mine / "adapters" / "both").exists()


def test_an_export_is_an_ordinary_model(cli: Cli, mine: Path, tmp_path: Path):
    ended = cli("export", "mine/adapters/both", "--out", "merged")
    assert ended.code == 0
    assert "tiny with both merged in" in ended.out
    assert "largest logit difference" in ended.out
    assert ended.err == ""
    model = graftlm.AdaptedModel.from_pretrained("tiny")
    model.load(mine / "adapters" / "both", name="both")
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        expected = model(ids, adapters=["both"]).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    say = ["-m", "The cat is red. Which colour is the cat?", "--temperature", "0", "--max-new-tokens", "6"]
    assert cli("chat", "--base", "merged", *say).out == cli("chat", "mine/adapters/both", *say).out
    assert "merged exists already" in cli("export", "mine/adapters/colours", "--out", "merged").err
    assert cli("export", "mine/adapters/colours", "--out", "merged", "--force").code == 0
    other = cli("chat", "mine/adapters/both", "--base", "merged", "-m", "Hello")
    assert other.code == 2
    assert "was trained on another base" in other.err
    assert "the shapes are equal, the weights are not" in other.err


def test_the_adapters_of_a_run_are_not_merged_together(cli: Cli, mine: Path, tmp_path: Path):
    ended = cli("export", "mine", "--out", "merged")
    assert ended.code == 2
    assert "graftlm export mine/adapters/both --out merged" in ended.err
    assert not (tmp_path / "merged").exists()
    assert "unknown dtype 'int3'" in cli("export", "mine/adapters/both", "--out", "merged", "--dtype", "int3").err
