"""graftlm demo: the main job on the embedded base and the shipped data."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from graftlm.cli.console import console
from graftlm.cli.train import run_recipe


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results; an earlier run is replaced.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Tune three adapters at once on the embedded base: three tasks, three ranks, one pass. Takes some minutes."""
    from graftlm.recipe import load_recipe

    recipe = load_recipe(Path(str(files("graftlm.demo") / "recipe.yaml")))
    console.print("[bold]graftlm demo[/]: one frozen base, three tasks, three LoRA adapters, trained in one batch\n")
    run_recipe(recipe, out, overwrite=True)
