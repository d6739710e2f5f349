"""Eight LoRA adapters in one run beside eight runs in a row, on the same work.

    python benchmarks/many_adapters.py

The work: a randomly initialised Llama and, for each adapter, rows of its own from alpaca_en.json (the first 32
for the first adapter, the next 32 for the second, and so on), one epoch in batches of 8 rows, LoRA of rank 16 on
all linear layers, AdamW, float32. Each run is in a process of its own, and only training is timed (first step to
last). The one run may hold as many tokens at once as any of the eight does by itself (its largest micro-batch):
micro_batch_tokens is a setting of memory and changes nothing else. The runs take turns, and the median over the
repeats counts.

Bars: the one run takes no longer than the sum of the eight, and at most 1.25 times the memory of one of them (of
the largest). The weights are those of the runs on their own: in float32 the largest difference is printed; in
float64, with a smaller model, it must be within 1e-7.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import REPOSITORY, Failure, Meter, Table, machine_line, medians, print_result, run_child
from sft_vs_trl import ALPHA, BATCH_ROWS, CLIP_NORM, LEARNING_RATE, RANK, Work, encode, gigabytes, read_examples, say

if TYPE_CHECKING:
    import torch

    from graftlm import AdaptedModel
    from graftlm.training.events import Event
    from graftlm.training.task import Task

ADAPTERS = 8
SPEED_BAR = 1.0  # seconds of the one run over the sum of the eight
MEMORY_BAR = 1.25  # peak of the one run over that of one of the eight
WEIGHTS_BAR = 1e-7  # in float64
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32_000,
}


# ---- one process ----


def make_tasks(work: Work) -> list[Task]:
    """One task an adapter: equal shares of the work's rows, in order."""
    from graftlm.data.batches import EncodedRow
    from graftlm.training.settings import AdapterTraining
    from graftlm.training.task import Task

    rows = [
        EncodedRow(row.ids, [place >= row.prompt_length for place in range(len(row.ids))], "alpaca_en", number)
        for number, row in enumerate(work.rows, start=1)
    ]
    share = len(rows) // ADAPTERS
    settings = AdapterTraining(
        learning_rate=LEARNING_RATE, max_grad_norm=CLIP_NORM, batch_rows=BATCH_ROWS, epochs=1, seed=work.seed
    )
    return [
        Task(f"lora-{number}", tuple(rows[number * share : (number + 1) * share]), settings)
        for number in range(ADAPTERS)
    ]


def largest_micro_batch(tasks: Sequence[Task]) -> int:
    """Tokens, padding included, of the largest micro-batch of any of the runs on their own, as they come."""
    from graftlm.training.forward import plan_micro_batches
    from graftlm.training.settings import RunSettings

    sizes = []
    for task in tasks:
        for number in range(len(task.steps)):
            lengths = [len(row.row.ids) for row in task.step_rows(number)]
            batches = plan_micro_batches(task.step_rows(number), RunSettings().micro_batch_tokens)
            sizes += [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    return max(sizes)


def train(model: AdaptedModel, tasks: Sequence[Task], micro_batch_tokens: int) -> tuple[Meter, dict[str, torch.Tensor]]:
    """Add the tasks' adapters and train them side by side; the time and memory, and the final weights."""
    import graftlm
    from graftlm.training.events import RoundDone
    from graftlm.training.loop import train as run
    from graftlm.training.settings import RunSettings

    for task in tasks:
        model.add(task.adapter, graftlm.LoRA(rank=RANK, alpha=ALPHA), seed=task.settings.seed)
    meter = Meter()

    def watch(event: Event) -> None:
        if isinstance(event, RoundDone):
            meter.stop()

    meter.start()
    run(model, tasks, RunSettings(micro_batch_tokens=micro_batch_tokens), watch=watch)
    weights = {
        f"{task.adapter}/{name}": parameter.detach()
        for task in tasks
        for name, parameter in model.adapter(task.adapter).named_parameters()
    }
    return meter, weights


def measured(work: Work, numbers: Sequence[int], weights_file: str) -> dict[str, Any]:
    """Train the adapters of these numbers in one run, in float32; writes their weights."""
    import graftlm  # before torch: it sets how OpenMP threads wait

    from safetensors.torch import save_file  # isort: skip
    from sft_vs_trl import build_model

    tasks = make_tasks(work)
    room = largest_micro_batch(tasks)
    model = graftlm.AdaptedModel(build_model(work.seed))
    meter, weights = train(model, [tasks[number] for number in numbers], room)
    result = meter.result()
    save_file(weights, weights_file)
    return result | {"micro_batch_tokens": room}


def exactness(work: Work) -> dict[str, Any]:
    """The largest difference of final weights in float64, with a smaller model."""
    import graftlm

    import torch  # isort: skip
    from transformers import LlamaConfig, LlamaForCausalLM

    def base() -> AdaptedModel:
        torch.manual_seed(work.seed)
        return graftlm.AdaptedModel(LlamaForCausalLM(LlamaConfig(**SMALL)).double())

    tasks = make_tasks(work)
    room = largest_micro_batch(tasks)
    _, together = train(base(), tasks, room)
    alone: dict[str, torch.Tensor] = {}
    for task in tasks:
        alone |= train(base(), [task], room)[1]
    return {"difference": largest_difference(together, alone)}


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference of any two numbers of the same name."""
    if one.keys() != other.keys():
        raise RuntimeError("the runs trained different parameters")
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# ---- the comparison ----


def compare(work: Work, repeats: int, threads: int) -> dict[str, Any]:
    """Medians of the one run and of each of the eight, and the differences of their weights."""
    names = ["together", *(f"alone-{number}" for number in range(ADAPTERS))]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        work_file = Path(folder, "work.json")
        work.write(work_file)
        for repeat in range(repeats):
            for name in names:
                numbers = range(ADAPTERS) if name == "together" else [int(name.removeprefix("alone-"))]
                arguments = ["run", str(work_file), str(Path(folder, f"{name}.safetensors")), *map(str, numbers)]
                found = child(arguments, threads)
                runs[name].append(found)
                say(f"[{repeat + 1}/{repeats}] {name}: {found['seconds']:.1f} s, {gigabytes(found)} GB")
        difference = float32_difference(Path(folder))
        say("in float64, with a smaller model …")
        exact = child(["exact", str(work_file)], threads)
    results = {name: medians(found) for name, found in runs.items()}
    return results | {"float32": difference, "float64": exact["difference"]}


def child(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    result = run_child(Path(__file__).name, arguments, threads=threads)
    if isinstance(result, Failure):
        sys.exit(f"{arguments[0]} failed: {result.reason}")
    return result


def float32_difference(folder: Path) -> float:
    from safetensors.torch import load_file

    alone: dict[str, torch.Tensor] = {}
    for path in folder.glob("alone-*.safetensors"):
        alone |= load_file(path)
    return largest_difference(load_file(folder / "together.safetensors"), alone)


def summary(results: dict[str, Any], work: Work) -> dict[str, Any]:
    """The figures that the bars are about."""
    together, alone = results["together"], [results[f"alone-{number}"] for number in range(ADAPTERS)]
    return {
        "seconds_together": together["seconds"],
        "seconds_alone": sum(run["seconds"] for run in alone),
        "tokens_per_second": work.useful_tokens / together["seconds"],
        "peak_together": together["peak_bytes"],
        "peak_alone": max(run["peak_bytes"] for run in alone),
        "micro_batch_tokens": together["micro_batch_tokens"],
        "float32_difference": results["float32"],
        "float64_difference": results["float64"],
    }


def report(figures: dict[str, Any], repeats: int) -> bool:
    """Print the table; True where every bar is passed."""
    speed = figures["seconds_together"] / figures["seconds_alone"]
    memory = figures["peak_together"] / figures["peak_alone"]
    difference = figures["float64_difference"]
    passed = [speed <= SPEED_BAR, memory <= MEMORY_BAR, difference <= WEIGHTS_BAR]
    word = ["pass" if fine else "FAIL" for fine in passed]
    table = Table(
        f"{ADAPTERS} LoRA adapters (median of {repeats})",
        ["", "one run", f"{ADAPTERS} runs", "ratio", "wanted", ""],
    )
    table.add(
        "seconds of training, summed",
        f"{figures['seconds_together']:.1f}",
        f"{figures['seconds_alone']:.1f}",
        f"{speed:.2f}",
        f"≤ {SPEED_BAR:g}",
        word[0],
    )
    table.add(
        "peak memory, GB; of the largest",
        f"{figures['peak_together'] / 1e9:.2f}",
        f"{figures['peak_alone'] / 1e9:.2f}",
        f"{memory:.2f}",
        f"≤ {MEMORY_BAR:g}",
        word[1],
    )
    table.add("largest difference of weights, float64", "", "", f"{difference:.1e}", f"≤ {WEIGHTS_BAR:.0e}", word[2])
    table.add("largest difference of weights, float32", "", "", f"{figures['float32_difference']:.1e}", "", "")
    table.print()
    return all(passed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("GRAFTLM_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default_data, help="data folder or alpaca_en.json")
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "graftlm" / "base" / "tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32, help="rows of each adapter")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser.parse_args()


def main() -> int:
    options = parse()
    examples = read_examples(options.data, ADAPTERS * options.rows)
    if not (options.tokenizer / "tokenizer.json").is_file():
        sys.exit(f"{options.tokenizer} has no tokenizer.json. Give a tokenizer's folder by --tokenizer.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    work = Work(encode(examples, tokenizer), str(options.tokenizer.resolve()), options.seed)
    machine = machine_line(options.threads)
    amount = f"{ADAPTERS} adapters, {options.rows} rows each, {work.useful_tokens} tokens in all"
    say(f"{machine}\n{amount}")
    figures = summary(compare(work, options.repeats, options.threads), work)
    passed = report(figures, options.repeats)
    print(f"{machine}\n{amount}; micro-batches of at most {figures['micro_batch_tokens']} tokens")
    print(f"The one run: {figures['tokens_per_second']:.0f} tokens/s.")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def contend(arguments: Sequence[str]) -> dict[str, Any]:
    """What a child does: ``run WORK WEIGHTS NUMBER…`` or ``exact WORK``."""
    kind, work_file, *rest = arguments
    work = Work.read(work_file)
    return exactness(work) if kind == "exact" else measured(work, [int(number) for number in rest[1:]], rest[0])


if __name__ == "__main__":
    if sys.argv[1:2] in (["run"], ["exact"]):
        print_result(contend(sys.argv[1:]))
    else:
        sys.exit(main())
