"""The peer of ``grpo_vs_trl.py``: trl's GRPOTrainer with peft. Run by the driver as ``grpo_peer_trl.py WORK.json``.

It is as it comes, but for what makes the work the same: episodes, length of answers, KL weight, learning rate, seed, no
saving, and ``bf16=False``, which a CPU needs.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

from _measure import Meter, print_result
from grpo_vs_trl import ANSWER_TOKENS, EPISODES, GROUP, KL_WEIGHT, LEARNING_RATE, Work, reward
from sft_peer_trl import lora_config
from sft_vs_trl import build_model


def run_trl(work: Work) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    meter = Meter()

    class Timer(TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 1:
                meter.start()
            else:
                meter.stop()

    def letters(completions: list[str], **_: Any) -> list[float]:
        return [reward(text) for text in completions]

    tokenizer = AutoTokenizer.from_pretrained(work.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=EPISODES,
            num_generations=GROUP,
            max_completion_length=ANSWER_TOKENS,
            beta=KL_WEIGHT,
            learning_rate=LEARNING_RATE,
            max_steps=work.steps,
            seed=work.seed,
            save_strategy="no",
            logging_steps=1,
            report_to=[],
            bf16=False,
        )
        trainer = GRPOTrainer(
            model=build_model(work.seed),
            reward_funcs=letters,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": text} for text in work.prompts]),
            processing_class=tokenizer,
            peft_config=lora_config(),
            callbacks=[Timer()],
        )
        trainer.train()
    lengths = [
        line["completions/mean_length"] for line in trainer.state.log_history if "completions/mean_length" in line
    ]
    return meter.result() | {"answer_tokens": sum(lengths[1:]) / len(lengths[1:])}


if __name__ == "__main__":
    print_result(run_trl(Work.read(sys.argv[1])))
