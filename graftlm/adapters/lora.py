"""LoRA: low-rank updates of linear layers.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3: h = W₀x + BAx, scaled by α/r.
rsLoRA (Kalajdzievski 2023) scales by α/√r. PiSSA (Meng et al. 2024) starts from the principal singular values.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field, model_validator

from graftlm.adapters.method import Adapter, LowRank, MethodConfig, register_method
from graftlm.adapters.routing import mix_seed
from graftlm.adapters.stored import Stored
from graftlm.base.places import LinearPlace, Places
from graftlm.errors import UserError, nearest

ALL_LINEAR = "all-linear"
Value = TypeVar("Value")


@register_method
class LoRA(MethodConfig):
    """Low-rank adaptation of linear layers."""

    method: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, description="Rank of the update: A is (rank, in), B is (out, rank).")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The update is scaled by alpha / rank. Left out: twice the rank."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the inputs of A dropped while training.")
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead (rsLoRA).")
    targets: str | list[str] = Field(
        ALL_LINEAR,
        description="Linear layers: all-linear, names such as q_proj, full paths, or patterns such as '*.mlp.*'.",
    )
    exclude: list[str] = Field([], description="Names, paths or patterns that are left out of the targets.")
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {}, description="Another rank for some targets, by name, path or pattern."
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Another alpha for some targets, by name, path or pattern."
    )
    init: Literal["default", "gaussian", "pissa"] = Field(
        "default",
        description="default: A uniform as in peft, B zero; gaussian: A normal with deviation 1/rank, B zero; "
        "pissa: the largest singular values of the weight, with their start subtracted: the base stays as it is.",
    )

    @model_validator(mode="after")
    def _no_dropout_with_pissa(self) -> LoRA:
        if self.init == "pissa" and self.dropout:
            raise ValueError("init: pissa takes no dropout; set dropout: 0 or another init")
        return self

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Make A and B for every target.

        Raises:
            UserError: a target or pattern matches nothing, or a rank exceeds what the matrix can have.
        """
        targets = select_linears(places, self.targets, self.exclude)
        ranks = _overrides("rank_pattern", self.rank_pattern, targets)
        alphas = _overrides("alpha_pattern", self.alpha_pattern, targets)
        return Adapter(
            self,
            {
                path: self._low_rank(
                    place, ranks.get(path, self.rank), alphas.get(path), mix_seed(seed, path), dtype, device
                )
                for path, place in targets.items()
            },
        )

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """As peft writes it."""
        from graftlm.adapters.lora_files import store_lora

        return store_lora(adapter, places, source)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """As peft reads it, with our own settings."""
        from graftlm.adapters.lora_files import restore_lora

        return restore_lora(self, stored, places, device=device)

    def scale(self, rank: int, alpha: float | None = None) -> float:
        """The factor of the update for a rank (and alpha, where a pattern gives another)."""
        chosen = alpha if alpha is not None else self.alpha if self.alpha is not None else 2.0 * self.rank
        return chosen / math.sqrt(rank) if self.rslora else chosen / rank

    def _low_rank(
        self,
        place: LinearPlace,
        rank: int,
        alpha: float | None,
        seed: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> LowRank:
        limit = min(place.in_features, place.out_features)
        if rank > limit:
            raise UserError(
                f"rank {rank} is larger than {place.path} allows: "
                f"its matrix is {place.out_features} × {place.in_features}",
                hint=f"Use a rank of at most {limit} there, or leave the layer out with exclude: [{place.path}].",
            )
        scale = self.scale(rank, alpha)
        if self.init == "pissa":
            A, B = _principal(place, rank, scale)
            A, B = A.to(device, dtype), B.to(device, dtype)
            return LowRank(A, B, scale=scale, dropout=0.0, start=(A.clone(), B.clone()))
        # Drawn in float32 on the CPU, so that one seed gives one adapter whatever the device and precision.
        generator = torch.Generator().manual_seed(seed)
        A = torch.empty(rank, place.in_features)
        if self.init == "gaussian":
            A.normal_(std=1.0 / rank, generator=generator)
        else:
            bound = 1.0 / math.sqrt(place.in_features)  # Kaiming uniform with a = √5
            A.uniform_(-bound, bound, generator=generator)
        B = torch.zeros(place.out_features, rank, dtype=dtype, device=device)
        return LowRank(A.to(device, dtype), B, scale=scale, dropout=self.dropout)


def select_linears(places: Places, targets: str | list[str], exclude: list[str]) -> dict[str, LinearPlace]:
    """The linear layers that ``targets`` name, without those that ``exclude`` names.

    "all-linear" is every linear layer in the blocks (not the language head).

    Raises:
        UserError: an entry matches nothing, or nothing is left.
    """
    wanted = [targets] if isinstance(targets, str) else targets
    chosen: dict[str, LinearPlace] = {}
    for entry in wanted:
        if entry == ALL_LINEAR:
            chosen |= {path: place for path, place in places.linears.items() if place.block is not None}
        else:
            chosen |= _matching("targets", entry, places.linears)
    for entry in exclude:
        for path in _matching("exclude", entry, places.linears):
            chosen.pop(path, None)
    if not chosen:
        raise UserError("targets: no linear layer is left to adapt", hint="Name some in targets, or exclude fewer.")
    return {path: place for path, place in places.linears.items() if path in chosen}


def matches(entry: str, path: str) -> bool:
    """Whether a name (last parts of a path), a full path, or a shell pattern means ``path``."""
    if any(sign in entry for sign in "*?["):
        return fnmatch.fnmatchcase(path, entry)
    return path == entry or path.endswith("." + entry)


def _matching(key: str, entry: str, linears: Mapping[str, LinearPlace]) -> dict[str, LinearPlace]:
    found = {path: place for path, place in linears.items() if matches(entry, path)}
    if found:
        return found
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in linears))
    guess = nearest(entry, names)
    raise UserError(
        f"{key}: '{entry}' matches no linear layer of this base; there are: {', '.join(names)}",
        hint=f"Did you mean '{guess}'?"
        if guess
        else "Use a name, a full path, a pattern such as '*.mlp.*', or all-linear.",
    )


def _overrides(key: str, patterns: Mapping[str, Value], targets: Mapping[str, LinearPlace]) -> dict[str, Value]:
    chosen: dict[str, Value] = {}
    for entry, value in patterns.items():
        chosen |= dict.fromkeys(_matching(key, entry, targets), value)
    return chosen


@torch.no_grad()
def _principal(place: LinearPlace, rank: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B such that scale · BA is the best approximation of the weight at this rank (PiSSA, equations 2 and 3)."""
    weight = place.dense_weight()
    if weight is None:
        raise UserError(f"init: pissa needs the dense weight of {place.path}, which this base does not hold")
    U, S, Vh = torch.linalg.svd(weight.to(torch.float32), full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root
