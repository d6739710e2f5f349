from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from graftlm.runs import PreparedRun, RunFolder, RunResult, execute, locked, set_up
from graftlm.training.plan import Plan, plan
from tests.runs.small import small_recipe


@dataclass(frozen=True)
class FinishedRun:
    run: PreparedRun
    folder: RunFolder
    plan: Plan
    result: RunResult
    said: list[str]


@pytest.fixture(scope="package")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A run that was planned and carried out."""
    place = tmp_path_factory.mktemp("finished")
    return carry_out(place)


def carry_out(place: Path) -> FinishedRun:
    said: list[str] = []
    run = set_up(small_recipe(place), said.append)
    folder = RunFolder(place / "out")
    planned = plan(run.model, run.tasks, run.recipe.training)
    with locked(folder):
        result = execute(run, folder, plan=planned)
    return FinishedRun(run, folder, planned, result, said)
