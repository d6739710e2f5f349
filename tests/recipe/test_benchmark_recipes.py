"""The recipes of the method comparison are valid, and name every method that their base can take."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.recipe import parse_recipe
from graftlm.recipe.schema import known_methods

FOLDER = Path(__file__).parents[2] / "benchmarks" / "methods"
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_method_is_tuned_alike(path: Path):
    recipe = parse_recipe(path.read_text(encoding="utf-8"), source=path.name)
    groups: dict[str, set[tuple[float, int]]] = {}
    budgets: set[tuple[int | None, int | None, float]] = set()
    for adapter in recipe.adapters.values():
        tried = (adapter.training.learning_rate, adapter.training.seed)
        groups.setdefault(str(adapter.group), set()).add(tried)
        budgets.add((adapter.training.max_steps, adapter.training.batch_rows, adapter.training.epochs))
    assert len(budgets) == 1
    missing = set() if recipe.base == "minilm" else {"bitfit"}  # the embedded base has no biases
    assert {adapter.method.method for adapter in recipe.adapters.values()} == known_methods().keys() - missing
    assert {len(tried) for tried in groups.values()} == {6}


def test_there_are_recipes():
    assert len(RECIPES) == 6
