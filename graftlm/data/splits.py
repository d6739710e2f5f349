"""Which instances are learnt from and which are held out: what is alike falls on one side.

Alike are instances of one group, or else with one input as their keys say, or else with one prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from graftlm.data.instances import Instance
from graftlm.errors import UserError

if TYPE_CHECKING:
    from graftlm.data.prepare import PreparedData


def alike(instance: Instance) -> str:
    """What instances that must stay together have in common."""
    origin = instance.provenance
    if origin.group_key or origin.input_key:
        return f"group\0{origin.group_key}" if origin.group_key else f"input\0{origin.input_key}"
    contents: list[str] = []
    for message in instance.messages:
        if message.role == "assistant" and contents:
            break
        contents.append(f"{message.role}\0{message.content.strip()}")
    return "\1".join(contents)


def share_of(instance: Instance, seed: int) -> float:
    """A number in [0, 1) that follows from the seed and :func:`alike`: those alike fall on one side of any limit."""
    digest = hashlib.blake2b(f"{seed}\0{alike(instance)}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_held_out(data: PreparedData, held_out: float | int, seed: int = 0) -> tuple[PreparedData, PreparedData]:
    """Part into training and held-out rows, by a hash of ``seed`` and of what makes rows alike.

    Rows that are :func:`alike` stay on one side. ``held_out`` is a share (a float below 1) or a number of rows; at
    least one row, and at least as many as asked where rows are alike. The order of rows is kept, and the order of the
    files does not change the choice.

    Raises:
        UserError: that would leave no row to train on.
    """
    from graftlm.data.prepare import PreparedData

    if held_out <= 0:
        return data, PreparedData([], [], data.counts, data.format)
    chosen = chosen_to_hold_out(data.instances, held_out, seed)
    rest = [i for i in range(len(data.instances)) if i not in chosen]
    return _part(data, rest), _part(data, sorted(chosen))


def chosen_to_hold_out(instances: Sequence[Instance], part: float | int, seed: int = 0) -> set[int]:
    """Which instances (indices) are set apart; see :func:`split_held_out`.

    Raises:
        UserError: that would leave none on one side.
    """
    groups: dict[bytes, list[int]] = {}
    for index, instance in enumerate(instances):
        key = hashlib.sha256(f"{seed}\0{alike(instance)}".encode("utf-8", "surrogatepass")).digest()
        groups.setdefault(key, []).append(index)
    total = len(instances)
    target = part if isinstance(part, int) else max(1, round(part * total))
    chosen: set[int] = set()
    for key in sorted(groups):
        if len(chosen) >= target:
            break
        if len(chosen) + len(groups[key]) < total:
            chosen.update(groups[key])
    if len(chosen) < min(target, 1) or target >= total:
        raise UserError(
            f"{part} held-out rows cannot be taken of {total} rows with {len(groups)} different prompts",
            hint="Lower held_out, or give a file of its own for evaluation.",
        )
    return chosen


def _part(data: PreparedData, indices: Iterable[int]) -> PreparedData:
    from graftlm.data.prepare import PreparedData

    chosen = list(indices)
    return PreparedData([data.rows[i] for i in chosen], [data.instances[i] for i in chosen], data.counts, data.format)
