"""What losses look at before they compute: shapes that would broadcast unasked, and options out of range."""

from __future__ import annotations

import math

import torch

from graftlm.errors import UserError


def check_shapes(**tensors: torch.Tensor | None) -> None:
    """Raises ValueError where shapes differ: (n, 1) beside (n,) would quietly become (n, n)."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items() if value is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"shapes differ: {listed}; they must be equal")


def check_positive(**numbers: float) -> None:
    """Raises UserError where an option is not a finite number above zero."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} is {value:g}; it must be above 0", hint=f"Give {name} a positive number.")


def check_not_negative(**numbers: float) -> None:
    """Raises UserError where an option is not a finite number from zero on."""
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{name} is {value:g}; it must be 0 or more", hint=f"Give {name} a number from 0 on.")


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raises UserError with the first row that holds NaN or infinity: a mean would spread it to others."""
    good = torch.isfinite(values)
    if not bool(good.all()):
        row = int((~good).nonzero()[0, 0]) if values.dim() else 0
        raise UserError(
            f"{name}: row {row} is not a finite number ({int((~good).sum())} of {values.numel()} are not)",
            hint="Leave such rows out, and count them, before statistics are made of the others.",
        )
