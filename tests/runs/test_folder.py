"""Which folder a run writes to, and that one run at a time does."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.errors import UserError
from graftlm.runs import RunFolder, choose_folder, locked


def begin(path: Path, *, finish: bool = False) -> Path:
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text("base: tiny\n")
    if finish:
        (path / "run.json").write_text("{}\n")
    return path


def test_the_default_folder_is_numbered_where_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None, "mine", resume=False, overwrite=False).path == Path("runs/mine")
    begin(Path("runs/mine"))
    begin(Path("runs/mine-2"), finish=True)
    assert choose_folder(None, "mine", resume=False, overwrite=False).path == Path("runs/mine-3")
    assert choose_folder(None, "mine", resume=True, overwrite=False).path == Path("runs/mine")
    assert choose_folder(None, "mine", resume=False, overwrite=True).path == Path("runs/mine")


@pytest.mark.parametrize(("finish", "state"), [(False, "an unfinished run"), (True, "a finished run")])
def test_a_run_is_not_overwritten_unasked(tmp_path: Path, finish: bool, state: str):
    out = begin(tmp_path / "out", finish=finish)
    with pytest.raises(UserError, match=f"holds {state} already") as error:
        choose_folder(out, "mine", resume=False, overwrite=False)
    assert "--resume" in str(error.value)
    assert "--overwrite" in str(error.value)
    assert choose_folder(out, "mine", resume=True, overwrite=False).begun


def test_nothing_to_resume(tmp_path: Path):
    with pytest.raises(UserError, match=r"there is no run in .* to resume"):
        choose_folder(tmp_path / "out", "mine", resume=True, overwrite=False)


def test_out_is_a_file(tmp_path: Path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file; the results need a folder"):
        choose_folder(tmp_path / "out", "mine", resume=False, overwrite=False)


def test_clear_takes_what_a_run_left_and_nothing_else(tmp_path: Path):
    out = begin(tmp_path / "out", finish=True)
    (out / "notes.txt").write_text("mine")
    for name in ("adapters", "checkpoints"):
        (out / name / "x").mkdir(parents=True)
    RunFolder(out).clear()
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_one_run_at_a_time(tmp_path: Path):
    folder = RunFolder(tmp_path / "out")
    with locked(folder):
        folder.recipe.write_text("base: tiny\n")
        with pytest.raises(UserError, match=r"another run \(process \d+\) is writing to"), locked(folder):
            pass
    with locked(folder):
        pass


def test_a_run_that_never_began_leaves_nothing(tmp_path: Path):
    folder = RunFolder(tmp_path / "runs" / "out")
    with pytest.raises(UserError, match="broken"), locked(folder):
        raise UserError("broken")
    assert not folder.path.exists()


def test_a_folder_with_other_things_stays(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with locked(RunFolder(tmp_path)):
        pass
    assert (tmp_path / "mine.txt").exists()
