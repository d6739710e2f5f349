"""``graftlm data``: look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graftlm.cli.console import console, parse_variables, print_warnings

if TYPE_CHECKING:
    from rich.console import Console

    from graftlm.data.prepare import PreparedData
    from graftlm.data.preview import TokenText

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Look at data before training on it."""


@app.command()
def preview(
    file: Annotated[str, typer.Argument(help="A file, a folder or the name of a data set of the Hub.")],
    base: Annotated[str, typer.Option(help="The base whose tokenizer is used: tiny, a folder, a Hub name.")] = "tiny",
    chat_template: Annotated[
        str, typer.Option(help="auto, tokenizer, plain, alpaca, chatml, or the path of a YAML file.")
    ] = "auto",
    rows: Annotated[int, typer.Option(min=0, help="How many rows are shown.")] = 3,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest row in tokens; longer ones are cut. Default: no limit.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help='Pattern of the prompt with column names: "{question}".')] = None,
    answer: Annotated[str | None, typer.Option(help='Pattern of the answer: "{label}".')] = None,
    system: Annotated[str | None, typer.Option(help="Pattern of the system message.")] = None,
    train_on: Annotated[str, typer.Option(help="What is learnt: assistant, last, all; or roles: user,assistant.")] = (
        "assistant"
    ),
    variable: Annotated[
        list[str] | None,
        typer.Option("--set", help="Value of a {{name}} in the rows: --set name=Ada. Repeatable."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a data set (default: train).")] = None,
    tokens: Annotated[int, typer.Option(min=10, help="How many tokens of a row are shown.")] = 400,
) -> None:
    """Show rows as the model will see them, token by token, and count what is kept, cut and dropped."""
    import warnings

    from graftlm.data.readers import find_sources

    find_sources(file)  # a misspelt path is told before torch is imported, which takes seconds
    from graftlm.data.prepare import load_instances, prepare
    from graftlm.data.templates import resolve_chat_template

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        loaded = load_instances(
            file,
            prompt=prompt,
            answer=answer,
            system=system,
            variables=parse_variables(variable or []),
            split=split,
        )
    from graftlm.base.loading import load_tokenizer  # takes seconds, and a bad file is known without it

    tokenizer = load_tokenizer(base)
    template = resolve_chat_template(chat_template, tokenizer)
    roles = train_on.split(",") if "," in train_on else train_on
    # A preview is there to show what is dropped, so it does not stop at a share of dropped rows.
    data = prepare(loaded, template, tokenizer, max_length=max_length, train_on=roles, max_dropped=1.0)
    console.print(f"{file}: {data.summary}", markup=False, soft_wrap=True)
    if loaded.ignored:
        console.print(f"columns not used: {', '.join(loaded.ignored)}", style="dim", markup=False, soft_wrap=True)
    print_warnings(caught)
    console.print(f"template: {template.name}, sha256 {template.hash[:12]}; tokenizer of {base}\n", markup=False)
    _print_rows(console, data, tokenizer, rows, tokens)
    _print_totals(console, data)
    if max_length is None:
        _print_longer(console, data, base)


def _print_longer(console: Console, data: PreparedData, base: str) -> None:
    """Training cuts rows at the context; a preview shows them whole, and says so."""
    from transformers import AutoConfig

    from graftlm.base.loading import context_length, resolve_base

    try:
        context = context_length(AutoConfig.from_pretrained(resolve_base(base), trust_remote_code=False))
    except (OSError, ValueError):  # a tokenizer alone will do for a preview
        return
    longer = sum(len(row.ids) > context for row in data.rows)
    if longer:
        text = f"{longer:,} rows are longer than the context of {base} ({context:,} tokens); training cuts them there"
        console.print(text, style="yellow", markup=False, soft_wrap=True)


def _print_rows(console: Console, data: PreparedData, tokenizer: object, rows: int, most: int) -> None:
    from dataclasses import replace

    from graftlm.data.preview import as_text, token_texts

    colour = console.is_terminal and not console.no_color
    if rows:
        how = "[bold black on green]green[/]" if colour else "⟦in brackets⟧"
        console.print(f"Learnt tokens are {how}; | parts tokens; · space, ⏎ new line, ³ three tokens for one sign.\n")
    for row in data.rows[:rows]:
        head = f"{Path(row.source).name}, row {row.row}: {len(row.ids):,} tokens, {sum(row.supervised):,} learnt"
        console.print(head, style="bold", markup=False)
        shown = replace(row, ids=row.ids[:most], supervised=row.supervised[:most])
        texts = token_texts(shown, tokenizer)  # type: ignore[arg-type]
        if colour:
            _print_coloured(console, texts)
        else:
            console.print(as_text(texts), markup=False, soft_wrap=True)
        if len(row.ids) > most:
            console.print(f"… {len(row.ids) - most:,} more tokens (--tokens {len(row.ids)} shows all)", style="dim")
        console.print()


def _print_coloured(console: Console, tokens: list[TokenText]) -> None:
    """Neighbouring tokens in two shades; underlined too, for eyes and terminals that see no green."""
    from rich.text import Text

    text = Text()
    for number, token in enumerate(tokens):
        if token.supervised:
            style = ("black on green", "black on bright_green")[number % 2] + " underline"
        else:
            style = ("default", "dim")[number % 2]
        text.append(token.text, style=f"{style} bold" if token.special else style)
    console.print(text, soft_wrap=True)


def _print_totals(console: Console, data: PreparedData) -> None:
    from graftlm.data.preview import draw, histogram, totals

    total = totals(data)
    console.print("Row lengths in tokens", style="bold")
    for line in draw(histogram([len(row.ids) for row in data.rows])):
        console.print(line, markup=False)
    share = total.supervised / max(total.tokens, 1)
    console.print(f"shortest {total.shortest:,}, median {total.median:,}, longest {total.longest:,}\n")
    counts = data.counts
    console.print(f"tokens     {total.tokens:,}, of them learnt {total.supervised:,} ({share:.1%})")
    again = f", of them {counts.duplicates:,} exact duplicates" if counts.duplicates else ""
    console.print(f"kept       {counts.kept:,} of {counts.read:,}{again}")
    for name, table in (("truncated", counts.truncated), ("dropped", counts.dropped)):
        if not table:
            console.print(f"{name:<10} 0")
        for reason, number in table.items():
            places = ", ".join(counts.examples[reason][:3])
            console.print(f"{name:<10} {number:,}: {reason} ({places})", markup=False, soft_wrap=True)
