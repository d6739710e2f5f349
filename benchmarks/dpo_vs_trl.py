"""DPO with one LoRA adapter: graftlm beside trl's DPOTrainer with peft, on the same pairs.

    python benchmarks/dpo_vs_trl.py

The work: the randomly initialised Llama of ``sft_vs_trl.py``, the first 32 pairs of dpo_en.json, each row cut to
1,024 tokens, one epoch in batches of 4 pairs, β 0.1, LoRA of rank 16 on all linear layers, AdamW, float32. Each
contender runs in a process of its own. Timed is everything from the first forward to the last step: the reference's
pass too, which graftlm makes once before training. Contenders take turns and the median over the repeats counts.
"Cores" is CPU time over wall time: where it is well under the number of threads, something else had the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _measure import REPOSITORY, Failure, Table, machine_line
from sft_vs_trl import KEEP_LARGE_BLOCKS, Contender, gigabytes, print_failures, say, take_turns

BATCH_PAIRS = 4
BETA = 0.1
LEARNING_RATE = 1e-4
MAX_LENGTH = 1024
PEER = "dpo_peer_trl.py"
CONTENDERS = {
    "trl": Contender("trl + peft, as it comes", PEER, ("trl",), target=5),
    "trl-allocator": Contender("  with allocator", PEER, ("trl",), KEEP_LARGE_BLOCKS, target=2.5),
    "graftlm": Contender("graftlm", "dpo_graftlm.py", ("2048",)),
    "graftlm-4096": Contender("  with micro-batches of 4,096 tokens", "dpo_graftlm.py", ("4096",)),
    "bare": Contender("bare loop", PEER, ("bare",)),
    "bare-allocator": Contender("bare loop with allocator", PEER, ("bare",), KEEP_LARGE_BLOCKS),
}
MEMORY_TARGET = 0.4


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of its two answers."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def rows(self) -> tuple[list[int], list[int]]:
        return [*self.prompt, *self.chosen], [*self.prompt, *self.rejected]


@dataclass(frozen=True)
class Work:
    """What a contender is given, by way of a JSON file."""

    pairs: list[Pair]
    tokenizer: str
    seed: int

    @property
    def tokens(self) -> int:
        """Tokens of both rows of every pair."""
        return sum(len(row) for pair in self.pairs for row in pair.rows)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Work:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls([Pair(**pair) for pair in raw["pairs"]], raw["tokenizer"], raw["seed"])


def encode(examples: list[dict[str, Any]], tokenizer: Any, count: int) -> list[Pair]:
    """The first pairs as ids whose prompt leaves room for an answer; rows are cut to the longest length."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    pairs: list[Pair] = []
    for example in examples:
        turns = "".join(f"### {turn['from']}:\n{turn['value']}\n\n" for turn in example["conversations"])
        prompt = [tokenizer.bos_token_id, *ids(f"{turns}### gpt:\n")]
        room = MAX_LENGTH - len(prompt)
        chosen, rejected = (
            [*ids(example[key]["value"]), tokenizer.eos_token_id][: max(0, room)] for key in ("chosen", "rejected")
        )
        if room > 0 and chosen != rejected:
            pairs.append(Pair(prompt, chosen, rejected))
    return pairs[:count]


def report(work: Work, results: dict[str, Any], repeats: int) -> Table:
    """One line a contender, with graftlm's speed and memory as multiples of its own."""
    table = Table(
        f"DPO, pairs per second (median of {repeats})",
        ["contender", "pairs/s", "tokens/s", "peak GB", "padding", "cores", "first loss", "last loss",
         "graftlm: speed", "memory", "wanted"],
    )  # fmt: skip
    ours = results.get("graftlm")
    for name, result in results.items():
        contender = CONTENDERS[name]
        if isinstance(result, Failure):
            table.add(contender.label, "failed", *[""] * (len(table.columns) - 2))
            continue
        speed = memory = ""
        if isinstance(ours, dict) and name != "graftlm":
            speed = f"{result['seconds'] / ours['seconds']:.2f}x"
            memory = f"{ours['peak_bytes'] / result['peak_bytes']:.0%}"
        cpu = result["user_seconds"] + result["system_seconds"]
        table.add(
            contender.label,
            f"{len(work.pairs) / result['seconds']:.3f}",
            f"{work.tokens / result['seconds']:.0f}",
            gigabytes(result),
            f"{1 - 2 * work.tokens / result['processed_tokens']:.1%}",  # each row passes twice: policy and reference
            f"{cpu / result['seconds']:.1f}",
            f"{result['first_loss']:.4f}",
            f"{result['last_loss']:.4f}",
            speed,
            memory,
            f"≥ {contender.target:g}x, ≤ {MEMORY_TARGET:.0%}" if contender.target else "",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("GRAFTLM_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default_data, help="data folder or dpo_en.json")
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "graftlm" / "base" / "tiny")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = parse()
    path = options.data / "preferences" / "dpo_en.json" if options.data.is_dir() else options.data
    if not path.is_file():
        sys.exit(f"{path} is not there. Give dpo_en.json, or the data folder, by --data or GRAFTLM_DATA.")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    pairs = encode(json.loads(path.read_text(encoding="utf-8")), tokenizer, options.pairs)
    work = Work(pairs, str(options.tokenizer.resolve()), options.seed)
    longest = max(len(row) for pair in pairs for row in pair.rows)
    machine = machine_line(options.threads)
    amount = f"{len(pairs)} pairs, {work.tokens} tokens, longest row {longest}"
    say(f"{machine}\n{amount}")
    with tempfile.TemporaryDirectory() as folder:
        work_file = Path(folder, "work.json")
        work.write(work_file)
        results = take_turns(
            CONTENDERS,
            options.contenders,
            work_file,
            repeats=options.repeats,
            threads=options.threads,
            told=lambda run: f"{len(pairs) / run['seconds']:.3f} pairs/s",
        )
    report(work, results, options.repeats).print()
    print(f"{machine}\n{amount}")
    return print_failures(results)


if __name__ == "__main__":
    sys.exit(main())
