"""What the benchmarks share: contenders in processes of their own, medians, tables, the machine's speed.

A contender is a script that prints one JSON object as the last line of its standard output. Run as a script,
this file is one itself: it measures the float32 matmul rate on the shapes in the JSON file it is given.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent

# What would make two children unlike each other without anyone having said so.
_DROPPED_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "GOMP_", "KMP_", "MKL_")


@dataclass(frozen=True)
class Failure:
    """A child that ended without a result, and why."""

    reason: str


def run_child(
    script: str, arguments: Sequence[str], *, threads: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any] | Failure:
    """Run ``benchmarks/<script>`` on the CPU with ``threads`` threads and return the JSON of its last line.

    Every child gets the same environment: the caller's, less allocator and OpenMP settings, plus
    ``environment``.
    """
    child = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED_VARIABLES)}
    child |= {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    child |= environment or {}
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env=child,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        return Failure(_last_line(done.stderr) or f"exit code {done.returncode}")
    try:
        result = json.loads(_last_line(done.stdout))
    except ValueError:
        result = None
    return result if isinstance(result, dict) else Failure("its last line is not a JSON object")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def print_result(result: Mapping[str, Any]) -> None:
    """Print a child's result where ``run_child`` looks for it. Python's JSON keeps NaN and infinity."""
    print("\n" + json.dumps(result), flush=True)


@dataclass
class Meter:
    """Wall time, CPU time and page faults from ``start`` to the last ``stop``, and peak memory till then."""

    _begin: tuple[float, resource.struct_rusage] | None = None
    _end: tuple[float, resource.struct_rusage] | None = None

    def start(self) -> None:
        """Begin; a second call changes nothing, so that it may sit in a callback of every step."""
        if self._begin is None:
            self._begin = _now()

    def stop(self) -> None:
        """End, or move the end to now."""
        self._end = _now()

    def result(self) -> dict[str, float]:
        """Seconds, seconds of CPU (user and system), page faults, and the process's peak resident bytes."""
        if self._begin is None or self._end is None:
            raise RuntimeError("the meter was not started and stopped")
        (begin, before), (end, after) = self._begin, self._end
        return {
            "seconds": end - begin,
            "user_seconds": after.ru_utime - before.ru_utime,
            "system_seconds": after.ru_stime - before.ru_stime,
            "page_faults": after.ru_minflt - before.ru_minflt,
            "peak_bytes": after.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        }


def _now() -> tuple[float, resource.struct_rusage]:
    return time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)


def medians(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The median of every number over the runs; anything else as the first run has it."""
    return {
        key: statistics.median(result[key] for result in results) if _is_number(value) else value
        for key, value in results[0].items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass
class Table:
    """A table of text for the terminal; the first column is on the left, the others on the right."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]] = field(default_factory=list)

    def add(self, *cells: str) -> None:
        self.rows.append(list(cells))

    def print(self) -> None:
        import rich.console
        import rich.table

        table = rich.table.Table(title=self.title, title_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="right" if place else "left")
        for row in self.rows:
            table.add_row(*row)
        # Into a file or a pipe, a table that is cut to 80 columns is worth nothing.
        wide = None if sys.stdout.isatty() else 200
        rich.console.Console(width=wide, highlight=False).print(table)


def machine_line(threads: int) -> str:
    """Processor, cores, threads used and the versions that the figures depend on."""
    packages = ("torch", "transformers", "peft", "trl", "accelerate")
    return f"{_processor()}, {os.cpu_count()} cores, {threads} threads; " + ", ".join(
        f"{package} {_version(package)}" for package in packages
    )


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


@dataclass(frozen=True)
class Product:
    """A linear layer's work in a step: ``tokens`` rows by a weight of (outputs, inputs), ``count`` times."""

    tokens: int
    inputs: int
    outputs: int
    count: int = 1


def matmul_rate(products: Sequence[Product], *, passes: int = 5) -> float:
    """The float32 rate of ``torch.mm`` in flop/s over the products, each forward and backward to its inputs.

    The best of ``passes``, as a limit should be; outputs are allocated beforehand: only the product counts.
    """
    import torch

    best: list[float] = []
    for product in products:
        values = torch.randn(product.tokens, product.inputs)
        weight = torch.randn(product.outputs, product.inputs)
        outputs = torch.empty(product.tokens, product.outputs)
        gradients = torch.empty_like(values)
        seconds = []
        for _ in range(passes):
            begin = time.perf_counter()
            torch.mm(values, weight.t(), out=outputs)
            torch.mm(outputs, weight, out=gradients)
            seconds.append(time.perf_counter() - begin)
        best.append(min(seconds) * product.count)
    flops = sum(4 * p.tokens * p.inputs * p.outputs * p.count for p in products)
    return flops / sum(best)


if __name__ == "__main__":
    shapes = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print_result({"flops": matmul_rate([Product(**shape) for shape in shapes])})
