"""Virtual tokens as peft writes and reads them: the one tensor ``prompt_embeddings``, for tokens before the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import nn

from graftlm.adapters.method import VirtualTokens
from graftlm.adapters.stored import CONFIG, WEIGHTS, Stored, checked, does_not_fit, missing_tensor, peft_task_type
from graftlm.adapters.virtual import MOST_VIRTUAL_TOKENS
from graftlm.base.loading import base_kind
from graftlm.base.places import Places
from graftlm.errors import UserError

KEY = "prompt_embeddings"


class Vectors(VirtualTokens):
    """Plain trained vectors (length, width)."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.prompt_embeddings = nn.Parameter(values)
        self.length = len(values)

    def forward(self) -> torch.Tensor:
        """The vectors themselves."""
        return self.prompt_embeddings


class PeftPrompt(BaseModel):
    """What is read of peft's adapter_config.json."""

    num_virtual_tokens: int = Field(ge=1, le=MOST_VIRTUAL_TOKENS)


@torch.no_grad()
def store_vectors(
    kind: str, virtual: VirtualTokens, places: Places, source: str, settings: Mapping[str, Any]
) -> Stored:
    """peft's tensor and configuration. For encoder-decoders it wants room for twice the tokens, and uses the first."""
    vectors = virtual()
    base = base_kind(places.model.config)
    if base == "encoder-decoder":
        vectors = torch.cat([vectors, torch.zeros_like(vectors)])
    config = {
        "peft_type": kind,
        "task_type": peft_task_type(places),
        "base_model_name_or_path": source,
        "inference_mode": True,
        "num_virtual_tokens": virtual.length,
        "token_dim": vectors.shape[1],
        "num_transformer_submodules": 2 if base == "encoder-decoder" else 1,
        "num_layers": len(places.blocks),
        **settings,
    }
    return Stored({KEY: vectors}, config)


def restore_vectors(stored: Stored, length: int | None, places: Places, *, device: torch.device) -> Vectors:
    """The vectors in peft's tensor, in float32 or wider. ``length`` None: as peft's configuration says.

    Raises:
        UserError: the tensor is missing, not alone, or of another shape.
    """
    folder = stored.folder
    if length is None:
        length = checked(PeftPrompt, stored.peft or {}, folder / CONFIG).num_virtual_tokens
    if places.embedding is None:
        raise UserError(f"{type(places.model).__name__} has no input embedding for virtual tokens")
    if KEY not in stored.tensors:
        raise missing_tensor(folder, KEY)
    extra = sorted(stored.tensors.keys() - {KEY})
    if extra:
        raise UserError(f"{folder / WEIGHTS}: besides {KEY} it holds {extra[0]}, which graftlm cannot read")
    values = stored.tensors[KEY]
    shapes = [(length, places.embedding.width)]
    if base_kind(places.model.config) == "encoder-decoder":
        shapes.append((2 * length, places.embedding.width))
    if tuple(values.shape) not in shapes:
        raise does_not_fit(folder, f"{KEY} is {tuple(values.shape)}, and {' or '.join(map(str, shapes))} is needed")
    dtype = torch.promote_types(values.dtype, torch.float32)
    return Vectors(values[:length].to(device, dtype, copy=True))
