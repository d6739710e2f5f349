"""What each adapter of a run was trained on, as it is stored with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graftlm.data.trained_on import TrainedOn, trained_on
from graftlm.evaluation.contamination import read_trained
from graftlm.runs.setup import PreparedRun


def training_records(run: PreparedRun) -> dict[str, tuple[dict[str, Any], bytes]]:
    """The summary and the file of hashes by adapter, made once for all that learn from the same data.

    The same run gives the same bytes. An adapter that goes on from a saved one was trained on the data of that one too.
    """
    parts: dict[int, TrainedOn] = {}  # by rendering, which decides what rows are left
    made: dict[tuple[tuple[int, ...], str | None], tuple[dict[str, Any], bytes]] = {}
    records = {}
    for name, adapter in run.recipe.adapters.items():
        splits = {key: (run.parts[name][key].train, run.files[key]) for key in adapter.data}
        if name in run.texts:
            splits["pretraining"] = (run.texts[name].data, run.texts[name].files)
        place = (tuple(id(data) for data, _ in splits.values()), adapter.init_from)
        if place not in made:
            whole = TrainedOn()
            for data, files in splits.values():
                if id(data) not in parts:
                    parts[id(data)] = trained_on(data.instances, files)
                whole = whole.joined(parts[id(data)])
            if adapter.init_from is not None:
                whole = whole.joined(read_trained(Path(adapter.init_from), stacked=False).record)
            made[place] = whole.to_files()
        records[name] = made[place]
    return records
