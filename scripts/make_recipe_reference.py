"""Write docs/reference/recipe.md from the schema: python scripts/make_recipe_reference.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from graftlm.recipe.describe import commented_recipe, describe
from graftlm.recipe.problems import properties
from graftlm.recipe.schema import AdapterKeys, DataSet, RunKeys, known_methods
from graftlm.training.settings import AdapterTraining, RunSettings

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "recipe.md"
HEAD = """\
# Recipe

<!-- Written by scripts/make_recipe_reference.py from the descriptions in the code: change them there. -->

Every key of a recipe. An unknown key is an error. The same descriptions stand in `graftlm recipe`, which prints
[the whole recipe below](#the-whole-recipe), and in the JSON schema for editors, `graftlm recipe --schema`.

Paths are relative to the recipe's folder.
"""
DATA = "`data` holds a name for each data set and, below it:"
ADAPTERS = """\
`adapters` holds a name for each adapter (it becomes a folder's name) and, below it, these keys, the settings of its
[method](#{method}) and any [setting of its training](#training-of-an-adapter)."""
METHOD = "| `method` | {names} | | The tuning method. |\n"
TRAINING = """\
Each may stand in an adapter, for that adapter alone, or under `training`, as the default for all. An adapter's
`batch_rows` displaces `batch_tokens` of `training`, and the other way round.

In an adapter `learning_rate` and `seed` may be lists. One adapter is then trained for each value, or pair of values:
`lora: {method: lora, learning_rate: [1.0e-3, 3.0e-3], seed: [0, 1]}` makes `lora-lr1e-3-s0` to `lora-lr3e-3-s1`, of the
group `lora`. See [Compare adapters](../how-to/compare.md)."""
RUN = "These stand under `training` and hold for the run as a whole."


def page() -> str:
    """The whole page."""
    methods = known_methods()
    first = next(iter(methods.values())).__name__.lower()
    names = ", ".join(f"`{name}`" for name in methods)
    parts = [
        HEAD,
        "## Top of the recipe\n",
        table(RunKeys),
        "## Data sets\n",
        DATA + "\n",
        table(DataSet),
        "## Adapters\n",
        ADAPTERS.format(method=first) + "\n",
        table(AdapterKeys) + METHOD.format(names=names),
    ]
    for name, config in methods.items():
        summary = (config.__doc__ or "").strip().partition("\n")[0]
        parts += [f"## {config.__name__}\n", f"`method: {name}`. {summary}\n", table(config, leave_out="method")]
    parts += ["## Training of an adapter\n", TRAINING + "\n", table(AdapterTraining)]
    parts += ["## Run\n", RUN + "\n", table(RunSettings)]
    parts += ["## The whole recipe\n", f"```yaml\n{commented_recipe()}```\n"]
    return "\n".join(parts)


def table(model: type[BaseModel], *, leave_out: str = "") -> str:
    """One row a key."""
    rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for key, schema in properties(model).items():
        if key != leave_out:
            cells = [f"`{key}`", describe(schema), default(key, schema), schema.get("description", "")]
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def default(key: str, schema: dict[str, Any]) -> str:
    """The default as YAML writes it, or nothing where the description says what happens without the key."""
    value = schema.get("default")
    if "default" not in schema:
        return "" if "Left out" in schema.get("description", "") else "needed"
    if value is None or value in ([], {}):
        return ""
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
