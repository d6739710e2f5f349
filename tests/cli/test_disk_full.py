"""A full disk: one clear error, and what was there before stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import graftlm.base.files
from tests.cli.conftest import Cli
from tests.cli.test_train import files
from tests.runs.small import colour_rows, write_rows

OPTIONS = ["--max-steps", "2", "--batch-rows", "2", "--no-plan"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_earlier_runs_survive_and_the_run_goes_on_once_there_is_space(cli: Cli, tmp_path: Path, small_disk: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    assert cli("train", "--data", "rows.jsonl", *OPTIONS, "--rank", "1", "--out", "disk/first").code == 0
    before = files(small_disk / "first")
    ended = cli("train", "--data", "rows.jsonl", *OPTIONS, "--rank", "16", "--out", "disk/second")
    assert ended.code == 2
    assert ended.err.startswith("error: the disk is full: disk/second/")
    assert "Earlier results are intact" in ended.err
    assert files(small_disk / "first") == before
    assert not list((small_disk / "second").rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=40m", str(small_disk)], check=True)
    assert cli("train", "disk/second/recipe.yaml", "--resume", "--out", "disk/second", "--no-plan").code == 0
    adapter = Path("adapters/rows/adapter_model.safetensors")
    assert cli("train", "--data", "rows.jsonl", *OPTIONS, "--rank", "16", "--out", "whole").code == 0
    assert (small_disk / "second" / adapter).read_bytes() == (tmp_path / "whole" / adapter).read_bytes()


def test_a_disk_without_a_free_byte(cli: Cli, tmp_path: Path, small_disk: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    (small_disk / "out").mkdir()
    with (small_disk / "filler").open("wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), b"\0" * 4096)
    ended = cli("train", "--data", "rows.jsonl", *OPTIONS, "--out", "disk/out")
    assert ended.code == 2
    assert ended.err.startswith("error: the disk is full: ")


def test_an_export_that_does_not_fit(cli: Cli, tmp_path: Path, small_disk: Path, trained: Path):
    (small_disk / "mine.txt").write_text("mine")
    ended = cli("export", trained / "adapters" / "both", "--out", "disk/merged")
    assert ended.code == 2
    assert "the disk is full" in ended.err
    assert [path.name for path in small_disk.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written():
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "graftlm", "recipe"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "error: the disk is full: what was to be printed could not be written\n"


def test_without_a_mount(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The same error wherever a file cannot be brought to the disk."""
    write_rows(tmp_path / "rows.jsonl", colour_rows())

    def full(path: Path) -> None:
        if "checkpoints" in path.parts:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graftlm.base.files, "_sync", full)
    ended = cli("train", "--data", "rows.jsonl", *OPTIONS)
    assert ended.code == 2
    assert ended.err.startswith("error: the disk is full: runs/rows/checkpoints/")
    assert not list((tmp_path / "runs").rglob("*.part"))
