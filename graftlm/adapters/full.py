"""Full fine-tuning of a copy: the upper baseline that the small methods are measured against.

Every module that is called token by token has a trained copy of its own; the base itself stays as it is, and serves the
rows of all other adapters in the same forward pass. Weights that a base ties are tied in the copy. What is not
called by token (T5's relative positions) stays frozen.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from graftlm.adapters.method import Adapter, MethodConfig, register_method
from graftlm.adapters.own_module import OwnModule, own_copy
from graftlm.base.places import ModulePlace, Places
from graftlm.errors import UserError


@register_method
class Full(MethodConfig):
    """A trained copy of all weights."""

    method: Literal["full"] = "full"
    embeddings: bool = Field(True, description="Train the embeddings and the language head too.")

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Copies that equal the base."""
        chosen = {path: place for path, place in places.leaves.items() if self.embeddings or place.block is not None}
        if places.head is not None and self.embeddings and places.head in places.linears:
            chosen[places.head] = places.linears[places.head]
        if not chosen:
            raise UserError(f"{type(places.model).__name__} has no module that could be trained as a copy")
        own = {path: own_copy(place, dtype, device) for path, place in chosen.items()}
        _tie(chosen, own)
        return Adapter(self, own)


def _tie(places: dict[str, ModulePlace], own: dict[str, OwnModule]) -> None:
    """Weights that are one in the base become one in the copies."""
    first: dict[int, tuple[str, str]] = {}
    for path, place in places.items():
        for name, parameter in place.module.named_parameters(recurse=False):
            if id(parameter) in first:
                other, other_name = first[id(parameter)]
                setattr(own[path].module, name, getattr(own[other].module, other_name))
            else:
                first[id(parameter)] = (path, name)
