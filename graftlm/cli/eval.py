"""graftlm eval: what adapters gained and lost, on tasks of one's own and of the project, all in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from graftlm.cli.console import as_duration, console, errors
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.evaluation.evaluation import Evaluation

MOST_TASKS = 16  # of more, the terminal shows the means of groups alone


def evaluate(
    adapter: Annotated[
        list[str] | None,
        typer.Argument(help="Folders of adapters or runs, all scored together; or a base alone: tiny, or its folder."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of results and report. Answers that it holds are kept.")
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            "-t",
            help="A task's name, group or YAML file, a folder of them, or NAME=FILE for a public one. Repeatable. "
            "Left out: all of the project's own.",
        ),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option("--language", "-l", help="Only tasks in this language (en, zh). Repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use so many rows of each task at most.")] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, max=32, help="Solved examples in each prompt, in the place of the task's own.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of rows and examples that are drawn.")] = None,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option("--lm-eval", help="Tasks of lm-evaluation-harness: names, patterns or YAML files, with commas."),
    ] = None,
    lm_eval_path: Annotated[
        Path | None, typer.Option("--lm-eval-path", help="A folder of the harness's YAML tasks of your own.")
    ] = None,
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template", help="Put the harness's questions into each adapter's template; else plain text."
        ),
    ] = False,
    to_lm_eval: Annotated[
        Path | None, typer.Option("--to-lm-eval", help="Write the tasks as the harness's YAML into a folder, and stop.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            help="Who compares written answers with the base's: the address of an OpenAI-compatible endpoint, to which "
            "they are sent, an adapter with a reward head, or FILE.py:FUNCTION."
        ),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The model at that address.")] = None,
    base: Annotated[str | None, typer.Option(help="The base, if not the one that the adapters name.")] = None,
    drift: Annotated[bool, typer.Option(help="Measure the drift from the base on neutral texts.")] = True,
    batch_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens that run together in scoring. 0: as many as suit the device.")
    ] = 0,
    batch_rows: Annotated[int, typer.Option(min=1, help="Answers written at the same time.")] = 32,
    list_tasks: Annotated[bool, typer.Option("--list", help="List the tasks that there are, and stop.")] = False,
    chat_template: Annotated[str, typer.Option(help="For the base, and adapters that store none.")] = "auto",
    dtype: Annotated[str, typer.Option(help="Precision of the base.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Score adapters against their base: what was gained, what was lost, and how sure that is."""
    if list_tasks:
        _list_tasks()
        return
    from graftlm.evaluation.harness.run import HarnessSettings, require_lm_eval

    if to_lm_eval is not None:
        _write_harness(task or [], language or [], to_lm_eval)
        return
    if not adapter:
        raise UserError(
            "no adapter is named", hint="For example: graftlm eval runs/NAME --out evals/NAME, or graftlm eval tiny"
        )
    from graftlm.evaluation.speakers import check_folders, open_adapters
    from graftlm.runs.eval_answers import EvalSettings, prepare
    from graftlm.runs.eval_tasks import find_tasks
    from graftlm.runs.evaluate import run_evaluation

    folders, base = _split(adapter, base)
    check_folders(folders)
    harness = None
    if lm_eval:
        require_lm_eval()
        names = tuple(name.strip() for given in lm_eval for name in given.split(",") if name.strip())
        harness = HarnessSettings(
            names, lm_eval_path, shots, limit, apply_chat_template, max_tokens=batch_tokens or 4096
        )
    elif lm_eval_path is not None or apply_chat_template:
        raise UserError(
            "--lm-eval-path and --apply-chat-template are for --lm-eval", hint="Name tasks: --lm-eval TASKS"
        )
    tasks = [] if harness is not None and not task else find_tasks(task or [], language or [])
    settings = EvalSettings(limit, shots, batch_tokens, batch_rows, seed, drift)
    prepared = prepare(tasks, settings)
    place = out or Path("evals") / (
        Path(adapter[0]).name if len(adapter) == 1 else "+".join(Path(a).name for a in adapter[:3])
    )
    opened_judge = None
    if judge is not None:
        from graftlm.evaluation.judges import adapter_judge, open_judge

        if not any(each.task.keys.kind == "generate" for each in prepared):
            raise UserError("--judge: none of the tasks has written answers", hint="Name one: --task instructions-en")
        if not Path(judge).is_dir():
            opened_judge = open_judge(judge, place / "judge", model=judge_model)
    elif judge_model is not None:
        raise UserError("--judge-model is the model of a judge", hint="Say where it is: --judge http://…/v1")
    rows = sum(len(each.items) for each in prepared)
    if prepared:
        errors.print(f"{len(prepared)} task{'s' * (len(prepared) > 1)}, {rows:,} rows", markup=False)
    with errors.status("loading base and adapters …"):
        opened = open_adapters(folders, base, chat_template=chat_template, dtype=dtype, device=device)
    for note in opened.notes:
        errors.print(f"[yellow]note:[/] {escape(note)}")
    if judge is not None and opened_judge is None:
        opened_judge = adapter_judge(opened, Path(judge), place / "judge")
    try:
        evaluation = run_evaluation(
            opened,
            prepared,
            place,
            settings,
            harness=harness,
            judge=opened_judge,
            say=lambda line: errors.print(line, markup=False),
            progress=_bar,
        )
    except KeyboardInterrupt:
        errors.print(f"\nstopped; what is done is in {place}. To go on: the same command again", markup=False)
        raise typer.Exit(130) from None
    _print(evaluation)
    for note in evaluation.notes:
        if note not in opened.notes:  # those are told before the run
            errors.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    errors.print(f"done in {as_duration(evaluation.seconds)}", markup=False)
    for name in ("report.html", "report.md", "results.json"):
        console.print(str(place / name), markup=False, soft_wrap=True)


def _print(evaluation: Evaluation) -> None:
    from graftlm.evaluation.eval_extras import WIN_COLUMNS, harness_rows, win_rows
    from graftlm.evaluation.eval_report import summary_scores, summary_sentences, summary_table

    if evaluation.tasks:
        if len(evaluation.tasks) <= MOST_TASKS:
            _print_table(*summary_scores(evaluation))
        _print_table(*summary_table(evaluation))
        for line in summary_sentences(evaluation):
            console.print(line, markup=False, soft_wrap=True)
    if evaluation.win_rates:
        _print_table(WIN_COLUMNS, win_rows(evaluation))
    models, reported = harness_rows(evaluation)
    if reported:
        _print_table(("lm-evaluation-harness", *models), reported)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(head):
        table.add_column(escape(column), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _split(given: list[str], base: str | None) -> tuple[list[Path], str | None]:
    """Folders of adapters; a base that is named in their place."""
    from graftlm.base.loading import EMBEDDED, PACKAGED

    bases = [name for name in given if name in (*EMBEDDED, *PACKAGED) and not Path(name).is_dir()]
    bases += [name for name in given if name not in bases and _is_base(Path(name))]
    if len({*bases, *([base] if base else [])}) > 1:
        raise UserError(f"two bases are named: {', '.join([*bases, *([base] if base else [])])}", hint="Name one.")
    return [Path(name) for name in given if name not in bases], base or next(iter(bases), None)


def _is_base(folder: Path) -> bool:
    """Whether a folder holds a base model, and no adapter."""
    from graftlm.adapters.files import is_adapter_folder

    return (folder / "config.json").is_file() and not is_adapter_folder(folder)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of one task, with rate and time left; in a pipe a line at its end."""
    import time

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    begun, done = time.monotonic(), 0
    if not errors.is_terminal:

        def count(more: int) -> None:
            nonlocal done
            done += more

        yield count
        seconds = time.monotonic() - begun
        errors.print(f"{title}: {done:,} answers, {done / max(seconds, 1e-9):,.1f} a second", markup=False)
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        bar = progress.add_task(escape(title), total=total, rate="")

        def advance(more: int) -> None:
            nonlocal done
            done += more
            rate = f"{done / max(time.monotonic() - begun, 1e-9):,.1f} a second"
            progress.update(bar, advance=more, rate=rate)

        yield advance


def _write_harness(names: list[str], languages: list[str], folder: Path) -> None:
    from graftlm.evaluation.harness.tasks import write_harness_tasks
    from graftlm.runs.eval_tasks import find_tasks

    written = write_harness_tasks(find_tasks(names, languages), folder)
    for name, why in written.left_out.items():
        errors.print(f"[yellow]left out[/] {escape(name)}: {escape(why)}")
    for name in written.names:
        console.print(name, markup=False)
    errors.print(f"lm_eval --include_path {folder} --tasks graftlm …", markup=False, soft_wrap=True)


def _list_tasks() -> None:
    from rich.table import Table

    from graftlm.recipe.task_file import load_task
    from graftlm.runs.eval_tasks import public, shipped

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("task", "group", "language", "kind", "what it measures"):
        table.add_column(column, overflow="fold")
    for places, mark in ((shipped(), ""), (public(), "=FILE")):
        for name, path in places.items():
            keys = load_task(path, rows=False).keys
            table.add_row(f"{name}{mark}", keys.group, keys.language, keys.kind, escape(keys.about))
    console.print(table)
