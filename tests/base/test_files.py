"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graftlm.base.files import write_folder, write_json, write_text, write_texts
from graftlm.errors import UserError


def _one(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "one.txt").write_text(text)

    return fill


def _content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_made_with_its_parents_and_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    write_folder(folder, _one("old"))
    assert _content(folder) == {"one.txt": "old"}
    write_folder(folder, _one("new"))
    assert _content(folder) == {"one.txt": "new"}
    assert os.listdir(folder.parent) == ["b"]


class Stop(BaseException):
    """As a Ctrl-C would be."""


def _stopped(folder: Path) -> None:
    (folder / "one.txt").write_text("half")
    raise Stop


@pytest.mark.parametrize("exists", [True, False])
def test_a_stop_while_writing_leaves_the_old_folder(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "b"
    if exists:
        write_folder(folder, _one("old"))
    with pytest.raises(Stop):
        write_folder(folder, _stopped)
    assert folder.exists() == exists
    assert os.listdir(tmp_path) == (["b"] if exists else [])
    if exists:
        assert _content(folder) == {"one.txt": "old"}


@pytest.mark.parametrize("platform", ["linux", "darwin"])
@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_a_stop_at_any_rename_leaves_a_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, stop_at: int
) -> None:
    folder = tmp_path / "b"
    write_folder(folder, _one("old"))
    calls, rename = 0, Path.rename

    def stopped(self: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise Stop
        return rename(self, target)

    monkeypatch.setattr("graftlm.base.files.sys.platform", platform)
    monkeypatch.setattr(Path, "rename", stopped)
    try:
        write_folder(folder, _one("new"))
    except Stop:
        assert _content(folder)["one.txt"] in ("old", "new")
    else:
        assert calls == (0 if platform == "linux" else 3)
        assert _content(folder) == {"one.txt": "new"}


def test_a_killed_process_leaves_old_or_new(tmp_path: Path) -> None:
    folder = tmp_path / "b"
    write_folder(folder, _one("old"))
    program = (
        "import sys\nfrom pathlib import Path\nfrom graftlm.base.files import write_folder\n"
        "def fill(fresh):\n"
        "    (fresh / 'one.txt').write_text(sys.argv[2] * 100_000)\n"
        "    print('.', flush=True)\n"
        "number = 0\n"
        "while True:\n"
        "    number += 1\n"
        "    write_folder(Path(sys.argv[1]), fill)\n"
    )
    for round_number in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(folder), str(round_number)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        for _ in range(2 + round_number):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert set(_content(folder)) == {"one.txt"}
        assert _content(folder)["one.txt"] in ("old", *(str(n) * 100_000 for n in range(round_number + 1)))
    write_folder(folder, _one("last"))
    assert _content(folder) == {"one.txt": "last"}


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may not be written"), (errno.EIO, "could not be written")],
)
def test_disk_errors_are_one_user_error(tmp_path: Path, number: int, message: str) -> None:
    folder = tmp_path / "b"
    write_folder(folder, _one("old"))

    def fill(fresh: Path) -> None:
        (fresh / "half").write_text("half")
        raise OSError(number, os.strerror(number))

    with pytest.raises(UserError, match=message) as raised:
        write_folder(folder, fill)
    assert str(folder) in str(raised.value)
    assert _content(folder) == {"one.txt": "old"}
    assert os.listdir(tmp_path) == ["b"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    file = tmp_path / "taken"
    file.write_text("precious")
    with pytest.raises(UserError, match="taken"):
        write_folder(file, _one("new"))
    with pytest.raises(UserError, match="taken"):
        write_folder(file / "below", _one("new"))
    assert file.read_text() == "precious"


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "big-disk", _one("old"))
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "big-disk")
    write_folder(link, _one("new"))
    assert link.is_symlink()
    assert _content(tmp_path / "big-disk") == {"one.txt": "new"}


def test_files_are_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(path, {"größe": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "größe": 1\n}\n'

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match="disk is full"):
            write_text(path, "new")
    assert path.read_text(encoding="utf-8").startswith("{")
    assert os.listdir(path.parent) == ["report.json"]


def test_files_that_belong_together_are_all_new_or_all_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.md", tmp_path / "two.json"
    write_texts({one: "old", two: "old"})
    write = Path.write_text

    def full_at_the_second(path: Path, *rest: object, **more: object) -> int:
        if "two" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *rest, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_at_the_second)
        with pytest.raises(UserError, match=r"disk is full: .*two\.json"):
            write_texts({one: "new", two: "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one.md": "old", "two.json": "old"}
    write_texts({one: "new", two: "new"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one.md": "new", "two.json": "new"}
    with pytest.raises(UserError):
        write_texts({one / "below": "new"})
