"""graftlm plan: what a run will take, before it runs."""

from __future__ import annotations

import json

import typer

from graftlm.cli.train import DataFiles, RecipeFile, print_plan, read_recipe, say, with_warnings


def plan(
    recipe: RecipeFile = None,
    data: DataFiles = None,
    as_json: bool = typer.Option(False, "--json", help="Print the plan as JSON and nothing else."),
) -> None:
    """Read the data, run one real step at the largest batch, and print memory, time, tokens and padding."""
    chosen = read_recipe(recipe, data, {})
    from graftlm.runs import set_up
    from graftlm.training.plan import plan as make_plan

    with with_warnings():
        run = set_up(chosen, (lambda _line: None) if as_json else say)
    planned = make_plan(run.model, run.tasks, chosen.training)
    if as_json:
        typer.echo(json.dumps(planned.to_dict(), indent=2))
        return
    print_plan(planned)
