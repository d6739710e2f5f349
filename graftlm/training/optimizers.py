"""One adapter's optimizer: AdamW, its learning-rate schedule, and clipping by the adapter's own norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from graftlm.training.settings import AdapterTraining


def build_optimizer(
    parameters: Sequence[nn.Parameter], settings: AdapterTraining, scales: Sequence[float] | None = None
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019) over one adapter's parameters.

    ``scales``: the learning rate of each parameter as a multiple of the adapter's; 1 where it is left out. Each
    group of the optimizer has its multiple as ``scale``.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter, scale in zip(parameters, scales or [1.0] * len(parameters), strict=True):
        groups.setdefault(scale, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": members, "scale": scale} for scale, members in groups.items()],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    optimizer.register_step_post_hook(_count_versions)
    return optimizer


def _count_versions(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """The fused step writes to parameters without counting it; whoever keeps what was made with them must know."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version(group["params"])


def learning_rate(settings: AdapterTraining, step: int, total: int) -> float:
    """The rate of step ``step`` (from 0) of ``total``: linear warm-up to the peak, then the schedule."""
    warmup = settings.warmup if settings.warmup >= 1 else settings.warmup * total
    warmup_steps = math.ceil(warmup)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total - warmup_steps)
    fall = {"constant": 1.0, "linear": 1.0 - progress, "cosine": 0.5 * (1.0 + math.cos(math.pi * progress))}
    floor = settings.min_learning_rate
    return settings.learning_rate * (floor + (1.0 - floor) * fall[settings.schedule])


def gradient_norm(parameters: Sequence[nn.Parameter]) -> float:
    """The 2-norm of all gradients of one adapter together."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norms = torch._foreach_norm(gradients)
    return float(torch.linalg.vector_norm(torch.stack([norm.double() for norm in norms])))


def clip_gradients(parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
    """Scale the gradients, whose norm is ``norm``, to at most ``limit``; 0 is no limit."""
    if limit and norm > limit:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
