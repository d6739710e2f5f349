"""`graftlm data build`."""

from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Cli
from tests.runs.small import animal_rows, colour_rows, write_rows

RECIPE = """\
sources:
  colours: {path: colours.jsonl, task: colours}
  animals: {path: animals.jsonl, task: animals}
mixture: {cap: 20}
"""


def test_build(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "colours.jsonl", [*colour_rows(), {"instruction": "Which colour is night?", "output": ""}])
    write_rows(tmp_path / "animals.jsonl", animal_rows(10))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    ended = cli("data", "build", "recipe.yaml", "--out", "set")
    assert ended.code == 0
    assert "set: 30 instances (train 30)" in ended.out
    assert "colours: 20 rows, 20 of 24" in ended.out
    assert "left out 1: empty answer (colours.jsonl:25)" in ended.out
    assert "left out 4: not drawn for the mixture" in ended.out
    assert (tmp_path / "set" / "recipe.yaml").read_text() == RECIPE

    again = cli("data", "build", "set/recipe.yaml", "--folder", ".", "--out", "again")
    assert "the same rows, bit for bit, as the set that was in set" in again.out
    assert again.err == ""
    write_rows(tmp_path / "animals.jsonl", animal_rows(9))
    changed = cli("data", "build", "recipe.yaml", "--out", "set")
    assert "animals.jsonl is not what it was when set was built" in changed.err
    assert "other rows than the set that was in set" in changed.out
    seen = cli("data", "preview", "set", "--rows", "1")
    assert "set: read as a set: 29 rows" in seen.out


def test_files_of_others_in_a_set_stay(cli: Cli, tmp_path: Path):
    """The refusal comes before anything is read, and names the files."""
    write_rows(tmp_path / "animals.jsonl", animal_rows(10))
    (tmp_path / "recipe.yaml").write_text("sources: {animals: {path: animals.jsonl}}\n")
    assert cli("data", "build", "recipe.yaml", "--out", "set").code == 0
    (tmp_path / "set" / "thesis.txt").write_text("chapter one")
    ended = cli("data", "build", "recipe.yaml", "--out", "set")
    assert ended.code == 2
    assert "set is not replaced: besides the set it holds thesis.txt" in ended.err
    assert (tmp_path / "set" / "thesis.txt").read_text() == "chapter one"
    (tmp_path / "set" / "thesis.txt").unlink()
    assert cli("data", "build", "recipe.yaml", "--out", "set").code == 0


def test_a_sets_own_recipe_says_what_its_paths_are_relative_to(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "animals.jsonl", animal_rows(10))
    (tmp_path / "recipe.yaml").write_text("sources: {animals: {path: animals.jsonl}}\n")
    assert cli("data", "build", "recipe.yaml", "--out", "sets/one").code == 0
    ended = cli("data", "build", "sets/one/recipe.yaml", "--out", "again")
    assert ended.code == 2
    assert "its paths are relative to where it was built from" in ended.err
    assert "--folder ." in ended.err


def test_mistakes(cli: Cli, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("sources: {a: {path: none.jsonl, tusk: qa}}\nfilters: {dupes: 1}\n")
    ended = cli("data", "build", "recipe.yaml", "--out", "set")
    assert ended.code == 2
    assert "recipe.yaml has 3 errors" in ended.err
    assert not (tmp_path / "set").exists()


def test_a_source_is_not_replaced(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "animals.jsonl", animal_rows(10))
    (tmp_path / "one.yaml").write_text("sources: {animals: {path: animals.jsonl}}\n")
    (tmp_path / "two.yaml").write_text("sources: {again: {path: set}}\n")
    assert cli("data", "build", "one.yaml", "--out", "set").code == 0
    before = (tmp_path / "set" / "recipe.yaml").read_bytes()
    ended = cli("data", "build", "two.yaml", "--out", "set")
    assert ended.code == 2
    assert "is read, and would be replaced" in ended.err
    assert (tmp_path / "set" / "recipe.yaml").read_bytes() == before
