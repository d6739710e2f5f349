"""Multiple choice for eight LoRA adapters: one pass of graftlm beside lm-evaluation-harness with peft, eight times.

    python benchmarks/eval_vs_lm_eval.py

The base is the randomly initialised Llama of ``sft_vs_trl.py`` (56 million parameters) in float32, the adapters are
LoRA of rank 8 on all linear layers with random weights that are not zero. The rows: questions of generated words, of
40 to 120 tokens, with four choices of 3 to 12 tokens. Both run the same YAML task through the harness: the peer as
``--model hf --model_args pretrained=…,peft=…`` does, with the base loaded once an adapter, all in one process; graftlm
by ``run_harness``, with the bare base left out. Everyone gets the allocator and OpenMP settings that graftlm makes.

"scoring" is the time inside the model's own ``loglikelihood``, "whole" also loads base and adapters, builds the
requests and sums up. Each contender scores a few rows first, outside the time that counts. They run in processes of
their own and take turns; medians of the repeats count.

Bars: scoring at least 2.5 times as fast, with an aim of 4; log-likelihoods within 1e-4; the same choice for every
question and adapter, but for ties (choices whose log-likelihoods are less than 2e-4 apart).
"""

from __future__ import annotations

import graftlm  # before torch: it sets how OpenMP threads wait and what the allocator keeps

# isort: split
import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _measure import REPOSITORY, Failure, Meter, Table, machine_line, medians, print_result, run_child
from generate import SETTINGS
from sft_vs_trl import VOCABULARY, build_model, gigabytes, say

ADAPTERS, RANK, CHOICES = 8, 8, 4
PROMPT, CHOICE = (40, 120), (3, 12)  # tokens, from and to
BAR, AIM = 2.5, 4.0
EXACT, TIE = 1e-4, 2e-4
WARM = 8  # requests
TASK = "generated"
TOKENIZER = REPOSITORY / "graftlm" / "base" / "tiny"
Requests = list[tuple[str, str]]


# ---- the work ----


def prepare(folder: Path, questions: int, seed: int) -> None:
    """Write base, adapters and the task into a folder."""
    import torch
    from transformers import AutoTokenizer

    write_tokenizer(folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = graftlm.AdaptedModel(build_model(seed), tokenizer)
    model.base.save_pretrained(folder / "base")
    torch.manual_seed(seed)
    for name in names():
        adapter = model.add(name, graftlm.LoRA(rank=RANK))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.02)
        model.save(name, folder / name)
    rows = list(generated(tokenizer, questions, random.Random(seed)))
    path = folder / "tasks" / f"{TASK}.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
    path.with_suffix(".yaml").write_text(text, encoding="utf-8")


def names() -> list[str]:
    return [f"lora-{number}" for number in range(ADAPTERS)]


def write_tokenizer(folder: Path) -> None:
    """The tokenizer of ``tiny``, filled up to the model's vocabulary with tokens that no text has.

    The harness cuts the embeddings of a model with an adapter to the length of its tokenizer.
    """
    folder.mkdir(parents=True)
    values = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = values["model"]["vocab"]
    for number in range(len(vocabulary), VOCABULARY):
        vocabulary[f"\u2400{number}"] = number
    (folder / "tokenizer.json").write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
    settings = (TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")


def generated(tokenizer: Any, questions: int, draw: random.Random) -> Any:
    """Rows of words made of letters, of so many tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 7))) for _ in range(2000)]
    sizes = [len(ids) for ids in tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]]

    def text(tokens: int) -> str:
        found: list[str] = []
        while tokens > 0:
            place = draw.randrange(len(words))
            if sizes[place] <= tokens:
                found.append(words[place])
                tokens -= sizes[place]
            elif tokens < max(sizes):
                place = draw.choice([n for n, size in enumerate(sizes) if size <= tokens] or [sizes.index(min(sizes))])
                found.append(words[place])
                tokens -= sizes[place]
        return " ".join(found)

    for _ in range(questions):
        choices: list[str] = []
        while len(choices) < CHOICES:
            choice = text(draw.randint(*CHOICE))
            choices += [choice] if choice not in choices else []
        yield {"prompt": text(draw.randint(*PROMPT)), "choices": choices, "answer": draw.randrange(CHOICES)}


# ---- one process ----


class Clock:
    """Time inside calls of ``loglikelihood``, on the wall and of the processor, and what they gave."""

    def __init__(self) -> None:
        self.seconds = self.processor = 0.0
        self.found: list[list[float]] = []

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            begin, worked = time.perf_counter(), time.process_time()
            result = call(*arguments, **keywords)
            self.seconds += time.perf_counter() - begin
            self.processor += time.process_time() - worked
            self.found.append([value for value, _ in result])
            return result

        return timed

    def result(self, meter: Meter, loading: float) -> dict[str, Any]:
        times = {"scoring": self.seconds, "scoring_processor": self.processor, "loading": loading}
        return {**meter.result(), **times, "log_probs": self.found}


def peer(folder: Path, batch_size: int) -> dict[str, Any]:
    from lm_eval.api.instance import Instance
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    def load(name: str) -> Any:
        places = {"pretrained": str(folder / "base"), "peft": str(folder / name)}
        return HFLM(**places, device="cpu", dtype="float32", batch_size=batch_size)

    warm = [Instance("loglikelihood", {}, pair, 0, (TASK, 0, 1)) for pair in asked(folder)[:WARM]]
    load(names()[0]).loglikelihood(warm, disable_tqdm=True)
    clock, meter, loading = Clock(), Meter(), 0.0
    meter.start()
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    for name in names():
        begin = time.perf_counter()
        model = load(name)
        loading += time.perf_counter() - begin
        model.loglikelihood = clock.around(model.loglikelihood)
        simple_evaluate(model, tasks=[TASK], task_manager=manager, bootstrap_iters=0, log_samples=False)
    meter.stop()
    return clock.result(meter, loading)


def ours(folder: Path, max_tokens: int) -> dict[str, Any]:
    from graftlm.evaluation.harness import HarnessSettings, run_harness
    from graftlm.evaluation.harness.answers import Answers
    from graftlm.evaluation.harness.model import OneOfMany
    from graftlm.evaluation.speakers import Opened, open_adapters

    def load() -> Opened:
        folders = [folder / name for name in names()]
        return open_adapters(folders, str(folder / "base"), dtype="float32", device="cpu")

    opened = load()
    Answers(opened, opened.adapters).of(names()[0], "loglikelihood", asked(folder)[:WARM])
    clock, meter = Clock(), Meter()
    OneOfMany.loglikelihood = clock.around(OneOfMany.loglikelihood)  # type: ignore[method-assign]
    meter.start()
    begin = time.perf_counter()
    opened = load()
    loading = time.perf_counter() - begin
    run_harness(opened, HarnessSettings((TASK,), folder / "tasks", base=False, max_tokens=max_tokens, bootstrap=0))
    meter.stop()
    return clock.result(meter, loading)


def asked(folder: Path) -> Requests:
    lines = (folder / "tasks" / f"{TASK}.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["prompt"], f" {choice}") for row in map(json.loads, lines) for choice in row["choices"]]


# ---- the comparison ----


def largest_difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """Of the log-likelihoods of all adapters."""
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def choices_apart(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> tuple[int, int]:
    """How many choices differ that are no ties, and how many there are."""
    apart = total = 0
    for left, right in zip(one, other, strict=True):
        for start in range(0, len(left), CHOICES):
            first, second = left[start : start + CHOICES], right[start : start + CHOICES]
            chosen = second.index(max(second))
            total += 1
            apart += first[chosen] < max(first) - TIE
    return apart, total


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of both contenders, and how far apart their answers are."""
    contenders = {"peer": ["peer", str(folder), str(options.batch_size)], "ours": ["ours", str(folder)]}
    contenders["ours"].append(str(options.max_tokens))
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for repeat in range(options.repeats):
        for name, arguments in contenders.items():
            found = child(arguments, options.threads)
            runs[name].append(found)
            times = f"scoring {found['scoring']:.1f} s, {found['seconds']:.1f} s in all"
            say(f"[{repeat + 1}/{options.repeats}] {name}: {times}")
    log_probs = {name: found[0]["log_probs"] for name, found in runs.items()}
    apart, total = choices_apart(log_probs["peer"], log_probs["ours"])
    results: dict[str, Any] = {
        name: medians([{key: value for key, value in run.items() if key != "log_probs"} for run in found])
        for name, found in runs.items()
    }
    difference = largest_difference(log_probs["peer"], log_probs["ours"])
    return results | {"difference": difference, "apart": apart, "choices": total}


def child(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    result = run_child(Path(__file__).name, arguments, threads=threads, environment=SETTINGS)
    if isinstance(result, Failure):
        sys.exit(f"{arguments[0]} failed: {result.reason}")
    return result


def report(results: dict[str, Any], repeats: int) -> bool:
    """Print the table; True where every bar is passed."""
    peer_run, our_run = results["peer"], results["ours"]
    amount = f"{results['choices'] // ADAPTERS} questions of {CHOICES} choices"
    table = Table(
        f"{ADAPTERS} LoRA adapters, {amount} (median of {repeats})",
        ["", "lm-eval and peft", "graftlm", "ratio", "wanted", ""],
    )
    ratio = peer_run["scoring"] / our_run["scoring"]
    word = {True: "pass", False: "FAIL"}
    rows = {
        "scoring, s": "scoring",
        "scoring, processor s": "scoring_processor",
        "loading, s": "loading",
        "whole, s": "seconds",
    }
    for label, key in rows.items():
        bar = (f"≥ {BAR:g}, aim {AIM:g}", word[ratio >= BAR]) if key == "scoring" else ("", "")
        table.add(label, f"{peer_run[key]:.2f}", f"{our_run[key]:.2f}", f"{peer_run[key] / our_run[key]:.2f}", *bar)
    table.add("peak memory, GB", gigabytes(peer_run), gigabytes(our_run), "", "", "")
    close = results["difference"] <= EXACT
    apart = f"{results['difference']:.1e}"
    table.add("largest difference of log-likelihoods", "", "", apart, f"≤ {EXACT:.0e}", word[close])
    same = results["apart"] == 0
    table.add(f"choices that differ, of {results['choices']}", "", "", str(results["apart"]), "0", word[same])
    table.print()
    return ratio >= BAR and close and same


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16, help="rows that the peer scores at a time")
    parser.add_argument("--max-tokens", type=int, default=4096, help="tokens that graftlm scores at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    return parser.parse_args()


def main() -> int:
    options = parse()
    machine = machine_line(options.threads)
    say(machine)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        child(["prepare", name, str(options.questions), str(options.seed)], options.threads)
        results = compare(folder, options)
    passed = report(results, options.repeats)
    print(f"{machine}; lm-eval in batches of {options.batch_size}, graftlm of {options.max_tokens} tokens")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0 if passed else 1


def contend(arguments: Sequence[str]) -> dict[str, Any]:
    """What a child does: ``prepare FOLDER QUESTIONS SEED``, ``peer FOLDER BATCH`` or ``ours FOLDER TOKENS``."""
    kind, folder, *numbers = arguments
    if kind == "prepare":
        prepare(Path(folder), *map(int, numbers))
        return {}
    return (peer if kind == "peer" else ours)(Path(folder), int(numbers[0]))


if __name__ == "__main__":
    if sys.argv[1:2] in (["prepare"], ["peer"], ["ours"]):
        print_result(contend(sys.argv[1:]))
    else:
        sys.exit(main())
