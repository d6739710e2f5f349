"""Bottleneck adapters: a small feed-forward net behind or beside a sublayer.

A(z) = scaling · (W_up f(W_down z + b_down) + b_up). With h the sublayer's output, x the residual stream and LN the norm
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
from graftlm.base.products import Linear
from graftlm.errors import UserError

Norm = Callable[[torch.Tensor], torch.Tensor]
Reads = Literal["stream", "sum", "output"]
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
    placement: Literal["serial", "parallel", "stream"] | None = Field(
        None,
        description="serial: reads what the sublayer gives; parallel: reads the residual stream that the sublayer is "
        "given; stream: reads and changes the residual stream behind the sublayer and its norm, s + A(s).",
    )
    sublayers: Annotated[list[Part], Field(min_length=1)] | None = Field(
        None, description="Where: attention, cross_attention, feed_forward."
    )
    blocks: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = Field(
        None, description="The numbers of the blocks, an encoder's before its decoder's. Left out: all."
    )
    reduction_factor: Annotated[float, Field(gt=0)] | None = Field(
        None, description="The width of the base over the width inside. Give this or size."
    )
    size: Annotated[int, Field(ge=1)] | None = Field(None, description="The width inside.")
    activation: Literal["relu", "gelu", "swish", "tanh", "leaky_relu", "sigmoid", "linear"] | None = Field(
        None, description="The non-linearity between the two layers."
    )
    scaling: Annotated[float, Field(gt=0)] | Literal["learned", "channel"] | None = Field(
        None,
        description="A factor of the net's output. learned: one that begins at 1 and is trained; channel: one for each "
        "dimension.",
    )
    reads: Literal["sum", "output"] | None = Field(
        None,
        description="What a serial net reads: sum (output plus residual stream, normed in post-norm models) or output "
        "(the sublayer's output alone).",
    )
    adds_to: Literal["output", "sum", "read"] = Field(
        "output",
        description="What takes the place of a serial net's sublayer output, but for the net: that output itself; sum: "
        "the output plus residual stream (which counts twice then); read: what the net reads.",
    )
    layer_norm_before: bool = Field(False, description="A trained layer norm before the net.")
    layer_norm_after: bool = Field(False, description="A trained layer norm behind the net.")
    residual: Literal["after_norm", "before_norm"] = Field(
        "after_norm",
        description="Where the net's own residual is added: behind the trained norm (layer_norm_after) or before it.",
    )
    init: Literal["bert", "mam"] | None = Field(
        None, description="bert: both layers normal with deviation 0.02; mam: down Kaiming uniform, up zero."
    )

    @model_validator(mode="after")
    def _one_size(self) -> Bottleneck:
        if self.size is not None and self.reduction_factor is not None:
            raise ValueError("give size or reduction_factor, not both")
        placement = self.setting("placement")
        if self.reads is not None and placement != "serial":
            raise ValueError(f"reads: {self.reads} is for placement: serial; a {placement} net reads the stream")
        if self.adds_to != "output" and placement != "serial":
            raise ValueError(f"adds_to: {self.adds_to} is for placement: serial, and not for {placement}")
        if self.residual == "before_norm" and (placement == "parallel" or not self.layer_norm_after):
            raise ValueError("residual: before_norm needs layer_norm_after, and a placement other than parallel")
        return self

    def setting(self, name: str) -> Any:
        """A setting, or what the kind makes of it where it is left out."""
        own = getattr(self, name)
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
        for block in self.blocks or ():
            if block >= len(places.blocks):
                raise UserError(f"blocks: there is no block {block}; they are numbered 0 to {len(places.blocks) - 1}")
        nets: dict[str, SublayerChange] = {
            sublayer.key: self._net(sublayer, mix_seed(seed, sublayer.key)).to(device, dtype)
            for sublayer in chosen
            if self.blocks is None or sublayer.block in self.blocks
        }
        if not nets:
            raise UserError(f"blocks: those named have no {' or '.join(wanted)}")
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
            reads=_reads(self.setting("placement"), self.setting("reads")),
            adds_to=self.adds_to,
            on_stream=self.setting("placement") == "stream",
            norm_before=self.layer_norm_before,
            norm_after=self.layer_norm_after,
            residual_first=self.residual == "before_norm",
        )
        _start(net, self.setting("init"), torch.Generator().manual_seed(seed))
        return net


def _reads(placement: str, reads: Reads) -> Reads:
    """On the stream (h is the stream there) and beside the sublayer there is no choice."""
    return {"parallel": "stream", "stream": "output"}.get(placement, reads)  # type: ignore[return-value]


class BottleneckNet(SublayerChange):
    """One net: (tokens, width) → (tokens, width), added to the sublayer's output."""

    def __init__(
        self,
        width: int,
        size: int,
        *,
        activation: str,
        scaling: float | str,
        reads: Reads,
        adds_to: Literal["output", "sum", "read"] = "output",
        on_stream: bool = False,
        norm_before: bool,
        norm_after: bool,
        residual_first: bool,
    ) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(width) if norm_before else None
        self.down = Linear(width, size)
        self.up = Linear(size, width)
        self.norm_after = nn.LayerNorm(width) if norm_after else None
        factors = {"learned": 1, "channel": width}.get(str(scaling))
        self.learned_scaling = None if factors is None else nn.Parameter(torch.ones(factors))
        self.scaling = 1.0 if isinstance(scaling, str) else scaling
        self.activation = ACTIVATIONS[activation]
        self.reads = reads
        self.adds_to = adds_to
        self.on_stream = on_stream
        self.residual_first = residual_first

    def forward(self, h: torch.Tensor, x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """What is added to h; computed in the net's own dtype."""
        dtype = self.down.weight.dtype
        read = self._input(h, x, norm).to(dtype)
        z: torch.Tensor = read if self.norm_before is None else self.norm_before(read)
        z = self.up(self.activation(self.down(z))) * self.scaling
        if self.learned_scaling is not None:
            z = z * self.learned_scaling
        own = h.to(dtype)
        residual = {"output": own, "sum": own + x.to(dtype), "read": read}[self.adds_to]
        if self.norm_after is not None and self.residual_first:
            z = self.norm_after(z + residual) - own  # h stays one term of the base's sum
        else:
            z = z if self.norm_after is None else self.norm_after(z)
            z = z if residual is own else z + residual - own
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
