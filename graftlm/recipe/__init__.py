"""The recipe: the strict schema of a run, read from YAML with the line of every mistake."""

from graftlm.recipe.describe import commented_recipe, json_schema
from graftlm.recipe.parse import load_recipe, parse_recipe, recipe_for_data_files, recipe_from_dict
from graftlm.recipe.problems import Problem, RecipeError
from graftlm.recipe.schema import AdapterRecipe, DataSet, Recipe

__all__ = [
    "AdapterRecipe",
    "DataSet",
    "Problem",
    "Recipe",
    "RecipeError",
    "commented_recipe",
    "json_schema",
    "load_recipe",
    "parse_recipe",
    "recipe_for_data_files",
    "recipe_from_dict",
]
