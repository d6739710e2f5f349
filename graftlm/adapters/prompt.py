"""Prompt tuning: trained vectors before the input.

Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning": the input [P; X] in the place of X,
P (length, width) trained, all else frozen; the starts are those of its section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.method import Adapter, MethodConfig, register_method
from graftlm.adapters.prompt_files import Vectors, restore_vectors, store_vectors
from graftlm.adapters.stored import Stored, register_peft_kind
from graftlm.adapters.virtual import MOST_VIRTUAL_TOKENS
from graftlm.base.loading import context_length
from graftlm.base.places import EmbeddingPlace, Places
from graftlm.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@register_method
class Prompt(MethodConfig):
    """Prompt tuning: trained vectors before the input."""

    method: Literal["prompt"] = "prompt"
    length: int = Field(20, ge=1, le=MOST_VIRTUAL_TOKENS, description="How many virtual tokens stand before the input.")
    init: Literal["vocabulary", "random", "text"] = Field(
        "vocabulary",
        description="What they start from: vocabulary (embeddings of tokens drawn at random), random (uniform in "
        "-0.5 to 0.5), or text (the embeddings of init_text).",
    )
    init_text: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Text to start from with init: text; its tokens are repeated or cut to the length."
    )
    init_ids: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="The tokens of init_text; filled in by the base's tokenizer."
    )

    @model_validator(mode="after")
    def _one_start(self) -> Prompt:
        given = self.init_text is not None or bool(self.init_ids)
        if given and self.init != "text":
            raise ValueError("init_text: needs init: text beside it")
        if self.init == "text" and not given:
            raise ValueError("init: text needs init_text, the text to start from")
        return self

    def bind(self, tokenizer: PreTrainedTokenizerBase | None) -> MethodConfig:
        """The tokens of the text to start from, without special tokens.

        Raises:
            UserError: there is no tokenizer, or the text has no tokens.
        """
        if self.init_text is None or self.init_ids:
            return self
        if tokenizer is None:
            raise UserError(
                "init: text needs a tokenizer, and this model has none",
                hint="AdaptedModel(base, tokenizer), or give init_ids.",
            )
        ids: list[int] = tokenizer(self.init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"init_text {self.init_text!r} has no tokens")
        return self.model_copy(update={"init_ids": ids})

    def describe(self) -> str:
        """One line for people."""
        return f"prompt of {self.length} virtual tokens, from {self.init}"

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Make the vectors.

        Raises:
            UserError: the base has no input embedding, the prompt fills its context, or a token to start from is
                outside its vocabulary.
        """
        place = embedding_for(places, self.length)
        start = self._start(places, place, torch.Generator().manual_seed(seed))
        return Adapter(self, virtual=Vectors(start.to(device, dtype)))

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """As peft writes it."""
        assert adapter.virtual is not None
        return store_vectors("PROMPT_TUNING", adapter.virtual, places, source, {"prompt_tuning_init": "RANDOM"})

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """As peft reads it, with our own settings."""
        return Adapter(self, virtual=restore_vectors(stored, self.length, places, device=device))

    def _start(self, places: Places, place: EmbeddingPlace, generator: torch.Generator) -> torch.Tensor:
        """Drawn in float32 on the CPU, so that one seed gives one adapter whatever the device and precision."""
        if self.init == "random":
            return torch.rand(self.length, place.width, generator=generator) - 0.5
        if self.init == "vocabulary":
            drawn = torch.randperm(place.vocabulary, generator=generator).tolist()
            return embedded(places, place, repeated(drawn, self.length))
        ids = self.init_ids
        if ids is None:
            raise UserError("init: text needs the tokens of init_text", hint="AdaptedModel.add finds them.")
        if max(ids) >= place.vocabulary:
            raise UserError(f"init_ids: {max(ids)} is outside the vocabulary of {place.vocabulary}")
        return embedded(places, place, repeated(ids, self.length))


@register_peft_kind("PROMPT_TUNING")
def read_prompt(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """A prompt that peft wrote."""
    vectors = restore_vectors(stored, None, places, device=device)
    return Adapter(Prompt(length=vectors.length, init="random"), virtual=vectors)


def embedding_for(places: Places, length: int) -> EmbeddingPlace:
    """The input embedding, for ``length`` virtual tokens.

    Raises:
        UserError: there is none, or they leave no room in the context.
    """
    if places.embedding is None:
        raise UserError(
            f"{type(places.model).__name__} has no input embedding that transformers knows, so it takes no virtual "
            "tokens",
            hint="Use a method that changes linear layers, such as lora.",
        )
    context = context_length(places.model.config)
    if length >= context:
        raise UserError(
            f"{length} virtual tokens fill the context of {context}", hint=f"Use fewer than {context}, by far."
        )
    return places.embedding


def repeated(ids: Sequence[int], length: int) -> list[int]:
    """The ids over and over, ``length`` of them."""
    return [ids[number % len(ids)] for number in range(length)]


@torch.no_grad()
def embedded(places: Places, place: EmbeddingPlace, ids: Sequence[int]) -> torch.Tensor:
    """What the blocks are given for some tokens (n, width): with the scale that a family puts on (Gemma, BART)."""
    ran = next((path for path in place.paths if path in places.leaves), place.paths[0])
    module: nn.Module = places.model.get_submodule(ran)
    device = next(module.parameters()).device
    found: torch.Tensor = module(torch.tensor([list(ids)], device=device))
    return found[0].float().cpu() if found.dtype in (torch.float16, torch.bfloat16) else found[0].cpu()
