"""The part of a recipe that is about rewards: from settings to policies that draw answers and learn from them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from graftlm.adapters.files import read_notes
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack
from graftlm.alignment.online import Policy, Values
from graftlm.alignment.rewards import Reward, answered_reward, endpoint_reward, python_reward
from graftlm.alignment.rollouts import Prompt, make_policy, prompts_of
from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.evaluation.rewards import reward_model
from graftlm.recipe import AdapterRecipe
from graftlm.training.objective_settings import RewardSettings
from graftlm.training.objectives import build_objective
from graftlm.training.task import Task

TRIED = 64  # held-out prompts that are answered at each trial, at most


def policy_task(
    name: str,
    adapter: AdapterRecipe,
    model: AdaptedModel,
    under: Stack,
    template: ChatTemplate,
    prompts: Sequence[Instance],
    kept: Path | None,
    load: Callable[[Path], str],
    value: Stack | None = None,
    texts: tuple[EncodedRow, ...] = (),
    held_out: Sequence[Instance] = (),
) -> Task:
    """The task of a policy whose adapter is in the model already.

    ``kept``: where answers of endpoints are kept; None is a folder of the moment. ``load`` loads a trained adapter
    under a name of its own, frozen. ``value``: the stack of PPO's value adapter. ``texts`` are learnt beside
    its answers. ``held_out``: prompts to try the policy on; of many, some that are spread evenly.

    Raises:
        UserError: the adapter cannot be a policy, or a reward cannot be had.
    """
    training, objective = adapter.training, adapter.training.objective
    _check_policy(name, adapter, model, under)
    policy = Policy(
        make_policy(model, name, template, (*under, name)),
        _apart(prompts_of(prompts)),
        rewards_of(objective.rewards or {}, kept, model, load),
        training,
        # The adapter itself changes: what it went on from is loaded a second time, and stays.
        under if adapter.init_from is None else (*under, load(Path(adapter.init_from))),
        repr((objective.rewards, adapter.init_from)),
        value,
        texts,
        _apart(prompts_of(held_out[:: -(-len(held_out) // TRIED) or 1])),
    )
    return Task(name, (), training, objective=policy.settings.objective(), under=under, source=policy)


def value_task(name: str, adapter: AdapterRecipe, model: AdaptedModel, under: Stack, policy: Task) -> Task:
    """The task of a value adapter, which learns from the answers of a policy."""
    assert isinstance(policy.source, Policy)
    _check_method(name, adapter, model)
    objective = build_objective(adapter.training.objective)
    return Task(
        name,
        (),
        adapter.training,
        objective=objective,
        under=under,
        source=Values(policy.source),
        follows=policy.adapter,
    )


def _check_policy(name: str, adapter: AdapterRecipe, model: AdaptedModel, under: Stack) -> None:
    objective = adapter.training.objective.type
    if model.kind == "encoder" or model.head_of(under) is not None:
        what = "an encoder, which writes no answers" if model.kind == "encoder" else "stacked on one with a head"
        raise UserError(f"objective: {objective} needs answers, and this adapter is {what}")
    _check_method(name, adapter, model)


def _check_method(name: str, adapter: AdapterRecipe, model: AdaptedModel) -> None:
    """See that what is trained is what answered, or what the advantages were made with."""
    objective = adapter.training.objective.type
    if getattr(adapter.method, "dropout", 0.0):
        raise UserError(
            f"dropout: {objective} learns from what the adapter itself draws, and with dropout it would be another one",
            hint="Set dropout: 0.",
        )
    if model.adapter(name).training_view(0, 0) is not None:
        raise UserError(
            f"method: {objective} draws answers with the whole adapter, and this method trains a part of it at a time",
            hint="Use lora, prefix or another method.",
        )
    if adapter.training.batch_tokens is not None:
        raise UserError(
            f"batch_tokens: how long answers are is not known before; {objective} counts them",
            hint="Give batch_rows, the answers of an optimizer step, or leave it out.",
        )


def _apart(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts, those of one row told apart by their source."""
    seen: dict[tuple[str, int], int] = {}
    found = []
    for prompt in prompts:
        number = seen[prompt.source, prompt.row] = seen.get((prompt.source, prompt.row), 0) + 1
        found.append(prompt if number == 1 else replace(prompt, source=f"{prompt.source}, part {number}"))
    return tuple(found)


def rewards_of(
    settings: Mapping[str, RewardSettings], kept: Path | None, model: AdaptedModel, load: Callable[[Path], str]
) -> tuple[Reward, ...]:
    """The rewards of a recipe, by name.

    Raises:
        UserError: one cannot be had; it is named.
    """
    found = []
    for name, each in settings.items():
        try:
            found.append(_reward(name, each, kept, model, load))
        except UserError as error:
            raise UserError(f"reward '{name}': {error.message}", hint=error.hint) from error
    return tuple(found)


def _reward(
    name: str, settings: RewardSettings, kept: Path | None, model: AdaptedModel, load: Callable[[Path], str]
) -> Reward:
    failure = settings.on_failure
    if settings.python is not None:
        return python_reward(settings.python, name=name, weight=settings.weight, on_failure=failure or "error")
    if settings.url is not None:
        assert settings.model is not None
        assert settings.criterion is not None
        return endpoint_reward(
            settings.url,
            settings.model,
            settings.criterion,
            kept or Path(tempfile.mkdtemp(prefix="graftlm-")),
            name=name,
            weight=settings.weight,
            on_failure=failure or "count",
        )
    assert settings.adapter is not None
    loaded = load(Path(settings.adapter))
    weights = None if settings.criterion is None else {settings.criterion: 1.0}
    judge = reward_model(model, _stack_of(Path(settings.adapter), loaded, load), weights=weights)
    return answered_reward(name, judge, weight=settings.weight, on_failure=failure or "error")


def _stack_of(folder: Path, loaded: str, load: Callable[[Path], str]) -> Stack:
    """A trained adapter with those that it was trained on top of."""
    return (*(load(Path(under)) for under in read_notes(folder).get("under") or ()), loaded)
