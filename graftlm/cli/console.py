"""What all commands print with."""

from __future__ import annotations

import os
import sys
import warnings

from rich.console import Console
from rich.markup import escape

from graftlm.errors import UserError

# Into a pipe or a file every line goes whole: rich would break it at the 80 columns of no terminal.
_PIPED = None if "COLUMNS" in os.environ or (sys.stdout and sys.stdout.isatty()) else 10_000
console = Console(highlight=False, width=_PIPED)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_error(error: UserError) -> None:
    """The message in red, what to do next below it; to stderr."""
    errors.print(f"[bold red]error:[/] {escape(error.message)}")
    if error.hint:
        errors.print(f"[dim]→[/] {escape(error.hint)}")


def print_warnings(caught: list[warnings.WarningMessage]) -> None:
    """Warnings that graftlm raised for people, as one line each."""
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            errors.print(f"[yellow]note:[/] {escape(str(warning.message))}")


def parse_variables(pairs: list[str]) -> dict[str, str]:
    """What ``--set name=value`` gives.

    Raises:
        UserError: there is no "=".
    """
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--set {pair}: expected name=value", hint="For example: --set name=Ada")
    return dict(pair.split("=", 1) for pair in pairs)


def as_size(count: float) -> str:
    """Bytes for people: 740 kB, 812 MB, 3.42 GB."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def as_duration(seconds: float) -> str:
    """Seconds for people: 48 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
