"""``graftlm data``: look at data before training on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graftlm.cli.console import console, parse_variables, print_warnings
from graftlm.cli.data_agreement import agreement_command, parse_criteria, print_definitions
from graftlm.cli.data_build import build_command
from graftlm.cli.data_collect import check_demonstrations, collect
from graftlm.cli.data_format import format_command, templates_command
from graftlm.cli.data_inspect import inspect_command

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from graftlm.data.heads import HeadSettings
    from graftlm.data.instances import Instance
    from graftlm.data.prepare import Instances, PreparedData
    from graftlm.data.preview import TokenText

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)
app.command("format")(format_command)
app.command("build")(build_command)
app.command("inspect")(inspect_command)
app.command("agreement")(agreement_command)
app.command("templates")(templates_command)
app.command("collect")(collect)
app.command("check-demonstrations")(check_demonstrations)


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
    criterion: Annotated[
        list[str] | None,
        typer.Option(help='The definition of a criterion of your own: --criterion polite="…". Repeatable.'),
    ] = None,
    tokens: Annotated[int, typer.Option(min=10, help="How many tokens of a row are shown.")] = 400,
) -> None:
    """Show rows as the model will see them, token by token, and count what is kept, cut and dropped."""
    import warnings
    from dataclasses import replace

    from graftlm.data.readers import find_sources

    find_sources(file)  # a misspelt path is told before torch is imported, which takes seconds
    from graftlm.data.labelled import choose_rendering
    from graftlm.data.preference_facts import describe, facts_of
    from graftlm.data.prepare import check_variables, load_instances, prepare
    from graftlm.data.templates import resolve_chat_template

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        values = parse_variables(variable or [])
        loaded = load_instances(file, prompt=prompt, answer=answer, system=system, variables=values, split=split)
    check_variables(values, loaded.counts)
    from graftlm.base.loading import base_kind, load_tokenizer  # takes seconds, and a bad file is known without it

    tokenizer = load_tokenizer(base)
    config = _config(base)
    kind = "decoder" if config is None else base_kind(config)
    template = resolve_chat_template(chat_template, tokenizer, kind)
    roles = train_on.split(",") if "," in train_on else train_on
    # A preview is there to show what is dropped, so it does not stop at a share of dropped rows.
    rendering = choose_rendering(
        kind,
        _any_label(loaded) if kind == "encoder" else None,
        template,
        tokenizer,
        max_length=max_length,
        train_on=roles,
        decoder_start=getattr(config, "decoder_start_token_id", None),
    )
    # Of preference rows the first answer is rendered, whatever was said of it, and the others are shown below.
    plain = [each.chosen for each in loaded.items]
    judged = {id(one): each for one, each in zip(plain, loaded.items, strict=True) if each.is_preference}
    facts = facts_of(loaded.items)
    data = prepare(
        replace(loaded, items=plain), template, tokenizer, max_length=max_length, max_dropped=1.0, rendering=rendering
    )
    whole = [judged.get(id(each), each) for each in data.instances]
    data.counts.duplicates = len(whole) - len({(each.messages, each.verdicts) for each in whole})
    console.print(f"{file}: {data.summary}", markup=False, soft_wrap=True)
    if loaded.ignored:
        console.print(f"columns not used: {', '.join(loaded.ignored)}", style="dim", markup=False, soft_wrap=True)
    if judged:
        for line in describe(facts):
            console.print(line, markup=False, soft_wrap=True)
        print_definitions(facts.criteria, parse_criteria(criterion or [], [file]))
    print_warnings(caught)
    console.print(f"template: {template.name}, sha256 {template.hash[:12]}; tokenizer of {base}\n", markup=False)
    _print_rows(console, data, tokenizer, rows, tokens, judged)
    _print_totals(console, data)
    if max_length is None and config is not None:
        _print_longer(console, data, base, config)


def _config(base: str) -> Any:
    """The base's configuration, or None: a tokenizer alone will do for a preview."""
    from transformers import AutoConfig

    from graftlm.base.loading import resolve_base

    try:
        return AutoConfig.from_pretrained(resolve_base(base), trust_remote_code=False)
    except (OSError, ValueError):
        return None


def _any_label(loaded: Instances) -> HeadSettings:
    """The head that an encoder needs to have rows at all: of whatever labels the data has."""
    from graftlm.data.heads import HeadSettings, labels_of

    head = HeadSettings(type="tagger" if loaded.format.startswith("words and tags") else "classifier")
    labels = {label for instance in loaded.items for label in labels_of(head, instance)}
    return head.model_copy(update={"labels": tuple(sorted(labels))})


def _print_longer(console: Console, data: PreparedData, base: str, config: Any) -> None:
    """Training cuts rows at the context; a preview shows them whole, and says so."""
    from graftlm.base.loading import context_length

    context = context_length(config)
    longer = sum(max(len(row.ids), len(row.source_ids or ())) > context for row in data.rows)
    if longer:
        text = f"{longer:,} rows are longer than the context of {base} ({context:,} tokens); training cuts them there"
        console.print(text, style="yellow", markup=False, soft_wrap=True)


def _print_rows(
    console: Console,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerBase,
    rows: int,
    most: int,
    judged: dict[int, Instance],
) -> None:
    from dataclasses import replace

    from graftlm.data.preference_facts import describe_answers
    from graftlm.data.preview import as_text, learnt_tokens, sequences, token_texts

    colour = console.is_terminal and not console.no_color
    if rows:
        how = "[bold black on green]green[/]" if colour else "⟦in brackets⟧"
        console.print(f"Learnt tokens are {how}; | parts tokens; · space, ⏎ new line, ³ three tokens for one sign.\n")
    for instance, row in zip(data.instances[:rows], data.rows, strict=False):
        head = f"{Path(row.source).name}, row {row.row}: {row.tokens:,} tokens, {learnt_tokens(row):,} learnt"
        console.print(head, style="bold", markup=False)
        for part in sequences(row):
            texts = token_texts(replace(part, ids=part.ids[:most], supervised=part.supervised[:most]), tokenizer)
            if colour:
                _print_coloured(console, texts)
            else:
                console.print(as_text(texts), markup=False, soft_wrap=True)
            if len(part.ids) > most:
                more = f"… {len(part.ids) - most:,} more tokens (--tokens {len(part.ids)} shows all)"
                console.print(more, style="dim")
        for line in describe_answers(judged[id(instance)]) if id(instance) in judged else ():
            console.print(line, markup=False, soft_wrap=True)
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
    for line in draw(histogram([row.tokens for row in data.rows])):
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
