"""A module of the base as an adapter's own trained copy."""

from __future__ import annotations

import copy

import torch
from torch import nn

from graftlm.adapters.method import Change
from graftlm.base.places import ModulePlace
from graftlm.base.products import multiply_fast


class OwnModule(Change):
    """For its own tokens, a trained copy takes the module's place: what is added is own(x) − y."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point():
            x = x.to(next(self.module.parameters()).dtype)
        own: torch.Tensor = self.module(x)
        return own.to(y.dtype) - y

    def merge_into(self, module: nn.Module) -> None:
        """Write the copy's weights over the module's."""
        for name, parameter in self.module.named_parameters():
            module.get_parameter(name).copy_(parameter.to(module.get_parameter(name).dtype))


def own_copy(place: ModulePlace, dtype: torch.dtype, device: torch.device) -> OwnModule:
    """A copy of a module with parameters that are trained, without what adapters have put on the original."""
    original = place.module
    twin = copy.copy(original)
    twin.__dict__ = {key: value for key, value in original.__dict__.items() if key != "forward"}
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        twin.__dict__[hooks] = type(original.__dict__[hooks])()
    module = copy.deepcopy(twin).to(device=device, dtype=dtype)
    module.requires_grad_(True)
    multiply_fast(module)
    return OwnModule(module)
