"""What all commands print with."""

from __future__ import annotations

import warnings

from rich.console import Console
from rich.markup import escape

from graftlm.errors import UserError

console = Console(highlight=False)
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


def as_size(count: float) -> str:
    """Bytes for people: 812 MB, 3.4 GB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def as_duration(seconds: float) -> str:
    """Seconds for people: 48 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
