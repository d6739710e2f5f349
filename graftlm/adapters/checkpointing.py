"""Gradient checkpointing of a frozen base: recompute a block's activations in the backward pass.

transformers checkpoints in train mode only, and a base runs in eval mode, so the blocks are wrapped here. The
routing is captured when a block is called and put back around its recomputation, which may run in another thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from graftlm.adapters.routing import current_routing, routed


def checkpoint_blocks(blocks: list[nn.Module]) -> None:
    """Recompute these blocks in the backward pass instead of keeping their activations."""
    for block in blocks:
        if "forward" not in block.__dict__:
            block.forward = _recomputed(block.forward)


def keep_activations(blocks: list[nn.Module]) -> None:
    """Undo :func:`checkpoint_blocks`."""
    for block in blocks:
        block.__dict__.pop("forward", None)


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        routing = current_routing()

        def routed_forward(*inner_args: Any, **inner_kwargs: Any) -> Any:
            with routed(routing):
                return forward(*inner_args, **inner_kwargs)

        return checkpoint(routed_forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
