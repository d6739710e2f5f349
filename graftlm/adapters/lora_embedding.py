"""LoRA on an embedding: rows of the table gain B times a column of A, looked up by the token's id.

Hu et al. 2021, equation 3, with a one-hot x. As in peft, A (rank, vocabulary) starts at zero and B (width, rank) is
drawn from a standard normal distribution, inputs are not dropped out, and a head that is tied to the embedding stays as
it is.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.method import Change


class LowRankEmbedding(Change):
    """y += scale · B A[:, id], with A (rank, vocabulary) and B (width, rank).

    ``factor`` is what the family multiplies its embeddings by (Gemma, BART), which it does to the update too;
    ``padding`` the id, if any, whose row gets no gradient.
    """

    def __init__(
        self, A: torch.Tensor, B: torch.Tensor, *, scale: float, factor: float = 1.0, padding: int | None = None
    ) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(B)
        self.scale = scale
        self.factor = factor
        self.padding = padding

    @property
    def rank(self) -> int:
        """The rank of the product."""
        return self.lora_A.shape[0]

    def factors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A and B."""
        return self.lora_A, self.lora_B

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x (tokens,) ids, y (tokens, width) → (tokens, width)."""
        inner = nn.functional.embedding(x, self.lora_A.T, padding_idx=self.padding)
        return (inner @ self.lora_B.T) * (self.scale * self.factor)

    @torch.no_grad()
    def delta(self) -> torch.Tensor:
        """The update as a dense (width, vocabulary) matrix, the family's factor left out."""
        return self.scale * (self.lora_B @ self.lora_A)

    def merge_into(self, module: nn.Module) -> None:
        """Add the update to the table."""
        add_to_weight(module, self.delta())


def embedding_factor(module: nn.Module) -> float:
    """What an embedding multiplies its rows by."""
    factor = getattr(module, "embed_scale", 1.0)
    return float(factor)


def add_to_weight(module: nn.Module, delta: torch.Tensor) -> None:
    """Add an update (out, in) to the weight of a linear layer, or of an embedding (out is then its width)."""
    weight = module.get_parameter("weight")
    change = delta.T if isinstance(module, (Conv1D, nn.Embedding)) else delta
    weight.copy_((weight.to(change.dtype) + change).to(weight.dtype))
