"""A policy whose process is killed, whose reward breaks, or whose disk fills up: the last good state stays."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Cli
from tests.cli.test_disk_full import small_disk  # noqa: F401
from tests.cli.test_killed import lines, start
from tests.cli.test_train import files
from tests.runs.small import colour_rows, write_rows

REWARD = """from pathlib import Path

def letters(messages, answer):
    broken = Path("broken")
    if broken.exists():
        asked = int(broken.read_text()) + 1
        broken.write_text(str(asked))
        if asked > 20:
            raise KeyError("broken")
    return answer.count('e') / max(1, len(answer))
"""


@pytest.fixture
def recipe(cli: Cli, tmp_path: Path) -> str:
    """A policy of six phases; a checkpoint after each."""
    rows = write_rows(tmp_path / "rows.jsonl", colour_rows())
    (tmp_path / "rewards.py").write_text(REWARD, encoding="utf-8")
    objective = {"type": "grpo", "rewards": {"liked": {"python": "rewards.py:letters"}}}
    objective |= {"group": 2, "prompts": 4, "max_new_tokens": 6}
    values = {
        "base": "tiny",
        "data": {"colours": {"path": str(rows), "held_out": 0}},
        "adapters": {"policy": {"method": "lora", "rank": 4, "objective": objective}},
        "training": {"epochs": 8, "max_steps": 6, "save_every": 1},
    }
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert cli("train", "policy.yaml", "--no-plan", "--out", "whole").code == 0
    return "policy.yaml"


def test_killed(cli: Cli, tmp_path: Path, recipe: str) -> None:
    killed = 0
    for moment, wait in ((1, 0.0), (5, 0.07), (8, 0.02)):
        resume = ["--resume"] if moment > 1 else []
        process = start("train", recipe, "--no-plan", "--out", "out", *resume, folder=tmp_path)
        deadline = time.monotonic() + 120
        while lines(tmp_path / "out" / "metrics.jsonl") < moment and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        killed += process.wait() != 0
    assert killed
    assert cli("train", recipe, "--no-plan", "--out", "out", "--resume").code == 0
    assert files(tmp_path / "out" / "adapters") == files(tmp_path / "whole" / "adapters")


def test_a_reward_that_breaks_in_a_later_phase(cli: Cli, tmp_path: Path, recipe: str) -> None:
    (tmp_path / "broken").write_text("0")
    ended = cli("train", recipe, "--no-plan", "--out", "out")
    assert ended.code == 2
    assert ended.err.startswith("error: the reward liked raises KeyError: 'broken' (policy, ")
    assert "Traceback" not in ended.err
    assert list((tmp_path / "out" / "checkpoints").iterdir())
    (tmp_path / "broken").unlink()
    assert cli("train", recipe, "--no-plan", "--out", "out", "--resume").code == 0
    assert files(tmp_path / "out" / "adapters") == files(tmp_path / "whole" / "adapters")


def test_a_disk_that_is_full(cli: Cli, tmp_path: Path, recipe: str, small_disk: Path) -> None:  # noqa: F811
    (small_disk / "filler").write_bytes(b"0" * 1_300_000)
    ended = cli("train", recipe, "--no-plan", "--out", "disk/out")
    assert ended.code == 2
    assert ended.err.startswith("error: the disk is full: disk/out/")
    assert not list((small_disk / "out").rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert cli("train", recipe, "--no-plan", "--out", "disk/out", "--resume").code == 0
    assert files(small_disk / "out" / "adapters") == files(tmp_path / "whole" / "adapters")
