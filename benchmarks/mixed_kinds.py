"""A training step with adapters of four kinds in one batch, beside one LoRA adapter and beside peft's models in turn.

    python benchmarks/mixed_kinds.py

The work of a step: 32 rows of random tokens (lengths 40 to 160, the second half of each learnt) through a randomly
initialised Llama of 56 million parameters, float32, AdamW. The contenders, each in a process of its own:

- one-lora: one LoRA adapter (rank 16, all linear layers) learns from all 32 rows;
- mixed: eight adapters, two each of LoRA, bottleneck, prefix and prompt tuning, learn from four rows each;
- mixed-peft-kinds: the same with (IA)3 in the place of bottlenecks, which peft does not have;
- peft: eight models of peft with these eight adapters, each on a base of its own, trained in turn on four rows each,
  by the loss that the model itself gives.

The median step counts. Bars: mixed takes at most 1.2 times the time of one-lora; mixed-peft-kinds less than peft's
eight steps, on an eighth of the memory for bases.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import Failure, Table, machine_line, medians, print_result, run_child
from sft_vs_trl import LEARNING_RATE, VOCABULARY, build_model, say

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ROWS, ADAPTERS = 32, 8
SHORTEST, LONGEST = 40, 160
RANK, PREFIX, PROMPT = 16, 20, 20
KINDS = {
    "mixed": ("lora", "bottleneck", "prefix", "prompt"),
    "mixed-peft-kinds": ("lora", "ia3", "prefix", "prompt"),
    "peft": ("lora", "ia3", "prefix", "prompt"),
}
SPEED_BAR, PEFT_BAR, MEMORY_BAR = 1.2, 1.0, 1 / 8


def make_rows() -> list[list[int]]:
    """The tokens of each row; the second half of each is learnt."""
    draw = random.Random(0)
    return [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(SHORTEST, LONGEST))] for _ in range(ROWS)]


# ---- graftlm ----


def graftlm_config(kind: str) -> Any:
    import graftlm

    return {
        "lora": graftlm.LoRA(rank=RANK),
        "bottleneck": graftlm.Bottleneck(kind="double_seq_bn"),
        "ia3": graftlm.IA3(),
        "prefix": graftlm.Prefix(length=PREFIX, projection=False),
        "prompt": graftlm.Prompt(length=PROMPT),
    }[kind]


def run_graftlm(contender: str, steps: int) -> dict[str, Any]:
    import graftlm
    from graftlm.data.batches import EncodedRow
    from graftlm.training.events import RoundDone
    from graftlm.training.loop import train
    from graftlm.training.settings import AdapterTraining, RunSettings
    from graftlm.training.task import Task

    rows = [
        EncodedRow(ids, [place >= len(ids) // 2 for place in range(len(ids))], "random", number)
        for number, ids in enumerate(make_rows(), start=1)
    ]
    model = graftlm.AdaptedModel(build_model(0))
    kinds = ("lora",) if contender == "one-lora" else tuple(kind for kind in KINDS[contender] for _ in range(2))
    share = len(rows) // len(kinds)
    tasks = []
    for number, kind in enumerate(kinds):
        model.add(f"{kind}-{number}", graftlm_config(kind))
        settings = AdapterTraining(learning_rate=LEARNING_RATE, batch_rows=share, epochs=steps, max_steps=steps)
        tasks.append(Task(f"{kind}-{number}", tuple(rows[number * share : (number + 1) * share]), settings))
    seconds: list[float] = []

    def watch(event: object) -> None:
        if isinstance(event, RoundDone):
            seconds.append(event.seconds)

    train(model, tasks, RunSettings(), watch=watch)
    return result(seconds, sum(parameter.numel() * 4 for parameter in model.base.parameters()))


# ---- peft ----


def peft_model(kind: str) -> PeftModel:
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model

    task = TaskType.CAUSAL_LM
    config = {
        "lora": LoraConfig(task_type=task, r=RANK, lora_alpha=2 * RANK, target_modules="all-linear"),
        "ia3": IA3Config(
            task_type=task, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "prefix": PrefixTuningConfig(task_type=task, num_virtual_tokens=PREFIX),
        "prompt": PromptTuningConfig(task_type=task, num_virtual_tokens=PROMPT),
    }[kind]
    model = get_peft_model(build_model(0), config)
    model.train()
    return model


def run_peft(steps: int) -> dict[str, Any]:
    import torch

    kinds = [kind for kind in KINDS["peft"] for _ in range(2)]
    models = [peft_model(kind) for kind in kinds]
    trained = [[p for p in model.parameters() if p.requires_grad] for model in models]
    optimizers = [torch.optim.AdamW(parameters, lr=LEARNING_RATE, fused=True) for parameters in trained]
    rows = make_rows()
    share = len(rows) // len(models)
    batches = [padded(rows[number * share : (number + 1) * share]) for number in range(len(models))]
    seconds: list[float] = []
    for _ in range(steps):
        begin = time.perf_counter()
        for model, parameters, optimizer, (ids, mask, labels) in zip(models, trained, optimizers, batches, strict=True):
            model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    bases = sum(p.numel() * 4 for model in models for p in model.get_base_model().parameters() if not p.requires_grad)
    return result(seconds, bases)


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels, each (rows, longest) int64."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        labels[place, len(row) // 2 : len(row)] = ids[place, len(row) // 2 : len(row)]
    return ids, mask, labels


# ---- the comparison ----


def result(seconds: list[float], base_bytes: int) -> dict[str, Any]:
    """The median step after the first two, which warm up."""
    return {"seconds": statistics.median(seconds[2:]), "base_bytes": base_bytes}


def report(figures: dict[str, dict[str, Any]], repeats: int) -> bool:
    """Print the table; True where every bar is passed."""
    one, mixed, own, peft = (figures[name] for name in ("one-lora", "mixed", "mixed-peft-kinds", "peft"))
    checks = [
        ("mixed against one LoRA, seconds a step", mixed["seconds"], one["seconds"], SPEED_BAR),
        ("mixed (peft's kinds) against one LoRA", own["seconds"], one["seconds"], SPEED_BAR),
        ("mixed (peft's kinds) against peft in turn", own["seconds"], peft["seconds"], PEFT_BAR),
        ("memory of bases, GB", own["base_bytes"] / 1e9, peft["base_bytes"] / 1e9, MEMORY_BAR),
    ]
    table = Table(
        f"{ADAPTERS} adapters of 4 kinds (median of {repeats})", ["", "graftlm", "beside", "ratio", "bar", ""]
    )
    for name, ours, theirs, bar in checks:
        ratio = ours / theirs
        table.add(name, f"{ours:.2f}", f"{theirs:.2f}", f"{ratio:.2f}", f"≤ {bar:.3g}", _word(ratio <= bar * 1.001))
    table.print()
    return all(ours / theirs <= bar * 1.001 for _, ours, theirs, bar in checks)


def _word(fine: bool) -> str:
    return "pass" if fine else "FAIL"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser.parse_args()


def main() -> int:
    options = parse()
    say(machine_line(options.threads))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ("one-lora", *KINDS)}
    for repeat in range(options.repeats):
        for name in runs:
            found = run_child(Path(__file__).name, ["run", name, str(options.steps)], threads=options.threads)
            if isinstance(found, Failure):
                sys.exit(f"{name} failed: {found.reason}")
            runs[name].append(found)
            say(f"[{repeat + 1}/{options.repeats}] {name}: {found['seconds']:.2f} s a step")
    figures = {name: medians(found) for name, found in runs.items()}
    passed = report(figures, options.repeats)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        contender, steps = sys.argv[2], int(sys.argv[3])
        import graftlm  # noqa: F401  (before torch: it sets how OpenMP threads wait, for every contender alike)

        print_result(run_peft(steps) if contender == "peft" else run_graftlm(contender, steps))
    else:
        sys.exit(main())
