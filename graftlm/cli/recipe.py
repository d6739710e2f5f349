"""``graftlm recipe``: a commented recipe to start from, and a schema for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def recipe(
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of the terminal.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON schema of recipes instead, for editors.")] = False,
) -> None:
    """Print a full recipe with every setting explained and at its default."""
    import json

    from graftlm.errors import UserError

    if out is not None and out.exists() and not force:
        raise UserError(f"{out} exists already", hint="Choose another name, or overwrite it with --force.")

    from graftlm.recipe import commented_recipe, json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n" if schema else commented_recipe()
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from error
    what = "JSON schema" if schema else "recipe"
    typer.echo(f"wrote the {what} to {out}", err=True)
