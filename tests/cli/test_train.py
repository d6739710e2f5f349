"""`graftlm train`: what it prints, and stopping and going on."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from graftlm.cli.progress import Leaderboard
from graftlm.runs import RunFolder, locked
from graftlm.training.events import Event, RoundDone
from tests.cli.conftest import Cli
from tests.runs.small import colour_rows, small_recipe, write_rows


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(small_recipe(tmp_path).to_yaml(), encoding="utf-8")
    return path


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, rounds: int, times: int = 1) -> Iterator[None]:
    """Inside, Ctrl-C is pressed when a round is done."""
    see: Callable[[Leaderboard, Event], None] = Leaderboard.see

    def press(board: Leaderboard, event: Event) -> None:
        see(board, event)
        if isinstance(event, RoundDone) and event.number == rounds:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Leaderboard, "see", press)
        yield


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def last_command(out: str) -> list[str]:
    """The last command that was printed to be copied."""
    return shlex.split([line for line in out.splitlines() if line.startswith("  graftlm ")][-1])[1:]


def test_values_for_what_no_row_has_are_refused(cli: Cli, tmp_path: Path):
    write_rows(
        tmp_path / "rows.jsonl", [*colour_rows(10), {"instruction": "Who are you, {{ user }}?", "output": "{{name}}"}]
    )
    ended = cli("train", "--data", "rows.jsonl", "--set", "nme=Ada")
    assert ended.code == 2
    assert "a value is given for {{nme}}, which no row has; there are: name, user" in ended.err
    assert "Did you mean 'name'?" in ended.err
    assert "{{nme}}" in cli("data", "preview", "rows.jsonl", "--set", "nme=Ada").err
    write_rows(tmp_path / "rows.jsonl", colour_rows(10))
    ended = cli("train", "--data", "rows.jsonl", "--set", "steps=2")
    assert "a value is given for {{steps}}, which no row has; they have no {{…}} at all" in ended.err


def test_from_a_data_file_alone(cli: Cli, tmp_path: Path):
    long = "word " * 3000
    rows = [
        *colour_rows(30),
        {"instruction": "Say nothing.", "output": ""},
        {"instruction": "Talk.", "output": long},
        {"instruction": long, "output": "Thank you, {{name}}."},
        {"instruction": "Who are you?", "output": "{{name}}"},
    ]
    write_rows(tmp_path / "my rows.jsonl", rows)
    options = ["--max-steps", "2", "--batch-rows", "2", "--rank", "1", "--max-dropped", "0.1"]
    ended = cli("train", "--data", "my rows.jsonl", *options)
    assert ended.code == 0
    assert "read as Alpaca: 34 rows" in ended.out
    assert "1 truncated (longer than the context), 2 dropped (1 empty answer; 1 prompt fills the context)" in ended.out
    assert "{{name}} (2)" in ended.err
    assert ended.err.count("\n") == 1, ended.err  # the note, and nothing of torch or transformers
    assert "planned " in ended.out
    assert "took " in ended.out
    folder = tmp_path / "runs" / "my-rows"
    assert json.loads((folder / "run.json").read_text())["data"]["my-rows"]["kept"] == 32
    assert "  graftlm chat runs/my-rows\n" in ended.out
    again = cli("train", "--data", "my rows.jsonl", *options, "--set", "name=Ada", "--no-plan", "--held-out", "7")
    assert again.code == 0
    assert again.err == ""
    assert "25 to learn from, 7 held out" in again.out
    assert (tmp_path / "runs" / "my-rows-2" / "run.json").exists()


def test_the_next_commands_work_as_printed(cli: Cli, tmp_path: Path, recipe: Path):
    ended = cli("train", recipe, "--no-plan", "--out", "a folder")
    assert ended.code == 0
    commands = [shlex.split(line)[1:] for line in ended.out.splitlines() if line.startswith("  graftlm ")]
    assert [command[0] for command in commands] == ["chat", "adapters", "export", "recipe", "train"]
    assert cli(*commands[0], stdin="Hello\n/quit\n").code == 0
    for command in commands[1:4]:
        assert cli(*command).code == 0, command
    assert cli(*commands[4]).code == 2  # its data is an example's


def test_stopped_by_ctrl_c_and_gone_on_as_printed(
    cli: Cli, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    assert cli("train", recipe, "--no-plan", "--out", "whole").code == 0
    with interrupted(monkeypatch, rounds=3):
        stopped = cli("train", recipe, "--no-plan", "--out", "in parts")
    assert stopped.code == 130
    assert "stopped after round 3" in stopped.out
    assert not (tmp_path / "in parts" / "run.json").exists()
    assert "holds an unfinished run already" in cli("train", recipe, "--out", "in parts").err
    with interrupted(monkeypatch, rounds=5, times=2):
        at_once = cli(*last_command(stopped.out), "--no-plan")
    assert at_once.code == 130
    assert "stopped at once" in at_once.out
    assert last_command(at_once.out) == last_command(stopped.out)
    ended = cli(*last_command(at_once.out), "--no-plan")
    assert ended.code == 0
    assert files(tmp_path / "in parts" / "adapters") == files(tmp_path / "whole" / "adapters")
    board = [line for line in ended.out.splitlines() if line.startswith("both ")]
    first = [
        line["loss"]
        for line in map(json.loads, (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines())
        if line["kind"] == "evaluation" and line["step"] == 0 and line["adapter"] == "both"
    ]
    assert f"{first[0]:.3f} → " in board[0], "the leaderboard remembers the loss before training"
    assert board[0].split()[-1] == "finished"


def test_a_run_stopped_after_training_goes_on_with_its_report(
    cli: Cli, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
):
    with interrupted(monkeypatch, rounds=6):
        stopped = cli("train", recipe, "--no-plan", "--out", "out")
    assert stopped.code == 130
    assert not (tmp_path / "out" / "run.json").exists()
    assert cli(*last_command(stopped.out), "--no-plan").code == 0
    assert (tmp_path / "out" / "report.html").exists()


def test_finished_changed_and_overwritten_runs(cli: Cli, tmp_path: Path, recipe: Path, trained: Path):
    assert "there is no run in out to resume" in cli("train", recipe, "--out", "out", "--resume").err
    assert cli("train", recipe, "--no-plan", "--out", "out").code == 0
    before = files(tmp_path / "out")
    again = cli("train", recipe, "--out", "out")
    assert again.code == 2
    assert "out holds a finished run already" in again.err
    done = cli("train", recipe, "--out", "out", "--resume")
    assert (done.code, done.out) == (0, "out is finished already: out/report.html\n")
    recipe.write_text(recipe.read_text().replace("rank: 4", "rank: 3"), encoding="utf-8")
    changed = cli("train", recipe, "--out", "out", "--resume")
    assert changed.code == 2
    assert "the recipe is not the one that the run in out was begun with" in changed.err
    assert "graftlm train out/recipe.yaml --resume --out out" in changed.err
    assert files(tmp_path / "out") == before
    assert cli("train", recipe, "--no-plan", "--out", "out", "--overwrite").code == 0
    assert files(tmp_path / "out")["recipe.yaml"] != before["recipe.yaml"]


def test_changed_rows_are_not_resumed(cli: Cli, tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch):
    with interrupted(monkeypatch, rounds=2):
        assert cli("train", recipe, "--no-plan", "--out", "out").code == 130
    write_rows(tmp_path / "animals.jsonl", colour_rows())
    ended = cli("train", recipe, "--no-plan", "--out", "out", "--resume")
    assert ended.code == 2
    assert "both" in ended.err


def test_two_runs_in_one_folder(cli: Cli, tmp_path: Path, recipe: Path):
    with locked(RunFolder(tmp_path / "out")):
        ended = cli("train", recipe, "--out", "out")
    assert ended.code == 2
    assert "is writing to out" in ended.err


def test_plan_prints_json_and_nothing_else(cli: Cli, recipe: Path):
    planned = json.loads(cli("plan", recipe, "--json").out)
    assert planned["steps"] == {"colours": 6, "both": 4}
    shown = cli("plan", recipe)
    assert "plan: 6 rounds, " in shown.out
    assert shown.err == ""
