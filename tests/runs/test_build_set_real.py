"""A set of real public files, built twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graftlm.data.sets import read_set
from graftlm.recipe.set_recipe import parse_set_recipe
from graftlm.runs.build_set import build_set

RECIPE = """\
sources:
  films: {path: tasks/sst2/train.jsonl, template: sentiment, language: en, demonstrations: [0, 3], max_rows: 300}
  hotels: {path: tasks/chnsenticorp, template: sentiment, language: zh, max_rows: 300}
  sums: {path: tasks/gsm8k/train.jsonl, template: arithmetic, language: en, licence: MIT, max_rows: 200}
  cola:
    path: tasks/cola/train.jsonl
    template: promptsource:instructions/promptsource_templates.jsonl.gz#glue/cola
    columns: {sentence: text}
    classes: {label: [unacceptable, acceptable]}
    max_rows: 200
  p3: {path: instructions/p3_sample.jsonl.gz, language: en, licence: Apache-2.0, max_rows: 4000}
filters: {contradictions: true, near_duplicates: 0.9, overlap: {truthfulqa: tasks/truthfulqa.csv}}
mixture: {by: task, cap: 150, held_out: arithmetic}
"""


@pytest.fixture
def real_data() -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("GRAFTLM_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set GRAFTLM_DATA")
    return folder


@pytest.mark.slow
def test_real_files(real_data, tmp_path):
    recipe = parse_set_recipe(RECIPE, folder=real_data)
    card = build_set(recipe, tmp_path / "one", folder=real_data)
    assert card == build_set(recipe, tmp_path / "two", folder=real_data)
    assert card.splits["unseen"] == card.tasks["arithmetic"] >= 190
    assert max(number for task, number in card.tasks.items() if task != "arithmetic") == 150
    assert {"en", "zh"} <= set(card.languages)
    read = sum(each["instances"] for each in card.notes["read"].values())
    assert card.rows + sum(card.dropped.values()) == read
    assert all(i.messages[-1].content.strip() for i in read_set(tmp_path / "one"))
