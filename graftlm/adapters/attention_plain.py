"""Attention without anything of ours: by torch's fused function, or step by step where scores are capped."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from graftlm.base.threads import READ, threads_for


def attend_plainly(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    *,
    is_causal: bool,
    softcap: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention without anything of ours: (rows, queries, heads, width)."""
    with threads_for(READ * (key.numel() + value.numel())):
        if softcap is not None:
            return _capped(query, key, value, mask, is_causal, softcap, kwargs["scaling"])
        if query.shape[2] == 1 and query.shape[1] > key.shape[1] and position_bias is None:
            return _attend_in_groups(query, key, value, mask, kwargs.get("scaling"))
        output: torch.Tensor
        output, _ = sdpa_attention_forward(
            module, query, key, value, mask, is_causal=is_causal, position_bias=position_bias, **kwargs
        )
        return output


def _attend_in_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of one query a row, where several heads share keys: they stand as queries of one head, uncopied."""
    rows, heads, _, width = query.shape
    groups = query.view(rows, key.shape[1], heads // key.shape[1], width)
    output = nn.functional.scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, 1, heads, -1)


def _capped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    cap: float,
    scaling: float,
) -> torch.Tensor:
    """Attention whose scores are capped, cap · tanh(score / cap), which torch's fused attention does not know."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / cap)) * cap
    if mask is None and is_causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()
