"""One run of a few tokens through a base, noting every module with parameters that is called, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

SOURCE_TOKENS, TOKENS = 13, 11  # no likely number of heads


@dataclass(frozen=True)
class Call:
    """One call of a module: its input and output, and how many tokens it was given."""

    path: str
    module: nn.Module
    x: torch.Tensor
    y: torch.Tensor

    @property
    def heads_first(self) -> bool:
        """Whether the input is (rows, heads, length, width)."""
        return self.x.dim() == 4 and self.x.shape[1] not in (TOKENS, SOURCE_TOKENS)

    @property
    def tokens(self) -> int:
        """Tokens of the input, which is (rows, length), (rows, length, …) or (tokens, width)."""
        if self.x.dim() > 2:
            return self.x.shape[0] * self.x.shape[2 if self.heads_first else 1]
        return self.x.numel() if isinstance(self.module, nn.Embedding) else self.x.shape[0]

    @property
    def source(self) -> bool:
        """Whether it was given the encoder's tokens, of an encoder-decoder."""
        return self.tokens == SOURCE_TOKENS

    @property
    def by_token(self) -> bool:
        """Whether it was given the tokens of a sequence, and not something else (positions by positions, in T5)."""
        return self.tokens in (TOKENS, SOURCE_TOKENS)


@torch.no_grad()
def probe(model: PreTrainedModel) -> list[Call]:
    """The calls of all childless modules, in the order in which they end.

    The tensors are kept, so that two calls were given the same one if their addresses are equal.
    """
    calls: list[Call] = []

    def note(path: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            calls.append(Call(path, module, args[0], output))

    handles = [
        module.register_forward_hook(lambda module, args, output, path=path: note(path, module, args, output))
        for path, module in model.named_modules()
        if path and not any(True for _ in module.children())
    ]
    try:
        model(**probe_inputs(model))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def probe_inputs(model: PreTrainedModel) -> dict[str, Any]:
    """Some tokens, and some more for the encoder of an encoder-decoder."""
    device = next(model.parameters()).device
    ids = torch.arange(TOKENS, device=device)[None]
    if model.config.is_encoder_decoder:
        source = torch.arange(SOURCE_TOKENS, device=device)[None]
        return {"input_ids": source, "decoder_input_ids": ids, "use_cache": False}
    return {"input_ids": ids}
