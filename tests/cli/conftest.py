from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from graftlm.cli.app import main
from graftlm.cli.console import console
from graftlm.cli.train import run_recipe
from tests.runs.small import small_recipe


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    """Run a command in this process, in an empty folder: ``cli("train", "--data", file)``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "width", 10_000)  # as into a pipe; pytest-xdist sets COLUMNS

    def run(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["graftlm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="package")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with the adapters "colours" and "both"."""
    place = tmp_path_factory.mktemp("trained")
    here = Path.cwd()
    os.chdir(place)
    try:
        return run_recipe(small_recipe(place), place / "run", with_plan=False).path
    finally:
        os.chdir(here)
