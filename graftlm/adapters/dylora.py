"""DyLoRA: one low-rank adapter that serves at any rank of a range.

Valipour et al. 2023, "DyLoRA: Parameter-Efficient Tuning of Pre-trained Models using Dynamic Search-Free Low-Rank
Adaptation": each optimizer step draws a rank b from the range and trains A↓b (the first b rows of A) and B↓b (the first
b columns of B), so that what matters most comes first. With ``freeze_lower`` only row and column b are trained
(section 4, the "frozen" variant). A step's rank is drawn from the adapter's seed and the step alone.

The scale of rank b is alpha / b, as in the paper's equation 6: at each rank it is an ordinary LoRA of that rank.

The rows and columns that a step did not draw have a gradient of zero in it, and are not left out of the optimizer:
AdamW's momentum and weight decay go on moving them, as with one optimizer over whole matrices anywhere.
"""

from __future__ import annotations

import random
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.lora import ALL_LINEAR, LoRA
from graftlm.adapters.method import Adapter, LowRank, MethodConfig, Update, register_method
from graftlm.adapters.routing import mix_seed
from graftlm.adapters.stored import Stored
from graftlm.base.places import Places
from graftlm.errors import UserError

TRAINED = "!"  # behind a rank: only its own row and column get gradients


@register_method
class DyLoRA(MethodConfig):
    """Low-rank adaptation trained over a range of ranks at once."""

    method: Literal["dylora"] = "dylora"
    rank: int = Field(8, ge=1, description="Largest rank: A is (rank, in), B is (out, rank).")
    min_rank: int = Field(1, ge=1, description="Smallest rank that it is trained for.")
    alpha: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The update at rank b is scaled by alpha / b. Left out: twice the rank."
    )
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the inputs of A dropped while training.")
    freeze_lower: bool = Field(
        False, description="Train only the drawn rank's own row of A and column of B, not those below it."
    )
    targets: str | list[str] = Field(
        ALL_LINEAR,
        description="Linear layers: all-linear, names such as q_proj, full paths, or patterns such as '*.mlp.*'.",
    )
    exclude: list[str] = Field([], description="Names, paths or patterns that are left out of the targets.")

    @model_validator(mode="after")
    def _range(self) -> DyLoRA:
        if self.min_rank > self.rank:
            raise ValueError(f"min_rank {self.min_rank} is above rank {self.rank}")
        return self

    def describe(self) -> str:
        """One line for people."""
        targets = self.targets if isinstance(self.targets, str) else ", ".join(self.targets)
        return f"DyLoRA ranks {self.min_rank} to {self.rank}, {targets}" + (
            ", lower frozen" if self.freeze_lower else ""
        )

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """A LoRA of the largest rank, whose parts serve the smaller ones."""
        whole = self.at_rank(self.rank).build(places, seed=seed, dtype=dtype, device=device)
        return DyLoRAAdapter(self, whole.linear)

    def at_rank(self, rank: int) -> LoRA:
        """The LoRA that it is at one rank."""
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        return LoRA(rank=rank, alpha=alpha, dropout=self.dropout, targets=self.targets, exclude=self.exclude)

    def view(self, adapter: Adapter, suffix: str) -> Adapter:
        """The adapter at one rank; "4!" is that of which only row and column 4 are trained."""
        number = suffix.removesuffix(TRAINED)
        if not (number.isascii() and number.isdecimal()) or not self.min_rank <= int(number) <= self.rank:
            raise UserError(
                f"'@{suffix}' is no rank of this dylora adapter; its ranks are {self.min_rank} to {self.rank}",
                hint=f"For example NAME@{self.min_rank}; the name alone means rank {self.rank}.",
            )
        rank = int(number)
        config = self.at_rank(rank)
        updates: dict[str, Update] = {
            path: Truncated(update, rank, config.scale(rank), only_last=suffix.endswith(TRAINED))
            for path, update in adapter.linear.items()
            if isinstance(update, LowRank)
        }
        return Adapter(config, updates)

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """As a plain LoRA of the largest rank, which peft reads; graftlm.json says that it is more."""
        config = self.at_rank(self.rank)
        return config.store(Adapter(config, adapter.linear), places, source)

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """All ranks of it again."""
        return DyLoRAAdapter(self, self.at_rank(self.rank).restore(stored, places, device=device).linear)


class DyLoRAAdapter(Adapter):
    """Trained at another rank in each step."""

    @property
    def forms(self) -> list[str]:
        """Ranks from the smallest to the largest: all of a short range, else both ends and powers of two."""
        assert isinstance(self.config, DyLoRA)
        low, high = self.config.min_rank, self.config.rank
        inner = (rank for rank in range(low + 1, high) if high - low < 8 or rank & (rank - 1) == 0)
        return [str(rank) for rank in dict.fromkeys((low, *inner, high))]

    def training_view(self, seed: int, step: int) -> str:
        """A rank drawn evenly from the range."""
        config = self.config
        assert isinstance(config, DyLoRA)
        rank = random.Random(mix_seed(seed, "rank", step)).randint(config.min_rank, config.rank)
        return f"{rank}{TRAINED if config.freeze_lower else ''}"


class Truncated(LowRank):
    """The first ``rank`` rows of A and columns of B of another update, whose parameters they stay."""

    def __init__(self, whole: LowRank, rank: int, scale: float, *, only_last: bool) -> None:
        nn.Module.__init__(self)
        self.lora_A, self.lora_B = whole.lora_A, whole.lora_B
        self.scale, self.dropout = scale, whole.dropout
        self.start_A = self.start_B = None
        self._rank, self._only_last = rank, only_last

    @property
    def rank(self) -> int:
        return self._rank

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, in) and B (out, rank)."""
        A, B = self.lora_A[: self._rank], self.lora_B[:, : self._rank]
        if not self._only_last:
            return A, B
        last = self._rank - 1
        return torch.cat([A[:last].detach(), A[last:]]), torch.cat([B[:, :last].detach(), B[:, last:]], dim=1)
