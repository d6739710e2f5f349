"""What is quick, and what printing looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graftlm.cli.console import as_duration, as_size

WITHOUT_TORCH = """
import sys
from graftlm.cli.app import main
for words in sys.argv[1:]:
    sys.argv = ["graftlm", *words.split()]
    try:
        main()
    except SystemExit as ended:
        assert (ended.code or 0) == (0 if "-h" in words else 2), words
    assert "torch" not in sys.modules, words
"""


def test_help_and_misspelt_paths_do_not_wait_for_torch(tmp_path: Path):
    commands = [
        *["-h", "train -h", "data preview -h", "chat -h", "generate -h", "adapters list -h", "export -h", "demo -h"],
        *["trian x", "train nope.yaml", "train --data nope.json", "plan nope.yaml", "data preview nope.json"],
        *["chat nope", "generate nope.txt --out x", "export nope --out x", "adapters show nope", "adapters list nope"],
        *["adapters rename nope x", "adapters remove nope"],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *commands], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.iterdir())


def test_lines_go_whole_into_a_pipe():
    code = "from graftlm.cli.console import console, errors; console.print('word ' * 99); errors.print('word ' * 99)"
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout.count("\n") == ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 kB"), (382_000, "382 kB"), (81e6, "81 MB"), (999e6, "999 MB"), (3.4e9, "3.40 GB")]
)
def test_sizes(count: float, shown: str):
    assert as_size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.2, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, shown: str):
    assert as_duration(seconds) == shown
