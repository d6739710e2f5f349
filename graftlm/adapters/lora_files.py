"""LoRA as peft writes and reads it: its adapter_config.json and its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, field_validator
from torch import nn

from graftlm.adapters.dora import DoRA, dora
from graftlm.adapters.lora import LoRA, LoRAAdapter, embeddings_of, low_rank_embedding, trainable_modules
from graftlm.adapters.lora_embedding import LowRankEmbedding
from graftlm.adapters.method import Adapter, LowRank, Update
from graftlm.adapters.own_module import OwnModule, own_copy
from graftlm.adapters.stored import (
    CONFIG,
    COPY_AGAIN,
    PEFT_PREFIX,
    WEIGHTS,
    Stored,
    check_complete,
    checked,
    does_not_fit,
    fill,
    missing_tensor,
    peft_task_type,
    register_peft_kind,
    unknown_module,
)
from graftlm.base.places import LinearPlace, ModulePlace, Places
from graftlm.errors import UserError

# What makes a peft LoRA more than what is read here, and the starts that leave the base as it is.
UNREAD = (
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
    use_dora: bool = False
    modules_to_save: list[str] = []
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
    updates = {
        path: _factors_of(update) for path, update in adapter.linear.items() if not isinstance(update, OwnModule)
    }
    ranks = {path: update.factors()[0].shape[0] for path, update in updates.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    alphas = {
        path: update.scale * (ranks[path] ** 0.5 if method.rslora else ranks[path]) for path, update in updates.items()
    }
    usual = max(set(alphas.values()), key=list(alphas.values()).count)
    linears = [places.linears[path].module for path in updates if path in places.linears]
    return {
        "peft_type": "LORA",
        "task_type": peft_task_type(places),
        "base_model_name_or_path": source,
        "inference_mode": True,
        "r": common,
        "lora_alpha": usual,
        "lora_dropout": method.dropout,
        "use_rslora": method.rslora,
        "use_dora": method.dora,
        "bias": "none",
        "fan_in_fan_out": bool(linears) and all(type(module).__name__ == "Conv1D" for module in linears),
        "target_modules": target_modules(list(updates), places),
        "modules_to_save": [path for path in adapter.linear if path not in updates] or None,
        "rank_pattern": {re.escape(path): rank for path, rank in ranks.items() if rank != common},
        "alpha_pattern": {re.escape(path): alpha for path, alpha in alphas.items() if alpha != usual},
    }


def target_modules(paths: list[str], places: Places) -> list[str]:
    """Last names where these mean just the adapter's layers, else full paths."""
    names = sorted({path.rpartition(".")[2] for path in paths})
    meant = {path for path, _ in places.model.named_modules() if path.rpartition(".")[2] in names}
    return names if meant == set(paths) else paths


def _factors_of(update: Update) -> LowRank | LowRankEmbedding:
    """The low-rank product in an update."""
    found = update.low_rank if isinstance(update, DoRA) else update
    assert isinstance(found, (LowRank, LowRankEmbedding))
    return found


def low_rank_updates(adapter: Adapter) -> dict[str, LowRank]:
    """The plain low-rank updates of an adapter, by path."""
    return {path: update for path, update in adapter.linear.items() if isinstance(update, LowRank)}


def store_lora(adapter: Adapter, places: Places, source: str) -> Stored:
    """peft's tensors and configuration. A subtracted start (PiSSA) becomes the plain LoRA of twice the rank."""
    tensors: dict[str, torch.Tensor] = {}
    for path, update in adapter.linear.items():
        if isinstance(update, OwnModule):
            tensors |= {f"{PEFT_PREFIX}{path}.{key}": tensor for key, tensor in update.module.state_dict().items()}
            continue
        factors = _factors_of(update)
        names = _EMBEDDING_NAMES if isinstance(factors, LowRankEmbedding) else _LINEAR_NAMES
        tensors |= {
            f"{PEFT_PREFIX}{path}.{name}": tensor for name, tensor in zip(names, factors.factors(), strict=True)
        }
        if isinstance(update, DoRA):
            tensors[f"{PEFT_PREFIX}{path}.{_MAGNITUDE}"] = update.magnitude
    return Stored(tensors, _write_peft_config(adapter, places, source))


_LINEAR_NAMES = ("lora_A.weight", "lora_B.weight")
_EMBEDDING_NAMES = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE = "lora_magnitude_vector"


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
    found, copies = _by_path(folder, stored.tensors, peft.use_dora)
    check_complete(stored, {*found, *copies}, places, _LINEAR_NAMES[0])
    method = method or _method_of(peft, found, list(copies))
    updates: dict[str, Update] = {}
    for path, parts in found.items():
        place = _place(places, folder, path, parts)
        low_rank = _low_rank(method, place, parts, peft.scale(path, len(parts["A"])), device)
        magnitude = parts.get("magnitude")
        if magnitude is not None:
            magnitude = magnitude.clone().to(device, low_rank.lora_A.dtype)
        updates[path] = low_rank if magnitude is None else dora(place, low_rank, magnitude)
    ordered = {path: updates[path] for path in (*embeddings_of(places), *places.linears) if path in updates}
    return LoRAAdapter(method, ordered | _copies(places, folder, copies, device))


def _low_rank(
    method: LoRA, place: ModulePlace, parts: Mapping[str, torch.Tensor], scale: float, device: torch.device
) -> LowRank | LowRankEmbedding:
    A, B, start = parts["A"].clone(), parts["B"].clone(), None  # out of the mapped file, aligned as any other tensor
    dtype = torch.promote_types(A.dtype, torch.float32)
    if isinstance(place.module, nn.Embedding):
        return low_rank_embedding(place.module, A.to(device, dtype), B.to(device, dtype), scale)
    if method.init == "pissa":
        half = A.shape[0] // 2
        start = (A[half:].contiguous().to(device, dtype), -B[:, half:].contiguous().to(device, dtype))
        A, B = A[:half], B[:, :half]
    A, B = A.contiguous().to(device, dtype), B.contiguous().to(device, dtype)
    return LowRank(A, B, scale=scale, dropout=method.dropout, start=start)


def _copies(
    places: Places, folder: Path, copies: Mapping[str, Mapping[str, torch.Tensor]], device: torch.device
) -> dict[str, Update]:
    """The modules of their own that an adapter brings."""
    every = trainable_modules(places)
    own: dict[str, Update] = {}
    for path, tensors in copies.items():
        if path not in every:
            raise unknown_module(folder, path, places)
        dtype = torch.promote_types(next(iter(tensors.values())).dtype, torch.float32)
        own[path] = update = own_copy(every[path], dtype, device)
        fill(update.module, tensors, folder)
    return own


def _by_path(
    folder: Path, tensors: Mapping[str, torch.Tensor], with_magnitudes: bool
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, dict[str, torch.Tensor]]]:
    """The parts of each low-rank update, by path of its module, and the tensors of each module that is a copy."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    copies: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, name = key.removeprefix(PEFT_PREFIX).rpartition(".")
        matched = _KEY.fullmatch(key)
        if matched is not None:
            part = "magnitude" if matched["part"] == "magnitude_vector" else matched["part"]
            found.setdefault(matched["path"], {})[part] = tensor
        elif key.startswith(PEFT_PREFIX) and ".lora_" not in key:
            copies.setdefault(path, {})[name] = tensor
        else:
            raise UserError(f"{folder / WEIGHTS}: the key '{key}' is not of a LoRA")
    for path, parts in found.items():
        for part in ("A", "B", "magnitude") if with_magnitudes else ("A", "B"):
            if part not in parts:
                name = _MAGNITUDE if part == "magnitude" else f"lora_{part}.weight"
                raise missing_tensor(folder, f"{PEFT_PREFIX}{path}.{name}")
        if "magnitude" in parts and not with_magnitudes:
            raise UserError(f"{folder / WEIGHTS}: {path} has a {_MAGNITUDE}, but {CONFIG} does not set use_dora")
    if not found:
        raise UserError(f"{folder / WEIGHTS} holds no tensors", hint=COPY_AGAIN)
    return found, copies


_KEY = re.compile(
    re.escape(PEFT_PREFIX) + r"(?P<path>.+)\.lora_(?:embedding_)?(?P<part>[AB]|magnitude_vector)(?:\.weight)?"
)


def _place(places: Places, folder: Path, path: str, parts: Mapping[str, torch.Tensor]) -> ModulePlace:
    embeddings = embeddings_of(places)
    place: ModulePlace | None = places.linears.get(path) or embeddings.get(path)
    if place is None:
        raise unknown_module(folder, path, places)
    if isinstance(place, LinearPlace):
        wanted = (place.in_features, place.out_features)
    else:
        wanted = (place.module.get_parameter("weight").shape[0], place.module.get_parameter("weight").shape[1])
    A, B = parts["A"], parts["B"]
    fits = A.dim() == B.dim() == 2 and (A.shape[1], B.shape[0]) == wanted and A.shape[0] == B.shape[1]
    if "magnitude" in parts:
        fits = fits and parts["magnitude"].shape == (wanted[1],)
    if not fits:
        raise does_not_fit(
            folder,
            f"at {path} the base is {wanted[1]} × {wanted[0]}, but lora_B lora_A is {tuple(B.shape)} {tuple(A.shape)}",
        )
    return place


def _method_of(peft: PeftLoRA, found: Mapping[str, Mapping[str, torch.Tensor]], copies: list[str]) -> LoRA:
    """The settings that peft's configuration and the shapes of its tensors tell."""
    alphas = {path: peft.alpha(path) for path in found}
    ranks = {path: len(parts["A"]) for path, parts in found.items()}
    return LoRA(
        rank=peft.r,
        alpha=peft.lora_alpha,
        dropout=peft.lora_dropout,
        rslora=peft.use_rslora,
        dora=peft.use_dora,
        targets=list(found),
        modules_to_save=copies,
        rank_pattern={path: rank for path, rank in ranks.items() if rank != peft.r},
        alpha_pattern={path: alpha for path, alpha in alphas.items() if alpha is not None},
    )
