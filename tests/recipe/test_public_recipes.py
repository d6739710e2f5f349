"""The recipes of public preferences are valid: both bases learn the same criteria, by the same budget and seeds."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.recipe import parse_recipe
from graftlm.recipe.set_recipe import parse_set_recipe

FOLDER = Path(__file__).parents[2] / "benchmarks" / "alignment" / "public"


def test_the_set(tmp_path: Path) -> None:
    for name in ("hh_rlhf_harmless.jsonl.gz", "oasst_ranked_zh.json", "truthfulqa_judgements.jsonl.gz"):
        (tmp_path / name).touch()
    recipe = parse_set_recipe((FOLDER / "set.yaml").read_text(encoding="utf-8"), folder=tmp_path)
    assert recipe.sources.keys() == {"harmless", "liked", "truthful"}


@pytest.mark.parametrize("base", ["tiny", "minilm"])
def test_one_head_a_criterion(base: str) -> None:
    recipe = parse_recipe((FOLDER / f"{base}.yaml").read_text(encoding="utf-8"), source=base)
    assert recipe.base == base
    assert [adapter.training.seed for adapter in recipe.adapters.values()] == [0, 1, 2]
    for adapter in recipe.adapters.values():
        assert adapter.training.objective.type == "reward"
        assert adapter.head is not None
        assert adapter.head.criteria == ("harmless", "liked", "truthful")
        assert adapter.training.max_steps == 120
