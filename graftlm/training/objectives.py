"""From the objective of a recipe to the loss that is trained."""

from __future__ import annotations

from collections.abc import Sequence

from graftlm.objectives.compared import dpo, orpo, simpo
from graftlm.objectives.desirable import KTO
from graftlm.objectives.objective import Objective
from graftlm.objectives.rewarded import Reward
from graftlm.objectives.sampled import Value
from graftlm.objectives.sft import SFT
from graftlm.training.objective_settings import BETA, ObjectiveSettings


def build_objective(settings: ObjectiveSettings, criteria: Sequence[str] = ("reward",)) -> Objective:
    """The objective with its defaults filled in; ``criteria`` are those of a reward head."""
    given = settings.given()
    if settings.type in BETA:
        given.setdefault("beta", BETA[settings.type])
    if "loss" in given:
        given["loss_type"] = given.pop("loss")
    match settings.type:
        case "reward":
            return Reward(criteria=tuple(criteria), **given)
        case "dpo":
            return dpo(**given)
        case "kto":
            return KTO(**given)
        case "orpo":
            return orpo(**given)
        case "simpo":
            return simpo(**given)
        case "value":
            return Value(**given)
    return SFT()
