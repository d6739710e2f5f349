"""Labelled rows to token rows: graftlm beside the map pipeline of `datasets`, on the same work; and memory of a build.

    python benchmarks/data_build.py
    python benchmarks/data_build.py --memory 20000 200000 2000000

The work: a generated file of labelled texts (JSON lines), worded by the task template `sentiment` (a description drawn
for each row by a hash, the words of the labels in an order drawn too), filtered by words, rendered and tokenised with
what is learnt marked. Every contender runs in a process of its own with two worker processes, starts from the file and
is timed without imports. All must end with the same token ids and the same marks for the same rows, or the benchmark
fails. Contenders take turns, and the median counts.

Peers: `datasets` in three steps (map, filter, map) with its default batch of 1,000; all in one map; and that with the
batch that was the fastest when tried (100). Each keeps its rows as Arrow on disk, graftlm in compact arrays in memory.

``--memory``: the peak memory of `graftlm data build` (format, filter, drop duplicates, sort, split, write) for numbers
of generated rows, and ``--gigabytes`` for a source of a size. The time of a build is told too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from _measure import REPOSITORY, Failure, Table, machine_line, medians, run_child

LONGEST = 120  # words of a prompt that pass
WORDS = (15, 60)
LONG, LONG_WORDS = 0.03, (130, 200)  # some rows that do not
SEED = 0


@dataclass(frozen=True)
class Contender:
    label: str
    script: str
    arguments: tuple[str, ...] = ()


PEER = "data_build_peer.py"
CONTENDERS = {
    "datasets": Contender("datasets: map, filter, map", PEER, ("three", "1000")),
    "datasets-one": Contender("datasets: all in one map", PEER, ("one", "1000")),
    "datasets-best": Contender("datasets: all in one map, batches of 100", PEER, ("one", "100")),
    "graftlm": Contender("graftlm", "data_build_graftlm.py"),
}


def generate(
    path: Path, rows: int, *, most_bytes: int | None = None, words_a_row: tuple[int, int] | None = None
) -> int:
    """Write labelled rows of words drawn from the demo's data; gives how many."""
    words = [
        word
        for file in sorted((REPOSITORY / "graftlm" / "demo" / "data").glob("*.train.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
        for word in json.loads(line)["input"].split()
    ]
    rng = random.Random(SEED)
    written = size = 0
    with path.open("w", encoding="utf-8") as file:
        while written < rows and (most_bytes is None or size < most_bytes):
            least, most = words_a_row or (LONG_WORDS if rng.random() < LONG else WORDS)
            text = " ".join(rng.choices(words, k=rng.randint(least, most)))
            size += file.write(json.dumps({"text": text, "label": rng.choice(("pos", "neg"))}) + "\n")
            written += 1
    return written


def compare(options: argparse.Namespace) -> int:
    results: dict[str, list[Any]] = {name: [] for name in options.contenders}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        generate(data, options.rows)
        for repeat in range(options.repeats):
            for name, runs in results.items():
                contender = CONTENDERS[name]
                arguments = [str(data), str(options.processes), *contender.arguments]
                run = run_child(contender.script, arguments, threads=1)
                if isinstance(run, Failure):
                    sys.exit(f"{name} failed: {run.reason}")
                runs.append(run)
                rate = options.rows / run["seconds"]
                print(f"[{repeat + 1}/{options.repeats}] {name}: {rate:,.0f} rows/s", file=sys.stderr, flush=True)
    found = {name: medians(runs) for name, runs in results.items()}
    ends = {(run["rows"], run["sha256"]) for runs in results.values() for run in runs}
    ours = found.get("graftlm")
    table = Table(
        f"{options.rows:,} rows formatted, filtered and tokenised (median of {options.repeats})",
        ["contender", "rows/s", "processor us a row", "graftlm is faster by", "wanted"],
    )
    for name, result in found.items():
        ratio = f"{result['seconds'] / ours['seconds']:.2f}x" if ours and name != "graftlm" else ""
        table.add(
            CONTENDERS[name].label,
            f"{options.rows / result['seconds']:,.0f}",
            f"{result['cpu_seconds'] / options.rows * 1e6:.0f}",
            ratio,
            "≥ 1.5x" if ratio else "",
        )
    table.print()
    print(machine_line(options.processes) + f", datasets {version('datasets')}")
    if len(ends) > 1:
        print(f"NOT the same rows: {ends}")
        return 1
    rows, digest = ends.pop()
    print(f"All ended with the same {rows:,} rows of token ids and marks: sha256 {digest[:16]}.")
    return 0


RECIPE = """\
sources: {rows: {path: rows.jsonl, template: sentiment}}
filters: {min_prompt: 3, contradictions: CONTRADICTIONS}
splits: {test: 0.05}
"""


def build_memory(options: argparse.Namespace) -> int:
    """Peak memory and time of `graftlm data build`, in a process of its own for every size."""
    table = Table("graftlm data build", ["source", "size", "seconds", "rows/s", "peak memory", "over the first"])
    sizes: list[tuple[int, int | None]] = [(rows, None) for rows in options.memory]
    sizes += [(10**12, int(options.gigabytes * 1e9))] if options.gigabytes else []
    first = None
    for rows, most_bytes in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            data, recipe = Path(folder) / "rows.jsonl", Path(folder) / "recipe.yaml"
            number = generate(data, rows, most_bytes=most_bytes, words_a_row=options.words and tuple(options.words))
            recipe.write_text(RECIPE.replace("CONTRADICTIONS", str(options.contradictions).lower()), encoding="utf-8")
            command = [sys.executable, "-m", "graftlm", "data", "build", str(recipe), "--out", f"{folder}/set"]
            environment = {**os.environ, "TMPDIR": folder, "PYTHONPATH": str(REPOSITORY)}
            begin = time.perf_counter()
            done = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
            peak = watch(done)
            seconds = time.perf_counter() - begin
            if done.returncode:
                sys.exit(f"the build of {number:,} rows failed")
            first = peak if first is None else first
            size = data.stat().st_size
        table.add(
            f"{number:,} rows", f"{size / 1e9:.2f} GB", f"{seconds:.0f}", f"{number / seconds:,.0f}",
            f"{peak / 1e6:.0f} MB", f"{(peak - first) / 1e6:+.0f} MB",
        )  # fmt: skip
        print(f"{number:,} rows: {seconds:.0f} s, {peak / 1e6:.0f} MB", file=sys.stderr, flush=True)
    table.print()
    return 0


def watch(process: subprocess.Popen[bytes]) -> int:
    """The most resident bytes of a process and its children together, looked at ten times a second."""
    import psutil

    peak = 0
    while process.poll() is None:
        try:
            mine = psutil.Process(process.pid)
            peak = max(peak, sum(each.memory_info().rss for each in (mine, *mine.children(recursive=True))))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.1)
    return max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 if not peak else 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument(
        "--memory", type=int, nargs="+", default=[], metavar="ROWS", help="measure builds of these sizes"
    )
    parser.add_argument("--gigabytes", type=float, help="and of a source of so many gigabytes")
    parser.add_argument("--words", type=int, nargs=2, help="fewest and most words of the rows of --memory, --gigabytes")
    parser.add_argument("--contradictions", action="store_true", help="with the filter that looks at all rows first")
    parser.add_argument("--folder", type=Path, help="where sources and sets are written meanwhile")
    return parser.parse_args()


def main() -> int:
    options = parse()
    return build_memory(options) if options.memory or options.gigabytes else compare(options)


if __name__ == "__main__":
    sys.exit(main())
