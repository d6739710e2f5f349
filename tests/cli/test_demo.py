"""The demo's files fit together: what one step leaves, the next one reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import graftlm
from graftlm.demo.circle import STEPS, WRITERS, lay_out
from graftlm.errors import UserError
from graftlm.recipe import load_recipe
from graftlm.runs.eval_tasks import find_tasks
from tests.cli.conftest import Cli


def test_every_step_finds_what_it_needs(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    lay_out(out)
    built = cli(*STEPS[0].arguments(out))
    assert built.code == 0, built.err
    assert (out / STEPS[0].page).is_file()

    tune = load_recipe(out / "tune.yaml")
    assert {each.split("/")[-1] for each in WRITERS if each.startswith("tune/")} <= set(tune.adapters)
    save(out / "tune/adapters/stories")
    save(out / "preferences/adapters/reward", criteria=1)
    preferences, policies = load_recipe(out / "preferences.yaml"), load_recipe(out / "policies.yaml")
    assert set(preferences.adapters) == {"reward", "dpo"}
    assert set(policies.adapters) == {"ppo", "critic"}
    (task,) = find_tasks([str(out / "wishes.yaml")], [])
    assert (task.folder / "data/wishes.held_out.jsonl").is_file()


def save(folder: Path, **head: int) -> None:
    model = graftlm.AdaptedModel.from_pretrained("tiny", device="cpu")
    model.add("one", graftlm.LoRA(rank=2), **head)
    model.save("one", folder)


def test_quick_leaves_two_steps(tmp_path: Path) -> None:
    lay_out(tmp_path / "demo", quick=True)
    for name in ("tune", "preferences", "policies"):
        recipe = yaml.safe_load((tmp_path / f"demo/{name}.yaml").read_text())
        assert recipe["training"]["max_steps"] == 2


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no demo"):
        lay_out(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["mine.txt"]
