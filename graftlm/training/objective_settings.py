"""What an adapter's loss is, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

ObjectiveType = Literal["sft", "reward", "dpo", "kto", "orpo", "simpo", "grpo", "rloo", "reinforce", "ppo", "value"]
ONLINE = ("grpo", "rloo", "reinforce", "ppo")  # they learn from answers that the adapter itself draws
FORMS = {
    "grpo": {"baseline": "deviation", "normalisation": "row", "kl": 0.04},
    "dapo": {"baseline": "deviation", "normalisation": "token", "kl": 0.0, "clip_high": 0.28},
    "dr_grpo": {"baseline": "mean", "normalisation": "constant", "kl": 0.0},
}
SHIPPED = "shipped"  # the texts that come with graftlm
BETA = {"dpo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
_KEYS = {
    "beta": ("dpo", "kto", "orpo", "simpo"),
    "loss": ("dpo",),
    "label_smoothing": ("dpo",),
    "margin": ("simpo", "reward"),
    "centring": ("reward",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "rewards": ONLINE,
    "group": ONLINE,
    "prompts": ONLINE,
    "passes": ONLINE,
    "max_new_tokens": ONLINE,
    "kl": ONLINE,
    "kl_target": ("rloo", "reinforce", "ppo"),
    "value": ("ppo",),
    "lam": ("ppo",),
    "form": ("grpo",),
    "clip": ("grpo", "rloo", "ppo", "value"),
    "clip_high": ("grpo", "rloo", "ppo"),
    "missing_end_penalty": ONLINE,
    "max_deviation": ONLINE,
    "temperature": ONLINE,
    "kl_stop": ONLINE,
    "moved_stop": ONLINE,
    "pretraining": ONLINE,
}


class RewardSettings(BaseModel):
    """What answers are worth: a Python function, a model behind an endpoint, or a reward adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="A function of your own, FILE.py:FUNCTION, called with (messages, answer), or with (messages, "
        "answer, reference) for the right answer of the row; gives a number, more is better.",
    )
    url: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="An endpoint (OpenAI's form) whose model rates answers; with model and criterion."
    )
    model: Annotated[str, Field(min_length=1)] | None = Field(None, description="With url: the model that rates.")
    adapter: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Folder of an adapter that was trained with objective: reward, on the same base."
    )
    criterion: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="With url: what is rated, in words. With adapter: which of its criteria; left out: their mean.",
    )
    weight: float = Field(1.0, description="What it is multiplied with before all rewards are added up; 0 only logs.")
    on_failure: Literal["error", "count"] | None = Field(
        None,
        description="What becomes of an answer without a number: error stops the run, count leaves it out and counts "
        "it. Left out: error, for endpoints count.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> RewardSettings:
        given = [key for key in ("python", "url", "adapter") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of python, url and adapter, not {' and '.join(given) or 'none'}")
        if self.url is not None and (self.model is None or self.criterion is None):
            raise ValueError("url: needs model and criterion beside it")
        if self.url is None and self.model is not None:
            raise ValueError("model: belongs to url")
        if self.python is not None and self.criterion is not None:
            raise ValueError("criterion: belongs to url or adapter")
        return self


class PretrainingSettings(BaseModel):
    """Plain text that a policy learns beside its answers, so that it keeps what the base can do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Annotated[str, Field(min_length=1)] = Field(
        SHIPPED,
        description="Plain texts: a file, a folder or a Hub name; shipped: short stories that come with graftlm.",
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        0.1, description="What their loss, a token, is multiplied with before it is added to the policy's."
    )
    rows: Annotated[int, Field(ge=1)] = Field(8, description="Texts of an optimizer step.")


class ObjectiveSettings(BaseModel):
    """The loss of one adapter; which keys there are depends on its type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ObjectiveType = Field(
        description="sft (instruction tuning), reward (a head that scores answers), dpo, kto, orpo or simpo (from "
        "preferences), grpo, rloo, reinforce or ppo (from rewards of answers that the adapter draws), or value (what "
        "is still to come of a ppo adapter's reward).",
    )
    beta: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="dpo, kto: how strongly the reference holds; orpo: weight of the odds ratio; simpo: scale of the "
        "reward. Left out: 0.1, for simpo 2.",
    )
    loss: Literal["sigmoid", "sigmoid_per_token", "hinge", "ipo", "ipo_per_token", "robust"] | None = Field(
        None, description="dpo: the form of the loss. Left out: sigmoid."
    )
    label_smoothing: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="dpo: the share of preferences taken to be the wrong way round. Left out: 0."
    )
    margin: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="simpo, reward: by how much the better answer shall lead. Left out: 1 for simpo, 0 for reward.",
    )
    centring: Annotated[float, Field(ge=0)] | None = Field(
        None, description="reward: weight of a term that keeps rewards near 0. Left out: 0."
    )
    desirable_weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="kto: weight of good answers. Left out: 1."
    )
    undesirable_weight: Annotated[float, Field(ge=0)] | None = Field(
        None, description="kto: weight of bad answers. Left out: 1."
    )
    rewards: Annotated[dict[str, RewardSettings], Field(min_length=1)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: what answers are worth, by name: {right: {python: "
        "'rewards.py:right'}}. Several are added up by their weights, and logged each.",
    )
    group: Annotated[int, Field(ge=1)] | None = Field(
        None, description="grpo, rloo, reinforce, ppo: answers to each prompt. Left out: 8, for reinforce and ppo 1."
    )
    prompts: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: prompts of a phase, answered before the next steps. Left out: 8, for "
        "reinforce and ppo 32.",
    )
    passes: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: how often the answers of a phase are learnt, batch_rows of them a "
        "step (left out: all). Left out: 1, for ppo 4.",
    )
    max_new_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="grpo, rloo, reinforce, ppo: the most tokens of an answer. Left out: 128."
    )
    kl: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="Price of a nat of divergence from the start: grpo in the loss, a token (left out: 0.04, for the "
        "other forms 0); rloo, reinforce, ppo in the reward (left out: 0.05).",
    )
    kl_target: Annotated[float, Field(gt=0)] | None = Field(
        None, description="rloo, reinforce, ppo: nats an answer that kl is steered to. Left out: kl stays as it is."
    )
    form: Literal["grpo", "dapo", "dr_grpo"] | None = Field(
        None, description="grpo: which of its published forms: grpo, dapo or dr_grpo. Left out: grpo."
    )
    clip: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="grpo, rloo, ppo: how far the ratio to the policy that drew may go before it is cut; value: how "
        "far a value may go. Left out: 0.2.",
    )
    clip_high: Annotated[float, Field(gt=0)] | None = Field(
        None, description="grpo, rloo, ppo: the same upwards. Left out: as clip, for the form dapo 0.28."
    )
    value: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="ppo: the adapter of this recipe that learns the values, by objective: value."
    )
    lam: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="ppo: λ of the generalised advantage estimate; γ is 1. Left out: 0.95."
    )
    missing_end_penalty: Annotated[float, Field(ge=0)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: taken off the reward of an answer that does not end. Left out: 0.",
    )
    max_deviation: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: by how much a token's log-probability may differ between drawing and "
        "scoring before the run stops. Left out: by the number type of the base.",
    )
    temperature: Annotated[float, Field(ge=0.01)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: what the logits are divided by, where answers are drawn, scored and "
        "learnt. Left out: 1.",
    )
    kl_stop: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: the policy stops learning where the answers of a phase are on average "
        "more nats than this from its start, and goes back to its last state that was not. Left out: never.",
    )
    moved_stop: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: a phase's further steps are left out where the policy is more nats a "
        "token than this from the one that drew. Left out: none are.",
    )
    pretraining: PretrainingSettings | None = Field(
        None,
        description="grpo, rloo, reinforce, ppo: plain texts that are learnt in the same steps (PPO-ptx): {data: "
        "shipped or a path, weight: 0.1, rows: 8}. Left out: none.",
    )

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveSettings:
        for key, types in _KEYS.items():
            if getattr(self, key) is not None and self.type not in types:
                raise ValueError(f"{key}: belongs to {', '.join(types)}, not to {self.type}")
        if self.online and self.rewards is None:
            raise ValueError(
                f"rewards: {self.type} needs at least one, such as {{right: {{python: 'rewards.py:right'}}}}"
            )
        if self.type == "ppo" and self.value is None:
            raise ValueError("value: ppo needs an adapter with objective: value; give its name")
        if self.type in ("grpo", "rloo") and self.group == 1:
            raise ValueError(f"group: {self.type} compares the answers to a prompt, and needs two or more")
        smoothed = self.label_smoothing
        if smoothed:
            form = self.loss or "sigmoid"
            if form in ("hinge", "ipo", "ipo_per_token"):
                raise ValueError(f"label_smoothing: {form} has none; use sigmoid, sigmoid_per_token or robust")
            if form == "robust" and smoothed >= 0.5:
                raise ValueError(f"label_smoothing: must be less than 0.5 for robust, is {smoothed:g}")
        return self

    @property
    def compares(self) -> bool:
        """Whether it learns from answers that were judged, and not from answers alone."""
        return self.type not in ("sft", "value") and not self.online

    @property
    def online(self) -> bool:
        """Whether it learns from answers that the adapter itself draws."""
        return self.type in ONLINE

    def given(self) -> dict[str, Any]:
        """The keys that were given, without the type."""
        return {key: getattr(self, key) for key in _KEYS if getattr(self, key) is not None}


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _short(value: ObjectiveSettings) -> str | dict[str, Any]:
    given = value.given()
    if value.rewards is not None:
        rewards = value.rewards.items()
        given["rewards"] = {name: each.model_dump(mode="json", exclude_none=True) for name, each in rewards}
    if value.pretraining is not None:
        given["pretraining"] = value.pretraining.model_dump(mode="json")
    return {"type": value.type, **given} if given else value.type


#: The name of an objective, or a mapping with its type and settings.
NamedObjective = Annotated[
    ObjectiveSettings,
    BeforeValidator(_named, json_schema_input_type=ObjectiveType | ObjectiveSettings),
    PlainSerializer(_short),
]
