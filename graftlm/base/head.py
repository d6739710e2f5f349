"""The language head as one function, with whatever the family does to its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from graftlm.base.probe import probe_inputs
from graftlm.errors import UserError

Transform = Callable[[torch.Tensor], torch.Tensor]


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The model below the language head: ids in, final hidden states out. An encoder without a head is all of it."""
    if model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        return model
    inner = getattr(model, model.base_model_prefix, None)
    if isinstance(inner, torch.nn.Module) and inner is not model:
        return inner
    if model.config.is_encoder_decoder and hasattr(model, "decoder"):
        return _TwoStacks(model)
    raise UserError(f"{type(model).__name__} does not separate its language head from the rest")


class _TwoStacks(torch.nn.Module):
    """Encoder and decoder of a model that holds both beside its head (T5), as one module.

    It registers neither: paths and parameters stay those of the model.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.__dict__["_model"] = model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        decoder_input_ids: torch.Tensor | None = None,
        encoder_outputs: Any = None,
        decoder_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        model: Any = self.__dict__["_model"]
        if encoder_outputs is None:
            encoder_outputs = model.encoder(input_ids=input_ids, attention_mask=attention_mask)
        output = model.decoder(
            input_ids=decoder_input_ids,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoder_outputs[0],
            encoder_attention_mask=attention_mask,
            **kwargs,
        )
        output["encoder_last_hidden_state"] = encoder_outputs[0]
        return output


def language_head(model: PreTrainedModel) -> Transform | None:
    """A function from final hidden states (…, hidden) to logits (…, vocabulary); None where there is no head.

    It calls the family's head (tied, quantised or adapted; with the transform before it, in an encoder) and scales,
    shifts or caps as the family's own forward does. One probe compares it with that forward.

    Raises:
        UserError: the family does something else to its logits.
    """
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if output is None:
        return None
    head: Transform = _top_level(model, output)
    before, after = _before(model), _after(model)

    def score(hidden: torch.Tensor) -> torch.Tensor:
        return after(head(before(hidden)))

    _check(model, score)
    return score


def _top_level(model: PreTrainedModel, output: torch.nn.Module) -> torch.nn.Module:
    """The model's own child that holds the output layer: the layer itself, or (BERT) one with a transform before it."""
    for child in model.children():
        if any(module is output for module in child.modules()):
            return child
    return output


def _before(model: PreTrainedModel) -> Transform:
    """T5 scales the decoder's states where its embeddings are tied."""
    if getattr(model.config, "scale_decoder_outputs", False):
        factor: float = model.config.d_model**-0.5
        return lambda hidden: hidden * factor
    return lambda hidden: hidden


def _after(model: PreTrainedModel) -> Transform:
    """Gemma 2 and 3 cap, cap · tanh(x / cap); Granite divides; Cohere multiplies; BART adds a bias."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None)
    divisor = getattr(config, "logits_scaling", None)
    factor = getattr(config, "logit_scale", None)
    if cap is not None:
        return lambda logits: torch.tanh(logits / cap) * cap
    if divisor is not None:
        return lambda logits: logits / divisor
    if factor is not None:
        return lambda logits: logits * factor
    if isinstance(getattr(model, "final_logits_bias", None), torch.Tensor):
        return lambda logits: logits + model.get_buffer("final_logits_bias").to(logits.dtype)
    return lambda logits: logits


@torch.no_grad()
def _check(model: PreTrainedModel, score: Transform) -> None:
    inputs = probe_inputs(model)
    expected = model(**inputs).logits.float()
    ours = score(backbone(model)(**inputs).last_hidden_state).float()
    if not torch.allclose(ours, expected, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits in a way that graftlm does not know "
            f"(largest difference {(ours - expected).abs().max().item():.3g})",
            hint="Please report the model family; training it would optimise the wrong loss.",
        )
