"""From encoded rows to micro-batches: which rows make an optimizer step, and which run together.

The two are separate. A step's rows depend on one adapter's own data, seed and settings. Micro-batches are how
the rows of all adapters' steps are run within a memory limit; they change nothing but speed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.judged import Judgement
from graftlm.data.sampled import Sampled


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """A rendered instance: token ids, and for each whether it is learnt (it is then predicted, not given).

    ``targets``, where given, say instead what each position must predict, and −1 where nothing: a token of the
    language head (an encoder's masked word), or a class of the adapter's own head. ``source_ids`` are what the
    encoder of an encoder-decoder reads; ``ids`` are then its decoder's.

    A row may lead a group: ``beside`` holds the other answers to its prompt, and ``judged`` what was said of each.
    Rows of a group are in one step and are learnt together. ``reference``: the summed log-probability of what is learnt
    under the reference, where the objective has one. ``sampled``: what is known of an answer that a policy drew.
    """

    ids: Sequence[int]
    supervised: Sequence[bool]
    source: str
    row: int
    targets: Sequence[int] | None = None
    source_ids: Sequence[int] | None = None
    beside: tuple[EncodedRow, ...] = ()
    judged: Judgement | None = None
    reference: float | None = None
    sampled: Sampled | None = None

    @property
    def group(self) -> tuple[EncodedRow, ...]:
        """The row and all that stand beside it."""
        return (self, *self.beside)

    @property
    def mismatched(self) -> bool:
        """Whether it is scored and not learnt."""
        return self.judged is not None and self.judged.mismatched

    @property
    def n_supervised(self) -> int:
        """How many predictions are learnt. The first token of a row has nothing to be predicted from."""
        return sum(self.supervised[1:]) if self.targets is None else sum(target >= 0 for target in self.targets)

    @property
    def tokens(self) -> int:
        """How many tokens the model reads, those of an encoder among them."""
        return len(self.ids) + len(self.source_ids or ())


@dataclass(frozen=True)
class Padded:
    """Rows padded on the right into one tensor.

    ``input_ids`` (rows, length) int64; ``lengths`` of the rows; ``positions`` (n,) flat positions at which something
    is learnt, ascending; ``targets`` (n,) what, a token or a class; ``counts`` how many of them each row has.
    ``source_ids`` (rows, source length) and ``source_lengths``: the encoder's, of an encoder-decoder.
    """

    input_ids: torch.Tensor
    lengths: list[int]
    positions: torch.Tensor
    targets: torch.Tensor
    counts: list[int]
    source_ids: torch.Tensor | None = None
    source_lengths: list[int] | None = None

    @property
    def size(self) -> int:
        """Tokens that are run, padding included."""
        return self.input_ids.numel() + (0 if self.source_ids is None else self.source_ids.numel())

    @property
    def mask(self) -> torch.Tensor:
        """(rows, length) int64: 1 at real tokens."""
        return _mask(self.input_ids, self.lengths)

    @property
    def source_mask(self) -> torch.Tensor | None:
        """(rows, source length) int64: 1 at the encoder's real tokens."""
        return None if self.source_ids is None else _mask(self.source_ids, self.source_lengths or [])


def pad(rows: Sequence[EncodedRow], pad_id: int, device: torch.device | str = "cpu") -> Padded:
    """Put rows side by side, padded on the right with ``pad_id``.

    Raises:
        ValueError: a row has nothing to learn; such rows are dropped, and counted, when data is prepared. Or only
            some of the rows have a source.
    """
    lengths = [len(row.ids) for row in rows]
    longest = max(lengths)
    positions: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    for number, row in enumerate(rows):
        places, wanted = _learnt(row)
        if len(places) == 0:
            raise ValueError(f"{row.source}, row {row.row}: no token to learn")
        positions.append(places + number * longest)
        targets.append(wanted)
    sources = [row.source_ids for row in rows if row.source_ids is not None]
    if sources and len(sources) != len(rows):
        raise ValueError("some rows have a source for an encoder, and some have none")
    return Padded(
        _stack([row.ids for row in rows], pad_id).to(device),
        lengths,
        torch.cat(positions).to(device),
        torch.cat(targets).to(device),
        [len(places) for places in positions],
        _stack(sources, pad_id).to(device) if sources else None,
        [len(ids) for ids in sources] if sources else None,
    )


def _learnt(row: EncodedRow) -> tuple[torch.Tensor, torch.Tensor]:
    """The positions at which something is learnt, and what."""
    if row.targets is not None:
        targets = torch.as_tensor(row.targets, dtype=torch.int64)
        places = (targets >= 0).nonzero().squeeze(1)
        return places, targets[places]
    places = torch.as_tensor(row.supervised, dtype=torch.bool)[1:].nonzero().squeeze(1)
    return places, torch.as_tensor(row.ids, dtype=torch.int64)[places + 1]


def _stack(sequences: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    stacked = torch.full((len(sequences), max(len(ids) for ids in sequences)), pad_id, dtype=torch.int64)
    for number, ids in enumerate(sequences):
        stacked[number, : len(ids)] = torch.as_tensor(ids, dtype=torch.int64)
    return stacked


def _mask(ids: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    columns = torch.arange(ids.shape[1], device=ids.device)
    return (columns < torch.tensor(lengths, device=ids.device)[:, None]).long()


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


def micro_batches(
    lengths: Sequence[int],
    max_tokens: int,
    *,
    overhead: int = 96,
    source_lengths: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
) -> list[list[int]]:
    """Cut rows into micro-batches with the least work: padded tokens plus ``overhead`` tokens' worth for each.

    Every micro-batch holds at most ``max_tokens`` padded tokens, but at least one row; ``source_lengths`` are those
    of the rows' second sequences, which are padded apart; ``sizes`` say how many rows each entry stands for, where
    entries are groups and lengths those of their longest. Exact (dynamic programming over the rows sorted by
    length); the longest come first, so that memory peaks in the first one.
    """
    sources = source_lengths or [0] * len(lengths)
    rows_of = sizes or [1] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda index: (-sources[index], -lengths[index], index))
    best = [0.0] + [float("inf")] * len(order)
    cut = [0] * (len(order) + 1)
    for stop in range(1, len(order) + 1):
        longest = rows = 0
        for start in range(stop - 1, -1, -1):
            longest = max(longest, lengths[order[start]])
            rows += rows_of[order[start]]
            tokens = rows * (longest + sources[order[start]])
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
