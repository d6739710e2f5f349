"""What came of the demo, read from the files that its commands left: a few lines a step, and one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors
from graftlm.demo.circle import Done
from graftlm.evaluation.report import page_environment


@dataclass(frozen=True)
class Section:
    """One step: what was done, how long it took, what came of it, and where to read on (from the page's folder)."""

    title: str
    command: str
    seconds: float
    lines: tuple[str, ...]
    page: str


def summarise(out: Path, done: Sequence[Done]) -> list[Section]:
    """A section for each step that ran in ``out``."""
    lines = {"set": _set, "tune": _tuned, "preferences": _tuned, "policies": _policies, "eval": _evaluated}
    return [
        Section(step.title, each.command, each.seconds, tuple(lines[step.name](out / step.name)), step.page)
        for each in done
        for step in (each.step,)
    ]


def write_summary(out: Path, sections: Sequence[Section]) -> Path:
    """One page with a link to each report."""
    page = out / "report.html"
    seconds = sum(each.seconds for each in sections)
    with disk_errors(page):
        page.write_text(
            page_environment().get_template("demo.html.j2").render(sections=sections, seconds=seconds), encoding="utf-8"
        )
    return page


def _set(folder: Path) -> Iterable[str]:
    card = _read(folder / "card.json")
    parts = ", ".join(f"{rows:,} {task}" for task, rows in card["tasks"].items())
    yield f"{card['rows']:,} instances: {parts}"


def _tuned(folder: Path) -> Iterable[str]:
    for name, each in _read(folder / "run.json")["adapters"].items():
        before, after, rows = (each.get(key) for key in ("base_accuracy", "held_out_accuracy", "held_out_rows"))
        if after is None:
            continue
        what = "held-out pairs told right" if "preferences" in each else "held-out answers right"
        yield f"{name}: {before:.0%} → {after:.0%} of {rows} {what}"


def _policies(folder: Path) -> Iterable[str]:
    phases = [
        each
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        if (each := json.loads(line)).get("kind") == "phase" and "reward_true" in each
    ]
    first, last = phases[0], phases[-1]
    yield (
        f"ppo: reward {first['reward_liked']:.2f} → {last['reward_liked']:.2f}, wishes fulfilled "
        f"{first['reward_true']:.0%} → {last['reward_true']:.0%}, {last['kl_k3']:.1f} nats an answer from its start"
    )


def _evaluated(folder: Path) -> Iterable[str]:
    found = _read(folder / "results.json")
    for task in found["tasks"]:
        if "fulfilled" in task["labels"]:
            shares = (f"{score['model']} {_share(score['measures']['fulfilled'])}" for score in task["scores"])
            yield f"held-out wishes fulfilled: {'; '.join(shares)}"
    yield from (f"{each['model']}: {each['sentence']}" for each in found["tax"])


def _share(interval: dict[str, float]) -> str:
    return f"{interval['value']:.0%} ({interval['low']:.0%} to {interval['high']:.0%})"


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
