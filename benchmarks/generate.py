"""Making text: graftlm's engine beside transformers' ``generate`` and ``generate_batch`` and peft's, on the same work.

    python benchmarks/generate.py
    python benchmarks/generate.py --only plain lora --profile

The base is the randomly initialised Llama of ``sft_vs_trl.py`` (56 million parameters) in float32. Prompts are random
tokens; every answer is drawn from the whole vocabulary at temperature 1 and ends at its own number of new tokens,
which is counted. The scenarios:

- plain: 32 prompts of 64 tokens, 64 new tokens each, no adapter;
- lora: the same with one LoRA adapter (rank 16, all linear layers), and with eight, for four rows each;
- kinds: the same with eight adapters of four kinds (two each of LoRA, bottleneck, prefix and prompt tuning), beside
  one LoRA adapter for all rows, both by graftlm;
- samples: 8 samples of each of 4 prompts of 256 tokens;
- unequal: 96 requests whose prompts and answers have log-normal lengths (mean 64 each, at most 256), at most 32 rows
  at a time: ``generate`` takes them in batches of 32 in the order of asking, each until its longest answer is done.

Contenders run in processes of their own and take turns, all with the allocator and OpenMP settings that graftlm makes
("as it comes": without); medians of the repeats count. "products" is the limit: the products of the base's linear
layers and head alone, on the same numbers of tokens, by the faster of torch's two libraries. "Cores" is processor time
over wall time: where it is well under the number of threads, something else had the machine. The bars are for wall
time; ratios by processor time, which neighbours lengthen less, stand beside. The slots of ``unequal`` are counted in
the steps of decoding while requests wait.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from _measure import Failure, Table, machine_line, medians, run_child
from generate_work import SCENARIOS, Sizes, processor_rate, rate
from sft_vs_trl import KEEP_LARGE_BLOCKS, gigabytes, say

# What graftlm sets by itself, on a machine that others use worth a lot: every contender gets it.
SETTINGS = KEEP_LARGE_BLOCKS | {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}

PEER, OURS = "generate_peer.py", "generate_graftlm.py"


@dataclass(frozen=True)
class Contender:
    """A line of a table: what runs, in which environment. ``name`` is what its script calls it."""

    label: str
    script: str
    name: str
    as_it_comes: bool = False


@dataclass(frozen=True)
class Bar:
    """``ours`` is to make at least ``least`` times the useful tokens per second of ``beside``; ``aim`` is printed."""

    ours: str
    beside: str
    least: float | None
    aim: float | None = None


PRODUCTS = Contender("products alone", PEER, "products")
ONE_LORA = Contender("graftlm, one LoRA", OURS, "graftlm-lora")

CONTENDERS: dict[str, tuple[Contender, ...]] = {
    "plain": (
        Contender("transformers generate", PEER, "generate"),
        Contender("  as it comes", PEER, "generate", as_it_comes=True),
        Contender("transformers generate_batch", PEER, "generate-batch"),
        Contender("graftlm", OURS, "graftlm"),
        PRODUCTS,
    ),
    "lora": (
        Contender("peft, one LoRA", PEER, "peft"),
        ONE_LORA,
        Contender("peft, 8 LoRA mixed", PEER, "peft-mixed"),
        Contender("graftlm, 8 LoRA mixed", OURS, "graftlm-mixed"),
        PRODUCTS,
    ),
    "kinds": (ONE_LORA, Contender("graftlm, 8 adapters of 4 kinds", OURS, "graftlm-kinds")),
    "samples": (
        Contender("transformers generate", PEER, "generate-samples"),
        Contender("graftlm", OURS, "graftlm-samples"),
    ),
    "unequal": (
        Contender("transformers generate", PEER, "generate-unequal"),
        Contender("graftlm", OURS, "graftlm-unequal"),
    ),
}  # fmt: skip
BARS: dict[str, tuple[Bar, ...]] = {
    "plain": (
        Bar("graftlm", "transformers generate", 1.6, 2.0),
        Bar("graftlm", "transformers generate_batch", 6.0),
        Bar("graftlm", "products alone", None, 0.7),
    ),
    "lora": (
        Bar("graftlm, one LoRA", "peft, one LoRA", None),
        Bar("graftlm, 8 LoRA mixed", "peft, 8 LoRA mixed", 2.3),
        Bar("graftlm, one LoRA", "products alone", None),
    ),
    "kinds": (Bar("graftlm, 8 adapters of 4 kinds", "graftlm, one LoRA", 0.85),),
    "samples": (Bar("graftlm", "transformers generate", 2.5),),
    "unequal": (Bar("graftlm", "transformers generate", 2.5),),
}
BUSY = 0.9  # of the slots, while requests wait

Figures = dict[str, dict[str, Any] | Failure]


def measure(scenario: str, sizes: Sizes, repeats: int, threads: int) -> Figures:
    """Each contender's medians, by its label, or why it failed."""
    runs: dict[str, list[dict[str, Any]]] = {one.label: [] for one in CONTENDERS[scenario]}
    failures: dict[str, Failure] = {}
    for repeat in range(repeats):
        for one in CONTENDERS[scenario]:
            if one.label in failures:
                continue
            environment = {} if one.as_it_comes else SETTINGS
            found = run_child(one.script, [one.name, arguments(sizes)], threads=threads, environment=environment)
            if isinstance(found, Failure):
                failures[one.label] = found
                say(f"{scenario}: {one.label.strip()} failed: {found.reason}")
                continue
            runs[one.label].append(found)
            say(f"[{repeat + 1}/{repeats}] {scenario}: {one.label.strip()}: {rate(found):.0f} tokens/s")
    return {label: failures[label] if label in failures else medians(found) for label, found in runs.items()}


def arguments(sizes: Sizes) -> str:
    return json.dumps(asdict(sizes))


def ratio(bar: Bar, figures: Figures, of: Callable[[dict[str, Any]], float] = rate) -> float | None:
    """How many times the rate ``beside`` has; None where one of the two failed."""
    ours, beside = figures[bar.ours], figures[bar.beside]
    if isinstance(ours, Failure) or isinstance(beside, Failure):
        return None
    return of(ours) / of(beside)


@dataclass(frozen=True)
class Check:
    """A comparison. ``value``: by wall time, ``processor``: by processor time; None where a contender failed."""

    label: str
    value: float | None
    processor: float | None
    least: float | None
    aim: float | None

    @property
    def passed(self) -> bool:
        return self.least is None or (self.value is not None and self.value >= self.least)


def checks(scenario: str, figures: Figures) -> list[Check]:
    found = [
        Check(
            f"{bar.ours} / {bar.beside}",
            ratio(bar, figures),
            ratio(bar, figures, processor_rate),
            bar.least,
            bar.aim,
        )
        for bar in BARS[scenario]
    ]
    if scenario == "unequal":
        ours = figures["graftlm"]
        share = None if isinstance(ours, Failure) else ours.get("busy")
        found.append(Check("slots busy while requests wait", share, None, BUSY, None))
    return found


def report(scenario: str, figures: Figures, repeats: int) -> bool:
    """Print both tables; True where every bar is passed."""
    table = Table(
        f"{scenario}: useful tokens per second (median of {repeats})",
        ["contender", "tokens/s", "tokens", "seconds", "median step ms", "tokens/processor s", "cores", "peak GB"],
    )
    for label, found in figures.items():
        if isinstance(found, Failure):
            table.add(label, "failed", *[""] * 6)
            continue
        cpu = (found["user_seconds"] + found["system_seconds"]) / found["seconds"]
        step = f"{found['step_ms']:.1f}" if "step_ms" in found else ""
        alone = label == PRODUCTS.label  # it is no way to make text, and has no memory of its own
        table.add(
            label,
            f"{rate(found):.0f}",
            f"{found['tokens']:.0f}",
            f"{found['seconds']:.2f}",
            step,
            f"{processor_rate(found):.0f}",
            f"{cpu:.1f}",
            "" if alone else gigabytes(found),
        )
    table.print()
    verdicts = Table("", ["ratio", "is", "by processor time", "bar", "aim", ""])
    found_checks = checks(scenario, figures)
    for check in found_checks:
        verdicts.add(
            check.label,
            "none" if check.value is None else f"{check.value:.2f}",
            "" if check.processor is None else f"{check.processor:.2f}",
            "" if check.least is None else f"≥ {check.least:g}",
            "" if check.aim is None else f"{check.aim:g}",
            "" if check.least is None else "pass" if check.passed else "FAIL",
        )
    verdicts.print()
    return all(check.passed for check in found_checks)


# ---- where the time goes ----


def profile(scenarios: Sequence[str], sizes: Sizes, threads: int) -> dict[str, Any]:
    """Print what a decoding step of graftlm consists of, for the scenarios that have such a view."""
    views = {"plain": ["graftlm"], "lora": ["graftlm-lora", "graftlm-mixed"], "kinds": ["graftlm-kinds"]}
    results = {}
    for name in [name for scenario in scenarios for name in views.get(scenario, [])]:
        found = run_child(OURS, [name, arguments(sizes), "profile"], threads=threads)
        if isinstance(found, Failure):
            sys.exit(f"the profile of {name} failed: {found.reason}")
        results[name] = found
        profiled = (
            f"{found['profiled_step_ms']:.1f} under the profiler, {found['operations_ms']:.1f} of them in operations"
        )
        table = Table(
            f"{name}: a decoding step of {found['step_ms']:.1f} ms ({profiled})",
            ["operation", "own ms a step", "share", "calls a step"],
        )
        for key, milliseconds, calls in found["top"]:
            share = milliseconds / found["profiled_step_ms"]
            table.add(key, f"{milliseconds:.2f}", f"{share:.0%}", f"{calls:.1f}")
        table.print()
    return results


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS), metavar="SCENARIO")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="where graftlm's time goes, instead of the comparison")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    for size in fields(Sizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, default=size.default)
    return parser.parse_args()


def main() -> int:
    options = parse()
    sizes = Sizes(**{size.name: getattr(options, size.name) for size in fields(Sizes)})
    machine = machine_line(options.threads)
    say(machine)
    summary: dict[str, Any] = {"machine": machine, "sizes": asdict(sizes)}
    passed = True
    if options.profile:
        summary["profile"] = profile(options.only, sizes, options.threads)
    else:
        for scenario in options.only:
            figures = measure(scenario, sizes, options.repeats, options.threads)
            passed &= report(scenario, figures, options.repeats)
            summary[scenario] = {
                "contenders": {
                    label: {"failed": found.reason} if isinstance(found, Failure) else found
                    for label, found in figures.items()
                },
                "checks": [asdict(check) for check in checks(scenario, figures)],
            }
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
