"""The peers of ``sft_vs_trl.py``: trl's SFTTrainer under several settings, and a bare loop for orientation.

Run by the driver as ``sft_peer_trl.py CONTENDER WORK.json``; prints its result as JSON on the last line.

What trl 1.16 does when nothing is said (none of it is set here, all of it is in the contender ``trl``):

- ``gradient_checkpointing=True``: activations are recomputed in the backward pass (less memory, more time);
- ``train_sampling_strategy="random"``: rows in random order, each batch padded to its longest row;
- ``completion_only_loss=None``: on for prompt-completion data, which is what the rows are;
- ``loss_type="nll"``: log-probabilities and entropy from a head that works in tiles, off the GPU for every
  position of the padded batch, supervised or not;
- ``packing=False``, ``padding_free=False``, ``max_length=1024``, ``optim="adamw_torch_fused"``, linear decay,
  clipping at 1.

What is set for the sake of the same work: batch size, seed, learning rate, no saving, and ``bf16=False``. The
default is bfloat16, which trl refuses on a CPU unless ``use_cpu=True`` is given; ``trl-bf16`` is that.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from _measure import Meter, print_result
from sft_vs_trl import (
    ALPHA,
    BATCH_ROWS,
    CLIP_NORM,
    LEARNING_RATE,
    RANK,
    Row,
    TokenCounter,
    Work,
    build_model,
    loss_after,
)

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

T = TypeVar("T")  # a batch, whatever a loss takes
GROUPED = {"train_sampling_strategy": "group_by_length"}

SETTINGS: dict[str, dict[str, Any]] = {
    "trl": {"bf16": False},
    "trl-grouped": {"bf16": False, **GROUPED},
    "trl-kept": {"bf16": False, "gradient_checkpointing": False, **GROUPED},
    "trl-bf16": {"use_cpu": True},
}


def lora_config() -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def run_trl(work: Work, settings: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    meter = Meter()

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

    data = Dataset.from_list(
        [{"input_ids": row.ids, "completion_mask": [int(i >= row.prompt_length) for i in range(len(row.ids))]}
         for row in work.rows]
    )  # fmt: skip
    model = build_model(work.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH_ROWS,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            seed=work.seed,
            save_strategy="no",
            # trl turns this on by itself for prompt and completion columns; these rows come tokenised.
            completion_only_loss=True,
            **settings,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(work.tokenizer),
            peft_config=lora_config(),
            callbacks=[Timer()],
        )
        counter = TokenCounter(model)
        outcome = trainer.train()
    result = meter.result() | {"processed_tokens": counter.tokens, "steps": outcome.global_step}
    model.eval()
    return result | {
        "loss": loss_after(lambda ids: model(input_ids=ids).logits, work),
        "settings": {
            name: str(getattr(config, name))
            for name in (
                "gradient_checkpointing",
                "train_sampling_strategy",
                "bf16",
                "optim",
                "loss_type",
                "packing",
            )
        },
    }


def bare_loop(
    seed: int, batches: Sequence[T], loss_of: Callable[[Any, T], torch.Tensor], *, rate: float, decay: bool
) -> tuple[dict[str, Any], list[float], Any]:
    """A step of peft's LoRA for each batch: what was measured, the losses and the model.

    ``loss_of`` is given peft's model, whose ``get_base_model()`` is the base with the adapter in it. ``decay``: the
    rate falls to nothing along a line.
    """
    import torch
    from peft import get_peft_model

    base = build_model(seed)
    torch.manual_seed(seed)
    adapted = get_peft_model(base, lora_config())
    adapted.train()
    counter, meter = TokenCounter(base), Meter()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches) if decay else 1.0)
    losses = []
    meter.start()
    for batch in batches:
        loss = loss_of(adapted, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    meter.stop()
    return meter.result() | {"processed_tokens": counter.tokens}, losses, base


def run_bare(work: Work) -> dict[str, Any]:
    """peft's LoRA in a loop with sorted batches, and logits of the supervised positions only."""
    import torch

    def loss_of(adapted: Any, rows: list[Row]) -> torch.Tensor:
        model = adapted.get_base_model()
        ids, attended, supervised = padded(rows)
        hidden = model.model(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[:, :-1][supervised[:, 1:]])
        return torch.nn.functional.cross_entropy(logits, ids[:, 1:][supervised[:, 1:]])

    batches = sorted_batches(work.rows, work.seed)
    result, _, model = bare_loop(work.seed, batches, loss_of, rate=LEARNING_RATE, decay=True)
    model.eval()
    return result | {"steps": len(batches), "loss": loss_after(lambda ids: model(input_ids=ids).logits, work)}


def sorted_batches(rows: list[Row], seed: int) -> list[list[Row]]:
    """Batches of rows of like length, in random order."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    batches = [ordered[start : start + BATCH_ROWS] for start in range(0, len(ordered), BATCH_ROWS)]
    random.Random(seed).shuffle(batches)
    return batches


def padded(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, which are real and which are supervised, each (rows, longest): int64, int64 and bool."""
    import torch

    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attended = torch.zeros_like(ids)
    supervised = torch.zeros_like(ids, dtype=torch.bool)
    for place, row in enumerate(rows):
        ids[place, : len(row.ids)] = torch.tensor(row.ids)
        attended[place, : len(row.ids)] = 1
        supervised[place, row.prompt_length : len(row.ids)] = True
    return ids, attended, supervised


if __name__ == "__main__":
    contender, work_file = sys.argv[1:]
    work = Work.read(work_file)
    print_result(run_bare(work) if contender == "bare" else run_trl(work, SETTINGS[contender]))
