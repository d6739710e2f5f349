"""AdaptedModel: one frozen base and any number of named adapters, routed row by row."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from graftlm.adapters.checkpointing import checkpoint_blocks, keep_activations
from graftlm.adapters.decoder_positions import DecoderPositions
from graftlm.adapters.heads import ClassHead, RewardHead
from graftlm.adapters.inputs import Inputs, PositionIds, check_length, realigned, with_virtual_tokens
from graftlm.adapters.method import Adapter, MethodConfig
from graftlm.adapters.routing import Call, Routing, RowAdapters, Stack, as_stack, during, mix_seed, routed
from graftlm.adapters.sites import Sites
from graftlm.adapters.virtual import placed
from graftlm.base.fingerprint import base_fingerprint
from graftlm.base.head import backbone, language_head
from graftlm.base.loading import Kind, LoadedBase, base_kind, context_length, freeze, load_base
from graftlm.base.memory import tune_allocator
from graftlm.base.places import find_places
from graftlm.base.products import multiply_fast
from graftlm.errors import UserError, unknown_name

CACHE = "past_key_values"
Adapters = RowAdapters | list[RowAdapters] | Routing


class AdaptedModel:
    """A frozen base model with adapters beside it.

    The base is never written to: adapters attach by overriding ``forward`` on instances of its modules and by hooks;
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
        multiply_fast(self.base)
        self.tokenizer = tokenizer
        self.name = name or type(base).__name__
        self.source = source or self.name
        self.places = find_places(base, blocks=blocks)
        self.fingerprint = base_fingerprint(base)
        self._backbone = backbone(base)
        self._score = language_head(base)
        self._positions = PositionIds.of(self._backbone)
        self._decoder_positions = DecoderPositions(base)
        #: The most tokens that a sequence may have.
        self.context_length = context_length(base.config) - self._positions.first
        self._adapters: dict[str, Adapter] = {}
        self._views: dict[str, Adapter] = {}
        self._attached: dict[str, int] = {}  # how many adapters were attached before, by name
        self._attachments = 0
        self._sites = Sites(self.places)
        self._checkpointing = False
        # transformers renamed it; both names serve here.
        self._cache_argument = "cache" if "cache" in inspect.signature(base.forward).parameters else CACHE
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
    def kind(self) -> Kind:
        """Whether the base is a decoder, an encoder or an encoder-decoder."""
        return base_kind(self.base.config)

    @property
    def has_language_head(self) -> bool:
        """Whether the base predicts tokens."""
        return self._score is not None

    @property
    def vocabulary(self) -> int:
        """How many logits a position has."""
        return int(self.base.config.get_text_config().vocab_size)

    @property
    def hidden_size(self) -> int:
        """How wide the final hidden states are."""
        return int(self.base.config.get_text_config().hidden_size)

    def room(self, adapters: RowAdapters) -> int:
        """The most tokens that a row of these adapters may have: the context, less their virtual tokens and prefix."""
        stack = as_stack(adapters)
        return self.context_length - self.virtual_length(stack) - self.prefix_length(stack)

    def add(
        self,
        name: str,
        config: MethodConfig,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        classes: int | None = None,
        criteria: int | None = None,
    ) -> Adapter:
        """Add a new adapter. Its parameters depend on (name, config, seed, base) alone.

        ``dtype`` is the precision that it is kept and trained in: float32 by default (float64 on a float64 base).
        ``classes``: it also gets a head of its own that predicts so many classes instead of tokens. ``criteria``: or
        one that gives so many rewards.

        Raises:
            UserError: the name is taken or unfit for a folder, or the configuration does not fit the base.
        """
        self.check_new(name)
        dtype = dtype or torch.promote_types(self.dtype, torch.float32)
        config = config.bind(self.tokenizer)
        adapter = config.build(self.places, seed=mix_seed(seed, name), dtype=dtype, device=self.device)
        start = mix_seed(seed, name, "head")
        if classes is not None:
            adapter.head = ClassHead.new(self.hidden_size, classes, seed=start, dtype=dtype, device=self.device)
        elif criteria is not None:
            adapter.head = RewardHead.new(self.hidden_size, criteria, seed=start, dtype=dtype, device=self.device)
        self.attach(name, adapter)
        return adapter

    def attach(self, name: str, adapter: Adapter) -> None:
        """Put an adapter that was built elsewhere under ``name``."""
        self.check_new(name)
        self._sites.attach(name, adapter)
        self._adapters[name] = adapter
        self._attachments += 1
        self._attached[name] = self._attachments

    def remove(self, name: str) -> Adapter:
        """Take an adapter away; places that no adapter uses any more are as they were."""
        adapter = self.adapter(name)
        self.drop_views(name)
        self._sites.detach(name, adapter)
        if name in self._views:
            return self._views.pop(name)
        self.notes.pop(name, None)
        return self._adapters.pop(name)

    def drop_views(self, name: str) -> None:
        """Forget the views of an adapter, whose parameters are no longer those that they share."""
        for view in [view for view in self._views if view.startswith(name + "@")]:
            self._sites.detach(view, self._views.pop(view))

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name."""
        self.adapter(old)
        self.check_new(new)
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
        """The adapter called ``name``, or a UserError that names those that exist.

        ``name@form`` is another form of the adapter ``name`` that shares its parameters, such as ``dylora@4``.
        """
        if name in self._adapters:
            return self._adapters[name]
        if name in self._views:
            return self._views[name]
        owner, at, suffix = name.rpartition("@")
        if not at or owner not in self._adapters:
            raise unknown_name("adapter", name, list(self._adapters))
        view = self._adapters[owner].config.view(self._adapters[owner], suffix)
        view.head = self._adapters[owner].head
        self._sites.attach(name, view)
        self._views[name] = view
        return view

    def version(self, name: str) -> tuple[int, int]:
        """A value that changes whenever another adapter gets the name, or a step changes the parameters of this one."""
        adapter = self.adapter(name)
        owner = name if name in self._attached else name.rpartition("@")[0]
        return self._attached[owner], sum(parameter._version for parameter in adapter.parameters())

    def save(self, name: str, folder: str | Path, *, peft: bool = False) -> Path:
        """Write an adapter as a folder, which peft loads as it is where it has such a kind of adapter.

        ``peft``: it must; see :mod:`graftlm.adapters.files`.

        Raises:
            UserError: there is no such adapter, or with ``peft``: peft has no form for it.
        """
        from graftlm.adapters.files import save_adapter

        return save_adapter(self, name, Path(folder), peft=peft)

    def load(self, folder: str | Path, name: str | None = None) -> str:
        """Read an adapter folder (ours or peft's); its name is ``name``, or the folder's. Gives the name."""
        from graftlm.adapters.files import load_adapter

        return load_adapter(self, Path(folder), name)

    def check_new(self, name: str) -> None:
        """See that an adapter can get a name.

        Raises:
            UserError: it is taken, or unfit for a folder.
        """
        if not name or name.startswith(".") or any(sign in name for sign in '/\\:*?"<>|@\0'):
            raise UserError(
                f"'{name}' cannot be an adapter's name: it becomes a folder's name, so no / \\ : * ? \" < > | @"
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
        return Routing.of_rows(self._stacks(adapters, rows), tokens_per_row)

    def _stacks(self, adapters: RowAdapters | list[RowAdapters], rows: int) -> list[Stack]:
        each: list[RowAdapters] = adapters if isinstance(adapters, list) else [adapters] * rows
        if len(each) != rows:
            raise UserError(
                f"adapters names {len(each)} rows, but the batch has {rows}",
                hint="Give one name, a stack as a tuple or None for each row, or one for all.",
            )
        stacks = [as_stack(row) for row in each]
        self._check_stacks(set(stacks))
        return stacks

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
        list with one of these for each row; or a :class:`Routing`. Further arguments go to the base. The ids of an
        encoder-decoder are the encoder's; ``decoder_input_ids`` stand beside them.

        Rows whose adapters have virtual tokens get them in front, unless the ids hold some or the routing is given
        as a value; the output lines up with the ids that were given.
        """
        return self._run(self.base, input_ids, attention_mask, adapters, kwargs)

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        adapters: Adapters = None,
        **kwargs: Any,
    ) -> Any:
        """Like a call, without the language head: ``last_hidden_state`` is (rows, length, hidden)."""
        return self._run(self._backbone, input_ids, attention_mask, adapters, kwargs)

    def _run(
        self,
        module: nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        adapters: Adapters,
        kwargs: dict[str, Any],
    ) -> Any:
        rows = len(input_ids)
        given = inputs = Inputs(input_ids, attention_mask, kwargs)
        virtual = [0] * rows
        if isinstance(adapters, Routing):
            routing = self.routing(adapters, rows, given.read.shape[1])
        else:
            stacks = self._stacks(adapters, rows)
            counts = [self.virtual_length(stack) for stack in stacks]
            inputs = with_virtual_tokens(given, counts, self.places)
            virtual = counts if inputs is not given and inputs.target is None else virtual
            routing = Routing.of_rows(stacks, inputs.read.shape[1])
        if inputs.target is not None and routing.source is None:
            source = Routing.of_rows(routing.row_stacks(rows), inputs.ids.shape[1])
            routing = replace(routing, source=source)
        used = {name for segment in routing.segments for name in segment.stack}
        key_values = {name: found for name in used if (found := self.adapter(name).key_values())}
        prefixes = [self.prefix_length(stack) for stack in routing.row_stacks(rows)] if key_values else None
        check_length(inputs, virtual, prefixes, routing, self.context_length)
        kwargs = inputs.kwargs | self._positions(inputs, prefixes, self.context_length)
        if self._checkpointing and torch.is_grad_enabled():  # a cache would be filled twice, where blocks run twice
            kwargs.setdefault("use_cache", False)
        if CACHE in kwargs:
            kwargs[self._cache_argument] = kwargs.pop(CACHE)
        call = Call(routing, key_values)
        if prefixes is not None:
            encoders = None if inputs.target is None else inputs.positions()
            call = Call(
                routing, key_values, self._sites.attention, tuple(prefixes), inputs.target_positions(), encoders
            )
        elif inputs.target_mask is not None:
            call = Call(routing, key_values, positions=inputs.target_positions())
        with during(call), self._decoder_positions.during(call):
            output = module(input_ids=inputs.ids, attention_mask=inputs.mask, **kwargs)
        return realigned(output, inputs)

    def virtual_length(self, stack: Stack) -> int:
        """How many virtual tokens the adapters of a stack have together."""
        found = (self.adapter(name).virtual for name in stack)
        return sum(virtual.length for virtual in found if virtual is not None)

    def head_of(self, stack: Stack) -> str | None:
        """The adapter whose own head reads the final hidden states of a stack: the topmost that has one, or none."""
        return next((name for name in reversed(stack) if self.adapter(name).head is not None), None)

    @property
    def first_virtual(self) -> int:
        """The id of a row's first virtual token: the first past the vocabulary."""
        return self.vocabulary if self.places.embedding is None else self.places.embedding.vocabulary

    def is_virtual(self, token: int) -> bool:
        """Whether an id is that of a virtual token, and not in the vocabulary."""
        return self.places.embedding is not None and token >= self.places.embedding.vocabulary

    def count_words(self, ids: Sequence[int]) -> int:
        """How many ids are no virtual tokens."""
        return sum(not self.is_virtual(token) for token in ids)

    def with_virtual_tokens(
        self, ids: Sequence[int], adapters: RowAdapters, *, drop_others: bool = False
    ) -> tuple[int, ...]:
        """A row's ids with the virtual tokens of its adapters in front, unless it holds some already.

        ``drop_others``: take out those that its adapters do not have; the row was made for other ones.

        Raises:
            UserError: an id is neither in the vocabulary nor one of their virtual tokens.
        """
        return placed(ids, self.virtual_length(as_stack(adapters)), self.first_virtual, drop_others=drop_others)

    def prefix_length(self, stack: Stack) -> int:
        """By how much the adapters of a stack shift a row's positions: the keys and values that stand before them."""
        return sum(self.adapter(name).prefix_length for name in stack)

    def score(self, hidden: torch.Tensor, routing: Routing | None = None) -> torch.Tensor:
        """Logits (tokens, vocabulary) of final hidden states (tokens, hidden): head, caps and scales included.

        ``routing`` of these very tokens is needed only where an adapter changes the head.

        Raises:
            UserError: the base has no language head.
        """
        if self._score is None:
            raise UserError(
                f"{self.name} is an encoder without a language head: it predicts no tokens",
                hint="Give its adapters a head of their own, such as head: {type: classifier}.",
            )
        with routed(routing if self.head_is_adapted else None):
            return self._score(hidden)

    @property
    def head_is_adapted(self) -> bool:
        """Whether any adapter changes the language head."""
        return self.places.head in self._sites.modules

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether activations inside the blocks are recomputed in the backward pass instead of kept."""
        return self._checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        blocks = [self.base.get_submodule(path) for path in self.places.blocks]
        (checkpoint_blocks if on else keep_activations)(blocks)
        self._checkpointing = on
