"""graftlm compare: adapters side by side, those of a recipe (trained if they are not yet) or of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from graftlm.cli.console import console
from graftlm.cli.train import check_same_recipe, print_resume, say, train_run, with_warnings
from graftlm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from graftlm.evaluation.compare_report import CompareReport
    from graftlm.recipe import Recipe
    from graftlm.runs import RunFolder
    from graftlm.runs.parts import By

NORMALISE = ("sum", "token", "byte")
BY = ("task", "source", "template", "language")


def compare(
    what: Annotated[list[Path], typer.Argument(help="A recipe (YAML), or folders of finished runs on one base.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results. Default: runs/NAME, or runs/compare for several."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="accuracy, exact, matthews, f1, loss, perplexity. Default: accuracy of choices, else exact."),
    ] = None,
    choices: Annotated[
        str, typer.Option(help="auto (the answers of the data where they are few), none, or a list: 'yes, no'.")
    ] = "auto",
    normalise: Annotated[
        str, typer.Option(help="Likelihood of a choice: sum of its tokens, or the mean a token or a byte.")
    ] = "sum",
    by: Annotated[
        str | None,
        typer.Option(help="Score parts of the held-out rows apart: by task, source (file), template or language."),
    ] = None,
) -> None:
    """Score adapters on held-out rows: which method, at what size, for my task?"""
    from graftlm.evaluation.compare_report import write_comparison
    from graftlm.runs import RunFolder
    from graftlm.runs.parts import Rules

    if normalise not in NORMALISE:
        raise unknown_name("normalisation", normalise, list(NORMALISE))
    if by is not None and by not in BY:
        raise unknown_name("kind of parts", by, list(BY))
    rules = Rules(metric, choices, cast('Literal["sum", "token", "byte"]', normalise), cast("By | None", by))
    recipes = [path for path in what if not path.is_dir() and path.suffix.lower() in (".yaml", ".yml")]
    if recipes and len(what) > 1:
        raise UserError(
            "give one recipe, or folders of finished runs",
            hint="Adapters of one recipe are compared with each other; put all into it.",
        )
    if recipes:
        folder = _trained(recipes[0], out)
        folders, place = [folder], folder.path
    else:
        folders = [RunFolder(path) for path in what]
        place = out or (what[0] if len(what) == 1 else Path("runs") / "compare")
        if RunFolder(place).begun and place not in what:
            raise UserError(f"{place} holds another run", hint="Choose another folder for the results: --out.")
    report = _compare(folders, rules, place.resolve().name)
    place.mkdir(parents=True, exist_ok=True)
    paths = write_comparison(report, place)
    _print(report)
    for path in paths:
        console.print(str(path), markup=False, soft_wrap=True)


def _trained(path: Path, out: Path | None) -> RunFolder:
    """The folder of the recipe's run: a finished one of this very recipe, or one that is trained or gone on with."""
    from graftlm.recipe import load_recipe
    from graftlm.runs import RunFolder, locked

    recipe = load_recipe(path)
    folder = RunFolder(out or Path("runs") / recipe.name)
    if folder.path.exists() and not folder.path.is_dir():
        raise UserError(f"{folder.path} is a file; the results need a folder")
    with locked(folder):
        if folder.begun:
            check_same_recipe(recipe, folder)
        if folder.finished:
            console.print(f"{folder.path} is trained already", markup=False)
            return folder
        _train(recipe, folder)
    return folder


def _train(recipe: Recipe, folder: RunFolder) -> None:
    from graftlm.runs.entrants import for_comparison

    result = train_run(recipe, folder, resume=folder.begun, with_plan=False, adjust=for_comparison)
    if result.report is None:
        print_resume(folder, f"\nstopped; everything is saved in {folder.path}. The same command goes on.")
        raise typer.Exit(130)


def _compare(folders: Sequence[RunFolder], rules: object, title: str) -> CompareReport:
    from graftlm.evaluation.compare_report import CompareReport
    from graftlm.runs.compare import compare
    from graftlm.runs.entrants import enter_runs
    from graftlm.runs.parts import Rules
    from graftlm.runs.setup import versions

    assert isinstance(rules, Rules)
    with with_warnings(), console.status("loading base, data and adapters …"):
        entrants = enter_runs(folders)
    with console.status("scoring …"):
        comparisons = compare(entrants, rules, say)
    model = entrants[0].run.model
    return CompareReport(
        title=title,
        base=model.name,
        base_parameters=sum(parameter.numel() for parameter in model.base.parameters()),
        created=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        comparisons=comparisons,
        versions=versions(),
    )


def _print(report: CompareReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    from graftlm.evaluation.compare_report import (
        PART_COLUMNS,
        PARTS_LEGEND,
        columns,
        heading,
        parts_heading,
        parts_table,
        reference_lines,
        table,
    )

    for comparison in report.whole:
        console.print(f"\n[bold]{escape(heading(comparison))}[/]")
        shown = Table(box=None, pad_edge=False, header_style="dim")
        for column in columns(comparison):
            shown.add_column(column, overflow="fold")
        for row in table(comparison):
            shown.add_row(*map(escape, row))
        console.print(shown)
        for line in reference_lines(comparison):
            console.print(line, markup=False)
    if report.parts:
        console.print(f"\n[bold]{parts_heading(report)}[/]")
        shown = Table(*PART_COLUMNS, box=None, pad_edge=False, header_style="dim")
        for row in parts_table(report):
            shown.add_row(*map(escape, row))
        console.print(shown)
        console.print(PARTS_LEGEND, markup=False)
        for line in () if report.whole else report.parts[0].notes:
            console.print(line, markup=False)
    console.print()
