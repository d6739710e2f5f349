"""AdaLoRA as peft writes and reads it."""

from __future__ import annotations

import re
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from graftlm.adapters.adalora import PARTS, AdaLoRA, AdaLoRAAdapter, Triplets
from graftlm.adapters.lora_files import target_modules
from graftlm.adapters.method import Adapter, Update
from graftlm.adapters.stored import (
    CONFIG,
    COPY_AGAIN,
    PEFT_PREFIX,
    WEIGHTS,
    Stored,
    check_complete,
    checked,
    does_not_fit,
    missing_tensor,
    peft_task_type,
    register_peft_kind,
    unknown_module,
)
from graftlm.base.places import LinearPlace, Places
from graftlm.errors import UserError


class PeftAdaLoRA(BaseModel):
    """What is read of peft's adapter_config.json."""

    init_r: int = Field(ge=1)
    target_r: int = Field(8, ge=1)
    lora_alpha: Annotated[float, Field(gt=0)] = 8.0
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    rank_pattern: dict[str, list[bool]] | None = None
    modules_to_save: Annotated[list[str], Field(max_length=0)] | None = None


def store_adalora(adapter: Adapter, places: Places, source: str) -> Stored:
    """peft's tensors and configuration; matrices that lost ranks say which in ``rank_pattern``."""
    assert isinstance(adapter, AdaLoRAAdapter)
    config = adapter.config
    assert isinstance(config, AdaLoRA)
    tensors = {
        f"{PEFT_PREFIX}{path}.{name}": update.get_parameter(name).detach()
        for path, update in adapter.triplets.items()
        for name in PARTS
    }
    pattern = {f"{path}.lora_E": update.kept.tolist() for path, update in adapter.triplets.items()}
    peft: dict[str, Any] = {
        "peft_type": "ADALORA",
        "task_type": peft_task_type(places),
        "base_model_name_or_path": source,
        "inference_mode": True,
        "init_r": config.init_rank,
        "r": config.init_rank,
        "target_r": config.target_rank,
        "lora_alpha": config.scale * (config.init_rank + 1e-5),
        "lora_dropout": config.dropout,
        "total_step": 1000,  # of a training that is over; peft wants a number
        "bias": "none",
        "fan_in_fan_out": all(type(places.linears[path].module).__name__ == "Conv1D" for path in adapter.linear),
        "target_modules": target_modules(list(adapter.linear), places),
        "rank_pattern": pattern if adapter.final else None,
    }
    return Stored(tensors, peft)


@register_peft_kind("ADALORA")
def read_adalora(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """An adapter that peft wrote."""
    return restore_adalora(None, stored, places, device=device)


def restore_adalora(method: AdaLoRA | None, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """The adapter in peft's tensors; its settings are ``method``, or read off peft's configuration.

    Raises:
        UserError: a tensor is missing or does not fit the base.
    """
    peft = checked(PeftAdaLoRA, stored.peft or {}, stored.folder / CONFIG)
    parts = _parts(stored)
    check_complete(stored, parts, places, PARTS[0])
    config = method or AdaLoRA(
        init_rank=peft.init_r,
        target_rank=min(peft.target_r, peft.init_r),
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        targets=list(parts),
    )
    kept = {key.removesuffix(".lora_E"): flags for key, flags in (peft.rank_pattern or {}).items()}
    unknown = next((path for path in parts if path not in places.linears), None)
    if unknown is not None:
        raise unknown_module(stored.folder, unknown, places)
    updates: dict[str, Update] = {}
    for path in places.linears:
        if path not in parts:
            continue
        A, E, B = (parts[path][name] for name in PARTS)
        flags = _flags(stored, kept, path, config.init_rank)
        if flags.sum() != len(A) == config.init_rank:  # peft leaves masked triplets in
            A, E, B = A[flags], E[flags], B[:, flags]
        _check(stored, places.linears[path], A, E, B, flags)
        dtype = torch.promote_types(A.dtype, torch.float32)
        update = Triplets(
            *(part.to(device, dtype).contiguous() for part in (A, E, B)),
            scale=config.scale,
            dropout=config.dropout,
            kept=flags.to(device),
        )
        if len(flags) != len(A) or peft.rank_pattern:
            update.shrink(torch.ones(len(A), dtype=torch.bool, device=device))
            update.kept = flags.to(device)
        updates[path] = update
    return AdaLoRAAdapter(config, updates)


def _parts(stored: Stored) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.tensors.items():
        matched = re.fullmatch(re.escape(PEFT_PREFIX) + r"(.+)\.(lora_[AEB])", key)
        if matched is None:
            raise UserError(f"{stored.folder / WEIGHTS}: the key '{key}' is not of an AdaLoRA on linear layers")
        found.setdefault(matched[1], {})[matched[2]] = tensor
    for path, parts in found.items():
        for name in PARTS:
            if name not in parts:
                raise missing_tensor(stored.folder, f"{PEFT_PREFIX}{path}.{name}")
    if not found:
        raise UserError(f"{stored.folder / WEIGHTS} holds no tensors", hint=COPY_AGAIN)
    return found


def _flags(stored: Stored, kept: dict[str, list[bool]], path: str, rank: int) -> torch.Tensor:
    """Which of the initial triplets a matrix still has; peft's keys may have the model's prefix."""
    flags = torch.tensor(kept.get(path, kept.get(PEFT_PREFIX + path, [True] * rank)), dtype=torch.bool)
    if len(flags) != rank:
        raise UserError(
            f"{stored.folder / CONFIG}: rank_pattern has {len(flags)} flags for {path}, and init_r is {rank}",
            hint=COPY_AGAIN,
        )
    return flags


def _check(
    stored: Stored, place: LinearPlace, A: torch.Tensor, E: torch.Tensor, B: torch.Tensor, flags: torch.Tensor
) -> None:
    rank = int(flags.sum())
    wanted = [(rank, place.in_features), (rank, 1), (place.out_features, rank)]
    if [tuple(part.shape) for part in (A, E, B)] != wanted:
        raise does_not_fit(
            stored.folder,
            f"at {place.path} lora_A, lora_E and lora_B are {tuple(A.shape)}, {tuple(E.shape)}, {tuple(B.shape)}, "
            f"and {wanted} is needed",
        )
