"""The language head as one function: what a family does to its logits is known, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from graftlm import AdaptedModel
from graftlm.errors import UserError
from tests.families import FAMILIES, family_config, make_base


@pytest.mark.parametrize("family", FAMILIES)
def test_score_of_hidden_states_is_the_familys_own_logits(family: str) -> None:
    model = AdaptedModel(make_base(family))
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids).logits
        hidden = model.hidden(ids).last_hidden_state
        torch.testing.assert_close(model.score(hidden.flatten(0, 1)), expected.flatten(0, 1))
    assert hidden.shape == (2, 7, 32)
    assert expected.shape[-1] == model.vocabulary


class Shouting(LlamaForCausalLM):
    """Changes its logits in a way that no config tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


def test_an_unknown_change_of_the_logits_is_refused() -> None:
    with pytest.raises(UserError, match="changes its logits in a way that graftlm does not know"):
        AdaptedModel(Shouting(family_config("llama")))
