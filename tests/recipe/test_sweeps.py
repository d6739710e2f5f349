"""Lists of learning rates and seeds in a recipe: an adapter for each."""

from __future__ import annotations

from typing import Any

import pytest

from graftlm.recipe import RecipeError, json_schema, parse_recipe

TOP = "base: tiny\ndata: {d: {path: d.csv}}\nadapters:\n"


def recipe(*adapters: str) -> Any:
    return parse_recipe(TOP + "".join(f"  {line}\n" for line in adapters))


def problems(*adapters: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        recipe(*adapters)
    return [str(problem) for problem in error.value.problems]


def test_each_pair_of_values_makes_an_adapter():
    found = recipe("a: {method: lora, rank: 4, learning_rate: [1.0e-3, 0.00025], seed: [0, 7]}", "b: {method: lora}")
    assert list(found.adapters) == ["a-lr1e-3-s0", "a-lr1e-3-s7", "a-lr2.5e-4-s0", "a-lr2.5e-4-s7", "b"]
    last = found.adapters["a-lr2.5e-4-s7"]
    assert (last.training.learning_rate, last.training.seed, last.group, last.data) == (0.00025, 7, "a", ("d",))
    assert last.method.rank == 4
    assert found.adapters["b"].group is None


def test_a_list_of_seeds_alone_and_of_one_value():
    assert list(recipe("a: {method: lora, seed: [0, 1]}").adapters) == ["a-s0", "a-s1"]
    assert list(recipe("a: {method: lora, learning_rate: [1]}").adapters) == ["a-lr1e0"]


def test_a_sweep_is_written_as_the_adapters_that_it_makes():
    found = recipe("a: {method: lora, learning_rate: [1.0e-3, 3.0e-3]}", "c: {method: lora, seed: [1], group: mine}")
    text = found.to_yaml()
    assert "group: a" in text
    assert "group: mine" in text
    assert parse_recipe(text, source=f"{found.name}.yaml") == found
    assert parse_recipe(text, source=f"{found.name}.yaml").to_yaml() == text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("learning_rate: []", "learning_rate: must not be empty"),
        ("seed: [0, 0]", "seed: names 0 more than once"),
        ("learning_rate: [], seed: [0, 0]", "seed: names 0 more than once"),
        ("learning_rate: [1.0e-3, fast]", "learning_rate: must be a number or a list of numbers, holds 'fast'"),
        ("seed: [true]", "seed: must be a number or a list of numbers, holds true"),
        ("seed: [[1]]", "seed: must be a number or a list of numbers, holds a list"),
        ("learning_rate: [1.0e-3, -1]", "learning_rate: must be more than 0, is -1"),
        ("seed: [1.5]", "seed: must be a whole number, is 1.5"),
        ("learning_rate: [1.0e-3, .inf]", "learning_rate, entry 2: must be a finite number"),
        ("epochs: [1, 2]", "epochs: must be a number, is a list"),
    ],
)
def test_wrong_lists_name_their_line(values: str, message: str):
    assert any(
        f"line 5, adapters.a.{message}" in each
        for each in problems("b: {method: lora}", f"a: {{method: lora, {values}}}")
    )


def test_a_mistake_that_all_share_is_told_once_beside_the_others():
    found = problems("a: {method: lora, rank: 0, ranks: 4, learning_rate: [1.0e-3, 3.0e-3], seed: [0, 1]}")
    assert len(found) == 2
    assert all(each.startswith("line 4, adapters.a.") for each in found)


def test_a_bad_list_does_not_hide_other_mistakes():
    assert len(problems("a: {method: lora, rank: 0, learning_rate: [], seed: [0, 1]}")) == 2


@pytest.mark.parametrize("turned", [False, True])
def test_names_must_not_collide(turned: bool):
    lines = ["a: {method: lora, seed: [0, 1]}", "a-s1: {method: lora}"]
    (found,) = problems(*(lines[::-1] if turned else lines))
    assert "and there is one of that name already" in found
    (found,) = problems("a: {method: lora, seed: [0, 1]}", "A-s1: {method: lora}")
    assert "upper and lower case only" in found


def test_a_name_that_becomes_too_long():
    (found,) = problems(f"{'a' * 58}: {{method: lora, seed: [10, 11]}}")[:1]
    assert "which its lists make, must be fit for a folder" in found


def test_editors_know_lists():
    adapter = json_schema()["properties"]["adapters"]["additionalProperties"]
    forms = adapter.get("oneOf", [adapter])
    assert {"type": "array", "minItems": 1, "items": {"type": "integer"}} in forms[0]["properties"]["seed"]["anyOf"]
