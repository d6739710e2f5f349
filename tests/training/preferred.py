"""Small work for objectives of preferences: groups of rows, tasks of each objective, and what they do together."""

from __future__ import annotations

import random
from dataclasses import replace

from graftlm import AdaptedModel, LoRA
from graftlm.data.answers import with_mismatched
from graftlm.data.batches import EncodedRow
from graftlm.data.judged import Judgement
from graftlm.training.objective_settings import ObjectiveSettings
from graftlm.training.objectives import build_objective
from graftlm.training.settings import AdapterTraining
from graftlm.training.task import Task
from tests.families import VOCABULARY, randomise
from tests.training.work import make_rows, model_with

OBJECTIVES = ("sft", "reward", "dpo", "kto", "orpo", "simpo")


def make_groups(
    count: int, *, answers: int = 2, reward: bool = False, seed: int = 0, source: str = "groups"
) -> tuple[EncodedRow, ...]:
    """Random prompts with random answers of different lengths, ranked as they stand; the last token is learnt too."""
    draw = random.Random(seed)
    found = []
    for number in range(1, count + 1):
        prompt = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(2, 6))]
        rows = []
        for rank in range(answers):
            answer = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 9))]
            ids = [*prompt, *answer]
            judged = Judgement(ranks=(float(rank),), desirable=rank == 0, margin=draw.random())
            targets = [*[-1] * (len(ids) - 1), 0] if reward else None
            learnt = [place >= len(prompt) and not reward for place in range(len(ids))]
            rows.append(EncodedRow(ids, learnt, source, number, targets=targets, judged=judged))
        found.append(replace(rows[0], beside=tuple(rows[1:])))
    return tuple(found)


def settings_of(objective: str, **keys: object) -> AdapterTraining:
    given = {"type": objective} if isinstance(objective, str) else objective
    options = {"learning_rate": 5e-3, "batch_rows": 4, "epochs": 9, "max_steps": 20, "warmup": 0.1, **keys}
    return AdapterTraining.model_validate({"objective": given, **options})


def preference_task(
    name: str, objective: str = "dpo", *, answers: int = 2, groups: int = 11, seed: int = 0, **keys: object
) -> Task:
    """A task of random groups, some held out."""
    settings = settings_of(objective, seed=seed, **keys)
    if objective == "sft":
        return Task(name, make_rows(groups, seed=seed), settings, held_out=make_rows(3, seed=seed + 50))
    rows = make_groups(groups, answers=answers, reward=objective == "reward", seed=seed)
    held_out = make_groups(4, answers=answers, reward=objective == "reward", seed=seed + 50)
    if objective == "kto":
        rows, held_out = tuple(with_mismatched(rows)), tuple(with_mismatched(held_out))
    return Task(name, rows, settings, held_out, build_objective(ObjectiveSettings(type=objective)))  # type: ignore[arg-type]


def model_for(tasks: list[Task], family: str = "llama", *, dropout: float = 0.1, **options: object) -> AdaptedModel:
    """A tiny base with a random adapter for each task, with a reward head where one is trained."""
    model = model_with({}, family, **options)  # type: ignore[arg-type]
    for task in tasks:
        criteria = 1 if task.objective.name == "reward" else None
        config = LoRA(rank=3, dropout=dropout)
        randomise(model.add(task.adapter, config, criteria=criteria), seed=sum(task.adapter.encode()))
    return model
