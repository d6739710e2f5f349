"""``graftlm data inspect``: a page that shows what a set is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli.console import console
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.filters import Contamination
    from graftlm.data.instances import Instance
    from graftlm.data.prepare import RowCounts


def inspect_command(
    data: Annotated[Path, typer.Argument(help="A set, or any file or folder that train reads.")],
    out: Annotated[Path | None, typer.Option(help="The page. Default: the name of the set with .html.")] = None,
    base: Annotated[str, typer.Option(help="The base whose tokenizer is used: tiny, a folder, a Hub name.")] = "tiny",
    chat_template: Annotated[
        str, typer.Option(help="auto, tokenizer, plain, alpaca, chatml, or the path of a YAML file.")
    ] = "auto",
    split: Annotated[str | None, typer.Option(help="Split of the set. Default: all.")] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many rows are shown as tokens.")] = 12,
    against: Annotated[
        list[str] | None,
        typer.Option(help="An evaluation set to look for overlaps with: --against exam=exam.jsonl. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the rows that are drawn.")] = 0,
) -> None:
    """Write one page that shows a set: counts, lengths, first words, rows as tokens, near duplicates, overlaps."""
    from graftlm.data.prepare import RowCounts
    from graftlm.data.sets import is_set, read_card

    counts = RowCounts()
    instances = _instances(data, split, counts)
    found_by = _contamination(against or [])
    card = read_card(data) if is_set(data) else None
    from transformers import AutoConfig

    from graftlm.base.loading import base_kind, load_tokenizer, resolve_base
    from graftlm.data.labelled import choose_rendering
    from graftlm.data.preference_facts import describe
    from graftlm.data.templates import resolve_chat_template
    from graftlm.evaluation.set_report import look, write_set_report

    tokenizer = load_tokenizer(base)
    config = AutoConfig.from_pretrained(resolve_base(base), trust_remote_code=False)
    kind = base_kind(config)
    if kind == "encoder":
        raise UserError(f"{base} is an encoder, and a set is shown as a model reads conversations", hint="--base tiny")
    rendering = choose_rendering(
        kind,
        None,
        resolve_chat_template(chat_template, tokenizer, kind),
        tokenizer,
        max_length=None,
        train_on="assistant",
        decoder_start=getattr(config, "decoder_start_token_id", None),
    )
    found = look(instances, seed=seed, against=found_by)
    page = out or Path(f"{data.resolve()}.html")
    name = data.resolve().name
    title = f"{name}, split {split}" if split else name
    write_set_report(page, title, found, rendering, tokenizer, rows=rows, card=card, against=found_by)
    console.print(f"{page}: {found.rows:,} instances", markup=False, soft_wrap=True)
    if found.preferences.rows:
        for line in describe(found.preferences):
            console.print(line, markup=False, soft_wrap=True)
    for word, table in (("truncated", counts.truncated), ("dropped", counts.dropped)):
        for reason, number in table.items():
            places = ", ".join(counts.examples[reason][:3])
            console.print(f"{word} {number:,}: {reason} ({places})", markup=False, soft_wrap=True)
    for overlap, number in found.overlapping.items():
        console.print(f"{number:,} {overlap}", markup=False, soft_wrap=True)


def _instances(data: Path, split: str | None, counts: RowCounts) -> Iterator[Instance]:
    from graftlm.data.prepare import read_instances
    from graftlm.data.readers import find_sources
    from graftlm.data.sets import is_set, read_set

    if is_set(data):
        return read_set(data, split)
    return chain.from_iterable(read_instances(file, counts, split=split).instances for file in find_sources(data))


def _contamination(against: list[str]) -> Contamination | None:
    from graftlm.data.filters import Contamination, texts_of
    from graftlm.data.readers import read_rows

    found = Contamination()
    for pair in against:
        name, equals, path = pair.partition("=")
        if not equals:
            raise UserError(f"--against {pair}: expected NAME=FILE", hint="For example: --against exam=exam.jsonl")
        for _, row in read_rows(path):
            found.add(name, texts_of(row))
    return found if against else None
