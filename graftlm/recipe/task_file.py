"""The file of an evaluation task: YAML, read with the line of every mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftlm.data.task_template import pattern
from graftlm.errors import UserError
from graftlm.evaluation.scorers import check_scorers
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys
from graftlm.recipe.problems import KeyPath
from graftlm.recipe.strict import Found, listed, missing_files, parse_keys, read_text


def load_task(path: str | Path, *, rows: bool = True) -> EvalTask:
    """The task of a file; its name is that of the file, its paths are relative to the file's folder.

    ``rows``: see that the files of rows are there.

    Raises:
        UserError: the file cannot be read.
        RecipeError: all of its mistakes, each with its line.
    """
    file = Path(path)
    text, folder = read_text(file, "task"), file.expanduser().resolve().parent
    return parse_task(text, str(path), name=file.stem, folder=folder, rows=rows)


def parse_task(
    text: str, source: str = "task.yaml", *, name: str = "task", folder: Path, rows: bool = True
) -> EvalTask:
    """The task of a text.

    Raises:
        RecipeError: all of its mistakes, each with its line.
    """

    def look(value: Mapping[str, Any]) -> Found:
        paths = [((key,), path) for key in ("path", "shots_path") for path in listed(value.get(key))]
        return missing_files(paths, folder) if rows else ()

    def check(keys: TaskKeys) -> Found:
        yield from _bad_patterns(keys)
        yield from _bad_scorers(EvalTask(name, keys, folder)) if rows else ()

    expected = "a task must be a mapping (kind: choice …)"
    return EvalTask(name, parse_keys(text, source, TaskKeys, expected, look=look, check=check), folder)


def _bad_patterns(keys: TaskKeys) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    for key, source in [*keys.patterns(), ("demonstration", keys.demonstration)]:
        try:
            pattern(source)
        except UserError as error:
            found.append(((key,), error.message))
    return found


def _bad_scorers(task: EvalTask) -> list[tuple[KeyPath, str]]:
    try:
        check_scorers(task)
    except UserError as error:
        return [(("scorers",), f"{error.message} ({error.hint})" if error.hint else error.message)]
    return []
