"""Instruction tuning with one LoRA adapter: graftlm beside trl's SFTTrainer with peft, on the same work.

    python benchmarks/sft_vs_trl.py

The work: a randomly initialised Llama, the first 128 rows of alpaca_en.json, one epoch in batches of 8 rows,
LoRA of rank 16 on all linear layers, AdamW, float32. Each contender runs in a process of its own; only
training is timed (first step to last); contenders take turns and the median over the repeats counts. A useful
token is a real token of prompt or answer; their number is the same for all. "Cores" is CPU time over wall
time: where it is well under the number of threads, something else had the machine.

The machine's limit is the rate of float32 matmuls on the model's own shapes over the flops that a token needs
when no gradient of a frozen weight is computed: 4 for each parameter it meets (2 forward, 2 back to the
inputs), the language head's only for supervised tokens. Attention, norms and the optimizer count as nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _measure import REPOSITORY, Failure, Product, Table, machine_line, medians, run_child

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

# ---- the work, the same for every contender ----

BATCH_ROWS = 8
RANK = 16
ALPHA = 32
LEARNING_RATE = 1e-3  # linear decay to zero, no weight decay
CLIP_NORM = 1.0
LOSS_ROWS = 16  # the final loss is that of the first rows, one by one, after training

HIDDEN, LAYERS, INTERMEDIATE, HEADS, KEY_VALUE_HEADS, VOCABULARY = 512, 8, 1408, 8, 4, 32_000


@dataclass(frozen=True)
class Row:
    """One example: token ids of prompt and answer; the answer, from ``prompt_length`` on, is supervised."""

    ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class Work:
    """What a contender is given, by way of a JSON file."""

    rows: list[Row]
    tokenizer: str
    seed: int

    @property
    def useful_tokens(self) -> int:
        return sum(len(row.ids) for row in self.rows)

    @property
    def supervised_tokens(self) -> int:
        return sum(len(row.ids) - row.prompt_length for row in self.rows)

    @property
    def steps(self) -> int:
        return -(-len(self.rows) // BATCH_ROWS)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Work:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls([Row(**row) for row in raw["rows"]], raw["tokenizer"], raw["seed"])


def encode(examples: list[dict[str, str]], tokenizer: Any) -> list[Row]:
    """Alpaca rows as ids: bos, prompt, answer, eos; no token spans prompt and answer."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    rows = []
    for example in examples:
        given = f"### Input:\n{example['input']}\n\n" if example.get("input") else ""
        prompt = f"### Instruction:\n{example['instruction']}\n\n{given}### Response:\n"
        head = [tokenizer.bos_token_id, *ids(prompt)]
        rows.append(Row([*head, *ids(example["output"]), tokenizer.eos_token_id], len(head)))
    return rows


def build_model(seed: int) -> LlamaForCausalLM:
    """The randomly initialised Llama, float32, the same weights for the same seed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            intermediate_size=INTERMEDIATE,
            num_attention_heads=HEADS,
            num_key_value_heads=KEY_VALUE_HEADS,
            vocab_size=VOCABULARY,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


class TokenCounter:
    """Counts the token places, padding included, that pass the model's input embedding."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.tokens = 0
        model.get_input_embeddings().register_forward_pre_hook(self._count)

    def _count(self, _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.tokens += inputs[0].numel()


def loss_after(logits_of: Callable[[torch.Tensor], torch.Tensor], work: Work) -> float:
    """Mean loss of a supervised token over the first rows.

    ``logits_of`` takes ids (1, tokens), int64, and returns logits (1, tokens, vocabulary).
    """
    import torch

    total, count = 0.0, 0
    with torch.no_grad():
        for row in work.rows[:LOSS_ROWS]:
            ids = torch.tensor([row.ids])
            logits = logits_of(ids)[0, row.prompt_length - 1 : -1]
            targets = ids[0, row.prompt_length :]
            total += torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum").item()
            count += len(targets)
    return total / count


# ---- the machine's limit ----


def products(work: Work) -> list[Product]:
    """The linear layers' products of a mean step without padding."""
    tokens = work.useful_tokens // work.steps
    key_value = HIDDEN // HEADS * KEY_VALUE_HEADS
    return [
        Product(tokens, HIDDEN, HIDDEN, 2 * LAYERS),  # query, output
        Product(tokens, HIDDEN, key_value, 2 * LAYERS),
        Product(tokens, HIDDEN, INTERMEDIATE, 2 * LAYERS),  # gate, up
        Product(tokens, INTERMEDIATE, HIDDEN, LAYERS),
        Product(work.supervised_tokens // work.steps, HIDDEN, VOCABULARY),
    ]


def parameters_per_token(work: Work) -> float:
    """Parameters that a useful token meets: base linears, LoRA, and the head by its supervised share."""
    *layers, head = products(work)
    base = sum(p.inputs * p.outputs * p.count for p in layers)
    lora = sum(RANK * (p.inputs + p.outputs) * p.count for p in layers)
    return base + lora + head.inputs * head.outputs * work.supervised_tokens / work.useful_tokens


# ---- the comparison ----

# Large blocks come from the heap and stay in it, instead of being mapped, cleared and unmapped each time.
KEEP_LARGE_BLOCKS = {
    "MALLOC_TOP_PAD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 33),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
}


@dataclass(frozen=True)
class Contender:
    """One line of the table: ``target`` is how many times as fast graftlm is to be."""

    label: str
    script: str
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    target: float | None = None


PEER = "sft_peer_trl.py"
CONTENDERS = {
    "trl": Contender("trl + peft, as it comes", PEER, ("trl",), target=5),
    "trl-grouped": Contender("  with length grouping", PEER, ("trl-grouped",), target=2.5),
    "trl-allocator": Contender(
        "  with length grouping and allocator", PEER, ("trl-grouped",), KEEP_LARGE_BLOCKS, target=2
    ),
    "trl-kept": Contender("  the same, no gradient checkpointing", PEER, ("trl-kept",), KEEP_LARGE_BLOCKS),
    "trl-bf16": Contender("  as it comes, in bfloat16", PEER, ("trl-bf16",)),
    "graftlm": Contender("graftlm", "sft_graftlm.py"),
    "bare": Contender("bare loop", PEER, ("bare",)),
    "bare-allocator": Contender("bare loop with allocator", PEER, ("bare",), KEEP_LARGE_BLOCKS),
}
LEFT_OUT = ("trl-bf16",)  # not float32: only when asked for
MEMORY_TARGET = 0.5


def measure(work: Work, names: list[str], repeats: int, threads: int) -> tuple[dict[str, Any], float]:
    """Each contender's medians (or ``Failure``), and the machine's limit in useful tokens per second."""
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        work_file, shapes_file = Path(folder, "work.json"), Path(folder, "shapes.json")
        work.write(work_file)
        shapes_file.write_text(json.dumps([asdict(p) for p in products(work)]), encoding="utf-8")
        results = take_turns(
            CONTENDERS,
            names,
            work_file,
            repeats=repeats,
            threads=threads,
            told=lambda run: f"{outcome_line(run, work)}; matmul before it: {rates[-1] / 1e9:.0f} Gflop/s",
            before=lambda: rates.append(flops_now(shapes_file, threads)),
        )
    # The best rate, not the median: neighbours on the machine can only take from it.
    return results, max(rates) / (4 * parameters_per_token(work))


def flops_now(shapes_file: Path, threads: int) -> float:
    rate = run_child("_measure.py", [str(shapes_file)], threads=threads)
    if isinstance(rate, Failure):
        sys.exit(f"the matmul rate could not be measured: {rate.reason}")
    return float(rate["flops"])


def failed(runs: list[Any]) -> Failure | None:
    return next((run for run in runs if isinstance(run, Failure)), None)


def take_turns(
    contenders: Mapping[str, Contender],
    names: Sequence[str],
    work_file: Path,
    *,
    repeats: int,
    threads: int,
    told: Callable[[dict[str, Any]], str],
    before: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run contenders in turn, each in a process of its own; one that failed is not run again.

    ``told``: what is said of a run. ``before`` is called before each.

    Returns:
        by name the medians of its runs, or its failure.
    """
    runs: dict[str, list[Any]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name, found in runs.items():
            if failed(found):
                continue
            contender = contenders[name]
            arguments = [*contender.arguments, str(work_file)]
            before()
            load = os.getloadavg()[0]
            run = run_child(contender.script, arguments, threads=threads, environment=contender.environment)
            found.append(run)
            outcome = f"failed: {run.reason}" if isinstance(run, Failure) else told(run)
            say(f"[{repeat + 1}/{repeats}] {name}: {outcome}; load before it {load:.1f}")
    return {name: failed(found) or medians(found) for name, found in runs.items()}


def print_failures(results: Mapping[str, Any]) -> int:
    """Print who failed and why; the exit status."""
    failures = {name: result.reason for name, result in results.items() if isinstance(result, Failure)}
    for name, reason in failures.items():
        print(f"{name} failed: {reason}")
    return 1 if failures else 0


def outcome_line(run: dict[str, Any], work: Work) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in run.get("settings", {}).items())
    return f"{work.useful_tokens / run['seconds']:.0f} tokens/s, {gigabytes(run)} GB" + f" ({settings})" * bool(
        settings
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gigabytes(run: dict[str, Any]) -> str:
    return f"{run['peak_bytes'] / 1e9:.2f}"


def report(work: Work, results: dict[str, Any], limit: float, repeats: int) -> Table:
    """The table: one line a contender, with graftlm's speed and memory as multiples of its own."""
    table = Table(
        f"LoRA instruction tuning, useful tokens per second (median of {repeats})",
        ["contender", "tokens/s", "of limit", "peak GB", "padding", "cores", "kernel", "page faults",
         "final loss", "graftlm: speed", "memory", "wanted"],
    )  # fmt: skip
    ours = results.get("graftlm")
    for name, result in results.items():
        contender = CONTENDERS[name]
        if isinstance(result, Failure):
            table.add(contender.label, "failed", *[""] * (len(table.columns) - 2))
            continue
        cpu = result["user_seconds"] + result["system_seconds"]
        speed, memory = "", ""
        if isinstance(ours, dict) and name != "graftlm":
            speed = f"{result['seconds'] / ours['seconds']:.2f}x"
            memory = f"{ours['peak_bytes'] / result['peak_bytes']:.0%}"
        table.add(
            contender.label,
            f"{work.useful_tokens / result['seconds']:.0f}",
            f"{work.useful_tokens / result['seconds'] / limit:.0%}",
            gigabytes(result),
            f"{1 - work.useful_tokens / result['processed_tokens']:.1%}",
            f"{cpu / result['seconds']:.1f}",
            f"{result['system_seconds'] / cpu:.0%}",
            f"{result['page_faults'] / 1e6:.1f}M",
            f"{result['loss']:.3f}",
            speed,
            memory,
            f"≥ {contender.target:g}x, ≤ {MEMORY_TARGET:.0%}" if contender.target else "",
        )
    return table


def read_examples(data: Path, count: int) -> list[dict[str, str]]:
    """The first rows of alpaca_en.json: ``data`` is the file, or a folder that has it in instructions/."""
    path = data / "instructions" / "alpaca_en.json" if data.is_dir() else data
    if not path.is_file():
        sys.exit(f"{path} is not there. Give alpaca_en.json, or the data folder, by --data or GRAFTLM_DATA.")
    examples: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    if len(examples) < count:
        sys.exit(f"{path} has {len(examples)} rows; --rows asks for {count}.")
    return examples[:count]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("GRAFTLM_DATA", REPOSITORY.parent / "shared" / "data"))
    default_contenders = [name for name in CONTENDERS if name not in LEFT_OUT]
    parser.add_argument("--data", type=Path, default=default_data, help="data folder or alpaca_en.json")
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "graftlm" / "base" / "tiny")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=default_contenders,
        metavar="NAME",
        help=f"of {', '.join(CONTENDERS)}; default: all but {', '.join(LEFT_OUT)}",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser.parse_args()


def main() -> int:
    options = parse()
    examples = read_examples(options.data, options.rows)
    if not (options.tokenizer / "tokenizer.json").is_file():
        sys.exit(f"{options.tokenizer} has no tokenizer.json. Give a tokenizer's folder by --tokenizer.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    work = Work(encode(examples, tokenizer), str(options.tokenizer.resolve()), options.seed)
    machine = machine_line(options.threads)
    amount = (
        f"{len(work.rows)} rows, {work.useful_tokens} useful tokens ({work.supervised_tokens} supervised), "
        f"longest row {max(len(row.ids) for row in work.rows)}, {work.steps} steps"
    )
    say(f"{machine}\n{amount}")
    results, limit = measure(work, options.contenders, options.repeats, options.threads)
    report(work, results, limit, options.repeats).print()
    millions = parameters_per_token(work) / 1e6
    print(f"{machine}\n{amount}")
    print(f"The machine's limit: {limit:.0f} tokens/s ({millions:.1f}M parameters a token).")
    status = print_failures(results)
    if options.json:
        failures = {name: result.reason for name, result in results.items() if isinstance(result, Failure)}
        figures = {name: result for name, result in results.items() if name not in failures}
        summary = {
            "limit": limit,
            "useful_tokens": work.useful_tokens,
            "contenders": figures,
            "failed": failures,
        }
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
