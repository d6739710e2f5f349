"""Which base it is, in any precision; and whether a single bit was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from graftlm.base.fingerprint import base_fingerprint, exact_digest
from graftlm.base.loading import load_base
from tests.families import FAMILIES, make_base


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_checkpoint_keeps_its_fingerprint_in_any_precision(family: str, tmp_path: Path) -> None:
    make_base(family).to(torch.bfloat16).save_pretrained(tmp_path)
    prints = {
        dtype: base_fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype))
        for dtype in (torch.bfloat16, torch.float32, torch.float64)
    }
    assert len(set(prints.values())) == 1


def test_a_float32_checkpoint_keeps_its_fingerprint_in_bfloat16(tmp_path: Path) -> None:
    make_base("llama").save_pretrained(tmp_path)
    wide, narrow = (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert base_fingerprint(wide) == base_fingerprint(narrow)
    assert exact_digest(wide) != exact_digest(narrow)


@pytest.mark.parametrize("path", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_one_changed_weight_changes_both(path: str) -> None:
    base = make_base("llama")
    before = base_fingerprint(base), exact_digest(base)
    with torch.no_grad():
        base.get_parameter(path).view(-1)[7] += 0.5
    assert base_fingerprint(base) != before[0]
    assert exact_digest(base) != before[1]


def test_the_digest_sees_the_last_bit_and_buffers() -> None:
    base = make_base("llama")
    before = exact_digest(base)
    weight = base.model.norm.weight
    with torch.no_grad():
        old = weight[3].clone()
        weight[3] = torch.nextafter(weight[3], torch.tensor(9.0))
        assert exact_digest(base) != before
        weight[3] = old
        assert exact_digest(base) == before
        next(base.buffers()).view(-1)[0] *= 2
    assert exact_digest(base) != before


def test_other_weights_are_another_base() -> None:
    assert base_fingerprint(make_base("llama")) == base_fingerprint(make_base("llama"))
    assert base_fingerprint(make_base("llama")) != base_fingerprint(make_base("llama", seed=1))


def test_the_fingerprint_of_the_embedded_base_does_not_depend_on_the_precision() -> None:
    prints = {base_fingerprint(load_base("tiny", dtype=dtype).model) for dtype in ("float32", "bfloat16")}
    assert len(prints) == 1
