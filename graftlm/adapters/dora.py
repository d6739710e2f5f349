"""DoRA: a weight's direction and magnitude trained apart.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5: W' = m (W + sBA) / ‖W + sBA‖, with the norm
of each output's row, and m, one number an output, at first ‖W‖. The norm counts as a constant in the backward pass
(section 4.3). Beside the base's output y = Wx + b that is y' = y + (m/‖·‖ − 1)(y − b) + m/‖·‖ · sBAx.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from graftlm.adapters.lora_embedding import LowRankEmbedding, add_to_weight
from graftlm.adapters.method import Change, LowRank
from graftlm.base.places import LinearPlace, ModulePlace
from graftlm.base.products import linear, matmul
from graftlm.errors import UserError


class DoRA(Change):
    """The update of one linear layer or embedding.

    ``weight`` and ``bias`` give the base's (out, in) and (out,): functions, so that the adapter neither owns nor copies
    them. ``magnitude`` (out,) is ‖W + sBA‖ at first.
    """

    def __init__(
        self,
        low_rank: LowRank | LowRankEmbedding,
        weight: Callable[[], torch.Tensor],
        bias: Callable[[], torch.Tensor | None],
        magnitude: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.low_rank = low_rank
        self._weight, self._bias = weight, bias
        self._squares: torch.Tensor | None = None
        if magnitude is None:
            magnitude = self.norm().to(low_rank.lora_A.dtype)
        self.magnitude = nn.Parameter(magnitude)
        self.dropout = low_rank.dropout if isinstance(low_rank, LowRank) else 0.0

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        bias = self._bias()
        return self._update(x, y if bias is None else y - bias)

    def with_dropout(self, x: torch.Tensor, kept: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """With dropout the base's own product, too, is of what is left of x, as peft does it."""
        return self._update(kept, linear(kept, self._weight().to(kept.dtype)))

    def _update(self, x: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        """(m/‖·‖ − 1) Wx + m/‖·‖ · sBAx, of x and Wx."""
        factor = self.magnitude / self.norm()
        return (factor - 1) * product.to(factor.dtype) + factor * self._low_rank_product(x, product)

    def _low_rank_product(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if isinstance(self.low_rank, LowRankEmbedding):
            found: torch.Tensor = self.low_rank(x, y)
            return found
        A, B = self.low_rank.factors()
        return linear(linear(x.to(A.dtype), A), B) * self.low_rank.scale

    @torch.no_grad()
    def norm(self) -> torch.Tensor:
        """‖W + sBA‖ of each output, (out,), by its three terms, so that BA is never made; in float32 or wider."""
        A, B = self.low_rank.factors()
        weight, scale = self._weight(), self.low_rank.scale
        dtype = torch.promote_types(A.dtype, torch.float32)
        A, B = A.to(dtype), B.to(dtype)
        if self._squares is None or self._squares.dtype != dtype or self._squares.device != A.device:
            self._squares = weight.to(dtype).square().sum(dim=1)  # the base never changes
        crossed = (matmul(weight.to(dtype), A.T) * B).sum(dim=1)
        own = (B @ (A @ A.T) * B).sum(dim=1)
        return (self._squares + 2 * scale * crossed + scale * scale * own).clamp_min(0).sqrt()

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """The update as a dense (out, in) matrix."""
        factor = (self.magnitude / self.norm())[:, None]
        return (factor - 1) * self._weight().to(factor.dtype) + factor * self.low_rank.delta()

    def merge_into(self, module: nn.Module) -> None:
        """Add the update to the weight."""
        add_to_weight(module, self.delta())


def dora(place: ModulePlace, low_rank: LowRank | LowRankEmbedding, magnitude: torch.Tensor | None = None) -> DoRA:
    """A DoRA at a place of the base.

    Raises:
        UserError: the base does not hold the place's weight as a plain matrix.
    """
    module = place.module

    def weight() -> torch.Tensor:
        dense = place.dense_weight() if isinstance(place, LinearPlace) else module.get_parameter("weight").T
        if dense is None or not dense.is_floating_point():
            raise UserError(
                f"dora needs the dense weight of {place.path}, which this base does not hold",
                hint="Load the base unquantised, or leave dora out.",
            )
        return dense

    def bias() -> torch.Tensor | None:
        found = getattr(module, "bias", None)
        return found if isinstance(found, torch.Tensor) else None

    return DoRA(low_rank, weight, bias, magnitude)
