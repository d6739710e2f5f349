"""Which outputs of an attention's linear layers are keys and values, told by what they do.

What a token attends to is the keys and values of other tokens, but never their queries. So in a probe an output of the
last token but one is a key or a value just if the last token's attention depends on it, that is, if the gradient is not
zero. This holds for layers of their own as for fused ones, whatever the order in which a family fuses them.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch

from graftlm.base.places import Places
from graftlm.base.probe import probe_inputs
from graftlm.errors import UserError

DEVIATION = 0.1  # of the random outputs in the probe: small, so that no softmax saturates


def key_value_units(places: Places) -> dict[str, torch.Tensor]:
    """The numbers of the outputs (int64, ascending, on the CPU) that are keys or values, by linear layer.

    Raises:
        UserError: the base has no attention, or one has none, or not as many keys as values.
    """
    attentions = [sublayer for sublayer in places.sublayers if sublayer.kind != "feed_forward"]
    if not attentions:
        raise UserError(
            f"{type(places.model).__name__} has no attention, and so no keys and values to scale",
            hint="Name the layers to scale in targets, or use another method, such as lora.",
        )
    leaves: dict[str, torch.Tensor] = {}
    attended: list[torch.Tensor] = []
    handles = []
    for sublayer in attentions:
        *inner, last = sublayer.linears
        for path in inner:
            module = places.model.get_submodule(path)
            handles.append(module.register_forward_hook(lambda *call, path=path: _replaced(leaves, path, call[2])))
        output = places.model.get_submodule(last)
        handles.append(output.register_forward_pre_hook(lambda _module, args: attended.append(_last(args))))
    try:
        with torch.enable_grad():
            places.model(**probe_inputs(places.model) | {"use_cache": False})  # checkpointed blocks run twice
            weights = [torch.linspace(1, 2, len(each), device=each.device) for each in attended]
            total = torch.stack(
                [(each.float() * weight).sum() for each, weight in zip(attended, weights, strict=True)]
            ).sum()
            found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    units = {
        path: gradient.reshape(-1, gradient.shape[-1])[-2].nonzero().flatten().cpu()
        for path, gradient in zip(leaves, found, strict=True)
        if gradient is not None
    }
    for sublayer in attentions:
        count = sum(len(units.get(path, ())) for path in sublayer.linears)
        if not count or count % 2:
            raise UserError(
                f"{type(places.model).__name__}: found no keys and values around {sublayer.linears[0]}",
                hint="Name the layers to scale in targets.",
            )
    return {path: units[path] for path in places.linears if path in units and len(units[path])}


def _replaced(leaves: dict[str, torch.Tensor], path: str, output: torch.Tensor) -> torch.Tensor:
    """Random numbers in the place of a layer's output; the same ones if a block is run again."""
    if path not in leaves:
        generator = torch.Generator().manual_seed(zlib.crc32(path.encode()))
        values = torch.randn(output.shape, generator=generator) * DEVIATION
        leaves[path] = values.to(output.device, output.dtype).requires_grad_()
    return leaves[path] if leaves[path].shape == output.shape else output


def _last(args: tuple[Any, ...]) -> torch.Tensor:
    """What was attended to by the last token, (width,)."""
    x: torch.Tensor = args[0]
    return x.reshape(-1, x.shape[-1])[-1]
