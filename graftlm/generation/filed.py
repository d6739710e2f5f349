"""Adapters that can leave memory: where they come back from, and what is known of them meanwhile."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from graftlm.adapters.files import HEAD, NOTES
from graftlm.adapters.method import Adapter
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.stored import CONFIG, WEIGHTS
from graftlm.errors import UserError

Stamp = tuple[tuple[str, int, int], ...]


@dataclass
class Filed:
    """An adapter that was read from ``folder``, when its files had ``stamp``.

    ``adapter`` is the one that is attached, with the sum of its parameters' ``versions`` as it was read; or, while
    ``out``, its outline: the same without numbers.
    """

    folder: Path
    stamp: Stamp
    adapter: Adapter
    bytes: int
    versions: int
    out: bool = False

    @property
    def changed(self) -> bool:
        """Whether its parameters were written to since they were read: the folder has them no more."""
        return not self.out and _versions(self.adapter) != self.versions

    def page_out(self, model: AdaptedModel, name: str) -> None:
        """Take it out of the model."""
        self.adapter, self.out = outline(model.remove(name)), True

    def bring_back(self, model: AdaptedModel, name: str) -> None:
        """Read it again.

        Raises:
            UserError: its folder is gone, is another than it was, or cannot be read.
        """
        self._check(name)
        read_into(model, self.folder, name)
        try:
            self._check(name)
        except UserError:  # written to while it was read
            model.remove(name)
            raise
        self.adapter, self.out = model.adapters[name], False
        self.versions = _versions(self.adapter)

    def _check(self, name: str) -> None:
        found = stamp_of(self.folder)
        if found != self.stamp:
            what = "has changed since it was added" if found else "is gone"
            raise UserError(
                f"the adapter '{name}' had left memory and cannot come back: {self.folder} {what}",
                hint="Take the folder in as it is now: replace(name, folder) of the engine's adapters.",
            )


def file_adapter(model: AdaptedModel, folder: Path, name: str) -> Filed:
    """Read an adapter into ``model`` from a folder that it can come back from.

    Raises:
        UserError: it cannot be read, or was written to meanwhile.
    """
    folder = folder.resolve()  # another version behind a link is another adapter
    stamp = stamp_of(folder)
    read_into(model, folder, name)
    adapter = model.adapters[name]
    if stamp_of(folder) != stamp:
        model.remove(name)
        raise UserError(f"{folder} was written to while it was read", hint="Try again when it is complete.")
    return Filed(folder, stamp, adapter, bytes_of(adapter), _versions(adapter))


def read_into(model: AdaptedModel, folder: Path, name: str) -> None:
    """As :meth:`AdaptedModel.load`, with errors of the disk told as such."""
    try:
        model.load(folder, name)
    except OSError as error:
        raise UserError(f"the adapter folder {folder} cannot be read: {error}") from error


def stamp_of(folder: Path) -> Stamp:
    """What tells whether the files of an adapter are still the same: names, sizes and times of writing."""
    found = []
    for file in sorted((CONFIG, WEIGHTS, NOTES, HEAD)):
        try:
            status = (folder / file).stat()
        except OSError:
            continue
        found.append((file, status.st_size, status.st_mtime_ns))
    return tuple(found)


def bytes_of(adapter: Adapter) -> int:
    """How much memory an adapter's numbers take."""
    tensors = {id(tensor): tensor for tensor in (*adapter.parameters(), *adapter.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _versions(adapter: Adapter) -> int:
    return sum(parameter._version for parameter in adapter.parameters())


def outline(adapter: Adapter) -> Adapter:
    """A copy whose tensors have shapes, but no numbers: enough to check requests against."""
    empty: dict[int, torch.Tensor] = {id(p): nn.Parameter(p.detach().to("meta")) for p in adapter.parameters()}
    empty |= {id(buffer): buffer.detach().to("meta") for buffer in adapter.buffers()}
    return copy.deepcopy(adapter, empty)
