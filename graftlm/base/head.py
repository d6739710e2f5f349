"""The language head as one function, with whatever the family does to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from graftlm.errors import UserError


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model below the language head: ids in, final hidden states out."""
    inner = getattr(model, model.base_model_prefix, None)
    if not isinstance(inner, torch.nn.Module) or inner is model:
        raise UserError(f"{type(model).__name__} does not separate its language head from the rest")
    return inner


def language_head(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from final hidden states (…, hidden) to logits (…, vocabulary).

    It calls the head module (tied, quantised or adapted) and then caps or scales as the family's own forward does
    (Gemma 2 and 3 cap: cap · tanh(x / cap); Granite divides; Cohere multiplies). One probe compares it with
    that forward.

    Raises:
        UserError: the family does something else to its logits.
    """
    head: Callable[[torch.Tensor], torch.Tensor] = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    finish = _logit_transform(model.config.get_text_config())

    def score(hidden: torch.Tensor) -> torch.Tensor:
        return finish(head(hidden))

    _check(model, score)
    return score


def _logit_transform(config: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    if divisor is not None:
        return lambda logits: logits / divisor
    if factor is not None:
        return lambda logits: logits * factor
    return lambda logits: logits


@torch.no_grad()
def _check(model: PreTrainedModel, score: Callable[[torch.Tensor], torch.Tensor]) -> None:
    ids = torch.tensor([[0, 1]], device=model.device)
    expected = model(input_ids=ids, use_cache=False).logits.float()
    ours = score(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(ours, expected, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits in a way that graftlm does not know "
            f"(largest difference {(ours - expected).abs().max().item():.3g})",
            hint="Please report the model family; training it would optimise the wrong loss.",
        )
