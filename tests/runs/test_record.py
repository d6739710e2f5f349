"""What a run writes of its training data, and what is read of it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from graftlm import AdaptedModel, LoRA
from graftlm.adapters.files import TRAINED_ON
from graftlm.data.trained_on import TrainedOn
from graftlm.evaluation.contamination import NO_RECORD, Trained, overlaps, read_trained
from graftlm.evaluation.tasks.items import Item
from graftlm.runs import RunFolder, execute, set_up
from tests.runs.conftest import FinishedRun
from tests.runs.small import animal_rows, colour_rows, small_recipe, write_rows

LORA = {"method": "lora", "rank": 1, "max_steps": 1}


ANIMALS = [{**row, "instruction": f"{row['instruction']} Take your time."} for row in animal_rows()]  # 10 words


def items(rows: list[dict[str, str]]) -> list[Item]:
    return [Item("rows", number, candidates=(row["instruction"],)) for number, row in enumerate(rows, 1)]


def rows_found(trained: Trained, rows: list[dict[str, str]]) -> int:
    return len(overlaps(trained, items(rows), task="any").rows)


def run_of(place: Path, **adapters: Any) -> RunFolder:
    folder, recipe = RunFolder(place / "out"), small_recipe(place, adapters=adapters)
    write_rows(place / "animals.jsonl", ANIMALS)
    execute(set_up(recipe), folder)
    return folder


@pytest.fixture
def adapter(finished: FinishedRun, tmp_path: Path) -> Path:
    """A copy of a trained adapter's folder, to spoil."""
    shutil.copytree(finished.folder.adapters / "colours", tmp_path / "colours")
    return tmp_path / "colours"


def test_a_run_records_what_was_learnt_from(finished: FinishedRun):
    colours = read_trained(finished.folder.adapters / "colours")
    both = read_trained(finished.folder.adapters / "both")
    assert colours.unknown == both.unknown == ""
    assert (colours.record.rows, both.record.rows) == (19, 19 + 20)
    assert [each.name for each in both.record.files] == ["colours.jsonl", "animals.jsonl"]
    assert all(len(each.sha256) == 64 for each in both.record.files)
    assert rows_found(colours, colour_rows()) == 19  # not the five that were held out
    assert rows_found(both, colour_rows()) == 19
    for name in ("colours", "both"):
        assert (finished.folder.adapters / name / TRAINED_ON).stat().st_size < 10_000


def test_the_record_is_the_same_wherever_the_data_lies_and_whoever_is_beside(finished: FinishedRun, tmp_path: Path):
    folder = run_of(tmp_path, colours={**LORA, "data": "colours"})
    one, two = (each.adapters / "colours" for each in (folder, finished.folder))
    assert (one / TRAINED_ON).read_bytes() == (two / TRAINED_ON).read_bytes()
    records = [json.loads((each / "graftlm.json").read_text())["trained_on"] for each in (one, two)]
    assert records[0] == records[1]
    assert str(tmp_path) not in json.dumps(records[0])


def test_data_of_adapters_beneath_and_before_counts(finished: FinishedRun, tmp_path: Path):
    start = finished.folder.adapters / "colours"
    lora4 = {"method": "lora", "rank": 4, "max_steps": 1}
    folder = run_of(
        tmp_path,
        over={**LORA, "data": "animals", "under": str(start)},
        more={**lora4, "data": "animals", "init_from": str(start)},
    )
    for name in ("over", "more"):
        trained = read_trained(folder.adapters / name)
        assert (rows_found(trained, colour_rows()), rows_found(trained, ANIMALS)) == (19, 20)
        assert trained.record.rows == 39
        assert trained.record.gaps == ()
    alone = read_trained(folder.adapters / "over", stacked=False)
    assert (rows_found(alone, colour_rows()), rows_found(alone, ANIMALS)) == (0, 20)


def test_an_adapter_before_without_a_record_is_a_gap(adapter: Path, tmp_path: Path):
    (adapter / TRAINED_ON).unlink()
    lora4 = {"method": "lora", "rank": 4, "max_steps": 1}
    folder = run_of(tmp_path, more={**lora4, "data": "animals", "init_from": str(adapter)})
    trained = read_trained(folder.adapters / "more")
    assert rows_found(trained, ANIMALS) == 20
    assert trained.record.gaps == (f"colours: its {TRAINED_ON} cannot be read: No such file or directory",)
    assert overlaps(trained, items(ANIMALS), task="any").note == trained.record.gaps[0]


def test_the_record_travels(adapter: Path, tmp_path: Path):
    before = read_trained(adapter).record.to_files()
    model = AdaptedModel.from_pretrained("tiny")
    model.load(adapter)
    model.copy("colours", "again")
    model.save("colours", adapter)  # onto itself
    assert read_trained(adapter).record.to_files() == before
    model.rename("again", "new")
    assert read_trained(model.save("new", tmp_path / "new")).record.to_files() == before
    shutil.rmtree(adapter)
    late = model.save("new", tmp_path / "late")
    assert "cannot be read" in read_trained(late).unknown


def test_an_adapter_made_without_a_run_has_none(tmp_path: Path):
    model = AdaptedModel.from_pretrained("tiny")
    model.add("mine", LoRA(rank=1))
    assert read_trained(model.save("mine", tmp_path / "mine")).unknown == NO_RECORD


@pytest.mark.parametrize("change", ["summary", "hashes", "cut", "other", "form"])
def test_a_changed_record_is_not_believed(adapter: Path, change: str):
    notes = json.loads((adapter / "graftlm.json").read_text())
    content = (adapter / TRAINED_ON).read_bytes()
    if change == "summary":
        notes["trained_on"]["rows"] = 1
    elif change == "hashes":
        content = content[:-1] + bytes([content[-1] ^ 1])
    elif change == "cut":
        content = content[: len(content) // 2]
    elif change == "other":
        content = TrainedOn().to_files()[1]
    else:
        notes["trained_on"] = "all of it"
    (adapter / "graftlm.json").write_text(json.dumps(notes))
    (adapter / TRAINED_ON).write_bytes(content)
    unknown = "its summary was changed" if change in ("summary", "form") else "its hashes were changed"
    trained = read_trained(adapter)
    assert trained.unknown.startswith(unknown)
    assert overlaps(trained, items(colour_rows()), task="any").unknown == trained.unknown
    AdaptedModel.from_pretrained("tiny").load(adapter)  # it serves all the same
