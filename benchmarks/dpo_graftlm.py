"""graftlm's side of ``dpo_vs_trl.py``: run by the driver as ``dpo_graftlm.py TOKENS WORK.json``.

All is as it comes; TOKENS are those of a micro-batch, 2,048 by default.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import graftlm  # before torch: it sets how OpenMP threads wait

from _measure import Meter, print_result  # isort: skip
from dpo_vs_trl import BATCH_PAIRS, BETA, LEARNING_RATE, Pair, Work  # isort: skip
from sft_vs_trl import ALPHA, CLIP_NORM, RANK, TokenCounter, build_model  # isort: skip

if TYPE_CHECKING:
    from graftlm.data.batches import EncodedRow
    from graftlm.training.events import Event


def encoded(pair: Pair, number: int) -> EncodedRow:
    """The better answer's row with the worse one's beside it."""
    from graftlm.data.batches import EncodedRow
    from graftlm.data.judged import Judgement

    better, worse = (
        EncodedRow(
            ids,
            [place >= len(pair.prompt) for place in range(len(ids))],
            "dpo_en",
            number,
            judged=Judgement((float(rank),)),
        )
        for rank, ids in enumerate(pair.rows)
    )
    return replace(better, beside=(worse,))


def run_graftlm(work: Work, micro_batch_tokens: int) -> dict[str, Any]:
    """Train one adapter on the pairs; time from the reference's pass to the last step's end."""
    from graftlm.training.events import RoundDone, Stepped
    from graftlm.training.loop import train
    from graftlm.training.objectives import build_objective
    from graftlm.training.settings import AdapterTraining, RunSettings
    from graftlm.training.task import Task

    model = graftlm.AdaptedModel(build_model(work.seed))
    counter, meter = TokenCounter(model.base), Meter()
    model.add("lora", graftlm.LoRA(rank=RANK, alpha=ALPHA), seed=work.seed)
    rows = tuple(encoded(pair, number) for number, pair in enumerate(work.pairs, start=1))
    settings = AdapterTraining.model_validate(
        {
            "objective": {"type": "dpo", "beta": BETA},
            "learning_rate": LEARNING_RATE,
            "schedule": "linear",
            "warmup": 0,
            "max_grad_norm": CLIP_NORM,
            "batch_rows": BATCH_PAIRS,
            "epochs": 1,
            "seed": work.seed,
        }
    )
    losses: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Stepped):
            losses.append(event.loss)
        elif isinstance(event, RoundDone):
            meter.stop()

    meter.start()
    task = Task("lora", rows, settings, (), build_objective(settings.objective))
    train(model, [task], RunSettings(micro_batch_tokens=micro_batch_tokens), watch=watch)
    return meter.result() | {
        "processed_tokens": counter.tokens,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


if __name__ == "__main__":
    print_result(run_graftlm(Work.read(sys.argv[2]), int(sys.argv[1])))
