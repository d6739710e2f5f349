"""The peers of ``dpo_vs_trl.py``: trl's DPOTrainer with peft, and a bare loop for orientation.

Run by the driver as ``dpo_peer_trl.py CONTENDER WORK.json``; prints its result as JSON on the last line.

``trl`` is as it comes: gradient checkpointing, the reference computed at every step with the adapter off, random order,
rows padded to the longest of the batch. Set for the sake of the same work: batch size, seed, learning rate, no saving,
and ``bf16=False``, which a CPU needs. The rows come tokenised, so that all contenders read the same tokens.
"""

from __future__ import annotations

import sys
import tempfile
from typing import TYPE_CHECKING, Any

from _measure import Meter, print_result
from dpo_vs_trl import BATCH_PAIRS, BETA, LEARNING_RATE, Pair, Work
from sft_peer_trl import bare_loop, lora_config
from sft_vs_trl import TokenCounter, build_model

if TYPE_CHECKING:
    import torch


def run_trl(work: Work) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    meter = Meter()

    class Timer(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

    class Tokenised(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    data = Dataset.from_list(
        [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in work.pairs]
    )
    model = build_model(work.seed)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=BATCH_PAIRS,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            beta=BETA,
            seed=work.seed,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            bf16=False,
        )
        trainer = Tokenised(
            model=model,
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(work.tokenizer),
            peft_config=lora_config(),
            callbacks=[Timer()],
        )
        counter = TokenCounter(model)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return meter.result() | {
        "processed_tokens": counter.tokens,
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def run_bare(work: Work) -> dict[str, Any]:
    """peft's LoRA in a loop over sorted pairs: logits of answers only, the reference at every step."""
    import torch

    def loss_of(adapted: Any, pairs: list[Pair]) -> torch.Tensor:
        model = adapted.get_base_model()
        policy = log_probs(model, pairs)
        with torch.no_grad(), adapted.disable_adapter():
            reference = log_probs(model, pairs)
        better, worse = (policy - reference).chunk(2)
        return -torch.nn.functional.logsigmoid(BETA * (better - worse)).mean()

    ordered = sorted(work.pairs, key=lambda pair: max(map(len, pair.rows)))
    batches = [ordered[start : start + BATCH_PAIRS] for start in range(0, len(ordered), BATCH_PAIRS)]
    result, losses, _ = bare_loop(work.seed, batches, loss_of, rate=LEARNING_RATE, decay=False)
    return result | {"first_loss": losses[0], "last_loss": losses[-1]}


def log_probs(model: Any, pairs: list[Pair]) -> torch.Tensor:
    """Summed log-probabilities of all better answers, then of all worse ones: (2 × pairs,)."""
    import torch

    rows = [(len(pair.prompt), pair.rows[which]) for which in (0, 1) for pair in pairs]
    longest = max(len(ids) for _, ids in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attended, learnt = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for number, (prompt, own) in enumerate(rows):
        ids[number, : len(own)] = torch.tensor(own)
        attended[number, : len(own)] = 1
        learnt[number, prompt : len(own)] = True
    hidden = model.model(input_ids=ids, attention_mask=attended, use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][learnt[:, 1:]])
    found = -torch.nn.functional.cross_entropy(logits, ids[:, 1:][learnt[:, 1:]], reduction="none")
    owner = torch.arange(len(rows)).repeat_interleave(learnt.sum(1))
    return found.new_zeros(len(rows)).index_add(0, owner, found)


if __name__ == "__main__":
    contender, work_file = sys.argv[1:]
    work = Work.read(work_file)
    print_result(run_bare(work) if contender == "bare" else run_trl(work))
