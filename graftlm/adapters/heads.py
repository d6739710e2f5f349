"""Heads of an adapter's own, on the final hidden state: classes or rewards instead of tokens."""

from __future__ import annotations

import torch
from torch import nn

from graftlm.adapters.method import Head
from graftlm.base.products import linear

DEVIATION = 0.02  # of the first weights, as encoders start theirs


class ClassHead(Head):
    """One linear layer: hidden states (n, hidden) → logits (n, classes), in the head's own dtype.

    It reads single positions, so a classifier has it at one token of a row and a tagger at one of each word.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)

    @classmethod
    def new(cls, hidden: int, classes: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> ClassHead:
        """Weights drawn from ``seed`` alone, whatever the device and precision; no bias at first."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(classes, hidden).normal_(std=DEVIATION, generator=generator)
        return cls(weight.to(device, dtype), torch.zeros(classes, dtype=dtype, device=device))

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden.to(self.weight.dtype), self.weight, self.bias)


class RewardHead(Head):
    """One linear layer: hidden states (n, hidden) → rewards (n, criteria) as they come, in the head's own dtype.

    It reads single positions: the last token of an answer, or an encoder's first. ``mean`` and ``deviation``
    (criteria,) are those of the rewards of reference answers; they are stored with it, and no part of training.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor | None = None,
        deviation: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(bias)
        self.register_buffer("mean", torch.zeros_like(bias) if mean is None else mean)
        self.register_buffer("deviation", torch.ones_like(bias) if deviation is None else deviation)

    @classmethod
    def new(cls, hidden: int, criteria: int, *, seed: int, dtype: torch.dtype, device: torch.device) -> RewardHead:
        """Weights from N(0, 1 / (hidden + 1)) (Stiennon et al. 2020, appendix B), drawn from ``seed`` alone; bias 0."""
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(criteria, hidden).normal_(std=(hidden + 1) ** -0.5, generator=generator)
        return cls(weight.to(device, dtype), torch.zeros(criteria, dtype=dtype, device=device))

    @property
    def criteria(self) -> int:
        """How many rewards it gives."""
        return self.weight.shape[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden.to(self.weight.dtype), self.weight, self.bias)

    def normalised(self, rewards: torch.Tensor) -> torch.Tensor:
        """Rewards (…, criteria) on the scale where reference answers have mean 0 and variance 1."""
        return (rewards - self.mean.to(rewards)) / self.deviation.to(rewards)

    @torch.no_grad()
    def set_scale(self, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        """Keep mean and deviation (criteria,) of reference answers."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)
