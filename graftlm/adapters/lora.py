"""LoRA: low-rank updates of linear layers and embeddings, and whole modules trained as copies beside them.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3: h = W₀x + BAx, scaled by α/r.
rsLoRA (Kalajdzievski 2023) scales by α/√r. PiSSA (Meng et al. 2024) starts from the principal singular values. LoRA+
(Hayou et al. 2024) gives B a larger learning rate than A. DoRA (Liu et al. 2024): :mod:`graftlm.adapters.dora`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.dora import dora
from graftlm.adapters.lora_embedding import LowRankEmbedding, embedding_factor
from graftlm.adapters.method import Adapter, LowRank, MethodConfig, Update, register_method
from graftlm.adapters.own_module import own_copy
from graftlm.adapters.routing import mix_seed
from graftlm.adapters.stored import Stored
from graftlm.base.places import LinearPlace, ModulePlace, Places
from graftlm.errors import UserError, nearest

ALL_LINEAR = "all-linear"
Value = TypeVar("Value")
Place = TypeVar("Place", bound=ModulePlace)


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
        description="Linear layers: all-linear, names such as q_proj, full paths, or patterns such as '*.mlp.*'. "
        "An embedding is meant by its name or path alone, such as embed_tokens.",
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
    dora: bool = Field(False, description="Train the magnitude of each output's weights apart from their direction.")
    modules_to_save: list[str] = Field(
        [],
        description="Whole modules that are trained as copies, by name, path or pattern, such as lm_head, embed_tokens "
        "or norm. The base keeps its own.",
    )
    b_learning_rate_ratio: Annotated[float, Field(gt=0)] = Field(
        1.0, description="Learning rate of B as a multiple of the adapter's (LoRA+; its paper uses 16)."
    )

    @model_validator(mode="after")
    def _fit_each_other(self) -> LoRA:
        if self.init == "pissa" and self.dropout:
            raise ValueError("init: pissa takes no dropout; set dropout: 0 or another init")
        if self.init == "pissa" and self.dora:
            raise ValueError("init: pissa does not go with dora; set another init, or dora: false")
        return self

    def describe(self) -> str:
        """One line: the rank, the targets, and what else is not usual."""
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        parts = [f"{'DoRA' if self.dora else 'LoRA'} rank {self.rank}", targets]
        parts += [f"init {self.init}"] if self.init != "default" else []
        parts += [f"copies of {', '.join(self.modules_to_save)}"] if self.modules_to_save else []
        parts += [f"B learns {self.b_learning_rate_ratio:g} ×"] if self.b_learning_rate_ratio != 1 else []
        return ", ".join(parts)

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Make A and B for every target, and the copies.

        Raises:
            UserError: a target or pattern matches nothing, a rank exceeds what the matrix can have, or DoRA or PiSSA
                find no dense weight.
        """
        copies = select_copies(places, self.modules_to_save)
        targets = select_targets(places, self.targets, self.exclude)
        targets = {path: place for path, place in targets.items() if path not in copies}
        ranks = _overrides("rank_pattern", self.rank_pattern, targets)
        alphas = _overrides("alpha_pattern", self.alpha_pattern, targets)
        updates: dict[str, Update] = {}
        for path, place in targets.items():
            rank, start = ranks.get(path, self.rank), mix_seed(seed, path)
            low_rank = (
                self._low_rank(place, rank, alphas.get(path), start, dtype, device)
                if isinstance(place, LinearPlace)
                else self._low_rank_embedding(place, rank, alphas.get(path), start, dtype, device)
            )
            updates[path] = dora(place, low_rank) if self.dora else low_rank
        updates |= {path: own_copy(place, dtype, device) for path, place in copies.items()}
        return LoRAAdapter(self, updates)

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
        _check_rank(place, rank, place.out_features, place.in_features)
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

    def _low_rank_embedding(
        self, place: ModulePlace, rank: int, alpha: float | None, seed: int, dtype: torch.dtype, device: torch.device
    ) -> LowRankEmbedding:
        module = place.module
        assert isinstance(module, nn.Embedding)
        vocabulary, width = module.weight.shape
        _check_rank(place, rank, vocabulary, width)
        if self.init == "pissa":
            raise UserError(f"init: pissa has no meaning for the embedding {place.path}", hint="Use another init.")
        generator = torch.Generator().manual_seed(seed)
        B = torch.empty(width, rank).normal_(generator=generator)
        A = torch.zeros(rank, vocabulary, dtype=dtype, device=device)
        return low_rank_embedding(module, A, B.to(device, dtype), self.scale(rank, alpha))


class LoRAAdapter(Adapter):
    """Where B may learn faster than A."""

    def learning_rate_scale(self, parameter: str) -> float:
        """The ratio for every B (LoRA+, section 4)."""
        assert isinstance(self.config, LoRA)
        return self.config.b_learning_rate_ratio if parameter.endswith("lora_B") else 1.0


def low_rank_embedding(module: nn.Embedding, A: torch.Tensor, B: torch.Tensor, scale: float) -> LowRankEmbedding:
    """The update of this embedding by these factors."""
    factor = embedding_factor(module)
    return LowRankEmbedding(A, B, scale=scale, factor=factor, padding=module.padding_idx)


def _check_rank(place: ModulePlace, rank: int, rows: int, columns: int) -> None:
    limit = min(rows, columns)
    if rank > limit:
        raise UserError(
            f"rank {rank} is larger than {place.path} allows: its matrix is {rows} × {columns}",
            hint=f"Use a rank of at most {limit} there, or leave the layer out with exclude: [{place.path}].",
        )


def select_targets(places: Places, targets: str | list[str], exclude: list[str]) -> dict[str, ModulePlace]:
    """The embeddings and linear layers that ``targets`` name, without those that ``exclude`` names.

    Raises:
        UserError: an entry matches nothing, or nothing is left.
    """
    embeddings = embeddings_of(places)
    wanted = [targets] if isinstance(targets, str) else targets
    named = {
        entry: {path: place for path, place in embeddings.items() if path == entry or path.endswith("." + entry)}
        for entry in [*wanted, *exclude]
    }
    chosen: dict[str, ModulePlace] = {}
    for entry in wanted:
        chosen |= named[entry]
    for entry in exclude:
        chosen = {path: place for path, place in chosen.items() if path not in named[entry]}
    linear = [entry for entry in wanted if not named[entry]]
    if linear or not chosen:
        left_out = [entry for entry in exclude if not named[entry]]
        return {**chosen, **select_linears(places, linear, left_out)}
    return chosen


def select_copies(places: Places, entries: list[str]) -> dict[str, ModulePlace]:
    """The modules that ``entries`` name, of all that are called token by token.

    Raises:
        UserError: an entry matches none.
    """
    every = trainable_modules(places)
    chosen: dict[str, ModulePlace] = {}
    for entry in entries:
        chosen |= _matching("modules_to_save", entry, every, "module that sees tokens")
    return chosen


def embeddings_of(places: Places) -> dict[str, ModulePlace]:
    """The embeddings that are called token by token."""
    return {path: place for path, place in places.leaves.items() if isinstance(place.module, nn.Embedding)}


def trainable_modules(places: Places) -> dict[str, ModulePlace]:
    """Every module with parameters that is called token by token, the language head among them."""
    return {**places.leaves, **places.linears}


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


def _matching(key: str, entry: str, places: Mapping[str, Place], what: str = "linear layer") -> dict[str, Place]:
    found = {path: place for path, place in places.items() if matches(entry, path)}
    if found:
        return found
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in places))
    guess = nearest(entry, names)
    raise UserError(
        f"{key}: '{entry}' matches no {what} of this base; there are: {', '.join(names)}",
        hint=f"Did you mean '{guess}'?"
        if guess
        else "Use a name, a full path, a pattern such as '*.mlp.*', or all-linear.",
    )


def _overrides(key: str, patterns: Mapping[str, Value], targets: Mapping[str, ModulePlace]) -> dict[str, Value]:
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
