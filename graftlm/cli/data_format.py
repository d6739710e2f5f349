"""``graftlm data format`` and ``graftlm data templates``: instructions from labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.console import console
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.formatting import Demonstrations
    from graftlm.data.instances import Instance
    from graftlm.data.prepare import RowCounts

CONTRADICTIONS = ("keep", "drop", "refuse")
HELD_OUT_NAMES = ("test", "dev", "valid", "validation", "eval", "heldout", "held_out")


def format_command(
    file: Annotated[str, typer.Argument(help="Labelled rows: a file, a folder or the name of a data set of the Hub.")],
    template: Annotated[
        str,
        typer.Option(
            help="A task template: a name of `data templates`, a YAML file, or promptsource:FILE#dataset/name."
        ),
    ],
    out: Annotated[Path, typer.Option(help="What is written: a file that ends in .jsonl, or the folder of a set.")],
    language: Annotated[str, typer.Option(help="Language of descriptions and label words: en or zh.")] = "en",
    demonstrations: Annotated[
        str, typer.Option(help="How many solved examples stand in a prompt: a number from 0 to 8, or a range, 0-8.")
    ] = "0",
    few_shot_ratio: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of rows with demonstrations. Default: as their number is drawn."),
    ] = None,
    all_descriptions: Annotated[
        bool, typer.Option("--all-descriptions", help="One instance for each description, not for one drawn.")
    ] = False,
    descriptions: Annotated[
        str | None,
        typer.Option(help="Numbers of the descriptions to use, from 1: 2, or 1,3,5. Default: all of the template."),
    ] = None,
    inverted: Annotated[
        bool, typer.Option("--inverted", help="The task the other way round: write the input for an output.")
    ] = False,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Which column serves a field: --column text=body. Repeatable."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(help="How a label is spelt in the file: --label 5=positive. Repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split to format, of a data set or of a column 'split'. Default: train.")
    ] = None,
    split_file: Annotated[
        str | None, typer.Option(help="Training rows for the demonstrations. Default: the training rows of FILE.")
    ] = None,
    join: Annotated[
        str | None, typer.Option(help="Another file whose columns are added as joined.NAME (see --join-on).")
    ] = None,
    join_on: Annotated[str, typer.Option(help="The column that both files have for --join.")] = "id",
    group: Annotated[
        str | None, typer.Option(help="Column whose equal values belong together: `data build` does not split them.")
    ] = None,
    contradictions: Annotated[
        str,
        typer.Option(help="Rows with one input and different labels: keep (and say so), drop, or refuse to write."),
    ] = "keep",
    licence: Annotated[str, typer.Option(help="Licence of the source, written to every instance.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of all that is drawn.")] = 0,
) -> None:
    """Give labelled rows human-written task descriptions, and write them as instances to train on."""
    from graftlm.cli.data_promptsource import format_promptsource
    from graftlm.data.formatting import SAMPLE, FormatSettings, asked, demonstration_pool, format_rows
    from graftlm.data.prepare import RowCounts
    from graftlm.data.readers import find_sources, read_rows
    from graftlm.data.task_fields import (
        Columns,
        check_group,
        choose_columns,
        columns_of,
        expand_row,
        join_rows,
        rows_to_join,
        same_columns,
    )
    from graftlm.data.task_template import load_task_template

    check_out(out, file, split_file, join)
    if contradictions not in CONTRADICTIONS:
        raise UserError(f"--contradictions {contradictions}: expected {', '.join(CONTRADICTIONS)}")
    if template.startswith("promptsource:"):
        given = (demonstrations != "0", few_shot_ratio is not None, inverted, split_file or join, descriptions)
        _refuse_for_promptsource(*given)
        wording = format_promptsource(
            file,
            template,
            columns=_pairs("column", column),
            labels=_pairs("label", label),
            every_template=all_descriptions,
            split=split,
            licence=licence,
            seed=seed,
            group=group,
        )
        _write(wording, contradictions, "label", out, file, licence, split=split)
        return
    task = load_task_template(template)

    added = rows_to_join(read_rows(join), join_on, join) if join is not None else {}

    def rows(path: str, of: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        found = read_rows(path, split=of)
        return join_rows(found, added, join_on, path) if join is not None else found

    def first_rows(path: str, of: str | None = None) -> list[dict[str, Any]]:
        return [part for _, row in islice(rows(path, of), SAMPLE) for part in expand_row(row)]

    def columns_in(path: str, of: str | None = None) -> Columns:
        return choose_columns(columns_of(first_rows(path, of)), task, _pairs("column", column), source=path)

    sources = find_sources(file)  # of a folder, each file has columns of its own
    sources = [file] if len(sources) == 1 else sources
    chosen = {name: columns_in(name, split) for name in sources}
    sample = [row for name in sources for row in first_rows(name, split)]
    columns = chosen[sources[0]]
    settings = FormatSettings(
        language=language,
        demonstrations=_range(demonstrations),
        few_shot_ratio=few_shot_ratio,
        all_descriptions=all_descriptions,
        descriptions=_numbers(descriptions),
        inverted=inverted,
        columns=columns,
        spellings=_pairs("label", label),
        split=split or ("train" if any("split" in row for row in sample) else None),
        licence=licence,
        source=file,
        group=group or "",
    )
    settings.check(task)
    for name in sources if group is not None else ():
        check_group(group or "", columns_of(first_rows(name, split)), name)
    told: dict[str, str] = {}  # by columns, the first file with them
    for name, each in chosen.items():
        told.setdefault("; ".join(each.lines()), name)
    for listed, name in told.items():
        shown = file if len(told) == 1 else name
        console.print(f"{shown} as {task.name} ({task.family}): {listed}", markup=False, soft_wrap=True)
    pool = None
    if settings.demonstrations[1]:
        name = _held_out_name(file, split, sample)
        if split_file is None:
            if name:
                raise UserError(
                    f"{file}: these look like held-out rows ('{name}'), which must not be demonstrations",
                    hint="Name the training rows: --split-file train.jsonl",
                )
            whole = replace(settings, columns=same_columns(chosen, task))
            pool = demonstration_pool(rows(file, split), task, whole, seed)
        else:
            theirs = same_columns({name: columns_in(name) for name in find_sources(split_file)}, task)
            known = replace(settings, columns=theirs, source=split_file)
            barred: set[bytes] = set()
            for source in sources if name else ():
                barred |= asked(rows(source, split), task, replace(settings, columns=chosen[source]))
            unread = RowCounts()
            pool = demonstration_pool(rows(split_file), task, known, seed, held_out=barred, counts=unread)
            for reason, number in unread.dropped.items():
                places = ", ".join(unread.examples[reason][:3])
                line = f"no demonstration of {number:,}: {reason} ({places})"
                console.print(line, markup=False, soft_wrap=True)
        _print_pool(pool, split_file or file)

    def make(counts: RowCounts) -> Iterator[Instance]:
        return chain.from_iterable(
            format_rows(
                rows(name, split), task, replace(settings, columns=each, source=name), seed, pool=pool, counts=counts
            )
            for name, each in chosen.items()
        )

    others = [path for path in (split_file, join) if path is not None]
    what = "label" if task.labels else "answer"
    _write(make, contradictions, what, out, file, licence, split=settings.split, others=others)


def templates_command() -> None:
    """List the project's own task templates: families, languages, labels, fields."""
    from rich.table import Table

    from graftlm.data.task_template import load_task_template, shipped

    table = Table("name", "family", "what", "descriptions", "fields", "labels or options", box=None, pad_edge=False)
    for name in shipped():
        task = load_task_template(name)
        told = ", ".join(f"{language} {len(texts)}" for language, texts in task.descriptions.items())
        way = " (inverted too)" if task.inverted else ""
        kinds = ", ".join(task.labels or ()) or ("options" if task.options else "open")
        table.add_row(name, task.family, task.about + way, told, ", ".join(task.columns), kinds)
    console.print(table)


def _write(
    make: Callable[[RowCounts], Iterator[Instance]],
    contradictions: str,
    what: str,
    out: Path,
    file: str,
    licence: str,
    *,
    split: str | None = None,
    others: Iterable[str] = (),
) -> None:
    """Write the instances that ``make`` gives, and tell what became of all rows and which contradict each other.

    ``what`` differs in a contradiction: the label, or the answer.
    """
    from graftlm.data.contradictions import Answers, compared
    from graftlm.data.prepare import RowCounts

    answers, counts, notes = Answers(prompts=False), RowCounts(), dict[str, Any]()
    if contradictions == "drop":  # which rows contradict each other is known when all have been seen
        for _ in compared(make(RowCounts()), answers):
            pass
        instances = compared(make(counts), answers, counts, reason=f"same input, other {what}")
    else:
        instances = compared(make(counts), answers, notes=notes, refuse=what if contradictions == "refuse" else "")
    write_instances(out, instances, file, licence, counts, split=split, others=others, notes=notes)
    print_counts(counts, out)
    if answers.number:
        if contradictions == "keep":
            many = "" if what == "label" else ", of which several may be right"
            line = f"kept       {answers.number:,} with the same input and another {what}{many}:"
            console.print(line, markup=False, soft_wrap=True)
        for pair in answers.pairs():
            console.print(f"  {pair}", markup=False, soft_wrap=True)
        if contradictions == "keep":
            console.print("  --contradictions drop leaves such rows out, --contradictions refuse stops at them")


def _refuse_for_promptsource(*given: object) -> None:
    if any(given):
        raise UserError(
            "PromptSource templates write one prompt of one row: they take no demonstrations, joins or inverted tasks",
            hint="Leave out --demonstrations, --few-shot-ratio, --descriptions, --inverted, --split-file and --join.",
        )


def _pairs(option: str, values: list[str] | None) -> dict[str, str]:
    for value in values or []:
        if "=" not in value:
            raise UserError(f"--{option} {value}: expected name=value")
    return dict(value.split("=", 1) for value in values or [])


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError:
        raise UserError(f"--demonstrations {text}: expected a number from 0 to 8, or a range such as 0-4") from None


def _numbers(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(",")) if text is not None else ()
    except ValueError:
        raise UserError(f"--descriptions {text}: expected numbers, such as 1,3,5") from None


def check_out(out: Path, *read: str | None) -> None:
    """Raises UserError where the output cannot be of a known kind, or would replace what is read."""
    from graftlm.data.readers import find_sources
    from graftlm.data.sets import refuse_to_replace

    if out.suffix == ".jsonl":
        if not out.parent.is_dir():
            raise UserError(f"--out {out}: there is no folder {out.parent}")
    elif out.suffix:
        raise UserError(f"--out {out}: expected a file that ends in .jsonl, or the folder of a set")
    refuse_to_replace(out, [name for path in read if path is not None for name in find_sources(path)])


def _held_out_name(file: str, split: str | None, sample: Iterable[dict[str, Any]]) -> str:
    """What says that rows of a file are held out: its name or its split; "" where nothing does.

    Rows that name their split themselves need no guess.
    """
    if any("split" in row for row in sample):
        return ""
    name = split or Path(file).name.split(".")[0].lower()
    return name if any(word in HELD_OUT_NAMES for word in (name, *name.replace("-", "_").split("_"))) else ""


def _print_pool(pool: Demonstrations, source: str) -> None:
    sizes = [f"{label} {len(rows):,}" if label else f"{len(rows):,}" for label, rows in pool.by_label.items()]
    if not any(pool.by_label.values()):
        raise UserError(f"{source}: there are no training rows to draw demonstrations from")
    console.print(f"demonstrations from {source}: {', '.join(sizes)}", markup=False, soft_wrap=True)


def write_instances(
    out: Path,
    instances: Iterator[Instance],
    source: str,
    licence: str,
    counts: RowCounts,
    *,
    split: str | None = None,
    others: Iterable[str] = (),
    notes: dict[str, Any] | None = None,
) -> None:
    """Write instances as chat JSONL or as a set. Either is there only when it is whole.

    A set's card names the files of ``source`` and the ``others`` that went in, and gets ``notes``, which may be filled
    meanwhile; ``split`` is train if it is None.

    Raises:
        UserError: no instance is left, with the reasons.
    """
    import json
    import os

    from graftlm.data.readers import find_sources
    from graftlm.data.sets import SetCard, describe_source, write_set

    first = next(instances, None)
    if first is None:
        reasons = ", ".join(f"{number:,} × {reason}" for reason, number in counts.dropped.items())
        raise UserError(f"{source}: no row is left of {counts.read:,}: {reasons or 'the file holds none'}")
    rows = chain([first], instances)
    if out.suffix != ".jsonl":
        files = [(name, licence) for name in find_sources(source)]
        files += [(name, "") for other in others for name in find_sources(other)]
        sources = [describe_source(name, licence=theirs) for name, theirs in files if Path(name).is_file()]
        card = SetCard(sources=sources, dropped=counts.dropped, examples=counts.examples)
        card.notes = {} if notes is None else notes
        write_set(out, rows, card, split=lambda _: split or "train", overwrite=True)
        return
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            for instance in rows:
                file.write(json.dumps(as_row(instance), ensure_ascii=False) + "\n")
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)


def as_row(instance: Instance) -> dict[str, Any]:
    """An instance as a row of chat JSONL, with where it comes from."""
    from graftlm.data.instances import ORIGINS
    from graftlm.data.tools import as_dicts
    from graftlm.data.verdicts import as_columns

    tools, messages = as_dicts(instance.conversation)
    more: dict[str, Any] = {} if tools is None else {"tools": tools}
    if instance.is_preference:
        more |= {"verdicts": as_columns(instance)} if instance.verdicts else {}
        answers = [{"role": "assistant", "content": answer} for answer in instance.answers]
        if len(answers) > 1:
            messages.pop()
            more |= {"ranked": answers} if len(answers) > 2 else {"chosen": answers[0], "rejected": answers[1]}
    origin = instance.provenance
    known = {name: getattr(origin, name) for name in ORIGINS}
    given = {name: value for name, value in known.items() if value}
    return {"messages": messages, **more, "source": instance.source, "row": instance.row, **given}


def print_counts(counts: RowCounts, out: Path) -> None:
    """How many rows were kept and dropped, by reason."""
    console.print(f"{out}: {counts.kept:,} instances of {counts.rows:,} rows", markup=False, soft_wrap=True)
    for name, table in (("kept, but", counts.truncated), ("dropped", counts.dropped)):
        for reason, number in sorted(table.items(), key=lambda entry: -entry[1]):
            places = ", ".join(counts.examples[reason][:3])
            console.print(f"{name:<10} {number:,}: {reason} ({places})", markup=False, soft_wrap=True)
    if not counts.dropped:
        console.print("dropped    0")
