"""The file of an evaluation task: YAML, read with the line of every mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graftlm.data.readers import find_sources
from graftlm.data.task_template import pattern
from graftlm.errors import UserError
from graftlm.evaluation.scorers import check_scorers
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys
from graftlm.recipe.places import read_yaml
from graftlm.recipe.problems import KeyPath, Problem, RecipeError, schema_at, show, translate, unknown_key


def load_task(path: str | Path, *, rows: bool = True) -> EvalTask:
    """The task of a file; its name is that of the file, its paths are relative to the file's folder.

    ``rows``: see that the files of rows are there.

    Raises:
        UserError: the file cannot be read.
        RecipeError: all of its mistakes, each with its line.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_bytes().decode("utf-8")
    except OSError as error:
        raise UserError(f"the task {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the task {path} is not UTF-8, at byte {error.start}", hint="Save it as UTF-8.") from error
    return parse_task(text, str(path), name=file.stem, folder=file.resolve().parent, rows=rows)


def parse_task(
    text: str, source: str = "task.yaml", *, name: str = "task", folder: Path, rows: bool = True
) -> EvalTask:
    """The task of a text.

    Raises:
        RecipeError: all of its mistakes, each with its line.
    """
    value, place, problems = read_yaml(text, source)
    found: list[tuple[KeyPath, str]] = []
    keys = None
    if not isinstance(value, dict):
        found.append(((), f"a task must be a mapping (kind: choice …), is {show(value)}"))
    else:
        try:
            keys = TaskKeys.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            found += [(at, _words(at, words)) for at, words in translate(error, TaskKeys, value)]
        else:
            found += _bad_patterns(keys)
            found += _bad_scorers(EvalTask(name, keys, folder)) if rows else []
        found += _missing_files(value, folder) if rows else []
    for at, words in found:
        where = place.at(at)
        problems.append(Problem(words, at, where.line, where.column))
    if problems or keys is None:
        raise RecipeError(source, problems)
    return EvalTask(name, keys, folder)


def _words(path: KeyPath, words: str) -> str:
    if words != "unknown key":
        return words
    known: Mapping[str, Any] = schema_at(TaskKeys, path[:-1]).get("properties", {})
    return unknown_key(str(path[-1]), known, {})


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


def _missing_files(value: Mapping[str, Any], folder: Path) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    for key in ("path", "shots_path"):
        given = value.get(key)
        for path in given if isinstance(given, list) else [given]:
            if isinstance(path, str) and path:
                try:
                    find_sources(folder / Path(path).expanduser())
                except UserError as error:
                    hint = f" ({error.hint})" if error.hint else ""
                    found.append(((key,), f"{error.message}{hint}"))
    return found
