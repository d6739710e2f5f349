"""Which tasks an evaluation has: the project's own by name, group or language, public ones, and those of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from importlib.resources import files
from pathlib import Path

from graftlm.data.readers import find_sources
from graftlm.errors import UserError, unknown_name
from graftlm.evaluation.tasks.task import EvalTask
from graftlm.recipe.task_file import load_task

SUITES = ("capability", "helpfulness", "honesty", "harmlessness")


@cache
def shipped() -> dict[str, Path]:
    """The project's own tasks by name."""
    folder = Path(str(files("graftlm.evaluation") / "suites"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


@cache
def public() -> dict[str, Path]:
    """Tasks over public files that people have; ``--task NAME=FILE`` says where."""
    folder = Path(str(files("graftlm.evaluation") / "public"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_tasks(names: Sequence[str], languages: Sequence[str] = ()) -> list[EvalTask]:
    """The tasks that ``names`` name, each once, in order; all of the project's own where there is no name.

    A name is that of a task, a pattern of names (``*-zh``), a group (capability, helpfulness, honesty, harmlessness),
    a YAML file, a folder of such files, or NAME=FILE: a task with its rows from another file.

    Raises:
        UserError: a name is unknown; two tasks have one name; no task has one of the languages.
    """
    found: dict[str, EvalTask] = {}
    for name in names or ["all"]:
        for task in _named(name):
            other = found.get(task.name)
            if other is not None and other.hash != task.hash:
                raise UserError(f"two tasks are called '{task.name}': {other.folder} and {task.folder}")
            found.setdefault(task.name, task)
    kept = [task for task in found.values() if not languages or task.keys.language in languages]
    if not kept:
        there = sorted({task.keys.language or "(not stated)" for task in found.values()})
        raise UserError(f"no task is in {' or '.join(languages)}; their languages are: {', '.join(there)}")
    return kept


def _named(name: str) -> Iterator[EvalTask]:
    own, path = shipped(), Path(name).expanduser()
    if name == "all":
        yield from map(load_task, own.values())
    elif name in own:
        yield load_task(own[name])
    elif name in SUITES:
        yield from (task for task in map(load_task, own.values()) if task.keys.group == name)
    elif "*" in name and any(fnmatch(each, name) for each in own):
        yield from (load_task(place) for each, place in own.items() if fnmatch(each, name))
    elif path.is_dir():
        inside = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if not inside:
            raise UserError(f"the folder {name} holds no task: no YAML file")
        yield from map(load_task, inside)
    elif path.is_file():
        yield load_task(path)
    elif "=" in name:
        yield _on_file(*name.split("=", 1))
    elif name in public():
        raise UserError(
            f"the task '{name}' is over a public file, which graftlm does not bring along",
            hint=f"Say where it is: --task {name}=FILE",
        )
    else:
        known = [*own, *SUITES, *public(), "all"]
        error = unknown_name("task", name, known)
        raise UserError(error.message + "; or a YAML file, or a folder of them", hint=error.hint)


def _on_file(name: str, file: str) -> EvalTask:
    """A task with its rows from a file; relative to where the command runs."""
    places = {**shipped(), **public()}
    if name not in places:
        raise unknown_name("task", name, list(places))
    find_sources(file)
    task = load_task(places[name], rows=False)
    keys = task.keys.model_copy(update={"path": (str(Path(file).expanduser().absolute()),), "split": None})
    return replace(task, keys=keys)
