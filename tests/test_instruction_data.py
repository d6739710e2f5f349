"""The recipes and scripts of the page on instruction data: valid, and what is parted shares no text."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from graftlm.data.p3 import FAMILIES
from graftlm.data.task_template import load_task_template
from graftlm.recipe import parse_recipe
from graftlm.recipe.set_recipe import UNSEEN, SetRecipe

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "instruction_data"


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch):
    for folder in (FOLDER, ROOT / "scripts"):
        monkeypatch.syspath_prepend(str(folder))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid(path: Path):
    text = path.read_text(encoding="utf-8")
    if path.stem.endswith("-run"):
        assert parse_recipe(text, source=path.name).adapters
        return
    recipe = SetRecipe.model_validate(YAML(typ="safe").load(text))
    for source in recipe.sources.values():
        if source.template is not None:
            descriptions = load_task_template(source.template).descriptions[source.language]
            assert max(source.descriptions, default=1) <= len(descriptions)


def test_tasks_are_tested_on_other_files_than_they_are_learnt_from():
    sides = [YAML(typ="safe").load((FOLDER / f"tasks-{side}.yaml").read_text("utf-8")) for side in ("train", "test")]
    train, test = (side["sources"] for side in sides)
    assert train.keys() == test.keys()
    assert not {source["path"] for source in train.values()} & {source["path"] for source in test.values()}
    for name, source in train.items():
        assert {key: source.get(key) for key in ("template", "language", "families")} == {
            key: test[name].get(key) for key in ("template", "language", "families")
        }


def test_families_differ_in_nothing_but_their_number(tmp_path: Path):
    import families

    families.write(tmp_path)
    recipe = parse_recipe((tmp_path / "families-run.yaml").read_text("utf-8"), source="run")
    assert len(recipe.adapters) == len(recipe.data) == 15
    held_out = set(YAML(typ="safe").load((FOLDER / "p3.yaml").read_text("utf-8"))["mixture"]["held_out"])
    assert held_out | set(families.FAMILIES) <= FAMILIES.keys()
    assert not held_out & set(families.FAMILIES)
    for number, choices in families.CHOICES.items():
        counts = [sum(family in chosen for chosen in choices) for family in families.FAMILIES]
        assert len(set(counts)) == 1  # every family as often as the others
        assert {len(chosen) for chosen in choices} == {number}
    for path in (tmp_path / "families").glob("*.yaml"):
        made = SetRecipe.model_validate(YAML(typ="safe").load(path.read_text("utf-8")))
        assert made.mixture.total == families.ROWS
        assert made.filters.shared_answers == made.filters.overlap == {UNSEEN: ("sets/p3-unseen",)}


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("stuvwx")), max_size=30))
def test_no_text_is_on_both_sides(pairs: list[tuple[str, str]]):
    part_rows = sys.modules.get("part_rows") or __import__("part_rows")
    rows = [{"en": one, "zh": other} for one, other in pairs]
    keys = part_rows.groups(rows, ("en", "zh"))
    for row, key in zip(rows, keys, strict=True):
        for other, theirs in zip(rows, keys, strict=True):
            if row["en"] == other["en"] or row["zh"] == other["zh"]:
                assert key == theirs


def test_files_are_checked_by_hash(tmp_path: Path):
    from check_data import FILES, File, state, table

    (tmp_path / "a").write_text("text")
    sha256 = "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1"
    assert state(tmp_path, File("a", sha256)) == "ok"
    assert state(tmp_path, File("a", "0" * 64)) == f"another file: {sha256}"
    assert state(tmp_path, File("b", sha256)) == "missing"
    assert {len(file.sha256) for file in FILES} == {64}
    assert len({file.path for file in FILES}) == len(FILES)
    assert table().count("\n") == len(FILES) + 1
