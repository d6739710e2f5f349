"""graftlm's part of ``generate.py``.

    python benchmarks/generate_graftlm.py CONTENDER '{"rows": 32, ...}' [profile]

Prints one JSON object. A few tokens are made first, outside the time that counts.
"""

from __future__ import annotations

import graftlm  # before torch: it sets how OpenMP threads wait and what the allocator keeps

# isort: split
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from statistics import median
from typing import Any

import torch
from _measure import Meter, print_result
from generate_work import ADAPTERS, KINDS, Asked, Sizes, asked, busy_share, check_lengths, wanted
from mixed_kinds import graftlm_config
from sft_vs_trl import build_model

from graftlm.generation.engine import Engine
from graftlm.generation.requests import Request, SamplingSettings, TokenEvent

WARM = 2  # new tokens of the run before
PROFILED = 16  # steps, after the prompts
ROOM = 32  # new tokens while the last prompts are read
TOP = 15  # operations that are shown

# The adapters of each contender: none, one for all rows, or several with as many rows each.
CONTENDERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "graftlm": ("plain", ()),
    "graftlm-lora": ("lora", ("lora",)),
    "graftlm-mixed": ("lora", ("lora",) * ADAPTERS),
    "graftlm-kinds": ("kinds", tuple(kind for kind in KINDS for _ in range(ADAPTERS // len(KINDS)))),
    "graftlm-samples": ("samples", ()),
    "graftlm-unequal": ("unequal", ()),
}
SAMPLES_OF_ONE = "n" in {field.name for field in fields(SamplingSettings)}


class Watched:
    """An engine whose steps are watched: seconds, rows that ran, requests that waited, tokens of each request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seconds: list[float] = []
        self.running: list[int] = []
        self.started: list[int] = []
        self.tokens: Counter[object] = Counter()
        self._step = engine.step
        engine.step = self.step  # type: ignore[method-assign]

    def step(self) -> list[TokenEvent]:
        begin = time.perf_counter()
        events = self._step()
        self.seconds.append(time.perf_counter() - begin)
        ids = [event.request_id for event in events if event.token_id is not None]
        self.tokens.update(ids)
        self.running.append(len(ids))
        self.started.append(len(self.tokens))
        return events


def requests(answers: Sequence[Asked], adapters: Sequence[str], sizes: Sizes, *, samples: bool) -> list[Request]:
    """Temperature 1, no token that ends an answer; rows in equal shares to the adapters, side by side."""
    together = sizes.samples if samples and SAMPLES_OF_ONE else 1
    made = []
    for place, answer in enumerate(answers[::together]):
        name = adapters[place * len(adapters) // len(answers)] if adapters else None
        settings: dict[str, Any] = {"max_new_tokens": answer.new, "temperature": 1.0, "stop_ids": (), "seed": place}
        if together > 1:
            settings["n"] = together
        made.append(Request(answer.prompt, name, SamplingSettings(**settings)))
    return made


def prepare(contender: str, sizes: Sizes) -> tuple[Engine, list[str]]:
    """The engine, and the names of the adapters, whose parameters are random and not zero."""
    model = graftlm.AdaptedModel(build_model(sizes.seed))
    names = []
    torch.manual_seed(sizes.seed)
    for number, kind in enumerate(CONTENDERS[contender][1]):
        names.append(f"{kind}-{number}")
        adapter = model.add(names[-1], graftlm_config(kind))
        with torch.no_grad():
            for parameter in adapter.parameters():
                parameter.normal_(std=0.02)
    return Engine(model, max_batch_rows=sizes.rows), names


def run(contender: str, sizes: Sizes) -> dict[str, Any]:
    scenario = CONTENDERS[contender][0]
    engine, names = prepare(contender, sizes)
    answers = asked(scenario, sizes)
    samples = scenario == "samples"
    warm = [Asked(answer.prompt[::-1], WARM) for answer in answers]  # other prompts: no work is saved for later
    engine.run(requests(warm, names, sizes, samples=samples))
    before = statistics_of(engine)
    wanted_requests = requests(answers, names, sizes, samples=samples)
    watched, meter = Watched(engine), Meter()
    meter.start()
    engine.run(wanted_requests)
    meter.stop()
    if samples and SAMPLES_OF_ONE:
        if sum(watched.tokens.values()) != wanted(answers):
            raise SystemExit(f"{sum(watched.tokens.values())} tokens came, {wanted(answers)} were wanted")
    else:
        check_lengths([answers[place] for place in order(answers)], sorted(watched.tokens.values()))
    result = {
        "tokens": wanted(answers),
        "made": sum(watched.tokens.values()),
        "steps": len(watched.seconds),
        "step_ms": 1000 * median(watched.seconds),
        **meter.result(),
    }
    share = busy(before, statistics_of(engine), watched, len(answers), sizes.rows)
    return result if share is None else result | {"busy": share}


def order(answers: Sequence[Asked]) -> list[int]:
    """Places of the answers from the shortest to the longest."""
    return sorted(range(len(answers)), key=lambda place: answers[place].new)


def statistics_of(engine: Engine) -> dict[str, int]:
    """The engine's own counters, if it has any."""
    found = getattr(engine, "statistics", None)
    names = ("waiting_steps", "waiting_row_steps")
    return {name: int(getattr(found, name)) for name in names if hasattr(found, name)}


def busy(before: dict[str, int], after: dict[str, int], watched: Watched, count: int, slots: int) -> float | None:
    """Share of slots in use while requests waited: by the engine's counters, or by what came out of its steps."""
    if len(after) == 2:
        steps, rows = (after[name] - before[name] for name in ("waiting_steps", "waiting_row_steps"))
        return rows / (steps * slots) if steps else None
    return busy_share(watched.running, [count - started for started in watched.started], slots)


def profile(contender: str, sizes: Sizes) -> dict[str, Any]:
    """Where the time of decoding steps goes: the operations by what they take themselves, and what is left over.

    First steps alone, then as many under torch.profiler, which makes them longer.
    """
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    engine, names = prepare(contender, sizes)
    answers = [Asked(answer.prompt, ROOM + 2 * PROFILED) for answer in asked(CONTENDERS[contender][0], sizes)]
    for request in requests(answers, names, sizes, samples=False):
        engine.submit(request)
    while len(engine.step()) < len(answers):  # the prompts
        pass
    engine.step()
    begin = time.perf_counter()
    for _ in range(PROFILED):
        engine.step()
    alone = (time.perf_counter() - begin) / PROFILED
    begin = time.perf_counter()
    with profiler(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(PROFILED):
            engine.step()
    beside = (time.perf_counter() - begin) / PROFILED
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows) / 1000 / PROFILED
    return {
        "step_ms": 1000 * alone,
        "profiled_step_ms": 1000 * beside,
        "operations_ms": total,
        "top": [[row.key, row.self_cpu_time_total / 1000 / PROFILED, row.count / PROFILED] for row in rows[:TOP]],
    }


if __name__ == "__main__":
    work = Sizes(**json.loads(sys.argv[2]))
    print_result(profile(sys.argv[1], work) if sys.argv[3:] == ["profile"] else run(sys.argv[1], work))
