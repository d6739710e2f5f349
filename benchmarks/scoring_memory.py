"""Memory that scoring takes beside the base: full logits by transformers against graftlm, by length and vocabulary.

    python benchmarks/scoring_memory.py

The work: two rows of random tokens, every token scored, on a small random Llama (hidden size 256, four layers) in
float32, so that what grows with the vocabulary is seen. A process of its own for each figure; what counts is the peak
resident memory of scoring over that before it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
from typing import Any

from _measure import Failure, Table, machine_line, print_result, run_child

ROWS = 2
LENGTHS = (256, 1024, 2048)
VOCABULARIES = (32_000, 128_000)
CONTENDERS = ("transformers", "graftlm")


def measure(contender: str, length: int, vocabulary: int) -> dict[str, Any]:
    """Peak bytes over those before scoring, and the sum of all log-probabilities."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import graftlm  # before torch: it sets how OpenMP threads wait
    from graftlm.base.memory import peak_memory, reset_peak_memory
    from graftlm.data.batches import EncodedRow
    from graftlm.training.forward import RoutedRow, score_rows

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=max(LENGTHS),
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config).eval()
    draw = random.Random(0)
    rows = [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(ROWS)]
    cpu = torch.device("cpu")
    model = graftlm.AdaptedModel(base)
    warm = [RoutedRow(EncodedRow(rows[0][:16], [True] * 16, "warm", 1), ())]
    score_rows(model, warm, 4096)
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what building the base left free must not hide what scoring takes
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    if contender == "graftlm":
        asked = [RoutedRow(EncodedRow(ids, [True] * length, "row", number), ()) for number, ids in enumerate(rows)]
        total = sum(score.log_prob for score in score_rows(model, asked, ROWS * length))
    else:
        with torch.no_grad():
            ids = torch.tensor(rows)
            log_probs = base(ids).logits[:, :-1].float().log_softmax(-1)
            total = float(log_probs.gather(2, ids[:, 1:, None]).double().sum())
    return {"bytes": peak_memory(cpu) - before, "log_prob": total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print_result(measure(*json.loads(arguments.child)))
        return
    print(machine_line(arguments.threads))
    table = Table("Memory of scoring two rows", ["length × vocabulary", *CONTENDERS, "share"])
    for vocabulary in VOCABULARIES:
        for length in LENGTHS:
            found = []
            for contender in CONTENDERS:
                work = json.dumps([contender, length, vocabulary])
                result = run_child("scoring_memory.py", ["--child", work], threads=arguments.threads)
                if isinstance(result, Failure):
                    sys.exit(f"{contender}: {result.reason}")
                found.append(result)
            full, ours = found
            if abs(full["log_prob"] - ours["log_prob"]) > 1e-5 * abs(full["log_prob"]):
                sys.exit(f"the log-probabilities differ: {full['log_prob']} and {ours['log_prob']}")
            sizes = [f"{each['bytes'] / 1e6:,.0f} MB" for each in found]
            table.add(f"{length:,} × {vocabulary:,}", *sizes, f"{ours['bytes'] / full['bytes']:.0%}")
    table.print()


if __name__ == "__main__":
    main()
