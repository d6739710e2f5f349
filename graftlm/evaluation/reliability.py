"""How sure a model is of its choices, and how often it is right when so sure: the bins of a reliability diagram."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftlm.evaluation.answers import probabilities
from graftlm.evaluation.evaluation import Bin
from graftlm.evaluation.measures import BINS, is_right
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask


def bins_of(task: EvalTask, items: Sequence[Item], results: Sequence[ItemResult]) -> tuple[Bin, ...]:
    """The bins of the calibration error that hold rows, by rising confidence; none but of choices."""
    if task.keys.kind != "choice":
        return ()
    found: dict[int, list[tuple[float, bool]]] = {}
    for item, result in zip(items, results, strict=True):
        right = is_right(task, item, result)
        if right is not None:
            confidence = float(probabilities(task, result).max())
            found.setdefault(min(BINS - 1, int(confidence * BINS)), []).append((confidence, right))
    means = {place: np.mean(rows, axis=0) for place, rows in found.items()}
    return tuple(Bin(float(means[at][0]), float(means[at][1]), len(found[at])) for at in sorted(found))
