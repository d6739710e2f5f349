"""What an objective says of whole groups of rows: of an optimizer step, and of the rows that are held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graftlm.data.batches import EncodedRow
from graftlm.objectives.objective import Objective, RowScores
from graftlm.objectives.sft import SFT
from graftlm.training.forward import RowScore
from graftlm.training.task import Task, exact_share, mean_loss


def measure(
    objective: Objective, leaders: Sequence[EncodedRow], values: Sequence[torch.Tensor], statistics: Any
) -> dict[str, float]:
    """An objective's numbers of whole groups; ``values`` are what each of their learnt rows gives."""
    rows = [row for leader in leaders for row in leader.group if not row.mismatched]
    sizes = tuple(sum(not row.mismatched for row in leader.group) for leader in leaders)
    counts = tuple(len(each) for each in values)
    return dict(objective.measure(RowScores(torch.cat(list(values)), counts, tuple(rows), sizes), statistics))


def evaluation(task: Task, scores: Sequence[RowScore]) -> tuple[float, float, dict[str, float]]:
    """Loss, accuracy and other numbers of the held-out rows of a task, from the score of each row of its groups.

    Where tokens are learnt one by one: the loss a learnt token, and the share of rows answered exactly.
    """
    numbers = {}
    if not isinstance(task.objective, SFT):
        rows = list(zip((row for leader in task.held_out for row in leader.group), scores, strict=True))
        values = [
            torch.tensor(score.rewards or (score.log_prob,), dtype=torch.float64)
            for row, score in rows
            if not row.mismatched
        ]
        log_ratios = [score.log_prob - (row.reference or 0.0) for row, score in rows if row.mismatched]
        numbers = measure(task.objective, task.held_out, values, task.objective.statistics(task.held_out, log_ratios))
    if "loss" not in numbers:
        return mean_loss(scores), exact_share(scores), {}
    return numbers.pop("loss"), numbers.pop("accuracy"), numbers
