"""AdaptedModel: one frozen base and any number of named adapters, routed row by row."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graftlm.adapters.checkpointing import checkpoint_blocks, keep_activations
from graftlm.adapters.grouped import Group, Product, adapted_linear, add_low_rank
from graftlm.adapters.method import Adapter, LowRank, MethodConfig
from graftlm.adapters.routing import Routing, RowAdapters, as_stack, current_routing, mix_seed, routed
from graftlm.base.fingerprint import base_fingerprint
from graftlm.base.head import backbone, language_head
from graftlm.base.loading import LoadedBase, context_length, freeze, load_base
from graftlm.base.memory import tune_allocator
from graftlm.base.places import LinearPlace, find_places
from graftlm.errors import UserError, unknown_name

Adapters = RowAdapters | list[RowAdapters] | Routing


class AdaptedModel:
    """A frozen base model with adapters beside it.

    The base is never written to: adapters attach by overriding ``forward`` on instances of its linear layers, and
    names, tied weights and saved files stay as they were.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        name: str = "",
        source: str = "",
        blocks: str | None = None,
    ) -> None:
        tune_allocator()
        self.base = freeze(base)
        self.tokenizer = tokenizer
        self.name = name or type(base).__name__
        self.source = source or self.name
        self.places = find_places(base, blocks=blocks)
        self.fingerprint = base_fingerprint(base)
        self._backbone = backbone(base)
        self._score = language_head(base)
        self._adapters: dict[str, Adapter] = {}
        self._sites: dict[str, _LinearSite] = {}
        self._checkpointing = False
        #: What travels with an adapter in its files (template, counts, recipe …), by adapter.
        self.notes: dict[str, dict[str, Any]] = {}

    @classmethod
    def from_pretrained(
        cls, name: str, *, dtype: str = "auto", device: str = "auto", blocks: str | None = None
    ) -> AdaptedModel:
        """Load a base: "tiny" (embedded), a folder, or a Hub name; see :func:`graftlm.base.loading.load_base`."""
        loaded: LoadedBase = load_base(name, dtype=dtype, device=device)
        return cls(loaded.model, loaded.tokenizer, name=name, source=loaded.source, blocks=blocks)

    # --- adapters -------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        """The adapters by name."""
        return MappingProxyType(self._adapters)

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return int(self.base.config.get_text_config().vocab_size)

    @property
    def context_length(self) -> int:
        """The most tokens that a sequence may have."""
        return context_length(self.base.config)

    def add(self, name: str, config: MethodConfig, *, seed: int = 0, dtype: torch.dtype | None = None) -> Adapter:
        """Add a new adapter. Its parameters depend on (name, config, seed, base) alone.

        ``dtype`` is the precision that it is kept and trained in: float32 by default (float64 on a float64 base).

        Raises:
            UserError: the name is taken or unfit for a folder, or the configuration does not fit the base.
        """
        self._check_new(name)
        if dtype is None:
            dtype = torch.promote_types(self.dtype, torch.float32)
        adapter = config.build(self.places, seed=mix_seed(seed, name), dtype=dtype, device=self.device)
        self.attach(name, adapter)
        return adapter

    def attach(self, name: str, adapter: Adapter) -> None:
        """Put an adapter that was built elsewhere under ``name``."""
        self._check_new(name)
        for path, update in adapter.linear.items():
            if path not in self._sites:
                self._sites[path] = _LinearSite(self.places.linears[path])
            self._sites[path].updates[name] = update
        self._adapters[name] = adapter

    def remove(self, name: str) -> Adapter:
        """Take an adapter away; layers that no adapter uses any more are as they were."""
        adapter = self.adapter(name)
        for path in adapter.linear:
            site = self._sites[path]
            del site.updates[name]
            if not site.updates:
                site.detach()
                del self._sites[path]
        self.notes.pop(name, None)
        return self._adapters.pop(name)

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name."""
        self.adapter(old)
        self._check_new(new)
        notes = self.notes.get(old)
        self.attach(new, self.remove(old))
        if notes is not None:
            self.notes[new] = notes

    def copy(self, name: str, new: str) -> Adapter:
        """A copy of an adapter, with parameters of its own, under another name."""
        duplicate = copy.deepcopy(self.adapter(name))
        self.attach(new, duplicate)
        if name in self.notes:
            self.notes[new] = copy.deepcopy(self.notes[name])
        return duplicate

    def adapter(self, name: str) -> Adapter:
        """The adapter called ``name``, or a UserError that names those that exist."""
        if name not in self._adapters:
            raise unknown_name("adapter", name, list(self._adapters))
        return self._adapters[name]

    def save(self, name: str, folder: str | Path) -> Path:
        """Write an adapter as a folder that peft loads as it is; see :mod:`graftlm.adapters.files`."""
        from graftlm.adapters.files import save_adapter

        return save_adapter(self, name, Path(folder))

    def load(self, folder: str | Path, name: str | None = None) -> str:
        """Read an adapter folder (ours or peft's); its name is ``name``, or the folder's. Gives the name."""
        from graftlm.adapters.files import load_adapter

        return load_adapter(self, Path(folder), name)

    def _check_new(self, name: str) -> None:
        if not name or name.startswith(".") or any(sign in name for sign in '/\\:*?"<>|\0'):
            raise UserError(
                f"'{name}' cannot be an adapter's name: it becomes a folder's name, so no / \\ : * ? \" < > |"
            )
        if name in self._adapters:
            raise UserError(
                f"there is already an adapter '{name}'; there are: {', '.join(sorted(self._adapters))}",
                hint="Choose another name, or remove that one first.",
            )

    # --- running --------------------------------------------------------------------------------------------

    def routing(self, adapters: Adapters, rows: int, tokens_per_row: int) -> Routing:
        """The routing of a padded batch. One name, stack or None serves all rows; a list gives each row its own.

        Raises:
            UserError: an adapter does not exist, or the list or routing has another length than the batch.
        """
        if isinstance(adapters, Routing):
            if adapters.tokens != rows * tokens_per_row:
                raise UserError(
                    f"the routing covers {adapters.tokens} tokens, but the batch has {rows * tokens_per_row}"
                )
            self._check_stacks({segment.stack for segment in adapters.segments})
            return adapters
        each: list[RowAdapters] = adapters if isinstance(adapters, list) else [adapters] * rows
        if len(each) != rows:
            raise UserError(
                f"adapters names {len(each)} rows, but the batch has {rows}",
                hint="Give one name, a stack as a tuple or None for each row, or one for all.",
            )
        stacks = [as_stack(row) for row in each]
        self._check_stacks(set(stacks))
        return Routing.of_rows(stacks, tokens_per_row)

    def _check_stacks(self, stacks: set[tuple[str, ...]]) -> None:
        for stack in stacks:
            for name in stack:
                self.adapter(name)
            if len(set(stack)) != len(stack):
                raise UserError(f"the stack ({', '.join(stack)}) names an adapter twice")

    def __call__(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        adapters: Adapters = None,
        **kwargs: Any,
    ) -> Any:
        """Run the whole model: ids (rows, length) → transformers' output, ``logits`` (rows, length, vocabulary).

        ``adapters``: a name, a tuple of names (a stack, applied together) or None (the bare base) for all rows; a
        list with one of these for each row; or a :class:`Routing`. Further arguments go to the base.
        """
        routing = self.routing(adapters, *input_ids.shape)
        self._spare_the_cache(kwargs)
        with routed(routing):
            return self.base(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        adapters: Adapters = None,
        **kwargs: Any,
    ) -> Any:
        """Like a call, without the language head: ``last_hidden_state`` is (rows, length, hidden)."""
        routing = self.routing(adapters, *input_ids.shape)
        self._spare_the_cache(kwargs)
        with routed(routing):
            return self._backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)

    def _spare_the_cache(self, kwargs: dict[str, Any]) -> None:
        """No cache of keys and values, unless asked for, where blocks run twice: they would fill it twice."""
        if self._checkpointing and torch.is_grad_enabled():
            kwargs.setdefault("use_cache", False)

    def score(self, hidden: torch.Tensor, routing: Routing | None = None) -> torch.Tensor:
        """Logits (tokens, vocabulary) of final hidden states (tokens, hidden): head, caps and scales included.

        ``routing`` of these very tokens is needed only where an adapter changes the head.
        """
        with routed(routing if self.head_is_adapted else None):
            return self._score(hidden)

    @property
    def head_is_adapted(self) -> bool:
        """Whether any adapter changes the language head."""
        return self.places.head in self._sites

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations inside the blocks are recomputed in the backward pass instead of kept."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        blocks = [self.base.get_submodule(path) for path in self.places.blocks]
        (checkpoint_blocks if on else keep_activations)(blocks)
        self._checkpointing = on


class _LinearSite:
    """A linear layer with adapters beside it: takes the place of ``forward`` on that one instance."""

    def __init__(self, place: LinearPlace) -> None:
        self.place = place
        self.updates: dict[str, LowRank] = {}
        self._base_forward: Callable[[torch.Tensor], torch.Tensor] = place.module.forward
        self._override = place.module.__dict__.get("forward")  # another library's, such as accelerate's
        place.module.forward = self.forward

    def detach(self) -> None:
        """Give the layer the ``forward`` back that it had."""
        del self.place.module.__dict__["forward"]
        if self._override is not None:
            self.place.module.forward = self._override

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        routing = current_routing()
        if routing is None:
            return self._base_forward(x)
        names = [name for name in routing.spans if name in self.updates]
        if not names:
            return self._base_forward(x)
        flat = x.reshape(-1, x.shape[-1])
        if flat.shape[0] != routing.tokens:
            raise RuntimeError(
                f"{self.place.path} ran on {flat.shape[0]} tokens, but the routing covers {routing.tokens}: "
                "this layer sees other tokens than the batch, and cannot be routed by them"
            )
        updates = [self.updates[name] for name in names]
        groups = tuple(
            Group(name, routing.spans[name], update.scale, update.dropout)
            for name, update in zip(names, updates, strict=True)
        )
        product = Product(groups, routing, self.place.index)
        factors = [update.factors() for update in updates]
        weight = self.place.dense_weight()
        if weight is not None:
            y = adapted_linear(flat, weight, _bias(self.place.module), product, factors)
        else:
            y = add_low_rank(self._base_forward(flat), flat, product, factors)
        return y.view(*x.shape[:-1], y.shape[-1])


def _bias(module: nn.Module) -> torch.Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None
