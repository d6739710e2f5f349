"""What an adapter's folder holds, as values; and filling a module from tensors, with errors for people."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from graftlm.base.loading import base_kind
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.adapters.method import Adapter
    from graftlm.base.places import Places


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Before the path of every module in the names of peft's tensors.
PEFT_PREFIX = "base_model.model."
COPY_AGAIN = "The file was cut short or written by something else; copy the adapter folder again."


@dataclass(frozen=True)
class Stored:
    """Tensors by name, and peft's adapter_config.json where peft has such a kind of adapter.

    ``folder`` is where it was read from, for error messages; ``not_peft`` says why there is no such configuration.
    """

    tensors: dict[str, torch.Tensor]
    peft: dict[str, Any] | None
    folder: Path = field(default_factory=Path)
    not_peft: str = "peft has no such kind of adapter"


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name. One that has several names (tied weights) is given under its first."""
    named = module.state_dict(keep_vars=True)
    first = {id(tensor): name for name, tensor in reversed(named.items())}
    return {name: tensor for name, tensor in named.items() if first[id(tensor)] == name}


def parameters_digest(modules: Iterable[nn.Module]) -> str:
    """SHA-256 of all parameters and buffers of some modules, with their names, shapes and dtypes."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(own_tensors(module).items()):
            digest.update(f"|{name} {tensor.dtype} {tuple(tensor.shape)}|".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], folder: Path | None = None) -> None:
    """Copy tensors into a module's parameters and buffers, by name.

    Raises:
        UserError: one is missing, too much, or of another shape.
    """
    where = "the adapter" if folder is None else f"the adapter {folder}"
    own = own_tensors(module)
    missing, extra = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing or extra:
        name = min(missing or extra)
        raise UserError(
            f"{where}: the tensor {name} is {'missing' if missing else 'of no use to this method'}",
            hint=COPY_AGAIN,
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise does_not_fit(folder, f"{name} is {tuple(tensors[name].shape)}, and {tuple(tensor.shape)} is needed")
        tensor.copy_(tensors[name])


def missing_tensor(folder: Path, key: str) -> UserError:
    """The error for a tensor that a folder should hold."""
    return UserError(f"{folder / WEIGHTS}: {key} is missing", hint=COPY_AGAIN)


def does_not_fit(folder: Path | None, what: str) -> UserError:
    """The error for a tensor of another shape than the base's."""
    where = "the adapter" if folder is None else f"the adapter {folder}"
    return UserError(f"{where} does not fit this base: {what}", hint="It was trained on another base.")


def unknown_module(folder: Path, path: str, places: Places) -> UserError:
    """The error for a module that the base does not have."""
    return UserError(
        f"the adapter {folder} changes {path}, which this base does not have",
        hint=f"Its linear layers are {', '.join(list(places.linears)[:4])}, …: is it for another base?",
    )


class PeftReader(Protocol):
    """Makes an adapter of what peft wrote.

    Raises:
        UserError: it has something that graftlm cannot read, or does not fit the base.
    """

    def __call__(self, stored: Stored, places: Places, *, device: torch.device) -> Adapter: ...


_READERS: dict[str, PeftReader] = {}


def register_peft_kind(kind: str) -> Callable[[PeftReader], PeftReader]:
    """Decorator: make a function the reader of peft's adapters of one ``peft_type``."""

    def register(reader: PeftReader) -> PeftReader:
        _READERS[kind] = reader
        return reader

    return register


def peft_readers() -> Mapping[str, PeftReader]:
    """The readers by peft_type."""
    return dict(_READERS)


def peft_task_type(places: Places) -> str:
    """What peft calls the task of a base, by which it chooses how to wrap it."""
    kinds = {"decoder": "CAUSAL_LM", "encoder": "FEATURE_EXTRACTION", "encoder-decoder": "SEQ_2_SEQ_LM"}
    return kinds[base_kind(places.model.config)]


def check_complete(stored: Stored, found: Collection[str], places: Places, part: str) -> None:
    """See that no linear layer that peft's target_modules mean is without tensors; ``part`` ends the name of one.

    Raises:
        UserError: one is.
    """
    config = stored.peft or {}
    if config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return
    for path in places.linears:
        if path not in found and _targeted(path, config.get("target_modules")):
            raise missing_tensor(stored.folder, f"{PEFT_PREFIX}{path}.{part}")


def _targeted(path: str, names: Any) -> bool:
    """Whether peft's target_modules mean a layer: last parts of its path, or a regular expression."""
    if isinstance(names, str):
        try:
            return names != "all-linear" and re.fullmatch(names, path) is not None
        except re.error:
            return False
    return any(path == name or path.endswith(f".{name}") for name in names or ())


Checked = TypeVar("Checked", bound=BaseModel)


def checked(schema: type[Checked], value: Mapping[str, Any], path: Path) -> Checked:
    """Validate what a JSON file holds; the error names file and key."""
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error
