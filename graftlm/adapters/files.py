"""Adapter folders: as peft writes and reads them, with a graftlm.json beside for what peft has no place for.

``adapter_config.json`` and ``adapter_model.safetensors`` are peft's own two files; a method that peft does not know
has no ``adapter_config.json``. ``graftlm.json`` holds the method's settings, the base's fingerprint, and the notes
that travel with the adapter: chat template, recipe, data counts, metrics, versions. Folders that peft wrote have none
and load all the same. An adapter's own head, where it has one, is in ``head.safetensors``; hashes of the texts that it
was trained on are in ``trained_on.safetensors``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from graftlm.adapters.heads import ClassHead, RewardHead
from graftlm.adapters.method import Adapter, Head, MethodConfig, methods
from graftlm.adapters.stored import CONFIG, PEFT_PREFIX, WEIGHTS, PeftReader, Stored, checked, peft_readers
from graftlm.base.files import write_folder
from graftlm.base.tensors import unshared
from graftlm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from graftlm.adapters.model import AdaptedModel

NOTES, HEAD, TRAINED_ON = "graftlm.json", "head.safetensors", "trained_on.safetensors"
FORMAT = 1
_OWN = (CONFIG, WEIGHTS, NOTES, HEAD, TRAINED_ON, "README.md")  # peft writes a README.md


def save_adapter(model: AdaptedModel, name: str, folder: Path, *, peft: bool = False) -> Path:
    """Write the adapter ``name`` of ``model`` to ``folder``, whole or not at all.

    An adapter with a subtracted start (PiSSA) is written as the plain LoRA of twice the rank that it equals. ``peft``
    asks for a folder that peft loads; without it, adapters that peft has no form for are written for graftlm alone.

    Raises:
        UserError: no such adapter, peft has no form for it, the folder holds other things than an adapter, or the disk
            is full; what was in the folder before stays.
    """
    adapter = model.adapter(name)
    _check_replaceable(folder)
    stored = adapter.config.store(adapter, model.places, model.source)
    if peft and stored.peft is None:
        raise UserError(f"the adapter '{name}' cannot be written for peft: {stored.not_peft}")
    tensors = unshared(stored.tensors)
    notes = {
        "format": FORMAT,
        "name": name,
        "method": adapter.config.model_dump(mode="json"),
        "base": {
            "name": model.name,
            "source": model.source,
            "fingerprint": model.fingerprint,
            **_shape(model),
        },
        **model.notes.get(name.partition("@")[0], {}),  # a view travels with what its adapter says
        **({"ranks": dict(adapter.ranks)} if adapter.ranks is not None else {}),
    }

    def fill(fresh: Path) -> None:
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        if adapter.head is not None:
            head = {key: tensor.detach().cpu().contiguous() for key, tensor in adapter.head.state_dict().items()}
            save_file(head, fresh / HEAD, metadata={"format": "pt"})
        _save_record(model.adapter(name.partition("@")[0]), fresh)
        if stored.peft is not None:
            (fresh / CONFIG).write_text(json.dumps(stored.peft, indent=2) + "\n", encoding="utf-8")
        (fresh / NOTES).write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    write_folder(folder, fill)
    return folder


def _save_record(adapter: Adapter, folder: Path) -> None:
    """What the adapter was trained on; nothing where the folder that it was loaded from is gone."""
    if isinstance(adapter.trained_on, Path):
        if adapter.trained_on.is_file():
            shutil.copyfile(adapter.trained_on, folder / TRAINED_ON)
    elif adapter.trained_on is not None:
        (folder / TRAINED_ON).write_bytes(adapter.trained_on)


def _check_replaceable(folder: Path) -> None:
    """Saving replaces the folder, so nothing but an adapter may be in it."""
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
    if others:
        raise UserError(
            f"{folder} holds other things, which saving an adapter there would remove: {', '.join(others[:5])}",
            hint=f"Choose a folder of its own, such as {folder / 'adapter'}.",
        )


def load_adapter(model: AdaptedModel, folder: Path, name: str | None = None) -> str:
    """Read an adapter folder into ``model`` under ``name`` (or the folder's own name); gives the name.

    Raises:
        UserError: not an adapter folder, cut short, for another base, or of a kind that is not known.
    """
    adapter, notes = _read(model, folder)
    chosen = name or folder.resolve().name
    model.attach(chosen, adapter)
    model.notes[chosen] = {
        key: value for key, value in notes.items() if key not in ("format", "name", "method", "base")
    }
    return chosen


@torch.no_grad()
def start_from(model: AdaptedModel, name: str, folder: Path) -> None:
    """Give the adapter ``name`` the parameters of a saved one of the same method and shape to go on from.

    A head of its own stays as it was drawn, unless the saved one is as large.

    Raises:
        UserError: the folder cannot be read, or its adapter is of another method or shape.
    """
    own, (saved, _) = model.adapter(name), _read(model, folder)
    if saved.config.method != own.config.method:
        raise UserError(
            f"{folder} is of the method {saved.config.method}, and '{name}' of {own.config.method}: one cannot go on "
            "from the other",
            hint=f"Use method: {saved.config.method}, or stack them with under.",
        )
    mine, theirs = own.state_dict(), saved.state_dict()
    fitting = []
    for key in sorted(mine.keys() | theirs.keys()):
        shapes = [str(tuple(tensors[key].shape)) if key in tensors else "missing" for tensors in (theirs, mine)]
        if shapes[0] == shapes[1]:
            fitting.append(key)
        elif not key.startswith("head."):
            raise UserError(
                f"'{name}' cannot go on from {folder}: {key} is {shapes[0]} there and {shapes[1]} here",
                hint="Give it the same settings. One that was saved without its MLP or encoder goes on without it: "
                "projection: false, or encoder: none.",
            )
    for key in fitting:
        mine[key].copy_(theirs[key])


def _read(model: AdaptedModel, folder: Path) -> tuple[Adapter, dict[str, Any]]:
    """The adapter in a folder, and its notes."""
    notes = read_notes(folder)
    config = read_json(folder, CONFIG) if (folder / CONFIG).exists() or not notes else None
    _check_base(model, folder, notes)
    tensors = _without_copies(model, folder, _read_weights(folder), (config or {}).get("modules_to_save") or [])
    stored = Stored(tensors, config, folder)
    reader = _peft_reader(stored) if config is not None else None
    if notes or reader is None:
        adapter = _method(folder, notes).restore(stored, model.places, device=model.device)
    else:
        adapter = reader(stored, model.places, device=model.device)
    if (folder / HEAD).exists():
        adapter.head = _head(model, folder)
    if (folder / TRAINED_ON).exists():
        adapter.trained_on = (folder / TRAINED_ON).resolve()
    return adapter, notes


def read_notes(folder: Path) -> dict[str, Any]:
    """The graftlm.json of an adapter folder; empty where peft wrote it.

    Raises:
        UserError: it is from a newer graftlm, or broken.
    """
    if not (folder / NOTES).exists():
        return {}
    notes = read_json(folder, NOTES)
    if notes.get("format") != FORMAT:
        raise UserError(
            f"{folder / NOTES} has format {notes.get('format')!r}; this graftlm reads format {FORMAT}",
            hint="Update graftlm.",
        )
    checked(_Notes, notes, folder / NOTES)
    return notes


class _NotedBase(BaseModel):
    name: str
    fingerprint: str


class _Notes(BaseModel):
    """What a graftlm.json must have; the rest is free."""

    method: dict[str, Any]
    base: _NotedBase


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """A JSON object of an adapter folder, or a UserError that says what is missing or broken."""
    path = folder / file
    if not folder.is_dir():
        raise UserError(f"there is no adapter folder {folder}", hint=_neighbours(folder))
    if not path.exists():
        raise UserError(f"{folder} is not an adapter folder: it has no {file}", hint=_neighbours(folder / "x"))
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is cut short or broken: {error}", hint="Copy the adapter folder again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of an adapter folder; empty where the method is none of peft's.

    Raises:
        UserError: it is broken, or the folder holds no adapter.
    """
    if (folder / NOTES).exists() and not (folder / CONFIG).exists():
        return {}
    return read_json(folder, CONFIG)


def describe_method(config: Mapping[str, Any], notes: Mapping[str, Any]) -> str:
    """The method of a folder in one line, or the ranks that it chose."""
    settings = notes.get("method") or {
        "method": str(config.get("peft_type", "?")).lower(),
        "rank": config.get("r", "?"),
    }
    name = str(settings.get("method", "?"))
    if ranks := list((notes.get("ranks") or {}).values()):
        return f"{name} ranks {min(ranks)} to {max(ranks)}, {sum(ranks) / len(ranks):.1f} on average"
    known = methods().get(name)
    if known is not None and notes.get("method"):
        with suppress(ValidationError):
            return known.model_validate(settings).describe()
    return f"{name} rank {settings['rank']}" if settings.get("rank") else name


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder looks like an adapter, ours or peft's."""
    return (folder / CONFIG).is_file() or (folder / NOTES).is_file()


def _neighbours(folder: Path) -> str | None:
    parent = folder.parent
    if not parent.is_dir():
        return None
    files = [
        path for file in (CONFIG, NOTES) for depth in ("", "[!.]*/") for path in parent.glob(f"[!.]*/{depth}{file}")
    ]
    found = sorted({str(path.parent) for path in files})
    return f"Adapter folders nearby: {', '.join(found[:8])}" if found else None


def _shape(model: AdaptedModel) -> dict[str, Any]:
    text = model.base.config.get_text_config()
    return {
        "family": str(model.base.config.model_type),
        "hidden_size": int(text.hidden_size),
        "layers": len(model.places.blocks),
        "vocabulary": model.vocabulary,
    }


def _check_base(model: AdaptedModel, folder: Path, notes: Mapping[str, Any]) -> None:
    theirs = notes.get("base")
    if theirs is None or theirs["fingerprint"] == model.fingerprint:
        return
    ours = _shape(model)
    differing = [f"{key} {theirs.get(key)} against {value}" for key, value in ours.items() if theirs.get(key) != value]
    shapes = "; ".join(differing) if differing else "the shapes are equal, the weights are not"
    raise UserError(
        f"the adapter {folder} was trained on another base: {theirs['name']}, "
        f"fingerprint {theirs['fingerprint'][:16]}…, "
        f"but this base is {model.name}, fingerprint {model.fingerprint[:16]}… ({shapes})",
        hint=f"Load it on its own base: --base {theirs['name']}",
    )


def _method(folder: Path, notes: Mapping[str, Any]) -> MethodConfig:
    """The method's settings, as we wrote them."""
    settings, known = notes["method"], methods()
    if settings.get("method") not in known:
        raise unknown_name("method", str(settings.get("method")), list(known))
    try:
        return known[settings["method"]].model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{folder / NOTES}: method: {error.errors()[0]['msg']}") from error


def _peft_reader(stored: Stored) -> PeftReader:
    """What reads adapters of the kind that peft's configuration names."""
    kind, known = (stored.peft or {}).get("peft_type"), peft_readers()
    if not isinstance(kind, str) or kind not in known:
        raise UserError(f"{stored.folder / CONFIG}: peft_type is {kind!r}; graftlm reads {', '.join(sorted(known))}")
    return known[kind]


def _head(model: AdaptedModel, folder: Path) -> Head:
    """The head that stands beside an adapter: of rewards where their mean and deviation are there, else of classes.

    Raises:
        UserError: a tensor is missing, or of another width than the base's states.
    """
    tensors = _read_weights(folder, HEAD)
    outputs = len(tensors["bias"]) if "bias" in tensors else 0
    needed = {"weight": (outputs, model.hidden_size), "bias": (outputs,)}
    scale = {"mean": (outputs,), "deviation": (outputs,)}
    rewards = bool(scale.keys() & tensors.keys())
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != needed | (scale if rewards else {}):
        shapes = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in sorted(tensors.items()))
        raise UserError(
            f"{folder / HEAD} holds no head for this base: it should have a weight (classes, {model.hidden_size}) "
            f"and a bias (classes), and has {shapes or 'nothing'}",
            hint="Copy the adapter folder again.",
        )
    dtype = torch.promote_types(tensors["weight"].dtype, torch.float32)
    found = {key: tensor.to(model.device, dtype) for key, tensor in tensors.items()}
    return RewardHead(**found) if rewards else ClassHead(**found)


def _read_weights(folder: Path, file: str = WEIGHTS) -> dict[str, torch.Tensor]:
    path = folder / file
    if not path.exists():
        pickled = (folder / "adapter_model.bin").exists()
        raise UserError(
            f"{folder} has no {file}"
            + (", only a pickled adapter_model.bin, which is never opened" if pickled else ""),
            hint="Save it again with safetensors." if pickled else "Copy the adapter folder again.",
        )
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is cut short or broken: {error}", hint="Copy the adapter folder again.") from error


def _without_copies(
    model: AdaptedModel, folder: Path, tensors: Mapping[str, torch.Tensor], trained: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The tensors without the copies of the embedding and the head that peft puts beside a LoRA on the head.

    ``trained``: the names of modules that were trained whole (peft's modules_to_save), whose tensors are kept.

    Raises:
        UserError: they are not copies; the adapter was trained together with them.
    """
    own = model.base.state_dict()
    kept = {}
    for key, tensor in tensors.items():
        path = key.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".")
        module = path.rpartition(".")[0]
        if path not in own or any(module == name or module.endswith("." + name) for name in trained):
            kept[key] = tensor
        elif own[path].shape != tensor.shape or not torch.equal(
            own[path].cpu().to(torch.bfloat16), tensor.to(torch.bfloat16)
        ):
            raise UserError(
                f"{folder / WEIGHTS} brings weights of its own for {path}, other than this base's",
                hint="graftlm never changes a base; merge the adapter in peft and use the result as the base.",
            )
    return kept
