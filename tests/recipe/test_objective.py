"""The objective of an adapter in a recipe: a name or a mapping, strict, and the head that goes with it."""

from __future__ import annotations

import pytest

from graftlm.data.heads import HeadSettings
from graftlm.recipe import parse_recipe, recipe_from_dict
from graftlm.recipe.problems import RecipeError
from graftlm.training.objective_settings import ObjectiveSettings


def values(**keys: object) -> dict[str, object]:
    data = {"rows": {"path": "rows.jsonl"}}
    return {"name": "x", "base": "tiny", "data": data, "adapters": {"a": {"method": "lora", **keys}}}


def test_a_name_or_a_mapping() -> None:
    named = recipe_from_dict(values(objective="dpo")).adapters["a"]
    assert named.training.objective == ObjectiveSettings(type="dpo")
    assert named.head is None
    full = recipe_from_dict(values(objective={"type": "dpo", "beta": 0.2, "loss": "ipo"})).adapters["a"]
    assert full.training.objective == ObjectiveSettings(type="dpo", beta=0.2, loss="ipo")
    assert full.to_dict()["objective"] == {"type": "dpo", "beta": 0.2, "loss": "ipo"}
    assert named.to_dict()["objective"] == "dpo"
    assert recipe_from_dict(values()).adapters["a"].to_dict()["objective"] == "sft"


def test_it_comes_back_from_yaml() -> None:
    recipe = recipe_from_dict(values(objective={"type": "kto", "desirable_weight": 1.5}))
    assert parse_recipe(recipe.to_yaml()) == recipe


def test_for_all_adapters_under_training() -> None:
    given = {**values(), "training": {"objective": {"type": "simpo", "margin": 0.5}}}
    assert recipe_from_dict(given).adapters["a"].training.objective.margin == 0.5


def test_the_head_of_rewards() -> None:
    recipe = recipe_from_dict(values(objective="reward"))
    assert recipe.adapters["a"].head == HeadSettings(type="reward", labels=("reward",))
    two = {"type": "reward", "labels": ["helpful", "harmless"]}
    found = recipe_from_dict(values(objective="reward", head=two)).adapters["a"].head
    assert found is not None
    assert found.criteria == ("helpful", "harmless")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"objective": "dop"}, "must be one of sft, reward, dpo, kto, orpo, simpo"),
        ({"objective": {"beta": 0.1}}, "objective.type: this key is missing"),
        ({"objective": {"type": "dpo", "bata": 0.1}}, "objective.bata: unknown key; did you mean 'beta'?"),
        ({"objective": {"type": "dpo", "beta": 0}}, "objective.beta: must be more than 0, is 0"),
        ({"objective": {"type": "dpo", "loss": "hing"}}, "objective.loss: must be one of sigmoid"),
        ({"objective": {"type": "sft", "beta": 0.1}}, "beta: belongs to dpo, kto, orpo, simpo, not to sft"),
        ({"objective": {"type": "dpo", "loss": "ipo", "label_smoothing": 0.1}}, "label_smoothing: ipo has none"),
        ({"objective": {"type": "dpo", "loss": "robust", "label_smoothing": 0.5}}, "must be less than 0.5 for robust"),
        ({"objective": 3}, "objective: must be"),
        ({"objective": "reward", "head": {"type": "classifier"}}, "head: must be {type: reward}"),
        ({"objective": "dpo", "head": {"type": "classifier"}}, "head: the objective dpo is of texts"),
        ({"head": {"type": "reward"}}, "head: a reward head is trained by objective: reward"),
    ],
)
def test_what_is_wrong(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_from_dict(values(**keys))
    assert len(caught.value.problems) == 1, caught.value.message
    assert message in caught.value.message


def test_a_mistake_has_its_line() -> None:
    text = """base: tiny
data:
  rows: {path: rows.jsonl}
adapters:
  a:
    method: lora
    objective:
      type: dpo
      label_smothing: 0.1
"""
    with pytest.raises(RecipeError, match=r"line 9, adapters.a.objective.label_smothing: unknown key"):
        parse_recipe(text, source="run.yaml")
