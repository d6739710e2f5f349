"""(IA)³: learned vectors that scale keys, values and what goes into the last feed-forward layer.

Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3:
softmax(Q (l_k ⊙ Kᵀ)/√d) (l_v ⊙ V) in attention and (l_ff ⊙ γ(W₁x)) W₂ in the feed-forward part; l is 1 at first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftlm.adapters.lora import select_linears
from graftlm.adapters.method import Adapter, Change, MethodConfig, Update, register_method
from graftlm.adapters.stored import Stored, checked, peft_task_type, register_peft_kind
from graftlm.base.places import LinearPlace, Places, Sublayer
from graftlm.errors import UserError

PREFIX = "base_model.model."
KEYS_AND_VALUES = ("k", "v", "k_proj", "v_proj", "key", "value")


@register_method
class IA3(MethodConfig):
    """Vectors that scale keys, values and the input of the last feed-forward layer."""

    method: Literal["ia3"] = "ia3"
    targets: str | list[str] = Field(
        "auto",
        description="Linear layers whose output is scaled, by name, path or pattern. auto: keys and values of every "
        "attention, where they have layers of their own.",
    )
    feed_forward: str | list[str] = Field(
        "auto",
        description="Linear layers whose input is scaled. auto: the last one of every feed-forward part.",
    )

    def build(self, places: Places, *, seed: int, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Vectors of ones for every target."""
        outputs = self._outputs(places)
        inputs = self._inputs(places)
        updates: dict[str, Update] = {
            path: OutputScale(torch.ones(place.out_features, dtype=dtype, device=device))
            for path, place in outputs.items()
            if path not in inputs
        }
        updates |= {
            path: InputScale(torch.ones(place.in_features, dtype=dtype, device=device))
            for path, place in inputs.items()
        }
        return Adapter(self, {path: updates[path] for path in places.linears if path in updates})

    def _outputs(self, places: Places) -> dict[str, LinearPlace]:
        if self.targets != "auto":
            return select_linears(places, self.targets, [])
        attentions = [sublayer for sublayer in places.sublayers if sublayer.kind != "feed_forward"]
        found = {path: places.linears[path] for sublayer in attentions for path in _keys_and_values(sublayer)}
        if len(found) != 2 * len(attentions):
            joined = next((sublayer for sublayer in attentions if len(_keys_and_values(sublayer)) != 2), None)
            where = f": {joined.linears[0]} is one of them" if joined else ""
            raise UserError(
                f"ia3 scales keys and values, and {type(places.model).__name__} makes them in one layer with the "
                f"queries{where}",
                hint="Name the layers to scale as a whole in targets, as peft does.",
            )
        return found

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
            f"{PREFIX}{path}.ia3_l": update.scale.detach().reshape((1, -1) if path in scaled_inputs else (-1, 1))
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
    config = checked(_PeftIA3, stored.peft or {}, stored.folder / "adapter_config.json")
    updates: dict[str, Update] = {}
    inputs: list[str] = []
    for key, tensor in stored.tensors.items():
        path = key.removeprefix(PREFIX).removesuffix(".ia3_l")
        if path == key or path not in places.linears:
            raise UserError(
                f"the adapter {stored.folder} changes {path}, which this base does not have",
                hint=f"Its linear layers are {', '.join(list(places.linears)[:4])}, …: is it for another base?",
            )
        place = places.linears[path]
        scales_input = _named(path, config.feedforward_modules)
        wanted = (1, place.in_features) if scales_input else (place.out_features, 1)
        if tuple(tensor.shape) != wanted:
            raise UserError(
                f"the adapter {stored.folder} does not fit this base: {key} is {tuple(tensor.shape)}, "
                f"and {wanted} is needed",
                hint="It was trained on another base.",
            )
        dtype = torch.promote_types(tensor.dtype, torch.float32)
        vector = tensor.reshape(-1).to(device, dtype)
        updates[path] = InputScale(vector) if scales_input else OutputScale(vector)
        inputs += [path] if scales_input else []
    if not updates:
        raise UserError(f"the adapter {stored.folder} holds no tensors")
    ordered = {path: updates[path] for path in places.linears if path in updates}
    outputs = [path for path in ordered if path not in inputs]
    return Adapter(method or IA3(targets=outputs or list(ordered), feed_forward=inputs), ordered)


def _named(path: str, names: Sequence[str] | str | None) -> bool:
    import re

    if names is None:
        return False
    if isinstance(names, str):
        return re.fullmatch(names, path) is not None
    return any(path == name or path.endswith("." + name) for name in names)


def _keys_and_values(sublayer: Sublayer) -> list[str]:
    return [path for path in sublayer.linears if path.rpartition(".")[2] in KEYS_AND_VALUES]


class OutputScale(Change):
    """y ⊙ l, with l (out,)."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y * (self.scale - 1).to(y.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """Scale the rows of the weight, and the bias."""
        scale: Any = self.scale
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

    def prepare(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale.to(x.dtype)

    def merge_into(self, module: nn.Module) -> None:
        """Scale the columns of the weight."""
        weight = module.get_parameter("weight")
        scale: Any = self.scale
        weight.mul_((scale[:, None] if isinstance(module, Conv1D) else scale).to(weight.dtype))
