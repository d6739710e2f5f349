"""Inference with one LoRA adapter beside the base: graftlm and peft against the merged model, on the same work.

    python benchmarks/forward_overhead.py

The work: the randomly initialised Llama of ``sft_vs_trl.py`` in float32, with a LoRA of rank 16 on all linear layers of
the blocks, random and equal for all. A call is one forward pass with logits of the last position: over a prompt of 64
tokens, or one step of decoding after it, which reads 64 keys and values from the cache; with 1 and with 32 rows.

The merged model is a plain transformers model: what its call takes, any way takes. All three are held in one process,
with the allocator and OpenMP settings that graftlm makes, and take turns call by call, so that a neighbour on the
machine meets all of them; with one thread (the default) its processor time is what counts, which a neighbour does not
lengthen. The overhead of a round is what a call takes longer than the merged one's of the same round; the median over
the rounds counts. Bar: at most half of peft's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _measure import Failure, Table, machine_line, print_result, run_child
from sft_vs_trl import ALPHA, RANK, build_model, say

BAR = 0.5  # of peft's overhead
PROMPT = 64
CASES = [("prompt", 1), ("prompt", 32), ("step", 1), ("step", 32)]
CONTENDERS = ("merged", "peft", "graftlm")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Forward = Callable[..., Any]


def contenders(seed: int) -> dict[str, Forward]:
    """The three forwards: of ids (rows, length), as transformers takes them, with one and the same adapter."""
    import graftlm  # before torch: it sets how OpenMP threads wait

    import peft  # isort: skip
    import torch
    from transformers import AutoModelForCausalLM

    from graftlm.adapters.merge import export_merged

    with tempfile.TemporaryDirectory() as folder:
        base, merged, lora = (Path(folder, name) for name in ("base", "merged", "lora"))
        build_model(seed).save_pretrained(base)
        ours = graftlm.AdaptedModel(AutoModelForCausalLM.from_pretrained(base))
        adapter = ours.add("lora", graftlm.LoRA(rank=RANK, alpha=ALPHA, targets=TARGETS))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.02)
        export_merged(ours, ["lora"], merged)
        ours.save("lora", lora)
        plain = AutoModelForCausalLM.from_pretrained(merged).eval()
        theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora).eval()

    # As frozen as the two bases: torch multiplies one position's states by a frozen head in another, slower way.
    plain.requires_grad_(False)

    def graftlm_forward(ids: torch.Tensor, **kwargs: Any) -> Any:
        return ours(ids, adapters="lora", **kwargs)

    return {"merged": plain, "peft": theirs, "graftlm": graftlm_forward}


def measure(seed: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of every contender's calls, case by case, taking turns for ``seconds`` a case."""
    forwards = contenders(seed)
    import torch

    warnings.filterwarnings("ignore")
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    result: dict[str, Any] = {}
    with torch.inference_mode():
        for kind, rows in CASES:
            ids = torch.randint(3, 1000, (rows, PROMPT), generator=torch.Generator().manual_seed(seed))
            calls = {
                name: _prompt(forward, ids) if kind == "prompt" else _step(forward, ids)
                for name, forward in forwards.items()
            }
            logits = {name: call() for name, call in calls.items()}
            largest = float(logits["merged"].abs().max())
            difference = max(float((logits[name] - logits["merged"]).abs().max()) for name in CONTENDERS)
            times: dict[str, list[float]] = {name: [] for name in calls}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times["merged"]) < 5:
                shift = len(times["merged"]) % len(CONTENDERS)
                for name in (*CONTENDERS[shift:], *CONTENDERS[:shift]):
                    begin = clock()
                    calls[name]()
                    times[name].append(1000 * (clock() - begin))
            result[f"{kind} {rows}"] = {"times": times, "difference": difference / largest}
    return result


def _prompt(forward: Forward, ids: Any) -> Callable[[], Any]:
    return lambda: forward(ids, use_cache=True, logits_to_keep=1).logits


def _step(forward: Forward, ids: Any) -> Callable[[], Any]:
    """One token after the prompt, whose keys and values stay in the cache; the token's own are taken out again."""
    cache = forward(ids, use_cache=True).past_key_values
    last = ids[:, :1]

    def call() -> Any:
        logits = forward(last, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        cache.crop(-1)
        return logits

    return call


def overhead(times: dict[str, list[float]], name: str) -> float:
    """Median over the rounds of what a call takes longer than the merged one's."""
    return statistics.median(own - base for own, base in zip(times[name], times["merged"], strict=True))


def report(result: dict[str, Any]) -> tuple[Table, bool]:
    table = Table(
        "One LoRA adapter unmerged, a forward pass (medians)",
        ["work", "rounds", "merged ms", "peft over it", "graftlm over it", "graftlm / peft", "wanted"],
    )
    reached = True
    for case, found in result.items():
        kind, rows = case.split()
        times = found["times"]
        base = statistics.median(times["merged"])
        theirs, ours = overhead(times, "peft"), overhead(times, "graftlm")
        reached &= ours <= BAR * theirs
        table.add(
            f"{'prompt of 64 tokens' if kind == 'prompt' else 'one step of decoding'}, {rows} row{'s' * (rows != '1')}",
            str(len(times["merged"])),
            f"{base:.2f}",
            f"{theirs:.2f} ms ({theirs / base:.0%})",
            f"{ours:.2f} ms ({ours / base:.0%})",
            f"{ours / theirs:.2f}",
            f"≤ {BAR:g}",
        )
    return table, reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring, for each kind of work")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print_result(measure(given.seed, given.seconds))
        return
    say(machine_line(given.threads))
    arguments = ["--child", "--seconds", str(given.seconds), "--seed", str(given.seed)]
    result = run_child(Path(__file__).name, arguments, threads=given.threads)
    if isinstance(result, Failure):
        sys.exit(f"the measurement failed: {result.reason}")
    table, reached = report(result)
    table.print()
    print(f"largest difference of logits: {max(found['difference'] for found in result.values()):.1e} of the largest")
    print("the bar is reached" if reached else "the bar is missed")
    if given.json:
        given.json.write_text(json.dumps({"machine": machine_line(given.threads), "result": result}), encoding="utf-8")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
