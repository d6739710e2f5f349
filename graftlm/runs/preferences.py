"""What is told of adapters that learn from preferences: groups right and wrong, baselines, and the scale of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from graftlm.adapters.heads import RewardHead
from graftlm.data.batches import EncodedRow
from graftlm.data.judged import Judgement, compared, labels_of
from graftlm.data.splits import alike
from graftlm.errors import UserError
from graftlm.evaluation.reward_quality import (
    JudgedGroup,
    RewardQuality,
    length_right,
    longer_is_better,
    reward_quality,
)
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
    found = []
    for leader, own in zip(task.held_out, _by_group(task.held_out, scores), strict=True):
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

    Length: the longer answer is the better one, or the shorter one, whichever held among the rows to learn from, by
    each criterion; its loss is that of equal rewards. With a reference the loss is that at the start, and a group is
    right where the base itself finds the better answer likelier, a token.
    """
    criteria = _criteria(run, task)
    if criteria:
        by_group: list[list[float]] = [[] for _ in task.held_out]
        for number in range(len(criteria)):
            longer = longer_is_better(_judged(run, task, number, {}, held_out=False))
            for found, judged in zip(by_group, _judged(run, task, number, {}, held_out=True), strict=True):
                right = length_right(judged, longer)
                found += [] if right is None else [right]
        return [RowScore(-math.log(2) * len(each), 1, int(2 * sum(each) > len(each))) for each in by_group]
    if not task.objective.needs_reference or isinstance(task.objective, KTO):
        return group_scores(task, scores)
    before = []
    groups = zip(task.held_out, _by_group(task.held_out, scores), group_scores(task, scores), strict=True)
    for leader, own, group in groups:
        pairs = compared([row.judged or Judgement() for row in leader.group])
        ahead = [own[a].log_prob / own[a].tokens > own[b].log_prob / own[b].tokens for a, b in pairs]
        before.append(RowScore(group.log_prob, 1, int(sum(ahead) * 2 > len(ahead))))
    return before


def preference_result(task: Task, scores: Sequence[RowScore], qualities: Sequence[RewardQuality]) -> dict[str, Any]:
    """Numbers of the held-out groups, and by criterion of a reward head what it is worth.

    ``scores`` are those of all rows. Empty where answers are learnt one by one, or nothing is held out.
    """
    if not is_preference(task) or not task.held_out:
        return {}
    loss, accuracy, numbers = evaluation(task, scores)
    found: dict[str, Any] = {"preferences": {"loss": loss, "accuracy": accuracy, **numbers}}
    if qualities:
        found["criteria"] = {each.criterion: each.to_dict() for each in qualities}
    return found


def reward_qualities(
    run: PreparedRun, task: Task, scores: Sequence[RowScore], reference: Mapping[int, Sequence[RowScore]]
) -> list[RewardQuality]:
    """What each criterion of a reward head is worth on the held-out groups; none of other adapters.

    ``scores`` are those of the held-out rows, ``reference`` those of some learnt groups, by their numbers. A criterion
    by which nothing was held out is left out.
    """
    found = []
    own = _by_group(task.held_out, scores)
    for number, criterion in enumerate(_criteria(run, task)):
        held_out = _judged(run, task, number, dict(enumerate(own)), held_out=True)
        learnt = _judged(run, task, number, {}, held_out=False)
        scored = _judged(run, task, number, reference, held_out=False)
        scored = [group for group in scored if group.rewards]
        quality = reward_quality(criterion, held_out, learnt, scored)
        if quality is not None:
            found.append(quality)
    return found


def criteria_notes(run: PreparedRun, task: Task, qualities: Sequence[RewardQuality]) -> list[str]:
    """A sentence on each criterion of a reward head by which nothing was held out."""
    known = {each.criterion for each in qualities}
    criteria = _criteria(run, task) if task.held_out else ()
    return [f"{name}: nothing was held out that is judged by it." for name in criteria if name not in known]


def _criteria(run: PreparedRun, task: Task) -> tuple[str, ...]:
    """Those of the reward head that a task trains; none of a head beneath, or of another kind."""
    head = run.heads.get(task.adapter)
    trained = isinstance(run.model.adapter(task.adapter).head, RewardHead) and task.source is None
    return head.criteria if trained and head is not None else ()


def _by_group(leaders: Sequence[EncodedRow], scores: Sequence[RowScore]) -> list[Sequence[RowScore]]:
    """The scores of all rows, group by group."""
    found, start = [], 0
    for leader in leaders:
        found.append(scores[start : start + len(leader.group)])
        start += len(leader.group)
    return found


def _judged(
    run: PreparedRun, task: Task, number: int, scores: Mapping[int, Sequence[RowScore]], *, held_out: bool
) -> list[JudgedGroup]:
    """The groups of a task as one criterion has them; ``scores`` of the groups that were scored, by number."""
    criteria = _criteria(run, task)
    leaders = task.held_out if held_out else task.rows
    instances = (
        run.held_out[task.adapter]
        if held_out
        else [each for part in run.parts[task.adapter].values() for each in part.train.instances]
    )
    return [
        JudgedGroup(
            alike(instance),
            compared([row.judged or Judgement() for row in leader.group], number),
            [len(answer.strip()) for answer in instance.answers],
            labels_of(instance, criteria[number], alone=len(criteria) == 1),
            [score.rewards[number] for score in scores.get(place, ())],
        )
        for place, (leader, instance) in enumerate(zip(leaders, instances, strict=True))
    ]


def set_reward_scales(
    run: PreparedRun, say: Callable[[str], None] = lambda _line: None
) -> dict[str, dict[int, Sequence[RowScore]]]:
    """Give each reward head of the run the scale on which answers to its training prompts have mean 0 and variance 1.

    They are all answers, better and worse, of some groups that are spread evenly over the rows. Where all rewards are
    equal there is no such scale; ``say`` is told, and they stay as they come.

    Returns:
        The scores of those groups, by adapter and by the number of the group.
    """
    found: dict[str, dict[int, Sequence[RowScore]]] = {}
    for task in run.tasks:
        head = run.model.adapter(task.adapter).head
        if not isinstance(head, RewardHead) or task.source is not None:
            continue
        numbers = range(len(task.rows))[:: -(-len(task.rows) // SCALED_BY)]
        leaders = [task.rows[number] for number in numbers]
        rows = [RoutedRow(row, task.stack) for leader in leaders for row in leader.group]
        scores = score_rows(run.model, rows, run.recipe.training.micro_batch_tokens)
        found[task.adapter] = dict(zip(numbers, _by_group(leaders, scores), strict=True))
        try:
            scale = reward_scale(torch.tensor([score.rewards for score in scores], dtype=torch.float64))
        except UserError as error:
            say(f"adapter {task.adapter}: rewards stay as they come: {error.message}")
            continue
        head.set_scale(scale.mean, scale.deviation)
    return found
