"""A small run on the embedded base: a few short rows, two adapters, seconds of work."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from graftlm.recipe import Recipe, recipe_from_dict

COLOURS = ("red", "blue", "green", "black", "white")
ANIMALS = ("cat", "dog", "bird", "fish", "horse", "cow")


def write_rows(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def colour_rows(number: int = 24) -> list[dict[str, str]]:
    """Alpaca rows, all different."""
    pairs = [(animal, colour) for animal in ANIMALS for colour in COLOURS][:number]
    return [
        {"instruction": f"The {animal} is {colour}. Which colour is the {animal}?", "output": colour}
        for animal, colour in pairs
    ]


def animal_rows(number: int = 24) -> list[dict[str, str]]:
    return [
        {
            "instruction": row["instruction"].partition("Which")[0] + "Who is it?",
            "output": row["instruction"].split()[1],
        }
        for row in colour_rows(number)
    ]


def small_values(folder: Path) -> dict[str, Any]:
    """A recipe as plain values, with its data in ``folder``: adapters of different data, ranks and lengths."""
    write_rows(folder / "colours.jsonl", [*colour_rows(), {"instruction": "Which colour is night?", "output": ""}])
    write_rows(folder / "animals.jsonl", animal_rows())
    return {
        "name": "small",
        "base": "tiny",
        "data": {
            "colours": {"path": str(folder / "colours.jsonl"), "held_out": 5},
            "animals": {"path": str(folder / "animals.jsonl"), "held_out": 4},
        },
        "adapters": {
            "colours": {"method": "lora", "rank": 4, "data": "colours", "dropout": 0.1, "max_steps": 6},
            "both": {"method": "lora", "rank": 2, "data": ["colours", "animals"], "seed": 1, "max_steps": 4},
        },
        "training": {"epochs": 2, "batch_rows": 4, "learning_rate": 0.002, "eval_every": 2},
    }


def small_recipe(folder: Path, **changes: Any) -> Recipe:
    return recipe_from_dict({**small_values(folder), **changes}, folder=folder)
