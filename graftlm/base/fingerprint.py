"""Two hashes of a base's weights: which base it is, and whether anything wrote to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import nn


def exact_digest(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, bit for bit.

    Two equal digests mean that nothing was written. Parameters that graftlm added elsewhere are not part of
    ``model``, so the digest is the same with and without adapters.
    """
    tensors: list[tuple[str, torch.Tensor]] = list(model.named_parameters())
    tensors += list(model.named_buffers())
    return _digest(tensors)


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 that identifies a base whatever precision it was loaded in.

    Floating-point weights are rounded to bfloat16 first: a base stored in bfloat16 and loaded in float32, or
    the other way round, keeps its fingerprint. Non-persistent buffers (rotary tables and the like) do not count.
    """
    tensors = sorted(model.state_dict().items())
    return _digest((name, _rounded(tensor)) for name, tensor in tensors)


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _digest(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
