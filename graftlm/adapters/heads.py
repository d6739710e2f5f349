"""Heads of an adapter's own, on the final hidden state: classes instead of tokens."""

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
