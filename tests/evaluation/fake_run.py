"""A run that never was: three adapters of the demo's kind, one of which found no gain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from graftlm.evaluation.report import AdapterReport, Example, RunReport


@dataclass(frozen=True)
class Row:
    """Has what a RowScore has, without importing torch."""

    log_prob: float
    tokens: int
    hits: int

    @property
    def exact(self) -> bool:
        return self.hits == self.tokens


def scores(loss: float, accuracy: float, rows: int, seed: int) -> list[Row]:
    """Rows whose mean loss and share of exact answers are near what is asked for."""
    rng = np.random.default_rng(seed)
    tokens = np.random.default_rng(99).integers(2, 9, rows)
    right = rng.random(rows) < accuracy
    losses = rng.gamma(2.0, loss / 2.0, rows) * tokens
    return [
        Row(-float(x), int(n), int(n) if ok else int(n) - 1) for x, n, ok in zip(losses, tokens, right, strict=True)
    ]


def curve(start: float, end: float, steps: int, seed: int, noise: float = 0.18) -> list[tuple[int, float]]:
    rng = np.random.default_rng(seed)
    x = np.arange(1, steps + 1)
    mean = end + (start - end) * np.exp(-4.5 * x / steps)
    return [(int(s), float(m)) for s, m in zip(x, mean * np.exp(rng.normal(0, noise, steps)), strict=True)]


def held(start: float, end: float, top: float, steps: int) -> list[tuple[int, float, float]]:
    rows = []
    for step in range(0, steps + 1, steps // 8):
        done = 1 - math.exp(-4.5 * step / steps)
        rows.append((step, start + (end - start) * done, 0.02 + (top - 0.02) * done))
    return rows


FEELINGS = [
    Example(
        "Say in one word how Mark feels now.\n\nMark lives on a farm. The other children went to play and left Mark "
        "all alone. He sat by the window and cried.",
        "sad",
        {"base": "He was so happy that he wanted to play with his friends.", "feelings": "sad"},
    ),
    Example(
        'How does Lola feel?\n\nLola has short brown hair. Lola had jumped on the trampoline for hours. "I need a '
        'nap," she said.',
        "tired",
        {"base": "\nOne day, Lola and her mom went to the park. They saw a big", "feelings": "tired"},
    ),
    Example(
        "Which feeling fits Charlie best: happy, sad, angry, scared, proud or tired?\n\nA bat flew right at his face "
        'in the dark. "Go away, please!" he whispered and shook.',
        "scared",
        {"base": "", "feelings": "angry"},
    ),
    *(
        Example(
            f"How does child {n} feel?\n\nChild {n} won the race.", "proud", {"base": "The end.", "feelings": "proud"}
        )
        for n in range(1, 4)
    ),
]
QUESTIONS = [
    Example(
        "Use the story to answer.\n\nThe pig danced on the bridge, and the queen played the flute. A man gave them a "
        "chain.\nQuestion: Who played the flute?",
        "the queen",
        {"base": "The pig was very happy. He danced and danced.", "questions": "the queen"},
    ),
    Example(
        "读故事，回答问题。\n\n小猫在树上，小狗在树下。\n问题：谁在树上？",
        "小猫",
        {"base": "小狗", "questions": "小猫"},
    ),
]
ADVICE = [
    Example(
        "Be kind and give some advice.\n\nOh dear! My fingers are dirty and sticky.",
        "Wash with soap and water.",
        {"base": 'She said, "I am sorry."', "advice": "Wash your hands and dry them."},
    ),
]


def counts(kept: int, **more: object) -> dict[str, object]:
    return {"rows": kept + 7, "read": kept + 7, "kept": kept, "duplicates": 0, "unfilled": {}, **more}


def fake_run() -> RunReport:
    """Three adapters: a clear gain on both measures, a gain of loss alone, and none."""
    common = {"epochs": 3.0, "ended": ("finished", "")}
    return RunReport(
        title="Three tasks on tiny",
        base="tiny",
        base_parameters=5_733_632,
        created="2025-06-14 10:32",
        seconds=161.4,
        tokens=412_345,
        padding_share=0.0312,
        peak_memory=1_420_000_000,
        planned={"peak_memory": 1_380_000_000, "seconds": 150.0},
        adapters=[
            AdapterReport(
                name="feelings",
                method="LoRA rank 8, all-linear",
                trained_parameters=196_608,
                data="feelings.train.jsonl",
                counts=counts(
                    800,
                    dropped={"empty answer": 4, "prompt fills the context": 3},
                    truncated={"longer than the context": 12},
                    examples={"empty answer": ["feelings.train.jsonl:14", "feelings.train.jsonl:99"]},
                ),
                steps=150,
                learning_rate=2e-3,
                train_loss=curve(3.2, 0.16, 150, 1),
                held_out=held(3.1, 0.21, 0.91, 150),
                before=scores(3.1, 0.02, 200, 11),
                after=scores(0.21, 0.91, 200, 12),
                best_step=144,
                folder="runs/demo/adapters/feelings",
                examples=FEELINGS,
                **common,
            ),
            AdapterReport(
                name="questions",
                method="LoRA rank 16, all-linear",
                trained_parameters=393_216,
                data="questions.train.jsonl",
                counts=counts(900, dropped={"empty answer": 7}, duplicates=2),
                steps=170,
                learning_rate=1e-3,
                train_loss=curve(2.6, 1.2, 170, 2, 0.1),
                held_out=[*held(2.6, 1.25, 0.03, 170)[:6], (126, 1.36, 0.04), (147, 1.37, 0.04), (168, 1.41, 0.03)],
                before=scores(2.6, 0.02, 200, 13),
                after=scores(1.3, 0.03, 200, 14),
                best_step=105,
                folder="runs/demo/adapters/questions",
                examples=QUESTIONS,
                epochs=3.0,
                ended=("early stop", "no better held-out loss in 3 evaluations"),
            ),
            AdapterReport(
                name="advice",
                method="LoRA rank 4, attention only",
                trained_parameters=49_152,
                data="advice.train.jsonl",
                counts=counts(600),
                steps=112,
                learning_rate=1e-5,
                train_loss=curve(2.43, 2.35, 112, 3, 0.05),
                held_out=held(2.42, 2.41, 0.01, 112),
                before=scores(2.42, 0.01, 120, 15),
                after=scores(2.45, 0.01, 120, 16),
                best_step=112,
                folder="runs/demo/adapters/advice",
                examples=ADVICE,
                **common,
            ),
        ],
        settings={
            "base": "tiny",
            "data": {"feelings": {"path": "feelings.train.jsonl"}, "questions": {"path": "questions.train.jsonl"}},
            "adapters": {"feelings": {"method": "lora", "rank": 8, "learning_rate": 2e-3, "betas": (0.9, 0.999)}},
            "training": {"epochs": 3, "micro_batch_tokens": 4096, "eval_every": None},
        },
        versions={"graftlm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "Python": "3.11.7"},
        next_commands=["graftlm chat runs/demo", "graftlm train your.yaml", "graftlm train --data FILE"],
    )


def with_divergence(report: RunReport) -> RunReport:
    """The same run, but the third adapter's loss became NaN at step 40."""
    last = report.adapters[-1]
    train = [(step, loss if step < 40 else math.nan) for step, loss in last.train_loss[:40]]
    broken = replace(
        last,
        train_loss=train,
        held_out=last.held_out[:3],
        ended=("diverged", "the loss of step 40 is NaN; first in advice, layers.3.mlp"),
        best_step=28,
        steps=112,
    )
    return replace(report, adapters=[*report.adapters[:-1], broken])
