"""A run's folder: what is where in it, and that one run at a time writes to it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from graftlm.base.files import disk_errors
from graftlm.errors import UserError


@dataclass(frozen=True)
class RunFolder:
    """The paths inside a run's folder."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe. It is written first: where it is, a run was begun."""
        return self.path / "recipe.yaml"

    @property
    def summary(self) -> Path:
        """run.json: results, counts, versions. It is written last: where it is, the run has ended."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: every event of training."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the whole run."""
        return self.path / "checkpoints"

    @property
    def references(self) -> Path:
        """Log-probabilities under the reference, of objectives that compare with one."""
        return self.path / "references"

    @property
    def rewards(self) -> Path:
        """What endpoints said of answers."""
        return self.path / "rewards"

    @property
    def adapters(self) -> Path:
        """One folder for each trained adapter."""
        return self.path / "adapters"

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"

    @property
    def begun(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.exists()

    @property
    def finished(self) -> bool:
        """Whether a run has ended here."""
        return self.summary.exists()

    def clear(self) -> None:
        """Remove what a run left here, and nothing else."""
        for path in (self.summary, self.report, self.metrics, self.recipe):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self.references, self.rewards, self.adapters, self.path / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)


def choose_folder(out: Path | None, name: str, *, resume: bool, overwrite: bool) -> RunFolder:
    """The folder to write to: ``out``, or runs/NAME with a number where that is taken.

    Raises:
        UserError: there is a run already and neither ``resume`` nor ``overwrite`` was asked for; or nothing to resume.
    """
    if out is None:
        if resume or overwrite:
            out = Path("runs") / name
        else:
            taken = RunFolder(Path("runs") / name)
            number = 2
            while taken.begun:
                taken = RunFolder(Path("runs") / f"{name}-{number}")
                number += 1
            return taken
    folder = RunFolder(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; the results need a folder")
    if resume and not folder.begun:
        raise UserError(f"there is no run in {out} to resume", hint="Leave out --resume to start one.")
    if folder.begun and not resume and not overwrite:
        state = "a finished run" if folder.finished else "an unfinished run"
        raise UserError(
            f"{out} holds {state} already",
            hint="Go on with it: --resume. Start anew in its place: --overwrite. Or choose another folder: --out.",
        )
    return folder


@contextmanager
def locked(folder: RunFolder) -> Iterator[None]:
    """Hold the folder for this process; the lock ends with the process, however that ends.

    Raises:
        UserError: another run is writing to the folder.
    """
    lock = folder.path / ".lock"
    with _open_locked(folder, lock) as file:
        try:
            with disk_errors(lock):
                file.truncate(0)
                os.write(file.fileno(), str(os.getpid()).encode())
            yield
        finally:
            with suppress(OSError):
                if os.listdir(folder.path) == [lock.name]:  # a mistake in the data ended it: leave nothing behind
                    lock.unlink()
                    folder.path.rmdir()


def _open_locked(folder: RunFolder, lock: Path) -> TextIO:
    while True:
        with disk_errors(folder.path):
            folder.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise UserError(
                f"another run (process {owner}) is writing to {folder.path}",
                hint="Wait for it to end, or choose another folder with --out.",
            ) from None
        if lock.exists() and lock.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # its owner removed it between our opening and locking it
