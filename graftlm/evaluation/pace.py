"""How long a model takes to read some tokens: each alone, so that adapters can be told apart by what they cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.data.batches import EncodedRow
from graftlm.evaluation.speakers import Speaker
from graftlm.training.forward import RoutedRow, build_micro_batch, learnt_states

ROWS, LENGTH, TIMES = 8, 64, 5


@torch.no_grad()
def pass_seconds(model: AdaptedModel, speakers: Sequence[Speaker]) -> dict[str, float]:
    """Seconds of a forward pass over 8 rows of 64 tokens, the median of five, by the label of the speaker.

    All take turns, so that what else the machine does meets them alike. Nothing for bases that are no decoders.
    """
    if model.kind != "decoder":
        return {}
    learnt = [False] * (LENGTH - 1) + [True]
    tokens = torch.randint(model.vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [EncodedRow(ids, learnt, "pace", number) for number, ids in enumerate(tokens)]
    found: dict[str, list[float]] = {speaker.label: [] for speaker in speakers}
    for turn in range(TIMES + 1):
        for speaker in speakers:
            batch = build_micro_batch(model, [RoutedRow(row, speaker.stack) for row in rows], list(range(ROWS)))
            begun = time.perf_counter()
            learnt_states(model, batch)[0, 0].item()  # waits for a GPU
            if turn:  # the first one warms up
                found[speaker.label].append(time.perf_counter() - begun)
    return {label: statistics.median(seconds) for label, seconds in found.items()}
