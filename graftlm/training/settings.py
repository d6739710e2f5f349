"""Settings of a run: those that belong to one adapter, and those of the run as a whole."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from graftlm.training.objective_settings import NamedObjective, ObjectiveSettings


class AdapterTraining(BaseModel):
    """How one adapter is trained. Nothing here depends on which other adapters are trained beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    objective: NamedObjective = Field(
        default_factory=lambda: ObjectiveSettings(type="sft"),
        description="The loss: sft (instruction tuning), or one that learns from preferences: reward (a head that "
        "scores answers), dpo, kto, orpo, simpo. A name, or a mapping with settings: {type: dpo, beta: 0.1, "
        "loss: sigmoid, sigmoid_per_token, hinge, ipo, ipo_per_token or robust, label_smoothing: 0}, {type: reward, "
        "margin: 0, centring: 0}, {type: kto, beta: 0.1, desirable_weight: 1, undesirable_weight: 1}, {type: orpo, "
        "beta: 0.1}, {type: simpo, beta: 2, margin: 1}. Or from rewards of answers that the adapter draws: {type: "
        "grpo, rewards: {right: {python: 'rewards.py:right'}}, group: 8, prompts: 8, passes: 1, max_new_tokens: 128, "
        "kl: 0.04, clip: 0.2, clip_high: 0.2, form: grpo, dapo or dr_grpo, missing_end_penalty: 0, max_deviation, "
        "temperature: 1, kl_stop, moved_stop, pretraining: {data: shipped, weight: 0.1, rows: 8}}, "
        "{type: rloo, …, kl_target}, {type: reinforce, …}, {type: ppo, …, value: ADAPTER, lam: 0.95} beside an adapter "
        "with {type: value, clip: 0.2}. A reward is {python: FILE.py:FUNCTION}, {adapter: FOLDER, criterion} or {url, "
        "model, criterion}, with weight: 1 and on_failure: error or count.",
        json_schema_extra={"default": "sft"},
    )
    learning_rate: float = Field(2e-4, gt=0, description="Peak learning rate of AdamW.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="How the learning rate falls after the warm-up: cosine, linear or constant."
    )
    min_learning_rate: float = Field(0.0, ge=0, le=1, description="Where it ends, as a share of the peak.")
    warmup: float = Field(
        0.03,
        ge=0,
        description="Warm-up from zero: a share of the steps (below 1) or a number of steps (1 and up).",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments.")
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Clip the adapter's gradient to this norm; 0 is off.")
    batch_rows: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Rows of an optimizer step. Give this or batch_tokens; left out: 16 rows."
    )
    batch_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Tokens of an optimizer step: rows are taken until they reach it."
    )
    epochs: float = Field(1.0, gt=0, description="Passes over the rows; may be a fraction.")
    max_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Stop after so many optimizer steps.")
    patience: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Stop early after so many evaluations in a row without a better held-out loss."
    )
    group_by_length: bool = Field(True, description="Make steps of rows of like length: less padding, faster.")
    seed: int = Field(0, ge=0, description="Seed of the adapter's start, order of rows and dropout.")

    @model_validator(mode="after")
    def _one_batch_size(self) -> AdapterTraining:
        if self.batch_rows is not None and self.batch_tokens is not None:
            raise ValueError("give batch_rows or batch_tokens, not both")
        return self


class RunSettings(BaseModel):
    """How the run as a whole is carried out. None of it changes what an adapter learns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_batch_tokens: int = Field(
        2048,
        ge=1,
        description="Tokens that run at once (padding included): sets memory, changes nothing else.",
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, about a third slower.")
    eval_every: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Held-out loss every so many steps. Left out: about eight times in an adapter's training."
    )
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="A checkpoint every so many steps. Left out: as often as the evaluation, and every ten minutes.",
    )
    keep_checkpoints: int = Field(2, ge=1, description="How many checkpoints are kept.")
