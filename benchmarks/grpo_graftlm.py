"""graftlm's side of ``grpo_vs_trl.py``: run by the driver as ``grpo_graftlm.py WORK.json``; defaults throughout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import graftlm  # before torch: it sets how OpenMP threads wait

from _measure import Meter, print_result  # isort: skip
from grpo_vs_trl import ANSWER_TOKENS, GROUP, KL_WEIGHT, LEARNING_RATE, PROMPTS, Work, reward  # isort: skip
from sft_vs_trl import ALPHA, RANK, build_model  # isort: skip

if TYPE_CHECKING:
    from graftlm.training.events import Event


def run_graftlm(work: Work) -> dict[str, Any]:
    """Train one policy; time from the end of the first step to that of the last."""
    from transformers import AutoTokenizer

    from graftlm import alignment
    from graftlm.data.instances import Message
    from graftlm.data.templates import resolve_chat_template
    from graftlm.training.events import Phased, RoundDone
    from graftlm.training.loop import train
    from graftlm.training.settings import AdapterTraining
    from graftlm.training.task import Task

    tokenizer = AutoTokenizer.from_pretrained(work.tokenizer)
    model = graftlm.AdaptedModel(build_model(work.seed), tokenizer)
    model.add("lora", graftlm.LoRA(rank=RANK, alpha=ALPHA), seed=work.seed)
    settings = AdapterTraining.model_validate(
        {
            "objective": {
                "type": "grpo",
                "rewards": {"e": {"python": "grpo_vs_trl.py:reward"}},
                "group": GROUP,
                "prompts": PROMPTS,
                "max_new_tokens": ANSWER_TOKENS,
                "kl": KL_WEIGHT,
            },
            "learning_rate": LEARNING_RATE,
            "schedule": "linear",
            "warmup": 0,
            "seed": work.seed,
        }
    )
    prompts = [alignment.Prompt((Message("user", text),), row) for row, text in enumerate(work.prompts, start=1)]
    template = resolve_chat_template("auto", tokenizer, model.kind)
    source = alignment.Policy(
        alignment.make_policy(model, "lora", template),
        tuple(prompts),
        (alignment.function_reward(lambda _messages, answer: reward(answer), "e"),),
        settings,
    )
    meter = Meter()
    lengths: list[float] = []

    def watch(event: Event) -> None:
        if isinstance(event, Phased):
            lengths.append(event.measures["length"])
        elif isinstance(event, RoundDone) and event.number == 1:
            meter.start()
        elif isinstance(event, RoundDone):
            meter.stop()

    train(model, [Task("lora", (), settings, objective=source.settings.objective(), source=source)], watch=watch)
    return meter.result() | {"answer_tokens": sum(lengths[1:]) / len(lengths[1:])}


if __name__ == "__main__":
    print_result(run_graftlm(Work.read(sys.argv[1])))
