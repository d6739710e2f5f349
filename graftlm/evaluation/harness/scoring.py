"""Written answers of our tasks, scored for the harness as ``graftlm eval`` scores them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graftlm.evaluation.scorers import score_answer
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import Scorer


def score_row(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``process_results`` of the tasks that :func:`graftlm.evaluation.harness.tasks.write_harness_tasks` writes."""
    scorers = [Scorer(**scorer) for scorer in json.loads(doc["scorers"])]
    values = json.loads(doc["values"])
    item = Item(doc["source"], doc["row"], references=tuple(doc["references"]), values=values)
    return score_answer(scorers, results[0].strip(), item, Path())
