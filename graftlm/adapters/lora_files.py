"""LoRA as peft writes and reads it: its adapter_config.json and its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, field_validator

from graftlm.adapters.lora import LoRA
from graftlm.adapters.method import Adapter, LowRank, Update
from graftlm.adapters.stored import Stored, checked, peft_task_type, register_peft_kind
from graftlm.base.places import LinearPlace, Places
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


def _read_peft_config(config: Mapping[str, Any], path: Path) -> PeftLoRA:
    """What we need of a peft configuration, read from the file ``path``.

    Raises:
        UserError: something that graftlm cannot read yet, or a broken value.
    """
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


def _write_peft_config(adapter: Adapter, places: Places, source: str) -> dict[str, Any]:
    """The content of adapter_config.json. Ranks and alphas that differ are given by full path."""
    method = adapter.config
    assert isinstance(method, LoRA)
    updates = low_rank_updates(adapter)
    ranks = {path: update.factors()[0].shape[0] for path, update in updates.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    alphas = {
        path: update.scale * (ranks[path] ** 0.5 if method.rslora else ranks[path]) for path, update in updates.items()
    }
    usual = max(set(alphas.values()), key=list(alphas.values()).count)
    transposed = [type(places.linears[path].module).__name__ == "Conv1D" for path in adapter.linear]
    return {
        "peft_type": "LORA",
        "task_type": peft_task_type(places),
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


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."


def low_rank_updates(adapter: Adapter) -> dict[str, LowRank]:
    """The low-rank updates of an adapter, by path."""
    return {path: update for path, update in adapter.linear.items() if isinstance(update, LowRank)}


def store_lora(adapter: Adapter, places: Places, source: str) -> Stored:
    """peft's tensors and configuration. A subtracted start (PiSSA) becomes the plain LoRA of twice the rank."""
    tensors = {}
    for path, update in low_rank_updates(adapter).items():
        A, B = update.factors()
        tensors[f"{PREFIX}{path}.lora_A.weight"] = A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = B
    return Stored(tensors, _write_peft_config(adapter, places, source))


@register_peft_kind("LORA")
def read_lora(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """An adapter that peft wrote."""
    return restore_lora(None, stored, places, device=device)


def restore_lora(method: LoRA | None, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """The adapter in peft's tensors; its settings are ``method``, or read off peft's configuration.

    Raises:
        UserError: a tensor is missing or does not fit the base, or something is set that graftlm cannot read.
    """
    folder = stored.folder
    if stored.peft is None:
        raise UserError(
            f"{folder} is not an adapter folder that LoRA can be read from: it has no {CONFIG}",
            hint="Copy the adapter folder again.",
        )
    peft = _read_peft_config(stored.peft, folder / CONFIG)
    pairs = _pairs(folder, stored.tensors)
    method = method or _method_of(peft, pairs)
    linear: dict[str, Update] = {}
    for path, (A, B) in pairs.items():
        place = _place(places, folder, path, A, B)
        start = None
        scale = peft.scale(path, A.shape[0])
        if method.init == "pissa":
            half = A.shape[0] // 2
            start = (A[half:].to(device), -B[:, half:].to(device))
            A, B = A[:half], B[:, :half]
        dtype = torch.promote_types(A.dtype, torch.float32)
        linear[place.path] = LowRank(
            A.contiguous().to(device, dtype),
            B.contiguous().to(device, dtype),
            scale=scale,
            dropout=method.dropout,
            start=None if start is None else (start[0].contiguous().to(dtype), start[1].contiguous().to(dtype)),
        )
    ordered = {path: linear[path] for path in places.linears if path in linear}
    return Adapter(method, ordered)


def _pairs(folder: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B by module path."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        matched = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if matched is None:
            raise UserError(f"{folder / WEIGHTS}: the key '{key}' is not of a LoRA on linear layers")
        found.setdefault(matched[1], {})[matched[2]] = tensor
    for path, parts in found.items():
        if len(parts) != 2:
            missing = "AB".replace(next(iter(parts)), "")
            raise UserError(
                f"{folder / WEIGHTS}: {PREFIX}{path}.lora_{missing}.weight is missing",
                hint="The file was cut short or written by something else; copy the adapter folder again.",
            )
    if not found:
        raise UserError(f"{folder / WEIGHTS} holds no tensors")
    return {path: (parts["A"], parts["B"]) for path, parts in found.items()}


def _place(places: Places, folder: Path, path: str, A: torch.Tensor, B: torch.Tensor) -> LinearPlace:
    if path not in places.linears:
        raise UserError(
            f"the adapter {folder} changes {path}, which this base does not have",
            hint=f"Its linear layers are {', '.join(list(places.linears)[:4])}, …: is it for another base?",
        )
    place = places.linears[path]
    wanted = (place.in_features, place.out_features)
    fits = A.dim() == B.dim() == 2 and (A.shape[1], B.shape[0]) == wanted and A.shape[0] == B.shape[1]
    if not fits:
        raise UserError(
            f"the adapter {folder} does not fit this base: at {path} the base is {wanted[1]} × {wanted[0]}, "
            f"but lora_B lora_A is {tuple(B.shape)} {tuple(A.shape)}",
            hint="It was trained on another base.",
        )
    return place


def _method_of(peft: PeftLoRA, pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> LoRA:
    """The settings that peft's configuration and the shapes of its tensors tell."""
    alphas = {path: peft.alpha(path) for path in pairs}
    return LoRA(
        rank=peft.r,
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        rslora=peft.use_rslora,
        targets=list(pairs),
        rank_pattern={path: A.shape[0] for path, (A, _) in pairs.items() if A.shape[0] != peft.r},
        alpha_pattern={path: alpha for path, alpha in alphas.items() if alpha is not None},
    )
