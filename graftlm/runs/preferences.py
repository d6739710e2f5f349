"""What is told of adapters that learn from preferences: groups right and wrong, baselines, and the scale of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graftlm.adapters.heads import RewardHead
from graftlm.data.batches import EncodedRow
from graftlm.data.judged import Judgement, compared
from graftlm.errors import UserError
from graftlm.objectives.desirable import KTO
from graftlm.objectives.reward import reward_scale
from graftlm.objectives.sft import SFT
from graftlm.runs.setup import PreparedRun
from graftlm.training.forward import RoutedRow, RowScore, score_rows
from graftlm.training.measures import evaluation, measure
from graftlm.training.task import Task

SCALED_BY = 512  # groups whose answers the scale of rewards is taken from, at most


def is_preference(task: Task) -> bool:
    """Whether the rows of a task are groups of answers, of which the objective tells numbers of its own."""
    return not isinstance(task.objective, SFT)


def group_scores(task: Task, scores: Sequence[RowScore]) -> list[RowScore]:
    """A score for each held-out group, from those of its rows: its loss, and whether it comes out right.

    A group of several comparisons is right where more than half of them are; equal rewards are not right.
    """
    rows = [row for leader in task.held_out for row in leader.group]
    log_ratios = [s.log_prob - (r.reference or 0.0) for r, s in zip(rows, scores, strict=True) if r.mismatched]
    found, start = [], 0
    for leader in task.held_out:
        own = scores[start : start + len(leader.group)]
        start += len(leader.group)
        values = [
            torch.tensor(score.rewards or (score.log_prob,), dtype=torch.float64)
            for row, score in zip(leader.group, own, strict=True)
            if not row.mismatched
        ]
        numbers = measure(task.objective, [leader], values, task.objective.statistics([leader], log_ratios))
        found.append(RowScore(-numbers["loss"], 1, int(numbers.get("accuracy", 0.0) > 0.5)))
    return found


def scores_before(run: PreparedRun, task: Task, scores: Sequence[RowScore]) -> list[RowScore]:
    """What there is to beat: for a reward head the length of answers, else what is beneath the adapter.

    Length: the longer answer is the better one, or the shorter one, whichever held among the rows to learn from; its
    loss is that of equal rewards. With a reference the loss is that at the start, and a group is right where the base
    itself finds the better answer likelier, a token.
    """
    head = run.model.head_of(task.stack)
    if head is not None and isinstance(run.model.adapter(head).head, RewardHead):
        longer = _longer_is_better(task.rows, 0)
        rights = [_length_right(leader, 0, longer) for leader in task.held_out]
        return [RowScore(-math.log(2), 1, int((right or 0.0) > 0.5)) for right in rights]
    if not task.objective.needs_reference or isinstance(task.objective, KTO):
        return group_scores(task, scores)
    found, start = [], 0
    for leader, group in zip(task.held_out, group_scores(task, scores), strict=True):
        own = scores[start : start + len(leader.group)]
        start += len(leader.group)
        pairs = compared([row.judged or Judgement() for row in leader.group])
        right = [own[a].log_prob / own[a].tokens > own[b].log_prob / own[b].tokens for a, b in pairs]
        found.append(RowScore(group.log_prob, 1, int(sum(right) * 2 > len(right))))
    return found


def preference_result(run: PreparedRun, task: Task, scores: Sequence[RowScore]) -> dict[str, Any]:
    """Numbers of the held-out groups, and by criterion of a reward head the accuracy beside two baselines.

    ``length``: the longer (or shorter) answer is the better one; ``coin``: what a constant reward gets. ``scores`` are
    those of all rows. Empty where answers are learnt one by one, or nothing is held out.
    """
    if not is_preference(task) or not task.held_out:
        return {}
    loss, accuracy, numbers = evaluation(task, scores)
    found: dict[str, Any] = {"preferences": {"loss": loss, "accuracy": accuracy, **numbers}}
    criteria = run.heads[task.adapter].criteria if task.adapter in run.heads else ()
    for number, criterion in enumerate(criteria):
        longer = _longer_is_better(task.rows, number)
        rights = [r for leader in task.held_out if (r := _length_right(leader, number, longer)) is not None]
        own = accuracy if len(criteria) == 1 else numbers.get(f"{criterion}_accuracy")
        found.setdefault("criteria", {})[criterion] = {
            "groups": len(rights),
            "accuracy": own,
            "length": sum(rights) / len(rights) if rights else None,
            "coin": 0.5,
            "longer_is_better": longer,
        }
    return found


def criteria_notes(result: Mapping[str, Any]) -> list[str]:
    """A sentence on each criterion of a reward head, for people."""
    notes = []
    for name, found in result.get("criteria", {}).items():
        if not found["groups"]:
            notes.append(f"{name}: nothing was held out that is judged by it.")
            continue
        side = "longer" if found["longer_is_better"] else "shorter"
        notes.append(
            f"{name}: {found['accuracy']:.1%} of comparisons right in {found['groups']:,} held-out groups; taking the "
            f"{side} answer gives {found['length']:.1%}, a coin 50%."
        )
    return notes


def _length_right(leader: EncodedRow, criterion: int, longer: bool) -> float | None:
    """The share of a group's comparisons that the length of the answers gets right; None where there are none."""
    pairs = compared([row.judged or Judgement() for row in leader.group], criterion)
    if not pairs:
        return None
    lengths = [len(row.ids) if longer else -len(row.ids) for row in leader.group]
    return sum((lengths[a] > lengths[b]) + 0.5 * (lengths[a] == lengths[b]) for a, b in pairs) / len(pairs)


def _longer_is_better(leaders: Sequence[EncodedRow], criterion: int) -> bool:
    rights = [right for leader in leaders if (right := _length_right(leader, criterion, True)) is not None]
    return sum(rights) * 2 >= len(rights)


def set_reward_scales(run: PreparedRun, say: Callable[[str], None] = lambda _line: None) -> None:
    """Give each reward head of the run the scale on which answers to its training prompts have mean 0 and variance 1.

    They are all answers, better and worse, of some groups that are spread evenly over the rows. Where all rewards are
    equal there is no such scale; ``say`` is told, and they stay as they come.
    """
    for task in run.tasks:
        head = run.model.adapter(task.adapter).head
        if not isinstance(head, RewardHead) or task.source is not None:
            continue
        leaders = task.rows[:: -(-len(task.rows) // SCALED_BY)]
        rows = [RoutedRow(row, task.stack) for leader in leaders for row in leader.group]
        scores = score_rows(run.model, rows, run.recipe.training.micro_batch_tokens)
        try:
            scale = reward_scale(torch.tensor([score.rewards for score in scores], dtype=torch.float64))
        except UserError as error:
            say(f"adapter {task.adapter}: rewards stay as they come: {error.message}")
            continue
        head.set_scale(scale.mean, scale.deviation)
