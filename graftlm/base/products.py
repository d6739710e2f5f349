"""Products on a CPU: those of dense float32 matrices by oneDNN where torch's own choice is slow.

torch multiplies float32 matrices by MKL, which uses AVX-512 on Intel's CPUs alone. On others that have it, oneDNN, that
comes with torch too, is twice as fast (docs/decisions.md). Nothing is copied or packed: weights stay as they are.
"""

from __future__ import annotations

import os
import platform
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from graftlm.base.threads import threads_for
from graftlm.errors import UserError

#: Set to 0 or 1, this environment variable decides instead of the CPU.
VARIABLE = "GRAFTLM_ONEDNN"
#: The least multiplications for which the call, some 10 µs dearer, pays.
LEAST_WORK = 2**20


@cache
def prefers_onednn() -> bool:
    """Whether oneDNN is the faster one here. Always the same on the same machine, so that runs can be repeated.

    Raises:
        UserError: the environment variable GRAFTLM_ONEDNN is neither 0 nor 1.
    """
    choice = os.environ.get(VARIABLE, "")
    if choice not in ("", "0", "1"):
        raise UserError(f"the environment variable {VARIABLE} is '{choice}'", hint="Set it to 0 or 1, or not at all.")
    there: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not there or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    if choice:
        return choice == "1"
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    torch_takes_mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return torch_takes_mkl and has_avx512 and "GenuineIntel" not in _vendor()


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), platform.processor())


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x Wᵀ + b, as :func:`torch.nn.functional.linear`, gradients included: x (…, in), weight (out, in) → (…, out)."""
    if not _fast(x, weight):
        with threads_for(x.numel() * len(weight)):
            return nn.functional.linear(x, weight, bias)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        result: torch.Tensor = _Linear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return result
    return _onednn(x, weight, bias)


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A product where no gradient is wanted of it: a (…, n) and b (n, m) → (…, m)."""
    return _onednn(a, b.T, None) if _fast(a, b.T) else a @ b


def _fast(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return (
        x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and x.numel() * len(weight) >= LEAST_WORK
        and prefers_onednn()
        and not torch.is_autocast_enabled("cpu")
        and type(x) in (torch.Tensor, nn.Parameter)
    )


def _onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    with threads_for(x.numel() * len(weight)):
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gx = matmul(gy, weight) if ctx.needs_input_grad[0] else None
        flat = gy.flatten(0, -2)
        gw = matmul(flat.T, x.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        return gx, gw, flat.sum(0) if ctx.needs_input_grad[2] else None


class Linear(nn.Linear):
    """A linear layer of our own, multiplied the fast way."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        return linear(input, self.weight, self.bias)


def _linear_forward(module: nn.Linear, input: torch.Tensor) -> torch.Tensor:
    return linear(input, module.weight, module.bias)


def _conv1d_forward(module: Conv1D, x: torch.Tensor) -> torch.Tensor:
    return linear(x, module.weight.T, module.bias)


_FORWARDS: dict[type[nn.Module], Any] = {nn.Linear: _linear_forward, Conv1D: _conv1d_forward}


def multiply_fast(module: nn.Module) -> None:
    """Let every plain linear layer in a module multiply by :func:`linear`; parameters stay as they are.

    ``forward`` is overridden on the layers, unless another library did so before. Nothing is where the module is not on
    a CPU.
    """
    if any(not parameter.is_cpu for parameter in module.parameters()):
        return
    for layer in module.modules():
        forward = _FORWARDS.get(type(layer))
        if forward is not None and "forward" not in layer.__dict__:
            layer.forward = partial(forward, layer)


def foreign_forward(module: nn.Module) -> Any | None:
    """The ``forward`` that another library (such as accelerate) put on a module, or None."""
    override = module.__dict__.get("forward")
    return None if is_fast(override) else override


def is_fast(forward: Any) -> bool:
    """Whether a module's ``forward`` is the one of :func:`multiply_fast`."""
    return isinstance(forward, partial) and forward.func in _FORWARDS.values()
