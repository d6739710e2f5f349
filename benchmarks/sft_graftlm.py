"""graftlm's side of ``sft_vs_trl.py``: run by the driver as ``sft_graftlm.py WORK.json``.

TODO: fill in ``train``. Everything around it is the same as for the peers.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from _measure import Meter, print_result
from sft_vs_trl import TokenCounter, Work, build_model, loss_after

if TYPE_CHECKING:
    import torch


def run_graftlm(work: Work) -> dict[str, Any]:
    from graftlm import AdaptedModel  # noqa: F401

    base = build_model(work.seed)  # the transformers Llama that every contender trains
    counter, meter = TokenCounter(base), Meter()

    # TODO: wrap `base`, add LoRA(rank=RANK, alpha=ALPHA, targets="all-linear"), make rows of work.rows (ids,
    # and supervised from prompt_length on), and train one epoch of BATCH_ROWS rows a step with AdamW at
    # LEARNING_RATE, linear decay, CLIP_NORM, no weight decay, seed work.seed. meter.start() just before the
    # first step and meter.stop() right after the last; start() may be called at every step, and stop() moves
    # the end. Set no allocator here: the driver runs this with the plain environment, as users would.
    raise NotImplementedError("graftlm's side of the benchmark is not written yet")

    def logits_of(ids: torch.Tensor) -> torch.Tensor:
        """ids (1, tokens) -> logits (1, tokens, vocabulary) with the trained adapter."""
        raise NotImplementedError

    # Peak memory is read at stop(), before the loss is computed.
    return meter.result() | {
        "processed_tokens": counter.tokens,
        "steps": 0,
        "loss": loss_after(logits_of, work),
    }


if __name__ == "__main__":
    print_result(run_graftlm(Work.read(sys.argv[1])))
