"""``graftlm data collect`` and ``graftlm data check-demonstrations``: from query logs to training prompts."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli.console import console
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.collecting.collect import Report


def collect(
    logs: Annotated[list[str], typer.Argument(help="Query logs: JSONL or SQLite files, or folders of them.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the collected prompts.")],
    prompt: Annotated[str | None, typer.Option(help="Column of the prompt. Default: a usual name.")] = None,
    user: Annotated[str | None, typer.Option(help="Column of the user's id. Default: a usual name.")] = None,
    consent: Annotated[str | None, typer.Option(help="Column of the consent mark. Default: a usual name.")] = None,
    consent_value: Annotated[
        list[str] | None, typer.Option(help="A mark that means yes, and then the only one. Repeatable.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Table of an SQLite log.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits.")] = 0,
    splits: Annotated[str, typer.Option(help="Shares of train, valid and test, in users.")] = "0.9,0.05,0.05",
    per_user: Annotated[int, typer.Option(min=1, help="Most prompts of one user.")] = 200,
    prefix: Annotated[
        int, typer.Option(min=0, help="Letters that two prompts may not begin with in common; 0: no limit.")
    ] = 100,
    similarity: Annotated[float, typer.Option(help="Least similarity of near duplicates (Jaccard index).")] = 0.8,
    salt_file: Annotated[
        Path | None,
        typer.Option(help="Secret that users' names are hashed with; made if absent. Default: drawn and forgotten."),
    ] = None,
    corrections: Annotated[
        Path | None, typer.Option(help="CSV or JSONL with use_case_by_hand by id, which wins over the rules.")
    ] = None,
    demonstrations: Annotated[
        Path | None, typer.Option(help="Write a .csv or .jsonl for people to write demonstrations into.")
    ] = None,
    demonstration_rows: Annotated[
        int | None, typer.Option(min=1, help="Most prompts to ask demonstrations for. Default: all.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier collection in the folder.")
    ] = False,
) -> None:
    """Collect training prompts from query logs: consented, without personal data and duplicates."""
    from graftlm.data.collecting.collect import Settings
    from graftlm.data.collecting.collect import collect as run
    from graftlm.data.collecting.folder import check_free, read_corrections
    from graftlm.data.collecting.use_cases import use_cases

    if not overwrite:
        check_free(out)  # before anything else is made, such as a salt
    settings = Settings(
        prompt=prompt,
        user=user,
        consent=consent,
        consent_values=tuple(consent_value or ()),
        table=table,
        seed=seed,
        shares=_shares(splits),
        per_user=per_user,
        prefix=prefix,
        similarity=similarity,
        salt=None if salt_file is None else _salt(salt_file),
    )
    by_hand = read_corrections(corrections, use_cases()) if corrections else {}
    start = time.perf_counter()
    with _progress() as seen:
        report = run(
            logs,
            out,
            settings,
            corrections=by_hand,
            demonstrations=demonstrations,
            most_demonstrations=demonstration_rows,
            overwrite=overwrite,
            progress=seen,
        )
    seconds = time.perf_counter() - start
    _print(report)
    console.print(f"\n{report.read:,} rows in {seconds:.0f} s ({report.read / max(seconds, 1e-9):,.0f} rows/s)")
    console.print(f"prompts in {out}, the account in {out / 'report.json'}", markup=False, soft_wrap=True)
    if demonstrations is not None:
        console.print(f"demonstrations go into {demonstrations}", markup=False, soft_wrap=True)


def check_demonstrations(
    file: Annotated[Path, typer.Argument(help="The file with the demonstrations that people wrote.")],
    prompts: Annotated[Path, typer.Option(help="The folder that data collect wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of train.jsonl, valid.jsonl, test.jsonl for training.")
    ] = None,
    out_set: Annotated[Path | None, typer.Option("--set", help="Folder of a set with the same splits, to mix.")] = None,
) -> None:
    """Check demonstrations that came back, and make chats of the good ones."""
    from graftlm.data.collecting.demonstrations import check_sheet

    checked = check_sheet(file, prompts, out, out_set)
    console.print(f"asked for {checked.asked:,}, rows {checked.read:,}, good {checked.good:,}")
    _counts("problems", checked.problems, checked.examples)
    if out is not None:
        for split, count in sorted(checked.splits.items()):
            console.print(f"{out / split}.jsonl: {count:,} chats", markup=False, soft_wrap=True)
    if checked.problems:
        raise UserError(
            f"{file}: {checked.problems.total():,} prompts or rows with a problem",
            hint=_what_now(checked.good, bool(out or out_set)),
        )


def _what_now(good: int, wanted: bool) -> str | None:
    if not wanted:
        return None
    done = "The good rows are written. Mend the others" if good else "Nothing is written. Mend them"
    return f"{done} and check again."


def _shares(text: str) -> tuple[float, float, float]:
    try:
        train, valid, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(
            f"--splits {text}: expected three shares", hint="For example: --splits 0.9,0.05,0.05"
        ) from error
    return train, valid, test


def _salt(path: Path) -> bytes:
    """The secret in a file; a new one where there is no file, readable by its owner alone."""
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_hex(32) + "\n", encoding="utf-8")
    salt = path.read_text(encoding="utf-8").strip().encode()
    if not 16 <= len(salt) <= 64:
        raise UserError(f"{path}: a salt has 16 to 64 signs, this has {len(salt)}")
    return salt


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Rows so far and their rate, a few times a second."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    start = last = time.perf_counter()
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("reading")

        def seen(rows: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if now - last > 0.25:
                last = now
                bar.update(task, description=f"{rows:,} rows, {rows / (now - start):,.0f} rows/s")

        yield seen


def _print(report: Report) -> None:
    console.print(f"read {report.read:,} rows, kept {report.kept:,}")
    _counts("dropped", report.dropped, report.examples)
    removed = {f"{kind} (in {report.personal_prompts[kind]:,} rows)": n for kind, n in report.personal.items()}
    _counts("personal data removed", removed)
    _counts("languages", report.languages)
    _counts("use cases", report.use_cases)
    for split, counts in report.splits.items():
        console.print(f"{split:<6} {counts['prompts']:,} prompts of {counts['users']:,} users")
    if report.corrected or report.corrections_unused:
        console.print(
            f"use cases by hand: {report.corrected:,}; of prompts that are not there: {report.corrections_unused:,}"
        )


def _counts(title: str, counts: Mapping[str, int], examples: Mapping[str, list[str]] | None = None) -> None:
    if not counts:
        return
    console.print(title, style="bold")
    for name, number in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])):
        places = f" ({', '.join(examples[name][:3])})" if examples and name in examples else ""
        console.print(f"  {number:>8,} {name}{places}", markup=False, soft_wrap=True)
