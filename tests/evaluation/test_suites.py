from pathlib import Path

import pytest

from graftlm.evaluation import suites
from graftlm.evaluation.tasks.items import read_items
from graftlm.recipe.task_file import load_task

FILES = sorted(Path(suites.__file__).parent.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_suite_loads(file: Path) -> None:
    task = load_task(file)
    assert task.keys.licence == "CC0-1.0"
    assert task.name.endswith(f"-{task.keys.language}")
    assert read_items(task)
