"""Export: a copy of the base with adapters merged in, as an ordinary transformers folder."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from graftlm.adapters.lora_embedding import add_to_weight
from graftlm.adapters.method import Adapter, Change, LowRank, Update
from graftlm.adapters.model import AdaptedModel
from graftlm.base.files import write_folder
from graftlm.base.loading import freeze, model_class, quiet_loading
from graftlm.errors import UserError


@dataclass(frozen=True)
class MergeCheck:
    """How far the exported folder, loaded again, is from the adapters beside the base, on some tokens."""

    largest_difference: float
    largest_logit: float
    tokens: int

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest_difference / max(self.largest_logit, 1e-30)


def export_merged(
    model: AdaptedModel, adapters: Sequence[str], folder: Path, *, dtype: torch.dtype | None = None
) -> MergeCheck:
    """Write the base with the stack ``adapters`` merged to ``folder``; the base in memory stays as it is.

    The folder is loaded again and compared with the unmerged model. ``dtype``: of the weights written; the base's
    own by default.

    Raises:
        UserError: an adapter does not exist, a weight is not dense, or the disk is full.
    """
    merged = _merged_copy(model, adapters)
    if dtype is not None:
        nn.Module.to(merged, dtype)

    def fill(fresh: Path) -> None:
        with quiet_loading():
            merged.save_pretrained(fresh)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(fresh)

    write_folder(folder, fill)
    return _check(model, tuple(adapters), folder)


def can_be_merged(adapter: Adapter) -> bool:
    """Whether all that an adapter does can be written into weights of the base."""
    return not (adapter.sublayers or adapter.prefix or adapter.virtual or adapter.head)


@torch.no_grad()
def _merged_copy(model: AdaptedModel, adapters: Sequence[str]) -> PreTrainedModel:
    updates: dict[str, list[Update]] = {}
    for name in adapters:
        adapter = model.adapter(name)
        if not can_be_merged(adapter):
            what = f"{adapter.config.method} with a head of its own" if adapter.head else adapter.config.method
            raise UserError(
                f"the adapter '{name}' ({what}) is no change of weights alone, and cannot be merged",
                hint="It works beside the base: graftlm generate FILE --adapter FOLDER --out FILE",
            )
        for path, update in adapter.linear.items():
            updates.setdefault(path, []).append(update)
    merged = _fresh_copy(model)
    for path, several in updates.items():
        _merge(_module_to_change(merged, model, path, updates), several)
    _tie_again(merged, model)
    return merged


def _merge(module: nn.Module, updates: Sequence[Update]) -> None:
    """Write the updates of a stack into one module.

    Each adds to what the base gives, so each is written into the base's own weights and the differences are summed;
    what is done to the module's input counts for all of them, and is written last.
    """
    inputs = [update for update in updates if isinstance(update, Change) and update.prepares]
    adding = [update for update in updates if isinstance(update, LowRank) or update.adds]
    start = {name: parameter.clone() for name, parameter in module.named_parameters()}
    changed = []
    for update in adding:
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name])
        if isinstance(update, LowRank):
            add_to_weight(module, update.delta())
        else:
            update.merge_into(module)
        changed.append({name: parameter.clone() for name, parameter in module.named_parameters()})
    if len(changed) > 1:
        for name, parameter in module.named_parameters():
            parameter.copy_(start[name] + sum((each[name] - start[name] for each in changed), torch.zeros(())))
    for change in inputs:
        change.merge_into(module)


def _fresh_copy(model: AdaptedModel) -> PreTrainedModel:
    """A model of the same class and weights, built anew so that no adapter is attached to it."""
    base = model.base
    fresh: PreTrainedModel = type(base)(copy.deepcopy(base.config))
    nn.Module.to(fresh, device=model.device, dtype=model.dtype)
    fresh.load_state_dict(base.state_dict())
    if hasattr(base, "generation_config"):  # models without a language head have none
        fresh.generation_config = copy.deepcopy(base.generation_config)
    return fresh


def _module_to_change(
    merged: PreTrainedModel, model: AdaptedModel, path: str, updates: Mapping[str, Sequence[Update]]
) -> nn.Module:
    """One module of the copy; a head and an embedding that share a weight get one each first."""
    module = merged.get_submodule(path)
    linear = model.places.linears.get(path)
    if linear is not None and linear.dense_weight() is None:
        raise UserError(f"{path} has no dense weight to merge into", hint="Load the base unquantised to export it.")
    embedding = model.places.embedding
    looked_up = embedding.paths if embedding is not None else ()
    if path in looked_up and len(looked_up) > 1 and not set(looked_up) <= set(updates):
        raise UserError(
            f"{path} shares its weight with {', '.join(other for other in looked_up if other != path)}, and cannot be "
            "changed alone in an exported model",
            hint="The adapter can be used beside the base: graftlm chat, graftlm generate.",
        )
    head = merged.get_output_embeddings()  # type: ignore[no-untyped-call]
    if path == model.places.head or (head is not None and path in looked_up):
        other = merged.get_input_embeddings() if path == model.places.head else head
        if module.weight is other.weight:
            module.weight = torch.nn.Parameter(module.get_parameter("weight").detach().clone(), requires_grad=False)
            merged.config.tie_word_embeddings = False
    return module


def _tie_again(merged: PreTrainedModel, model: AdaptedModel) -> None:
    """Tie a head that was given a weight of its own, and in the end equals the embedding (a full copy)."""
    if merged.config.tie_word_embeddings == model.base.config.tie_word_embeddings:
        return
    head: Any = merged.get_output_embeddings()  # type: ignore[no-untyped-call]
    embedding: Any = merged.get_input_embeddings()
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
        merged.config.tie_word_embeddings = True


@torch.no_grad()
def _check(model: AdaptedModel, stack: tuple[str, ...], folder: Path) -> MergeCheck:
    with quiet_loading():
        exported = model_class(model.base.config).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
    nn.Module.to(exported, model.device)
    freeze(exported)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.vocabulary, (2, 32), generator=generator).to(model.device)
    decoder = {"decoder_input_ids": ids.flip(0)} if model.kind == "encoder-decoder" else {}
    # Of a base without a language head, the final hidden states are compared.
    ours = model(ids, adapters=stack, **decoder)[0].float()
    theirs = exported(input_ids=ids, **decoder)[0].float()
    return MergeCheck(float((ours - theirs).abs().max()), float(ours.abs().max()), ids.numel())
