"""The recipe of a set: defaults, and every mistake at once with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.errors import UserError
from graftlm.recipe import RecipeError
from graftlm.recipe.set_recipe import load_set_recipe, parse_set_recipe


def problems(text: str, folder: Path) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_set_recipe(text, folder=folder)
    return [str(problem) for problem in caught.value.problems]


def test_defaults(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    recipe = parse_set_recipe("sources: {a: {path: a.jsonl}}", folder=tmp_path)
    assert recipe.sources["a"].path == ("a.jsonl",)
    assert (recipe.seed, recipe.mixture.method, recipe.splits) == (0, "proportional", {})
    assert recipe.filters.duplicates
    assert recipe.filters.empty_answers


def test_every_mistake_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}\n")
    text = """\
seed: -1
sources:
  a: {path: a.jsonl, licens: CC BY}
  b: {path: gone.jsonl}
  c: {path: a.jsonl, demonstrations: [0, 4]}
filters: {balanc: 2, min_prompt: one, words: no.txt}
mixture: {method: fixed}
splits: {test: 0.7, dev: 0.5}
"""
    found = problems(text, tmp_path)
    assert [line.partition(",")[0] for line in found] == [f"line {n}" for n in (1, 3, 4, 5, 6, 6, 6, 7, 8)]
    whole = "\n".join(found)
    assert "sources.a.licens: unknown key; did you mean 'licence'?" in whole
    assert "gone.jsonl: there is no such file" in whole
    assert "demonstrations need one" in whole
    assert "filters.balanc: unknown key; did you mean 'balance'?" in whole
    assert "filters.min_prompt: must be a whole number, is 'one'" in whole
    assert "no.txt: there is no such file" in whole
    assert "shares: fixed needs them" in whole
    assert "splits: nothing is left to train on" in whole


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources: {}", "sources: must not be empty"),
        ("filters: {}", "sources: this key is missing"),
        ("- a", "a recipe must be a mapping"),
        ("sources: {a: {path: a.jsonl, template: sentiment, answer: '{x}'}}", "not both"),
        ("sources: {a: {path: a.jsonl, sha256: [ab, cd]}}", "an entry for each path"),
        ("sources: {a: {path: a.jsonl, task: qa, families: {qa: 'q*'}}}", "give them or one task"),
        ("sources: {a: {path: a.jsonl}}\nsplits: {train: 0.1}", "'train' is made by itself"),
        ("sources: {a: {path: a.jsonl}}\nmixture: {repeat: true}", "repeat: needs a total"),
        ("sources: {a: {path: a.jsonl}}\nmixture: {temperature: 2.0}", "is for the method temperature"),
        (
            "sources: {a: {path: a.jsonl, template: sentiment, demonstrations: [0, 2]}}\nsplits: {test: 0.1}",
            "the demonstrations of 'a' could be rows that splits keeps from training",
        ),
    ],
)
def test_what_is_refused(tmp_path, text, words):
    (tmp_path / "a.jsonl").write_text("{}\n")
    assert words in "\n".join(problems(text, tmp_path))


def test_no_such_recipe(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        load_set_recipe(tmp_path / "none.yaml")
