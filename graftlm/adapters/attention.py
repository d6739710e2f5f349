"""Keys and values of adapters before a row's own, inside the attention function.

transformers lets a model's attention be computed by a function of another's. Ours is in place as long as an adapter
has a prefix; each row finds the keys and values of its own adapters, one adapter's after the other's, and rows
without any go the usual way. What stands before a row is no part of the key/value cache.

Prefixes of unequal length are aligned at the row's first token, so that the last key of each prefix has the same
distance to it; what is left over in front is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from graftlm.adapters.attention_plain import attend_plainly
from graftlm.adapters.attention_step import attend_to_both, fits
from graftlm.adapters.decoder_positions import positions_are_unknown
from graftlm.adapters.method import KeyValues
from graftlm.adapters.routing import Call, Stack, current_call
from graftlm.base.attentions import AttentionPlace, restore_attention, set_attention
from graftlm.base.places import Places
from graftlm.errors import UserError

NAME = "graftlm"
Rows = slice | torch.Tensor


class AttentionSite:
    """Computes a base's attention with the prefixes of adapters, as long as there is one."""

    def __init__(self, places: Places) -> None:
        check_attention(places)
        self.prefixes: dict[str, KeyValues] = {}
        self.places = {place.module: place for place in places.attentions}
        self._before = set_attention(places.model, NAME)

    def detach(self) -> None:
        """Give the base its own attention back."""
        restore_attention(self._before)

    def owner_of_bias(self, place: AttentionPlace) -> Any:
        """The module that computes the relative position bias of a place: itself or the first of its stack (T5)."""
        like = [other for other in self.places.values() if (other.kind, other.source) == ("self", place.source)]
        owners = [other.module for other in (place, *like) if getattr(other.module, "has_relative_attention_bias", 0)]
        return owners[0] if owners and place.kind == "self" else None


class OurAttention:
    """A context in which a base's decoding steps go through our attention.

    It does not copy keys and values that heads share, and takes the threads that it is worth. Nothing changes where the
    base's attention is not torch's fused one.
    """

    def __init__(self, places: Places) -> None:
        self._configs = []
        if places.attentions:
            found = {id(c): c for m in places.model.modules() if (c := getattr(m, "config", None)) is not None}
            self._configs = [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]
        self._changed: list[Any] = []

    def __enter__(self) -> None:
        self._changed = [config for config in self._configs if config._attn_implementation_internal == "sdpa"]
        for config in self._changed:
            config._attn_implementation_internal = NAME

    def __exit__(self, *_: object) -> None:
        for config in self._changed:
            config._attn_implementation_internal = "sdpa"


def check_attention(places: Places) -> None:
    """See that a base's attention takes keys and values beside its own.

    Raises:
        UserError: it does not.
    """
    family = type(places.model).__name__
    if not places.attentions:
        raise UserError(
            f"{family} computes attention inside its own modules, not through the interface that transformers has for "
            "it, so there is no place for keys and values before a row's own",
            hint="Use virtual tokens (prompt tuning) or LoRA on this base.",
        )
    if positions_are_unknown(places.model):
        raise UserError(f"{family} numbers its decoder's positions in a way that graftlm cannot shift by a prefix")


@dataclass(frozen=True)
class _Served:
    """The rows of a batch that have a prefix at a place.

    ``rows``: which, and ``others``; None where there are none. ``stacks``: their different stacks, cut down to the
    adapters with a prefix, and ``which`` (served rows,) of them each row has. ``length``: of the longest prefix.
    ``real`` and ``windowed`` (stacks, length): which of the keys there are, and which leave a sliding window.
    ``order`` brings served rows, then others, back into the batch's order; None where they are in it.
    """

    rows: Rows
    others: Rows | None
    order: torch.Tensor | None
    stacks: tuple[Stack, ...]
    which: torch.Tensor
    length: int
    even: bool
    real: torch.Tensor
    windowed: torch.Tensor | None


def _serve(site: AttentionSite, call: Call, place: AttentionPlace, rows: int, device: torch.device) -> _Served | None:
    """Which rows have a prefix at a place; worked out once for all layers that the same adapters serve."""
    names = tuple(name for name, found in call.key_values.items() if place.path in found and name in site.prefixes)
    key, memo = (names, place.source, rows), _kept(call)
    if key not in memo:
        routing = call.routing.source if place.source and call.routing.source is not None else call.routing
        stacks = [tuple(name for name in stack if name in names) for stack in routing.row_stacks(rows)]
        memo[key] = _served(site, stacks, device) if any(stacks) else None
    served: _Served | None = memo[key]
    return served


def _kept(call: Call) -> dict[Any, Any]:
    """Where to keep what follows from rows and their adapters: with the routing, where no parameter changes."""
    return call.memo if call.routing.kept is None else call.routing.memo


def _served(site: AttentionSite, stacks: Sequence[Stack], device: torch.device) -> _Served:
    different = tuple(dict.fromkeys(stack for stack in stacks if stack))
    rows = [number for number, stack in enumerate(stacks) if stack]
    others = [number for number, stack in enumerate(stacks) if not stack]
    order = sorted(range(len(stacks)), key=[*rows, *others].__getitem__)
    parts = [[site.prefixes[name] for name in stack] for stack in different]
    lengths = [sum(part.length for part in own) for own in parts]
    longest = max(lengths)
    real = torch.zeros(len(different), longest, dtype=torch.bool)
    windowed = torch.zeros_like(real)
    for number, own in enumerate(parts):
        real[number, longest - lengths[number] :] = True
        start = longest - lengths[number]
        for part in own:
            windowed[number, start : start + part.length] = part.windowed
            start += part.length
    return _Served(
        _rows(rows, device),
        _rows(others, device) if others else None,
        None if order == sorted(order) else torch.tensor(order, device=device),
        different,
        torch.tensor([different.index(stacks[row]) for row in rows], device=device),
        longest,
        min(lengths) == longest,
        real.to(device),
        windowed.to(device) if bool(windowed.any()) else None,
    )


def _rows(numbers: list[int], device: torch.device) -> Rows:
    """Row numbers as a slice where they follow each other, which needs no copy."""
    if numbers == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers, device=device)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a module, with the prefixes of the call that runs.

    query (rows, heads, queries, width); key and value (rows, key/value heads, keys, width); attention_mask (rows or 1,
    1 or heads, queries, keys), boolean or added to scores, or None; position_bias (rows or 1, heads, queries, keys).
    Gives (rows, queries, heads, width).
    """
    causal = is_causal if is_causal is not None else bool(getattr(module, "is_causal", True))
    call = current_call()
    site = None if call is None else call.attention
    served = None
    if site is not None and call is not None and call.key_values and module in site.places:
        served = _serve(site, call, site.places[module], len(query), query.device)
    if site is None or call is None or served is None:
        return attend_plainly(
            module, query, key, value, attention_mask, position_bias, is_causal=causal, **kwargs
        ), None
    queries = query.shape[2]
    if causal and attention_mask is None and 1 < queries < key.shape[2]:  # a static cache that is filled for the first
        key, value = key[:, :, :queries], value[:, :, :queries]
        position_bias = None if position_bias is None else position_bias[..., :queries]
    if fits(query, kwargs.get("softcap"), position_bias):
        return _attend_in_step(site, call, served, module, query, key, value, attention_mask, kwargs), None
    own = _attend_after(site, call, served, module, query, key, value, attention_mask, position_bias, causal, kwargs)
    outputs = [own]
    if served.others is not None:
        rows = served.others
        if queries == 1 and isinstance(rows, torch.Tensor) and not torch.is_grad_enabled():
            # To attend for rows that do not need it is cheaper than to copy the keys and values of those that do.
            whole = attend_plainly(module, query, key, value, attention_mask, position_bias, is_causal=causal, **kwargs)
            whole[served.rows] = own
            return whole, None
        mask, bias = _of(attention_mask, rows), _of(position_bias, rows)
        outputs.append(
            attend_plainly(module, query[rows], key[rows], value[rows], mask, bias, is_causal=causal, **kwargs)
        )
    output = torch.cat(outputs) if len(outputs) > 1 else own
    return (output if served.order is None else output[served.order]), None


def _attend_in_step(
    site: AttentionSite,
    call: Call,
    served: _Served,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Attention of all rows of a step of decoding."""
    place = site.places[module]
    window = kwargs.get("sliding_window") if served.windowed is not None else None
    memo = ("seen", id(served), window, place.source)
    if memo not in call.memo:
        call.memo[memo] = None if served.even and window is None else _before(call, served, place, window)
    kept, tables = _kept(call), ("prefix tables", id(served), place.path)
    if tables not in kept:
        kept[tables] = tuple(_stacked(call, served, place.path, query))
    return attend_to_both(query, key, value, mask, kwargs.get("scaling"), kept[tables], call.memo[memo], served.rows)


def _attend_after(
    site: AttentionSite,
    call: Call,
    served: _Served,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    causal: bool,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Attention of the rows that have a prefix."""
    place, rows = site.places[module], served.rows
    queries, keys = query.shape[2], key.shape[2]
    causal = causal and queries > 1 and attention_mask is None
    window = kwargs.get("sliding_window") if served.windowed is not None else None
    memo = ("mask", id(served), id(attention_mask), queries, keys, window, causal, place.source)
    if memo not in call.memo:  # the mask is kept beside, so that its id stays its own
        mask = _mask(call, served, place, attention_mask, queries, keys, window, causal)
        call.memo[memo] = (attention_mask, mask)
    mask = call.memo[memo][1]
    if position_bias is not None:
        own = _of(position_bias, rows)
        before = _prefix_bias(site, call, served, place, own)
        position_bias = torch.cat([before, own.expand(len(before), -1, -1, -1)], dim=3)
    before_keys, before_values = _stacked(call, served, place.path, query)
    return attend_plainly(
        module,
        query[rows],
        torch.cat([before_keys, key[rows]], dim=2),
        torch.cat([before_values, value[rows]], dim=2),
        mask,
        position_bias,
        is_causal=False,
        **kwargs,
    )


def _stacked(call: Call, served: _Served, path: str, like: torch.Tensor) -> list[torch.Tensor]:
    """Keys and values, each (served rows, key/value heads, longest prefix, width)."""
    made = []
    for number in (0, 1):
        tables = []
        for stack in served.stacks:
            parts = [call.key_values[name][path][number] for name in stack]
            table = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
            missing = served.length - table.shape[1]
            tables.append(nn.functional.pad(table, (0, 0, missing, 0)) if missing else table)
        if len(tables) == 1:
            made.append(tables[0].to(like.dtype).expand(len(served.which), -1, -1, -1))
        else:
            made.append(torch.stack(tables).to(like.dtype)[served.which])
    return made


def _mask(
    call: Call,
    served: _Served,
    place: AttentionPlace,
    attention_mask: torch.Tensor | None,
    queries: int,
    keys: int,
    window: int | None,
    causal: bool,
) -> torch.Tensor | None:
    """Which keys each query of the served rows sees: (rows, 1 or heads, queries, prefix + keys); None is all."""
    if served.even and window is None and attention_mask is None and not causal:
        return None
    before = _before(call, served, place, window)
    device, count = before.device, len(served.which)
    own = _of(attention_mask, served.rows)
    if own is None:
        own = torch.ones(queries, keys, dtype=torch.bool, device=device)
        own = (own.tril() if causal else own)[None, None]
    if own.dtype != torch.bool:
        least = torch.finfo(own.dtype).min
        before = torch.zeros(before.shape, dtype=own.dtype, device=device).masked_fill(~before, least)
    before = before.expand(count, own.shape[1], queries, -1)
    return torch.cat([before, own.expand(count, -1, queries, -1)], dim=3)


def _before(call: Call, served: _Served, place: AttentionPlace, window: int | None) -> torch.Tensor:
    """Which keys of prefixes each query of the served rows sees: (rows, 1, 1 or queries, prefix)."""
    before = served.real[served.which][:, None, None, :]
    if window is None or served.windowed is None:
        return before
    position = _positions(call, place)[served.rows]
    distance = served.length + position[:, :, None] - torch.arange(served.length, device=before.device)
    inside = (distance < window) | ~served.windowed[served.which][:, None, :]
    return before & inside[:, None]


def _prefix_bias(
    site: AttentionSite, call: Call, served: _Served, place: AttentionPlace, like: torch.Tensor
) -> torch.Tensor:
    """The relative position bias (served rows, heads, queries, prefix) of the keys before a row: they stand right
    before its first token. Nought where the family has none, as across the two stacks."""
    owner = site.owner_of_bias(place)
    heads, queries = like.shape[1], like.shape[2]
    if owner is None:
        return like.new_zeros(len(served.which), heads, queries, served.length)
    position = _positions(call, place)[served.rows]
    farthest = served.length + int(position.max())
    # One query at the farthest distance sees all the others: (1, heads, 1, farthest).
    by_distance = owner.compute_bias(1, farthest, device=like.device, past_seen_tokens=farthest)[0, :, 0].flip(1)
    distance = served.length + position[:, :, None] - torch.arange(served.length, device=like.device)
    return by_distance[:, distance - 1].transpose(0, 1).to(like.dtype)  # type: ignore[no-any-return]


def _positions(call: Call, place: AttentionPlace) -> torch.Tensor:
    positions = call.source_positions if place.source else call.positions
    assert positions is not None
    return positions


def _of(tensor: torch.Tensor | None, rows: Rows) -> Any:
    """The rows of a tensor whose first dimension may stand for all of them."""
    return tensor if tensor is None or len(tensor) == 1 else tensor[rows]


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
