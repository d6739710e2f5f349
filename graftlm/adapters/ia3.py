"""(IA)³: learned vectors that scale keys, values and what goes into the last feed-forward layer.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3:
softmax(Q (l_k ⊙ Kᵀ)/√d) (l_v ⊙ V) in attention and (l_ff ⊙ γ(W₁x)) W₂ in the feed-forward part; l is 1 at first.
Where one layer makes queries, keys and values, the vector covers the keys and values of its output alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.lora import select_linears
from graftlm.adapters.method import Adapter, Change, MethodConfig, Update, register_method
from graftlm.adapters.stored import (
    CONFIG,
    COPY_AGAIN,
    PEFT_PREFIX,
    WEIGHTS,
    Stored,
    check_complete,
    checked,
    does_not_fit,
    peft_task_type,
    register_peft_kind,
    unknown_module,
)
from graftlm.base.keys_values import key_value_units
from graftlm.base.places import LinearPlace, Places
from graftlm.errors import UserError


@register_method
class IA3(MethodConfig):
    """Vectors that scale keys, values and the input of the last feed-forward layer."""

    method: Literal["ia3"] = "ia3"
    targets: str | list[str] = Field(
        "auto",
        description="Linear layers whose output is scaled as a whole, by name, path or pattern. auto: the keys and "
        "values of every attention, and nothing else of a layer that makes queries too.",
    )
    feed_forward: str | list[str] = Field(
        "auto",
        description="Linear layers whose input is scaled. auto: the last one of every feed-forward part.",
    )

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Vectors of ones for every target."""
        inputs = self._inputs(places)
        updates: dict[str, Update] = {}
        for path, units in self._outputs(places).items():
            if path not in inputs:
                out = places.linears[path].out_features
                ones = torch.ones(out if units is None else len(units), dtype=dtype, device=device)
                updates[path] = OutputScale(ones, units, out)
        for path, place in inputs.items():
            updates[path] = InputScale(torch.ones(place.in_features, dtype=dtype, device=device))
        return Adapter(self, {path: updates[path] for path in places.linears if path in updates})

    def _outputs(self, places: Places) -> dict[str, torch.Tensor | None]:
        """The layers whose output is scaled, and which numbers of it; None: all."""
        if self.targets != "auto":
            return dict.fromkeys(select_linears(places, self.targets, []))
        found = key_value_units(places)
        whole = {path: len(units) == places.linears[path].out_features for path, units in found.items()}
        return {path: None if whole[path] else units for path, units in found.items()}

    def _inputs(self, places: Places) -> dict[str, LinearPlace]:
        if self.feed_forward != "auto":
            wanted = [self.feed_forward] if isinstance(self.feed_forward, str) else self.feed_forward
            return select_linears(places, wanted, []) if wanted else {}
        last = (sublayer.linears[-1] for sublayer in places.sublayers if sublayer.kind == "feed_forward")
        return {path: places.linears[path] for path in last}

    def store(self, adapter: Adapter, places: Places, source: str) -> Stored:
        """As peft writes it: vectors (out, 1), or (1, in) at feed-forward layers."""
        scaled_inputs = [path for path, update in adapter.linear.items() if isinstance(update, InputScale)]
        tensors = {
            f"{PEFT_PREFIX}{path}.ia3_l": update.vector()
            .detach()
            .reshape((1, -1) if path in scaled_inputs else (-1, 1))
            for path, update in adapter.linear.items()
            if isinstance(update, (InputScale, OutputScale))
        }
        conv = all(isinstance(places.linears[path].module, Conv1D) for path in adapter.linear)
        return Stored(
            tensors,
            {
                "peft_type": "IA3",
                "task_type": peft_task_type(places),
                "base_model_name_or_path": source,
                "inference_mode": True,
                "target_modules": list(adapter.linear),
                "feedforward_modules": scaled_inputs,
                "fan_in_fan_out": conv,
            },
        )

    def restore(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter:
        """As peft reads it, with our own settings."""
        return _restored(self, stored, places, device)


class _PeftIA3(BaseModel):
    target_modules: list[str] | str
    feedforward_modules: list[str] | str | None = None
    modules_to_save: Annotated[list[str], Field(max_length=0)] | None = None


@register_peft_kind("IA3")
def read_ia3(stored: Stored, places: Places, *, device: torch.device) -> Adapter:
    """An adapter that peft wrote."""
    return _restored(None, stored, places, device)


def _restored(method: IA3 | None, stored: Stored, places: Places, device: torch.device) -> Adapter:
    config = checked(_PeftIA3, stored.peft or {}, stored.folder / CONFIG)
    updates: dict[str, Update] = {}
    inputs: list[str] = []
    parts = method._outputs(places) if method is not None else {}
    for key, tensor in stored.tensors.items():
        path = key.removeprefix(PEFT_PREFIX).removesuffix(".ia3_l")
        if path == key or path not in places.linears:
            raise unknown_module(stored.folder, path, places)
        place = places.linears[path]
        scales_input = _named(path, config.feedforward_modules)
        wanted = (1, place.in_features) if scales_input else (place.out_features, 1)
        if tuple(tensor.shape) != wanted:
            raise does_not_fit(stored.folder, f"{key} is {tuple(tensor.shape)}, and {wanted} is needed")
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        vector = tensor.reshape(-1).to(device, dtype)
        units = parts.get(path)
        if scales_input:
            updates[path] = InputScale(vector)
        else:
            updates[path] = OutputScale(vector if units is None else vector[units.to(device)], units, len(vector))
        inputs += [path] if scales_input else []
    check_complete(stored, updates, places, "ia3_l")
    if not updates:
        raise UserError(f"{stored.folder / WEIGHTS} holds no tensors", hint=COPY_AGAIN)
    ordered = {path: updates[path] for path in places.linears if path in updates}
    outputs = [path for path in ordered if path not in inputs]
    return Adapter(method or IA3(targets=outputs or list(ordered), feed_forward=inputs), ordered)


def _named(path: str, names: Sequence[str] | str | None) -> bool:
    """Whether peft's feedforward_modules mean a layer: any ends of its path, or a regular expression."""
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path.endswith(name) for name in names or ())


class OutputScale(Change):
    """y ⊙ l, with l (out,), or on some ``units`` of y alone, (units,)."""

    units: torch.Tensor | None

    def __init__(self, scale: torch.Tensor, units: torch.Tensor | None = None, out: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.out = len(scale) if out is None else out
        self.register_buffer("units", None if units is None else units.to(scale.device), persistent=False)

    def vector(self) -> torch.Tensor:
        """l, (out,), with 1 where nothing is scaled."""
        if self.units is None:
            return self.scale
        return self.scale.new_ones(self.out).index_copy(0, self.units, self.scale)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * (self.vector() - 1).to(y.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """Scale the rows of the weight, and the bias."""
        scale = self.vector()
        weight = module.get_parameter("weight")
        weight.mul_((scale if isinstance(module, Conv1D) else scale[:, None]).to(weight.dtype))
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.Tensor):
            bias.mul_(scale.to(bias.dtype))


class InputScale(Change):
    """The module is given x ⊙ l, with l (in,)."""

    prepares = True
    adds = False

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def vector(self) -> torch.Tensor:
        """l, (in,)."""
        return self.scale

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.to(x.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """Scale the columns of the weight."""
        weight = module.get_parameter("weight")
        scale = self.vector()
        weight.mul_((scale[:, None] if isinstance(module, Conv1D) else scale).to(weight.dtype))
