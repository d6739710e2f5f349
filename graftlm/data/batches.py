"""From encoded rows to micro-batches: which rows make an optimizer step, and which run together.

The two are separate. A step's rows depend on one adapter's own data, seed and settings. Micro-batches are how
the rows of all adapters' steps are run within a memory limit; they change nothing but speed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A rendered instance: token ids, and for each whether it is learnt (it is then predicted, not given)."""

    ids: Sequence[int]
    supervised: Sequence[bool]
    source: str
    row: int

    @property
    def n_supervised(self) -> int:
        """How many tokens are learnt. The first token of a row has nothing to be predicted from."""
        return sum(self.supervised[1:])


@dataclass(frozen=True)
class Padded:
    """Rows padded on the right into one tensor.

    ``input_ids`` (rows, length) int64; ``lengths`` of the rows; ``positions`` (n,) flat positions whose next token
    is learnt, ascending; ``targets`` (n,) those next tokens; ``counts`` how many of them each row has.
    """

    input_ids: torch.Tensor
    lengths: list[int]
    positions: torch.Tensor
    targets: torch.Tensor
    counts: list[int]


def pad(rows: Sequence[EncodedRow], pad_id: int, device: torch.device | str = "cpu") -> Padded:
    """Put rows side by side, padded on the right with ``pad_id``.

    Raises:
        ValueError: a row has no token to learn; such rows are dropped, and counted, when data is prepared.
    """
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    positions: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    counts: list[int] = []
    for number, row in enumerate(rows):
        ids = torch.as_tensor(row.ids, dtype=torch.int64)
        input_ids[number, : len(ids)] = ids
        learnt = torch.as_tensor(row.supervised, dtype=torch.bool)[1:].nonzero().squeeze(1)
        if len(learnt) == 0:
            raise ValueError(f"{row.source}, row {row.row}: no token to learn")
        positions.append(learnt + number * longest)
        targets.append(ids[learnt + 1])
        counts.append(len(learnt))
    return Padded(input_ids.to(device), lengths, torch.cat(positions).to(device), torch.cat(targets).to(device), counts)


def epoch_steps(
    lengths: Sequence[int],
    *,
    seed: int,
    batch_rows: int | None = None,
    batch_tokens: int | None = None,
    group_by_length: bool = True,
    window: int = 32,
) -> list[list[int]]:
    """The rows (indices) of each optimizer step of one epoch, in order: every row once.

    A step has ``batch_rows`` rows, or as many as it takes to reach ``batch_tokens`` real tokens. Rows are
    shuffled by ``seed``; with ``group_by_length`` the rows of a window of about ``window`` steps are sorted, so
    that a step's rows are of like length, and the steps are shuffled again.
    """
    shuffler = random.Random(seed)
    order = list(range(len(lengths)))
    shuffler.shuffle(order)
    if not group_by_length:
        return list(_cut(order, lengths, batch_rows, batch_tokens))
    per_step = batch_rows or max(1, round((batch_tokens or 1) * len(lengths) / max(1, sum(lengths))))
    size = per_step * window
    steps: list[list[int]] = []
    left: list[int] = []  # the short step at the end of a window goes into the next one
    for start in range(0, len(order), size):
        grouped = sorted([*left, *order[start : start + size]], key=lambda index: lengths[index])
        cut = list(_cut(grouped, lengths, batch_rows, batch_tokens))
        left = cut.pop() if batch_tokens is not None and start + size < len(order) else []
        steps += cut
    shuffler.shuffle(steps)
    return steps


def _cut(
    order: Sequence[int], lengths: Sequence[int], batch_rows: int | None, batch_tokens: int | None
) -> Iterator[list[int]]:
    step: list[int] = []
    tokens = 0
    for index in order:
        step.append(index)
        tokens += lengths[index]
        if (batch_rows is not None and len(step) >= batch_rows) or (
            batch_tokens is not None and tokens >= batch_tokens
        ):
            yield step
            step, tokens = [], 0
    if step:
        yield step


def micro_batches(lengths: Sequence[int], max_tokens: int, *, overhead: int = 96) -> list[list[int]]:
    """Cut rows into micro-batches with the least work: padded tokens plus ``overhead`` tokens' worth for each.

    Every micro-batch holds at most ``max_tokens`` padded tokens, but at least one row. Exact (dynamic programming
    over the rows sorted by length); the longest come first, so that memory peaks in the first one.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for stop in range(1, len(order) + 1):
        for start in range(stop - 1, -1, -1):
            tokens = (stop - start) * lengths[order[start]]
            if tokens > max_tokens and stop - start > 1:
                break
            cost = best[start] + tokens + overhead
            if cost < best[stop]:
                best[stop], cut[stop] = cost, start
    batches: list[list[int]] = []
    stop = len(order)
    while stop:
        batches.append(order[cut[stop] : stop])
        stop = cut[stop]
    return batches[::-1]
