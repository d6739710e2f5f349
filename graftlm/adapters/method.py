"""What every tuning method gives: a configuration, and the adapter that it builds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from torch import nn

from graftlm.base.places import Places


class MethodConfig(BaseModel):
    """The settings of one method. A method announces itself with :func:`register_method`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str

    @abstractmethod
    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """A new adapter with freshly initialised parameters, drawn from ``seed`` alone."""


class LowRank(nn.Module):
    """An update of one linear layer: y += scale · (x Aᵀ) Bᵀ, with A (rank, in) and B (out, rank).

    ``start_A`` and ``start_B``, where present, are subtracted: y += scale · (x Aᵀ Bᵀ − x A₀ᵀ B₀ᵀ), so that the
    update is nothing at first although BA is not (PiSSA).
    """

    start_A: torch.Tensor | None
    start_B: torch.Tensor | None

    def __init__(
        self,
        A: torch.Tensor,
        B: torch.Tensor,
        *,
        scale: float,
        dropout: float,
        start: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(B)
        self.scale = scale
        self.dropout = dropout
        self.register_buffer("start_A", start[0] if start else None)
        self.register_buffer("start_B", start[1] if start else None)

    @property
    def rank(self) -> int:
        """The rank of the trained product."""
        return self.lora_A.shape[0]

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in) and B (out, r) of the whole update; r is twice the rank where a start is subtracted."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """The update as a dense (out, in) matrix."""
        A, B = self.factors()
        return self.scale * (B @ A)


class Adapter(nn.Module):
    """A named set of trained parameters. ``linear`` says what it does at which linear layer, by module path."""

    def __init__(self, config: MethodConfig, linear: Mapping[str, LowRank]) -> None:
        super().__init__()
        self.config = config
        self.linear: dict[str, LowRank] = dict(linear)
        for path, update in linear.items():
            self.add_module(path.replace(".", "/"), update)

    @property
    def trained_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters())


_METHODS: dict[str, type[MethodConfig]] = {}
ConfigClass = TypeVar("ConfigClass", bound=type[MethodConfig])


def register_method(config: ConfigClass) -> ConfigClass:
    """Class decorator: make a method known to recipes and adapter files by its ``method`` name."""
    fields: dict[str, FieldInfo] = config.__pydantic_fields__
    _METHODS[fields["method"].default] = config
    return config


def methods() -> Mapping[str, type[MethodConfig]]:
    """Every known method by name."""
    return dict(_METHODS)
