"""Attention in a step of decoding, where some rows find keys and values of adapters before their own.

Attention over two sets of keys is the mean of that over each, weighted by the sums of their exponentiated scores. So
one call attends to the rows' own keys for all rows, where they lie; what the few keys of prefixes give is put to it,
and no table of keys is copied. (The same sums let FlashAttention go through keys in blocks: Dao et al. 2022.)
"""

from __future__ import annotations

import torch

from graftlm.base.threads import READ, threads_for

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def fits(query: torch.Tensor, softcap: float | None, position_bias: torch.Tensor | None) -> bool:
    """Whether :func:`attend_to_both` knows this attention: one query a row, on a CPU, nothing done to its scores."""
    plain = softcap is None and position_bias is None
    return plain and query.is_cpu and query.shape[2] == 1 and not torch.is_grad_enabled()


def attend_to_both(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    before: tuple[torch.Tensor, torch.Tensor],
    seen: torch.Tensor | None,
    rows: slice | torch.Tensor,
) -> torch.Tensor:
    """Attention of one query a row, (rows, 1, heads, width).

    query (rows, heads, 1, width); key and value (rows, key/value heads, keys, width); mask (rows or 1, 1, 1, keys),
    boolean or added. ``before``: keys and values (served rows, key/value heads, length, width) of the rows ``rows``,
    of which ``seen`` (served rows, 1, 1, length) are there, or all.
    """
    number, heads, _, width = query.shape
    scale = width**-0.5 if scaling is None else scaling
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)
    groups = query.view(number, key.shape[1], heads // key.shape[1], width)  # heads that share keys: queries of one
    with threads_for(READ * (key.numel() + value.numel())):
        output, own_sums = _flash(groups, key, value, attn_mask=mask, scale=scale)
    keys, values = before
    scores = (groups[rows] * scale) @ keys.transpose(2, 3)
    scores = scores.to(own_sums.dtype)
    if seen is not None:
        scores = scores.masked_fill_(~seen, torch.finfo(scores.dtype).min)
    sums = scores.logsumexp(dim=-1, keepdim=True)
    attended = (scores - sums).exp_().to(values.dtype) @ values
    share = torch.sigmoid(sums - own_sums[rows][..., None]).to(output.dtype)
    output[rows] = torch.lerp(output[rows], attended, share)
    result: torch.Tensor = output.reshape(number, 1, heads, -1)
    return result
