"""graftlm's side of ``sft_vs_trl.py``: run by the driver as ``sft_graftlm.py WORK.json``.

The public training loop with its defaults (micro-batches of at most 2,048 tokens, no gradient checkpointing), in
the plain environment: whatever allocator and OpenMP settings it has, it makes itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import graftlm  # before torch: it sets how OpenMP threads wait

from _measure import Meter, print_result  # isort: skip
from sft_vs_trl import (  # isort: skip
    ALPHA,
    BATCH_ROWS,
    CLIP_NORM,
    LEARNING_RATE,
    RANK,
    TokenCounter,
    Work,
    build_model,
    loss_after,
)

if TYPE_CHECKING:
    import torch

    from graftlm.training.events import Event


def run_graftlm(work: Work) -> dict[str, Any]:
    """Train one adapter on the work's rows; time from the first step's start to the last one's end."""
    from graftlm.data.batches import EncodedRow
    from graftlm.training.events import RoundDone
    from graftlm.training.loop import train
    from graftlm.training.settings import AdapterTraining
    from graftlm.training.task import Task

    model = graftlm.AdaptedModel(build_model(work.seed))
    counter, meter = TokenCounter(model.base), Meter()
    model.add("lora", graftlm.LoRA(rank=RANK, alpha=ALPHA), seed=work.seed)
    rows = tuple(
        EncodedRow(row.ids, [place >= row.prompt_length for place in range(len(row.ids))], "alpaca_en", number)
        for number, row in enumerate(work.rows, start=1)
    )
    settings = AdapterTraining(
        learning_rate=LEARNING_RATE,
        schedule="linear",
        warmup=0,
        max_grad_norm=CLIP_NORM,
        batch_rows=BATCH_ROWS,
        epochs=1,
        seed=work.seed,
    )

    def watch(event: Event) -> None:
        if isinstance(event, RoundDone):
            meter.stop()

    meter.start()
    outcome = train(model, [Task("lora", rows, settings)], watch=watch)
    return meter.result() | {
        "processed_tokens": counter.tokens,
        "steps": outcome.rounds,
        "loss": loss_after(lambda ids: _logits(model, ids), work),
    }


def _logits(model: graftlm.AdaptedModel, ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(ids, adapters="lora").logits
    return logits


if __name__ == "__main__":
    print_result(run_graftlm(Work.read(sys.argv[1])))
