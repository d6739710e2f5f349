"""Tensors on their way into a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU and contiguous, those of them copied that share memory: safetensors refuses such."""
    seen: set[int] = set()
    result: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        result[name] = here.clone() if here.numel() and place in seen else here
        seen.add(place)
    return result
