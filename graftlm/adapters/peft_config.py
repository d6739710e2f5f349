"""peft's adapter_config.json for LoRA: what is read of it, what is refused, and how ours is written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator

from graftlm.adapters.lora import LoRA
from graftlm.adapters.method import Adapter
from graftlm.base.places import Places
from graftlm.errors import UserError

# What makes a peft LoRA more than a low-rank update of linear layers, and the starts that leave the base as it is.
UNREAD = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
STARTS = (None, True, False, "gaussian", "eva", "orthogonal")


class PeftLoRA(BaseModel):
    """What is read of peft's adapter_config.json."""

    r: int = Field(ge=1)
    lora_alpha: float = Field(8.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    use_rslora: bool = False
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = {}

    @field_validator("alpha_pattern")
    @classmethod
    def _expressions(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from None
        return patterns

    def alpha(self, path: str) -> float | None:
        """The alpha that a pattern gives this layer; peft matches its keys as regular expressions at a path's end."""
        for key, value in self.alpha_pattern.items():
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        return None

    def scale(self, path: str, rank: int) -> float:
        """The factor of the update of one layer of this rank."""
        alpha = self.alpha(path)
        chosen = self.lora_alpha if alpha is None else alpha
        return chosen / rank**0.5 if self.use_rslora else chosen / rank


def read_peft_config(config: Mapping[str, Any], path: Path) -> PeftLoRA:
    """What we need of a peft configuration, read from the file ``path``.

    Raises:
        UserError: not LoRA, or with something that graftlm cannot read yet, or a broken value.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type is {kind!r}; graftlm reads LORA adapters so far")
    unread = [key for key in UNREAD if config.get(key)]
    if config.get("init_lora_weights") not in STARTS:
        unread.append(f"init_lora_weights {config['init_lora_weights']!r}")
    if unread:
        raise UserError(
            f"{path}: {', '.join(unread)} is set, which graftlm cannot read yet",
            hint="A start that changes the base is converted by peft itself: "
            "save_pretrained(…, path_initial_model_for_weight_conversion=…).",
        )
    given = {key: value for key, value in config.items() if value is not None or key == "r"}
    return checked(PeftLoRA, given, path)


def write_peft_config(adapter: Adapter, places: Places, source: str) -> dict[str, Any]:
    """The content of adapter_config.json. Ranks and alphas that differ are given by full path."""
    method = adapter.config
    assert isinstance(method, LoRA)
    ranks = {path: update.factors()[0].shape[0] for path, update in adapter.linear.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    alphas = {
        path: update.scale * (ranks[path] ** 0.5 if method.rslora else ranks[path])
        for path, update in adapter.linear.items()
    }
    usual = max(set(alphas.values()), key=list(alphas.values()).count)
    transposed = [type(places.linears[path].module).__name__ == "Conv1D" for path in adapter.linear]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "inference_mode": True,
        "r": common,
        "lora_alpha": usual,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "bias": "none",
        "fan_in_fan_out": all(transposed),
        "target_modules": _target_modules(adapter, places),
        "rank_pattern": {re.escape(path): rank for path, rank in ranks.items() if rank != common},
        "alpha_pattern": {re.escape(path): alpha for path, alpha in alphas.items() if alpha != usual},
    }


def _target_modules(adapter: Adapter, places: Places) -> list[str]:
    """Last names where these mean just the adapter's layers, else full paths."""
    names = sorted({path.rpartition(".")[2] for path in adapter.linear})
    meant = {path for path in places.linears if path.rpartition(".")[2] in names}
    return names if meant == set(adapter.linear) else list(adapter.linear)


Checked = TypeVar("Checked", bound=BaseModel)


def checked(schema: type[Checked], value: Mapping[str, Any], path: Path) -> Checked:
    """Validate what a JSON file holds; the error names file and key."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error
