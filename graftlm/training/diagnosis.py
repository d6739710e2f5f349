"""Where a loss or gradient that is not finite came from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from graftlm.adapters.method import Adapter
from graftlm.adapters.model import AdaptedModel
from graftlm.training.forward import RoutedRow, build_micro_batch, micro_batch_log_probs


def find_non_finite(model: AdaptedModel, rows: Sequence[RoutedRow], adapter: str, loss: float, norm: float) -> str:
    """One sentence: the first row and module that give NaN or infinity, or that only the gradient does."""
    parameter = non_finite_parameter(model.adapter(adapter))
    if parameter is not None:
        return f"the parameter {parameter} of the adapter itself is not finite"
    for number, row in enumerate(rows):
        found = _first_bad_module(model, rows, number)
        if found is not None:
            return f"loss {loss:.4g}, gradient norm {norm:.4g}; {row.row.source}, row {row.row.row}: first in {found}"
    return f"loss {loss:.4g}, gradient norm {norm:.4g}; the forward pass is finite, so it came from the gradient"


def non_finite_parameter(adapter: Adapter) -> str | None:
    """The first parameter of an adapter that has a NaN or an infinity, or None."""
    named = {name: value for name, value in adapter.named_parameters() if value.numel()}
    # One number for each; with the largest-magnitude norm, as other norms of finite numbers may overflow.
    largest = torch._foreach_norm(list(named.values()), float("inf"))
    finite = torch.stack([value.detach() for value in largest]).isfinite().tolist()
    return next((name for name, fine in zip(named, finite, strict=True) if not fine), None)


def _first_bad_module(model: AdaptedModel, rows: Sequence[RoutedRow], number: int) -> str | None:
    bad: list[str] = []

    def check(path: str, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) and output else output
        if (
            not bad
            and isinstance(tensor, torch.Tensor)
            and tensor.is_floating_point()
            and not torch.isfinite(tensor).all()
        ):
            bad.append(path)

    handles = [
        module.register_forward_hook(lambda _m, _i, output, path=path: check(path, output))
        for path, module in model.base.named_modules()
        if path and not isinstance(module, nn.ModuleList)
    ]
    try:
        with torch.no_grad():
            log_probs = micro_batch_log_probs(model, build_micro_batch(model, rows, [number]))
            check("the language head's log-probabilities", log_probs)
    finally:
        for handle in handles:
            handle.remove()
    return bad[0] if bad else None
