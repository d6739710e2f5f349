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

from graftlm.adapters.routing import current_call, during


def checkpoint_blocks(blocks: list[nn.Module]) -> None:
    """Recompute these blocks in the backward pass instead of keeping their activations."""
    for block in blocks:
        override = block.__dict__.get("forward")  # another library's, such as accelerate's
        if not isinstance(override, _Recomputed):
            block.forward = _Recomputed(block.forward, override)


def keep_activations(blocks: list[nn.Module]) -> None:
    """Undo :func:`checkpoint_blocks`."""
    for block in blocks:
        recomputed = block.__dict__.get("forward")
        if isinstance(recomputed, _Recomputed):
            del block.__dict__["forward"]
            if recomputed.override is not None:
                block.forward = recomputed.override


class _Recomputed:
    """A block's ``forward`` that keeps its inputs only. ``override``: what stood in its place on the instance."""

    def __init__(self, forward: Callable[..., Any], override: Callable[..., Any] | None) -> None:
        self.forward = forward
        self.override = override

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        call = current_call()

        def routed_forward(*inner_args: Any, **inner_kwargs: Any) -> Any:
            with during(call):
                return self.forward(*inner_args, **inner_kwargs)

        return checkpoint(routed_forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
