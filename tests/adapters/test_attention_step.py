"""Attention to a row's own keys and to an adapter's, put together: as over all keys at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from graftlm.adapters.attention_step import attend_to_both, fits
from tests.families import relative


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    keys=st.integers(1, 20),
    length=st.integers(1, 6),
    groups=st.sampled_from([1, 2, 4]),
    masked=st.sampled_from([None, "boolean", "added"]),
    together=st.booleans(),
    partly=st.booleans(),
)
def test_as_over_all_keys_at_once(
    seed: int, keys: int, length: int, groups: int, masked: str | None, together: bool, partly: bool
) -> None:
    torch.manual_seed(seed)
    rows, shared, width = 4, 2, 8
    query = 3 * torch.randn(rows, shared * groups, 1, width, dtype=torch.float64)
    key, value = (torch.randn(rows, shared, keys, width, dtype=torch.float64) for _ in range(2))
    served = slice(1, 3) if together else torch.tensor([0, 3])
    before = [torch.randn(2, shared, length, width, dtype=torch.float64) for _ in range(2)]
    visible = torch.rand(rows, 1, 1, keys) < 0.7
    visible[..., -1] = True
    seen = torch.rand(2, 1, 1, length) < 0.7
    seen[..., -1] = True
    least = torch.finfo(torch.float64).min
    added = torch.zeros(visible.shape, dtype=torch.float64).masked_fill(~visible, least)
    mask = {None: None, "boolean": visible, "added": added}[masked]
    with torch.no_grad():
        assert fits(query, None, None)
        found = attend_to_both(query, key, value, mask, 0.3, tuple(before), seen if partly else None, served)
    visible = visible if masked else torch.ones_like(visible)
    seen = seen if partly else torch.ones_like(seen)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=visible, scale=0.3, enable_gqa=True)
    expected[served] = scaled_dot_product_attention(
        query[served],
        torch.cat([before[0], key[served]], dim=2),
        torch.cat([before[1], value[served]], dim=2),
        attn_mask=torch.cat([seen, visible[served]], dim=3),
        scale=0.3,
        enable_gqa=True,
    )
    assert found.shape == (rows, 1, shared * groups, width)
    assert relative(found[:, 0], expected[:, :, 0]) < 1e-6


def test_other_attention_is_not_for_it() -> None:
    one, two = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 2, 4)
    assert not fits(one, None, None), "it gives no gradients"
    with torch.no_grad():
        assert fits(one, None, None)
        assert not fits(two, None, None)
        assert not fits(one, 30.0, None)
        assert not fits(one, None, torch.zeros(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_prefix_that_holds_no_numbers_reaches_its_own_rows_alone(bad: float) -> None:
    query, key, value = torch.randn(3, 2, 1, 4), torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4)
    before = torch.randn(2, 2, 3, 4), torch.full((2, 2, 3, 4), bad)
    before[1][1] = 1.0
    with torch.no_grad():
        found = attend_to_both(query, key, value, None, None, before, None, slice(1, 3))
    assert [bool(row.isfinite().all()) for row in found] == [True, False, True]
