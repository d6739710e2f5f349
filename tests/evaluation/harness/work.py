"""Small tasks of the harness over local files, and an opened base with random adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm import AdaptedModel, LoRA
from graftlm.data.templates import BARE, ChatTemplate
from graftlm.evaluation.speakers import Opened, Speaker
from tests.families import randomise

ROWS = [
    {"q": f"What is {a} plus {b}?", "options": [str(a + b), str(a + b + 1), "none of these"], "right": 0}
    for a, b in [(1, 2), (3, 4), (5, 1), (2, 2), (6, 3), (7, 0)]
]


def opened(count: int = 2, templates: Sequence[ChatTemplate] = ()) -> Opened:
    """The embedded base with ``count`` random adapters, which have ``templates`` in turn."""
    model = AdaptedModel.from_pretrained("tiny", dtype="float32")
    assert model.tokenizer is not None
    given = templates or (BARE,)
    speakers = []
    for number in range(count):
        name = f"lora-{number}"
        randomise(model.add(name, LoRA(rank=4)), seed=number)
        speakers.append(Speaker(name, (name,), given[number % len(given)], (), ()))
    return Opened(model, model.tokenizer, Speaker(None, (), given[-1], (), ()), tuple(speakers))


def task(folder: Path, name: str, rows: Sequence[Mapping[str, Any]] = ROWS, **settings: Any) -> Path:
    """A task in YAML with its rows beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "options",
        "doc_to_target": "right",
        **settings,
    }
    if values["output_type"] != "multiple_choice":
        del values["doc_to_choice"]
    file = folder / f"{name}.yaml"
    file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in values.items()), encoding="utf-8")
    return file
