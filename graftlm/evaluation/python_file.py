"""Functions of the user's own Python files, named FILE.py:FUNCTION."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from graftlm.errors import UserError


@cache
def load_function(kind: str, place: str, folder: Path) -> Callable[..., Any]:
    """The function FILE.py:FUNCTION, read once. ``kind``: what errors call it; ``folder``: what paths start from.

    Raises:
        UserError: there is no such file or function, or the file raises.
    """
    name, _, wanted = place.rpartition(":")
    path = folder / Path(name).expanduser()
    if not name or not wanted.isidentifier():
        raise UserError(f"{kind} {place}: must be FILE.py:FUNCTION", hint=f"For example: {kind}.py:score")
    if not path.is_file():
        raise UserError(f"{kind} {place}: there is no file {path}", hint=f"It is looked for from {folder.resolve()}.")
    module = _module(kind, path)
    function = getattr(module, wanted, None)
    if not callable(function):
        functions = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(
            f"{kind} {place}: {path} has no function '{wanted}'; it has: {', '.join(sorted(functions)) or 'none'}"
        )
    found: Callable[..., Any] = function
    return found


@cache
def _module(kind: str, path: Path) -> Any:
    name = f"graftlm_{kind}_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{kind} {path}: is no Python file", hint="Its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{kind} {path}: cannot be read: {type(error).__name__}: {error}") from error
    return module
