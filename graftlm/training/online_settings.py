"""The settings of objectives that draw answers, with their defaults filled in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graftlm.objectives.reduction import Normalisation
from graftlm.objectives.sampled import PolicyGradient
from graftlm.training.objective_settings import FORMS
from graftlm.training.settings import AdapterTraining


@dataclass(frozen=True)
class OnlineSettings:
    """How one policy draws and learns; ``steps`` optimizer steps a phase, ``batches`` of them a pass over its answers.

    ``loss_kl`` is the price of divergence in the loss, ``reward_kl`` that in the reward. ``texts`` of the pretraining
    data are learnt at each step, their loss with ``text_weight``.
    """

    type: str
    group: int
    prompts: int
    passes: int
    batches: int
    max_new_tokens: int
    baseline: str
    normalisation: Normalisation
    clip: float | None
    clip_high: float | None
    loss_kl: float
    reward_kl: float
    kl_target: float | None
    missing_end_penalty: float
    max_deviation: float | None
    lam: float = 0.95
    temperature: float = 1.0
    text_weight: float = 0.0
    texts: int = 0
    kl_stop: float | None = None
    moved_stop: float | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of a phase."""
        return self.passes * self.batches

    @property
    def longest(self) -> int:
        """What a sum over tokens is divided by, beside the number of answers; REINFORCE has the sum itself."""
        return 1 if self.type == "reinforce" else self.max_new_tokens

    def objective(self) -> PolicyGradient:
        """The loss."""
        return PolicyGradient(
            self.type,
            self.clip,
            self.clip_high,
            self.loss_kl,
            self.normalisation,
            self.longest,
            by_answer=self.type == "rloo",
            text_weight=self.text_weight,
        )


def online_settings(training: AdapterTraining, prompts: int) -> OnlineSettings:
    """Those of an adapter that has so many prompts."""
    given = training.objective
    form = FORMS[given.form or "grpo"] if given.type == "grpo" else {}
    singly = given.type in ("reinforce", "ppo")
    group = given.group or (1 if singly else 8)
    at_once = min(given.prompts or (32 if singly else 8), prompts)
    answers = at_once * group
    batches = math.ceil(answers / min(training.batch_rows or answers, answers))
    kl = given.kl if given.kl is not None else float(form.get("kl", 0.05))  # type: ignore[arg-type]
    high = given.clip_high or form.get("clip_high")
    return OnlineSettings(
        given.type,
        group,
        at_once,
        given.passes or (4 if given.type == "ppo" else 1),
        batches,
        given.max_new_tokens or 128,
        str(form.get("baseline", "leave_one_out")),
        form.get("normalisation", "token" if given.type == "ppo" else "constant"),  # type: ignore[arg-type]
        None if given.type == "reinforce" else given.clip or 0.2,
        None if high is None else float(high),  # type: ignore[arg-type]
        kl if given.type == "grpo" else 0.0,
        0.0 if given.type == "grpo" else kl,
        given.kl_target,
        given.missing_end_penalty or 0.0,
        given.max_deviation,
        0.95 if given.lam is None else given.lam,
        given.temperature or 1.0,
        0.0 if given.pretraining is None else given.pretraining.weight,
        0 if given.pretraining is None else given.pretraining.rows,
        given.kl_stop,
        given.moved_stop,
    )
