"""The whole command, killed with SIGKILL at random moments, ends with the same bits as one that was not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.conftest import Cli
from tests.cli.test_train import files
from tests.runs.small import small_recipe

MOMENTS = (1, 9, 24)  # lines in metrics.jsonl: at the start, in the middle, and while scoring or saving


def start(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "graftlm", *arguments]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet, env={**os.environ, "OMP_NUM_THREADS": "1"})


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_three_times(cli: Cli, tmp_path: Path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(small_recipe(tmp_path).to_yaml(), encoding="utf-8")
    assert cli("train", recipe, "--no-plan", "--out", "whole").code == 0
    moments = random.Random(0)
    metrics = tmp_path / "out" / "metrics.jsonl"
    for number, moment in enumerate(MOMENTS):
        resume = ["--resume"] if number else []
        process = start("train", str(recipe), "--no-plan", "--out", "out", *resume, folder=tmp_path)
        deadline = time.monotonic() + 120
        while lines(metrics) < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        ended_by_itself = process.wait() == 0
        assert ended_by_itself == (tmp_path / "out" / "run.json").exists()
        assert not ended_by_itself or moment == MOMENTS[-1]
    assert cli("train", recipe, "--no-plan", "--out", "out", "--resume").code == 0
    assert files(tmp_path / "out" / "adapters") == files(tmp_path / "whole" / "adapters")
    assert not list((tmp_path / "out").rglob("*.part"))
