"""The one error that people are meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can put right: what is wrong and where, and what to do next.

    The command line prints it without a stack trace and exits with 2.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(message if hint is None else f"{message}\n{hint}")


def nearest(word: str, known: list[str]) -> str | None:
    """The known word most like a misspelt one, or None if nothing is close."""
    import difflib

    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_name(kind: str, word: str, known: list[str]) -> UserError:
    """The error for a name that does not exist: it names those that do."""
    guess = nearest(word, known)
    listed = ", ".join(sorted(known)) if known else "none"
    return UserError(
        f"unknown {kind} '{word}'; there are: {listed}",
        hint=f"Did you mean '{guess}'?" if guess else None,
    )
