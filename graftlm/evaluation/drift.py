"""How far adapters move the base's next-token distribution on neutral text: KL divergence a token, many in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Routing, Stack
from graftlm.data.batches import EncodedRow
from graftlm.evaluation.asking import ask
from graftlm.evaluation.evaluation import Drift
from graftlm.evaluation.metrics import Floats
from graftlm.evaluation.results import ItemResult
from graftlm.evaluation.speakers import Opened, Speaker
from graftlm.evaluation.statistics import percentile_interval, resampled
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask
from graftlm.objectives.log_probs import chunk_rows
from graftlm.training.forward import RoutedRow, build_micro_batch, learnt_states


def drift_of_texts(
    opened: Opened, task: EvalTask, items: Sequence[Item], speakers: Sequence[Speaker], max_tokens: int
) -> dict[str, list[ItemResult]]:
    """For each speaker the scores "kl" (summed, in nats) and "tokens" of each text, all in shared passes.

    Each reads as much of a text as it has room for, whoever else is asked; those with equal room share their passes.
    """
    by_room: dict[int, list[Speaker]] = {}
    for speaker in speakers:
        by_room.setdefault(opened.model.room(speaker.stack), []).append(speaker)
    found: dict[str, list[ItemResult]] = {}
    for room, alike in by_room.items():
        found |= _drift_in(opened, task, items, alike, room, max_tokens)
    return found


def _drift_in(
    opened: Opened, task: EvalTask, items: Sequence[Item], speakers: Sequence[Speaker], room: int, max_tokens: int
) -> dict[str, list[ItemResult]]:
    """The drift of speakers that have room for so many tokens."""
    rows: list[EncodedRow] = []
    owners: list[int] = []
    for number, asked in enumerate(ask(opened, opened.base, task, items)):
        cut = [_cut(row.row, room) for row in asked.flat]
        rows += (kept := [row for row in cut if row.n_supervised])
        owners += [number] * len(kept)
    by_stack = {speaker.stack: speaker.label for speaker in speakers}
    sums = {label: [[0.0, 0.0] for _ in items] for label in by_stack.values()}
    for number, found in kl_of_rows(opened.model, rows, list(by_stack), max_tokens):
        for stack, kl in found.items():
            total = sums[by_stack[stack]][owners[number]]
            total[0] += kl
            total[1] += rows[number].n_supervised
    return {
        label: [
            ItemResult(item.hash, scores={"kl": kl, "tokens": tokens} if tokens and math.isfinite(kl) else {})
            for item, (kl, tokens) in zip(items, totals, strict=True)
        ]
        for label, totals in sums.items()
    }


def _cut(row: EncodedRow, room: int) -> EncodedRow:
    return replace(row, ids=row.ids[:room], supervised=row.supervised[:room])


@torch.no_grad()
def kl_of_rows(
    model: AdaptedModel, rows: Sequence[EncodedRow], stacks: Sequence[Stack], max_tokens: int
) -> Iterator[tuple[int, dict[Stack, float]]]:
    """For each row its number and KL(base ‖ stack), summed over the tokens that the row learns, in nats.

    The base and all stacks read a row in one pass; of the logits two chunks are held at a time.
    """
    every: list[Stack] = [(), *stacks]
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    per_pass = max(1, max_tokens // (max((len(row.ids) for row in rows), default=1) * len(every)))
    for start in range(0, len(order), per_pass):
        numbers = order[start : start + per_pass]
        # Rows of one routing stand together; the texts come in the same order under each.
        routed = [RoutedRow(rows[number], stack) for stack in every for number in numbers]
        batch = build_micro_batch(model, routed, list(range(len(routed))))
        hidden = learnt_states(model, batch)
        counts = batch.padded.counts[: len(numbers)]
        parts = torch.split(hidden, sum(counts))
        found: list[dict[Stack, float]] = [{} for _ in numbers]
        for stack, states in zip(every[1:], parts[1:], strict=True):
            for at, values in enumerate(torch.split(_kl(model, parts[0], states, stack), counts)):
                found[at][stack] = float(values.sum())
        yield from zip(numbers, found, strict=True)


def _kl(model: AdaptedModel, base: torch.Tensor, other: torch.Tensor, stack: Stack) -> torch.Tensor:
    """KL(base ‖ stack) at each position of final hidden states (n, hidden): (n,) float64, in chunks of positions."""
    found = torch.empty(len(base), dtype=torch.float64, device=base.device)
    step = chunk_rows(model.vocabulary, base.element_size())
    for start in range(0, len(base), step):
        part = slice(start, start + step)
        p, q = _log_probs(model, base[part], ()), _log_probs(model, other[part], stack)
        found[part] = (p.exp() * (p - q)).sum(-1, dtype=torch.float64)
    return found


def _log_probs(model: AdaptedModel, states: torch.Tensor, stack: Stack) -> torch.Tensor:
    logits = model.score(states, Routing.of_rows([stack], len(states)))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def drift_of(model: str, sums: Floats) -> Drift:
    """The drift from what each text adds: sums (texts, 2) of KL and tokens."""

    def ratio(totals: Floats) -> Floats:
        with_tokens: Floats = totals[..., 0] / totals[..., 1]
        return with_tokens

    draws = resampled([sums], ratio)[0]
    total = sums.sum(axis=0)
    return Drift(model, percentile_interval(float(total[0] / total[1]), draws), int(total[1]), len(sums))
