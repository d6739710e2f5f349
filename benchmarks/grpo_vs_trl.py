"""GRPO with one LoRA adapter: graftlm beside trl's GRPOTrainer with peft, on the same prompts.

    python benchmarks/grpo_vs_trl.py

The work: the randomly initialised Llama of ``sft_vs_trl.py``, prompts of alpaca_en.json, two a step with 8 answers
each (16 episodes), at most 64 tokens an answer, temperature 1, a KL weight of 0.04, one update a phase, LoRA of rank 16
on all linear layers, float32. The reward is the share of the letter e. Each contender runs in a process of its own;
timed are all steps but the first, answering included. Contenders take turns, and the median over the repeats counts.
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
from sft_vs_trl import KEEP_LARGE_BLOCKS, Contender, gigabytes, print_failures, read_examples, say, take_turns

PROMPTS, GROUP, ANSWER_TOKENS = 2, 8, 64
EPISODES = PROMPTS * GROUP
KL_WEIGHT = 0.04
LEARNING_RATE = 1e-4
LONGEST_PROMPT = 128
PEER = "grpo_peer_trl.py"
CONTENDERS = {
    "trl": Contender("trl + peft, as it comes", PEER, (), target=1.4),
    "trl-allocator": Contender("  with allocator", PEER, (), KEEP_LARGE_BLOCKS, target=1.4),
    "graftlm": Contender("graftlm", "grpo_graftlm.py"),
}


@dataclass(frozen=True)
class Work:
    """What a contender is given, by way of a JSON file: prompts as texts, two for each step."""

    prompts: list[str]
    tokenizer: str
    seed: int

    @property
    def steps(self) -> int:
        return len(self.prompts) // PROMPTS

    @property
    def timed_episodes(self) -> int:
        """Episodes of all steps but the first."""
        return EPISODES * (self.steps - 1)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Work:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))


def reward(answer: str) -> float:
    """The share of the letter e."""
    return answer.count("e") / max(1, len(answer))


def choose(examples: list[dict[str, Any]], tokenizer: Any, count: int) -> list[str]:
    """The first prompts that are not too long."""
    texts = dict.fromkeys(f"{each['instruction']}\n{each.get('input', '')}".strip() for each in examples)
    return [text for text in texts if len(tokenizer(text)["input_ids"]) <= LONGEST_PROMPT][:count]


def report(work: Work, results: dict[str, Any], repeats: int) -> Table:
    """One line a contender, with graftlm's speed and memory as multiples of its own."""
    table = Table(
        f"GRPO, episodes per second (median of {repeats})",
        ["contender", "episodes/s", "tokens an answer", "peak GB", "cores", "graftlm: speed", "memory", "wanted"],
    )
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
            f"{work.timed_episodes / result['seconds']:.2f}",
            f"{result['answer_tokens']:.1f}",
            gigabytes(result),
            f"{cpu / result['seconds']:.1f}",
            speed,
            memory,
            f"≥ {contender.target:g}x" if contender.target else "",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_data = Path(os.environ.get("GRAFTLM_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default_data, help="data folder or alpaca_en.json")
    parser.add_argument("--tokenizer", type=Path, default=REPOSITORY / "graftlm" / "base" / "tiny")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    options = parse()
    if options.steps < 2:
        sys.exit("--steps must be 2 or more: the first one is not timed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    count = PROMPTS * options.steps
    prompts = choose(read_examples(options.data, 8 * count), tokenizer, count)
    work = Work(prompts, str(options.tokenizer.resolve()), options.seed)
    machine = machine_line(options.threads)
    amount = f"{work.steps} steps of {EPISODES} episodes, {ANSWER_TOKENS} tokens at most"
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
            told=lambda run: f"{work.timed_episodes / run['seconds']:.2f} episodes/s",
        )
    report(work, results, options.repeats).print()
    print(f"{machine}\n{amount}")
    return print_failures(results)


if __name__ == "__main__":
    sys.exit(main())
