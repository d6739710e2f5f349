"""graftlm demo: the whole circle on the embedded base and shipped data, by commands that can be repeated."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from graftlm.cli.console import as_duration, console


def demo(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results; an earlier demo is replaced.")
    ] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Two steps of everything: a look in a minute.")] = False,
) -> None:
    """Go the whole way on shipped data: build, tune, learn preferences, reinforce, evaluate. Takes some minutes."""
    from graftlm.cli.app import app
    from graftlm.demo.circle import STEPS, Done, lay_out
    from graftlm.demo.summary import summarise, write_summary

    lay_out(out, quick=quick)
    console.print("[bold]graftlm demo[/]: one frozen base; everything else is an adapter on it")
    done = []
    for number, step in enumerate(STEPS, 1):
        arguments = step.arguments(out, quick=quick)
        command = shlex.join(["graftlm", *arguments])
        console.print(f"\n[bold]{number}/{len(STEPS)} {escape(step.title)}[/]\n[dim]$ {escape(command)}[/]\n")
        began = time.monotonic()
        code = app(arguments, standalone_mode=False)
        if code:  # stopped by hand; the command has said how to go on
            raise typer.Exit(code)
        done.append(Done(step, command, time.monotonic() - began))
    sections = summarise(out, done)
    page = write_summary(out, sections)
    console.print("\n[bold]what came of it[/]")
    for section in sections:
        console.print(f"  {escape(section.title)} [dim]({as_duration(section.seconds)})[/]")
        for line in section.lines:
            console.print(f"    {line}", markup=False)
    console.print(f"\nall of it   {page}\nrecipes     {out}/*.yaml: change one and repeat its command", markup=False)
    console.print(f"next        graftlm chat {shlex.quote(str(out / 'tune'))}", markup=False)
