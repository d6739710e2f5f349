"""graftlm train: from a recipe, or from data files alone, to adapters and a report."""

from __future__ import annotations

import shlex
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.console import as_duration, as_size, console, parse_variables, print_warnings
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.recipe import Recipe
    from graftlm.runs import PreparedRun, RunFolder, RunResult
    from graftlm.training.plan import Plan

RecipeFile = Annotated[Path | None, typer.Argument(help="A recipe (YAML); `graftlm recipe` prints one to start from.")]
DataFiles = Annotated[
    list[str] | None, typer.Option("--data", "-d", help="A data file instead of a recipe; may be given several times.")
]


def train(
    recipe: RecipeFile = None,
    data: DataFiles = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the results. Default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where there is a run already.")] = False,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Do not measure a step before training.")] = False,
    base: Annotated[str | None, typer.Option(help="With --data: the base model.")] = None,
    rank: Annotated[int | None, typer.Option(help="With --data: rank of the LoRA adapter.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="With --data: peak learning rate.")] = None,
    epochs: Annotated[float | None, typer.Option(help="With --data: passes over the rows.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="With --data: stop after so many steps.")] = None,
    batch_rows: Annotated[int | None, typer.Option(help="With --data: rows of an optimizer step.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="With --data: share (0.1) or number (50) of rows for evaluation.")
    ] = None,
    chat_template: Annotated[str | None, typer.Option(help="With --data: auto, plain, alpaca, chatml, …")] = None,
    prompt: Annotated[str | None, typer.Option(help="With --data: prompt pattern, such as 'Review: {text}'.")] = None,
    answer: Annotated[str | None, typer.Option(help="With --data: answer pattern, such as '{label}'.")] = None,
    max_length: Annotated[int | None, typer.Option(help="With --data: longest row, in tokens.")] = None,
    max_rows: Annotated[int | None, typer.Option(help="With --data: read so many rows of each file at most.")] = None,
    max_dropped: Annotated[float | None, typer.Option(help="With --data: share of rows that may be dropped.")] = None,
    seed: Annotated[int | None, typer.Option(help="With --data: seed.")] = None,
    variable: Annotated[
        list[str] | None, typer.Option("--set", help="With --data: value of a {{name}} in the rows: --set name=Ada.")
    ] = None,
) -> None:
    """Train adapters: every adapter of a recipe in one pass, or one on data files with nothing else said."""
    settings: dict[str, Any] = {
        "base": base,
        "rank": rank,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_rows": batch_rows,
        "held_out": int(held_out) if held_out is not None and held_out == int(held_out) else held_out,
        "chat_template": chat_template,
        "prompt": prompt,
        "answer": answer,
        "max_length": max_length,
        "max_rows": max_rows,
        "max_dropped": max_dropped,
        "seed": seed,
        "variables": parse_variables(variable or []) or None,
    }
    run_recipe(read_recipe(recipe, data, settings), out, resume=resume, overwrite=overwrite, with_plan=not no_plan)


def read_recipe(recipe: Path | None, data: list[str] | None, settings: dict[str, Any]) -> Recipe:
    """The recipe of a file, or one made for data files."""
    from graftlm.recipe import load_recipe, recipe_for_data_files

    given = {key: value for key, value in settings.items() if value is not None}
    if recipe is not None and data:
        raise UserError("give a recipe or --data, not both", hint="Data sets go into the recipe's `data:`.")
    if recipe is not None:
        if given:
            option = next(iter(given)).replace("_", "-").replace("variables", "set")
            raise UserError(
                f"--{option} goes with --data; with a recipe, set it there",
                hint="graftlm recipe prints every key with its meaning.",
            )
        if recipe.suffix.lower() in (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".txt"):
            raise UserError(f"{recipe} looks like data, not like a recipe", hint=f"graftlm train --data {recipe}")
        return load_recipe(recipe)
    if data:
        return recipe_for_data_files(data, **given)
    raise UserError(
        "nothing to train on",
        hint="graftlm train --data FILE, or graftlm train recipe.yaml (graftlm recipe prints one to start from).",
    )


def run_recipe(
    recipe: Recipe, out: Path | None, *, resume: bool = False, overwrite: bool = False, with_plan: bool = True
) -> RunFolder:
    """Set up, plan, train and report, with live progress; gives the run's folder."""
    from graftlm.runs import choose_folder, locked

    folder = choose_folder(out, recipe.name, resume=resume, overwrite=overwrite)
    with locked(folder):
        if resume:
            check_same_recipe(recipe, folder)
        if resume and folder.finished:
            console.print(f"{folder.path} is finished already: {folder.report}", markup=False)
            return folder
        try:
            result = train_run(recipe, folder, resume=resume, with_plan=with_plan)
        except KeyboardInterrupt:
            console.print("\nstopped at once")
            if folder.begun:
                print_resume(folder, "to go on from the last checkpoint:")
            raise typer.Exit(130) from None
    if result.report is None:
        console.print(
            f"\nstopped after round {result.outcome.rounds}; everything is saved in {folder.path}", markup=False
        )
        print_resume(folder, "to go on:")
        raise typer.Exit(130)
    _print_end(result.report, folder)
    return folder


def train_run(
    recipe: Recipe,
    folder: RunFolder,
    *,
    resume: bool,
    with_plan: bool,
    adjust: Callable[[PreparedRun], PreparedRun] = lambda run: run,
) -> RunResult:
    """Set up, plan and train, with live progress; ``adjust`` changes the run before that."""
    from graftlm.runs import execute, set_up

    with with_warnings(), console.status("loading base and data …"):
        run = adjust(set_up(recipe, say, kept=folder.rewards))
    planned = make_plan(run) if with_plan else None
    from graftlm.cli.progress import Leaderboard, training_display

    board = Leaderboard(list(recipe.adapters))
    with asked_to_stop() as stop, training_display(console, board) as watch:
        return execute(
            run, folder, plan=planned, resume=resume, watch=watch, recall=board.recall, should_stop=stop, say=say
        )


@contextmanager
def with_warnings() -> Iterator[None]:
    """Inside, graftlm's warnings are collected; they are printed at the end, as notes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    print_warnings(caught)


def print_resume(folder: RunFolder, before: str) -> None:
    """A command that goes on with a run, wherever its recipe came from, on a line of its own to be copied."""
    console.print(before, markup=False)
    console.print(f"  {_resume_command(folder)}", markup=False, soft_wrap=True, style="bold")


def _resume_command(folder: RunFolder) -> str:
    return shlex.join(["graftlm", "train", str(folder.recipe), "--resume", "--out", str(folder.path)])


def say(line: str) -> None:
    """One line on what was done."""
    console.print(line, markup=False)


def make_plan(run: PreparedRun) -> Plan:
    """Measure and print the plan of a run."""
    from graftlm.training.plan import plan

    with console.status("measuring one step at the largest batch …"):
        planned = plan(run.model, run.tasks, run.recipe.training)
    print_plan(planned)
    return planned


def print_plan(planned: Plan) -> None:
    """Memory, time, tokens, padding, and the largest batch that fits."""
    console.print(
        f"plan: {planned.rounds} rounds, {planned.tokens:,} tokens ({planned.learnt_tokens:,} learnt, "
        f"{planned.padding_share:.1%} padding), about {as_duration(planned.seconds)}, "
        f"peak memory {as_size(planned.peak_memory)} of {as_size(planned.available_memory)}"
    )
    if planned.largest_micro_batch_tokens is not None:
        console.print(f"largest micro_batch_tokens that fits: about {planned.largest_micro_batch_tokens:,}")
    if not planned.fits:
        console.print(
            "[bold yellow]this run may not fit into memory[/]: lower training.micro_batch_tokens, "
            "or set training.gradient_checkpointing: true"
        )


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C (or SIGTERM) asks the run to save and stop; a second one interrupts at once."""
    asked = False

    def handle(_number: int, _frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        console.print("\nstopping at the next safe point … (Ctrl-C again to stop at once)")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def check_same_recipe(recipe: Recipe, folder: RunFolder) -> None:
    """See that a run was begun with this very recipe.

    Raises:
        UserError: it was begun with another one.
    """
    if folder.recipe.read_text(encoding="utf-8") != recipe.to_yaml():
        raise UserError(
            f"the recipe is not the one that the run in {folder.path} was begun with ({folder.recipe})",
            hint=f"Go on with that one: {_resume_command(folder)}\n  Or start anew: --overwrite instead of --resume.",
        )


def _print_end(report: object, folder: RunFolder) -> None:
    from rich.table import Table

    from graftlm.evaluation.report import SUMMARY_COLUMNS, RunReport, summary_lines, summary_sentences

    assert isinstance(report, RunReport)
    console.print()
    for sentence in summary_sentences(report):
        console.print(sentence, markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in SUMMARY_COLUMNS:
        table.add_column(column, overflow="fold")
    for line in summary_lines(report):
        table.add_row(*line)
    console.print(table)
    if report.planned and report.peak_memory:
        console.print(
            f"planned {as_duration(report.planned['seconds'])} and {as_size(report.planned['peak_memory'])}; "
            f"took {as_duration(report.seconds)} and {as_size(report.peak_memory)}"
        )
    console.print(f"\nadapters  {folder.adapters}", markup=False, soft_wrap=True)
    console.print(f"report    {folder.report}\n\nnext:", markup=False, soft_wrap=True)
    for command in report.next_commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
