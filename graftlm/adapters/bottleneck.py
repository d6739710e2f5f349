"""Bottleneck adapters: a small feed-forward net behind or beside a sublayer.

A(z) = scaling · W_up f(W_down z + b_down) + b_up. With h the sublayer's output, x the residual stream and LN the norm
of a post-norm model, the named kinds are

- double_seq_bn (Houlsby et al. 2019): LN(h + A(h) + x), after attention and after feed-forward;
- seq_bn (Pfeiffer et al. 2020): LN(h + A(LN(h + x)) + x), after feed-forward; the norm is used twice;
- par_bn (He et al. 2021): LN(h + 4 A(x) + x), beside feed-forward.

In a pre-norm model there is no LN, and x is the stream before the sublayer's own norm. Names and defaults are those of
the adapters library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from graftlm.adapters.method import Adapter, MethodConfig, SublayerChange, register_method
from graftlm.adapters.routing import mix_seed
from graftlm.base.places import Places, Sublayer
from graftlm.errors import UserError

Norm = Callable[[torch.Tensor], torch.Tensor]
Part = Literal["attention", "cross_attention", "feed_forward"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": nn.functional.relu,
    "gelu": nn.functional.gelu,
    "swish": nn.functional.silu,
    "tanh": torch.tanh,
    "leaky_relu": nn.functional.leaky_relu,
    "sigmoid": torch.sigmoid,
    "linear": lambda z: z,
}

#: What a kind means where nothing else is set.
KINDS: dict[str, dict[str, Any]] = {
    "seq_bn": {
        "placement": "serial",
        "sublayers": ["feed_forward"],
        "activation": "relu",
        "reduction_factor": 16.0,
        "scaling": 1.0,
        "reads": "sum",
        "init": "bert",
    },
    "double_seq_bn": {
        "placement": "serial",
        "sublayers": ["attention", "feed_forward"],
        "activation": "swish",
        "reduction_factor": 16.0,
        "scaling": 1.0,
        "reads": "output",
        "init": "bert",
    },
    "par_bn": {
        "placement": "parallel",
        "sublayers": ["feed_forward"],
        "activation": "relu",
        "reduction_factor": 2.0,
        "scaling": 4.0,
        "reads": "output",
        "init": "mam",
    },
}


@register_method
class Bottleneck(MethodConfig):
    """Small feed-forward nets behind or beside attention and feed-forward."""

    method: Literal["bottleneck"] = "bottleneck"
    kind: Literal["seq_bn", "double_seq_bn", "par_bn"] = Field(
        "seq_bn",
        description="What the settings below are where they are left out: seq_bn (Pfeiffer), double_seq_bn (Houlsby) "
        "or par_bn (He, parallel).",
    )
    placement: Literal["serial", "parallel"] | None = Field(
        None, description="serial: reads what the sublayer gives; parallel: reads what the sublayer is given."
    )
    sublayers: Annotated[list[Part], Field(min_length=1)] | None = Field(
        None, description="Where: attention, cross_attention, feed_forward."
    )
    reduction_factor: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The width of the base over the width inside. Give this or size."
    )
    size: Annotated[int, Field(ge=1)] | None = Field(None, description="The width inside.")
    activation: Literal["relu", "gelu", "swish", "tanh", "leaky_relu", "sigmoid", "linear"] | None = Field(
        None, description="The non-linearity between the two layers."
    )
    scaling: Annotated[float, Field(gt=0)] | Literal["learned"] | None = Field(
        None, description="A factor of the net's output, or learned: it begins at 1 and is trained."
    )
    reads: Literal["sum", "output"] | None = Field(
        None,
        description="What a serial net reads: sum (output plus residual stream, normed in post-norm models) or output "
        "(the sublayer's output alone).",
    )
    layer_norm_before: bool = Field(False, description="A trained layer norm before the net.")
    layer_norm_after: bool = Field(False, description="A trained layer norm behind the net.")
    residual: Literal["after_norm", "before_norm"] = Field(
        "after_norm",
        description="Where the sublayer's output is added to the net's: behind the trained norm or before it. It "
        "matters with layer_norm_after only.",
    )
    init: Literal["bert", "mam"] | None = Field(
        None, description="bert: both layers normal with deviation 0.02; mam: down Kaiming uniform, up zero."
    )

    @model_validator(mode="after")
    def _one_size(self) -> Bottleneck:
        if self.size is not None and self.reduction_factor is not None:
            raise ValueError("give size or reduction_factor, not both")
        if self.reads == "sum" and self.setting("placement") == "parallel":
            raise ValueError("reads: sum is for placement: serial; a parallel net reads the residual stream")
        return self

    def setting(self, name: str) -> Any:
        """A setting, or what the kind makes of it where it is left out."""
        own = getattr(self, name)
        if own is None and name == "reads" and self.placement == "serial":
            return "output" if self.kind == "par_bn" else KINDS[self.kind][name]
        return KINDS[self.kind][name] if own is None else own

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """A net for every sublayer of the chosen parts."""
        wanted = self.setting("sublayers")
        chosen = [sublayer for sublayer in places.sublayers if sublayer.kind in wanted]
        if not chosen:
            there = sorted({sublayer.kind for sublayer in places.sublayers})
            raise UserError(
                f"sublayers: {type(places.model).__name__} has no {' or '.join(wanted)}",
                hint=f"It has {', '.join(there)}." if there else None,
            )
        nets: dict[str, SublayerChange] = {
            sublayer.key: self._net(sublayer, mix_seed(seed, sublayer.key)).to(device, dtype) for sublayer in chosen
        }
        return Adapter(self, sublayers=nets)

    def _net(self, sublayer: Sublayer, seed: int) -> BottleneckNet:
        width = sublayer.width
        size = self.size or max(1, int(width // self.setting("reduction_factor")))
        if size > width:
            raise UserError(
                f"a bottleneck of size {size} is wider than the base, which is {width} wide",
                hint=f"Use a size of at most {width}, or a reduction_factor of at least 1.",
            )
        net = BottleneckNet(
            width,
            size,
            activation=self.setting("activation"),
            scaling=self.setting("scaling"),
            reads="stream" if self.setting("placement") == "parallel" else self.setting("reads"),
            norm_before=self.layer_norm_before,
            norm_after=self.layer_norm_after,
            residual_first=self.residual == "before_norm",
        )
        _start(net, self.setting("init"), torch.Generator().manual_seed(seed))
        return net


class BottleneckNet(SublayerChange):
    """One net: (tokens, width) → (tokens, width), added to the sublayer's output."""

    def __init__(
        self,
        width: int,
        size: int,
        *,
        activation: str,
        scaling: float | str,
        reads: Literal["stream", "sum", "output"],
        norm_before: bool,
        norm_after: bool,
        residual_first: bool,
    ) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(width) if norm_before else None
        self.down = nn.Linear(width, size)
        self.up = nn.Linear(size, width)
        self.norm_after = nn.LayerNorm(width) if norm_after else None
        self.learned_scaling = nn.Parameter(torch.ones(1)) if scaling == "learned" else None
        self.scaling = 1.0 if isinstance(scaling, str) else scaling
        self.activation = ACTIVATIONS[activation]
        self.reads = reads
        self.residual_first = residual_first

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """What is added to h; computed in the net's own dtype."""
        z: torch.Tensor = self._input(h, x, norm).to(self.down.weight.dtype)
        if self.norm_before is not None:
            z = self.norm_before(z)
        z = self.up(self.activation(self.down(z))) * self.scaling
        if self.learned_scaling is not None:
            z = z * self.learned_scaling
        if self.norm_after is None:
            return z.to(h.dtype)
        own = h.to(z.dtype)
        # The sublayer's output stays one term of the sum, so what is added is without it.
        z = self.norm_after(z + own) - own if self.residual_first else self.norm_after(z)
        return z.to(h.dtype)

    def _input(self, h: torch.Tensor, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        if self.reads == "output":
            return h
        if self.reads == "stream":
            return x
        return h + x if norm is None else norm(h + x)


@torch.no_grad()
def _start(net: BottleneckNet, init: str, generator: torch.Generator) -> None:
    """Near the identity, drawn on the CPU, so that one seed gives one adapter whatever the device."""
    for bias in (net.down.bias, net.up.bias):
        bias.zero_()
    if init == "bert":
        for layer in (net.down, net.up):
            layer.weight.normal_(std=0.02, generator=generator)
    else:
        bound = 1.0 / math.sqrt(net.down.in_features)  # Kaiming uniform with a = √5
        net.down.weight.uniform_(-bound, bound, generator=generator)
        net.up.weight.zero_()
