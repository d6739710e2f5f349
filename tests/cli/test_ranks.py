"""Adapters that serve at several ranks, or chose their ranks, from the recipe to the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import graftlm
from graftlm.cli.train import run_recipe
from tests.cli.conftest import Cli
from tests.runs.small import small_recipe

ADAPTERS = {
    "dy": {"method": "dylora", "rank": 4, "data": "colours", "max_steps": 6},
    "ada": {
        "method": "adalora",
        "init_rank": 4,
        "target_rank": 2,
        "t_init": 1,
        "t_final": 3,
        "delta_t": 1,
        "data": "colours",
        "max_steps": 6,
    },
}
QUESTION = "The cat is red. Which colour is the cat?"


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranked")
    here = Path.cwd()
    os.chdir(place)
    try:
        return run_recipe(small_recipe(place, adapters=ADAPTERS), place / "run", with_plan=False).path
    finally:
        os.chdir(here)


def test_run_json_and_report(ranked: Path):
    summary = json.loads((ranked / "run.json").read_text())
    scores = summary["adapters"]["dy"]["by_rank"]
    assert list(scores) == ["1", "2", "3", "4"]
    whole = summary["adapters"]["dy"]["held_out_loss"]
    assert scores["4"]["held_out_loss"] == pytest.approx(whole, rel=1e-4)
    assert scores["1"]["held_out_loss"] != pytest.approx(whole, rel=1e-4)
    ranks = summary["adapters"]["ada"]["ranks"]
    assert sum(ranks.values()) == 2 * len(ranks)
    assert json.loads((ranked / "adapters" / "ada" / "graftlm.json").read_text())["ranks"] == ranks
    page = (ranked / "report.html").read_text()
    assert "dy: loss at each rank" in page
    assert "ada: rank of each matrix" in page
    assert "ada: loss at each rank" not in page


def test_list_and_show(cli: Cli, ranked: Path):
    listed = cli("adapters", "list", ranked).out
    assert "DyLoRA ranks 1 to 4, all-linear" in listed
    assert "2.0 on average" in listed
    shown = cli("adapters", "show", ranked / "adapters" / "ada").out
    ranks = json.loads((ranked / "run.json").read_text())["adapters"]["ada"]["ranks"]
    assert f"q_proj {ranks['model.layers.0.self_attn.q_proj']}" in shown
    assert "by rank" in cli("adapters", "show", ranked / "adapters" / "dy").out


def test_chat_at_a_rank(cli: Cli, ranked: Path):
    say = ["-m", QUESTION, "--temperature", "0", "--max-new-tokens", "8"]
    dy = ranked / "adapters" / "dy"
    answers = {rank: cli("chat", f"{dy}@{rank}", *say).out for rank in (1, 4)}
    assert answers[4] == cli("chat", dy, *say).out
    assert cli("chat", ranked, "--use", "dy@1", *say).out == answers[1]
    lines = cli("chat", ranked, "--temperature", "0", "--max-new-tokens", "8", stdin=f"/use dy@1\n{QUESTION}\n").out
    assert lines.endswith(answers[1])


def test_generate_at_several_ranks(cli: Cli, ranked: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text(QUESTION + "\n")
    dy = ranked / "adapters" / "dy"
    asked = ["-a", f"{dy}@1", "-a", dy, "-a", f"{dy}@4", "--max-new-tokens", "8"]
    assert cli("generate", "prompts.txt", "--out", "answers.jsonl", *asked).code == 0
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [line["adapter"] for line in lines] == ["dy@1", "dy", "dy@4"]
    assert lines[1]["answer"] == lines[2]["answer"]


@pytest.mark.parametrize(("form", "said"), [("dy@5", "1 to 4"), ("dy@x", "1 to 4"), ("ada@2", "no form '@2'")])
def test_ranks_that_there_are_not(cli: Cli, ranked: Path, form: str, said: str):
    ended = cli("chat", ranked / "adapters" / form, "-m", "Hello")
    assert ended.code == 2
    assert said in ended.err
    assert said in cli("chat", ranked, "--use", form, "-m", "Hello").err


def test_a_misspelt_folder_with_a_rank(cli: Cli, ranked: Path):
    ended = cli("chat", ranked / "adapters" / "dx@2", "-m", "Hello")
    assert ended.code == 2
    assert "there is no adapter folder" in ended.err


def test_export_at_a_rank(cli: Cli, ranked: Path, tmp_path: Path):
    dy = ranked / "adapters" / "dy"
    ended = cli("export", dy, "--rank", "2", "--out", "cut")
    assert ended.code == 0
    assert "dy cut to rank 2" in ended.out
    assert json.loads((tmp_path / "cut" / "adapter_config.json").read_text())["r"] == 2
    say = ["-m", QUESTION, "--temperature", "0", "--max-new-tokens", "8"]
    assert cli("chat", "cut", *say).out == cli("chat", f"{dy}@2", *say).out
    assert cli("export", f"{dy}@2", "--out", "merged").code == 0
    model = graftlm.AdaptedModel.from_pretrained("tiny")
    model.load(dy, name="dy")
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        expected = model(ids, adapters="dy@2").logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(input_ids=ids).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert "1 to 4" in cli("export", dy, "--rank", "9", "--out", "nine").err
    assert not (tmp_path / "nine").exists()
    assert "for one adapter" in cli("export", dy, ranked / "adapters" / "ada", "--rank", "2", "--out", "two").err


def test_export_of_chosen_ranks(cli: Cli, ranked: Path, tmp_path: Path):
    assert cli("export", ranked / "adapters" / "ada", "--out", "merged").code == 0


def test_a_schedule_that_ends_after_training(cli: Cli, ranked: Path, tmp_path: Path):
    adapters = {"ada": {**ADAPTERS["ada"], "t_final": 6}}
    recipe = small_recipe(tmp_path, adapters=adapters)
    (tmp_path / "late.yaml").write_text(recipe.to_yaml())
    ended = cli("train", "late.yaml", "--out", "late")
    assert ended.code == 2
    assert "'ada'" in ended.err
    assert "final before the training ends" in ended.err
