"""BitFit: only the biases are trained.

Ben Zaken et al. 2022, "BitFit: Simple Parameter-efficient Fine-tuning": every bias b of linear layers and norms
becomes b + Δb, and Δb, zero at first, is what is trained.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.method import Adapter, Change, MethodConfig, register_method
from graftlm.base.places import ModulePlace, Places
from graftlm.errors import UserError


@register_method
class BitFit(MethodConfig):
    """Changes of the base's biases."""

    method: Literal["bitfit"] = "bitfit"
    biases: Literal["all", "attention", "feed_forward", "norms"] = Field(
        "all", description="Which biases: all of the blocks, or those of attention, feed_forward or norms alone."
    )

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """A change, zero at first, beside every bias."""
        chosen = {path: place for path, place in places.leaves.items() if self._means(place, places)}
        if not chosen:
            raise UserError(
                f"bitfit trains biases, and {type(places.model).__name__} has none"
                + ("" if self.biases == "all" else f" in its {self.biases}"),
                hint="Use another method, such as ia3 or lora of a small rank.",
            )
        return Adapter(
            self,
            {
                path: BiasChange(torch.zeros(_bias(place.module).shape, dtype=dtype, device=device))
                for path, place in chosen.items()
            },
        )

    def _means(self, place: ModulePlace, places: Places) -> bool:
        if place.block is None or not isinstance(getattr(place.module, "bias", None), torch.Tensor):
            return False
        linear = isinstance(place.module, (nn.Linear, Conv1D))
        if self.biases == "all":
            return True
        if self.biases == "norms":
            return not linear
        kinds = {sublayer.kind for sublayer in places.sublayers if place.path in sublayer.linears}
        return linear and any(kind.endswith(self.biases) for kind in kinds)


class BiasChange(Change):
    """Δb: what is added to the output of a module, (features,)."""

    def __init__(self, bias: torch.Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.bias.to(y.dtype).expand_as(y)

    def merge_into(self, module: nn.Module) -> None:
        """Add Δb to the module's own bias."""
        _bias(module).add_(self.bias.to(_bias(module).dtype))


def _bias(module: nn.Module) -> torch.Tensor:
    return module.get_parameter("bias")
