"""What an adapter's loss is, as a recipe says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, model_validator

ObjectiveType = Literal["sft", "reward", "dpo", "kto", "orpo", "simpo"]
BETA = {"dpo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0}
_KEYS = {
    "beta": ("dpo", "kto", "orpo", "simpo"),
    "loss": ("dpo",),
    "label_smoothing": ("dpo",),
    "margin": ("simpo", "reward"),
    "centring": ("reward",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


class ObjectiveSettings(BaseModel):
    """The loss of one adapter; which keys there are depends on its type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: ObjectiveType = Field(
        description="sft (instruction tuning), reward (a head that scores answers), dpo, kto, orpo or simpo.",
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

    @model_validator(mode="after")
    def _fits(self) -> ObjectiveSettings:
        for key, types in _KEYS.items():
            if getattr(self, key) is not None and self.type not in types:
                raise ValueError(f"{key}: belongs to {', '.join(types)}, not to {self.type}")
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
        return self.type != "sft"

    def given(self) -> dict[str, Any]:
        """The keys that were given, without the type."""
        return {key: getattr(self, key) for key in _KEYS if getattr(self, key) is not None}


def _named(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


def _short(value: ObjectiveSettings) -> str | dict[str, Any]:
    return {"type": value.type, **value.given()} if value.given() else value.type


#: The name of an objective, or a mapping with its type and settings.
NamedObjective = Annotated[
    ObjectiveSettings,
    BeforeValidator(_named, json_schema_input_type=ObjectiveType | ObjectiveSettings),
    PlainSerializer(_short),
]
