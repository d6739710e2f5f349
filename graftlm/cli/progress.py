"""Live progress of a training run: rate, time left, and a leaderboard of the adapters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from graftlm.cli.console import as_duration
from graftlm.training.events import (
    CheckpointSaved,
    Ended,
    Evaluated,
    Event,
    Phased,
    Rested,
    RoundDone,
    Stepped,
    Tried,
    Watcher,
)


@dataclass
class _Line:
    """What is known of one adapter so far."""

    name: str
    step: int = 0
    total: int = 0
    loss: float | None = None
    rate: float = 0.0
    first: Evaluated | None = None
    best: Evaluated | None = None
    state: str = "training"

    def see(self, event: Stepped | Evaluated | Ended) -> None:
        if isinstance(event, Stepped):
            self.step, self.total, self.rate = event.step, event.total, event.learning_rate
            self.loss = event.loss if self.loss is None else 0.9 * self.loss + 0.1 * event.loss
        elif isinstance(event, Evaluated):
            self.first = self.first or event
            self.best = event if event.best else self.best
        else:
            self.state = event.reason if not event.detail else f"{event.reason}: {event.detail}"


class Leaderboard:
    """Collects events; ``table`` shows the adapters, best held-out loss first."""

    def __init__(self, names: Sequence[str]) -> None:
        self.lines = {name: _Line(name) for name in names}

    def see(self, event: Event) -> None:
        if isinstance(event, Stepped | Evaluated | Ended):
            self.lines[event.adapter].see(event)

    def recall(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """See the events of a metrics file: those from before the run was stopped."""
        kinds: dict[str, type[Stepped | Evaluated | Ended]] = {"step": Stepped, "evaluation": Evaluated, "end": Ended}
        for line in lines:
            if kind := kinds.get(line["kind"]):
                self.see(kind(**{key: line[key] for key in kind.__dataclass_fields__ if key in line}))

    def table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column, justify in (("adapter", "left"), ("step", "right"), ("training loss", "right")):
            table.add_column(column, justify="left" if justify == "left" else "right", overflow="fold")
        for column in ("held-out loss", "right", "best at"):
            table.add_column(column, justify="right")
        table.add_column("state", overflow="fold")
        for line in sorted(self.lines.values(), key=lambda line: line.best.loss if line.best else float("inf")):
            best, first = line.best, line.first
            style = "red" if line.state.startswith("diverged") else ""
            table.add_row(
                f"[bold]{line.name}[/]",
                f"{line.step}/{line.total}" if line.total else "",
                f"{line.loss:.3f}" if line.loss is not None else "",
                f"{first.loss:.3f} → {best.loss:.3f}" if best and first else "",
                f"{first.accuracy:.1%} → {best.accuracy:.1%}" if best and first else "",
                str(best.step) if best else "",
                escape(line.state),
                style=style,
            )
        return table


@contextmanager
def training_display(console: Console, board: Leaderboard) -> Iterator[Watcher]:
    """A watcher that shows the run: live in a terminal, a line now and then elsewhere."""
    if not console.is_terminal:
        yield _plain(console, board)
        console.print(board.table())
        return
    bar = Progress(
        TextColumn("[bold]training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
    task = bar.add_task("training", total=None, rate="", left="")
    pace = _Pace()
    with Live(Group(bar, board.table()), console=console, refresh_per_second=4) as live:

        def watch(event: Event) -> None:
            board.see(event)
            if isinstance(event, RoundDone):
                pace.add(event)
                left = f"{as_duration(pace.seconds_left(event))} left"
                bar.update(task, completed=event.number, total=event.total, rate=pace.rate, left=left)
            if isinstance(event, Phased):
                for line in phase_lines(event):
                    live.console.print(line, markup=False)
            if isinstance(event, Tried):
                for line in trial_lines(event):
                    live.console.print(line, markup=False)
            if isinstance(event, Rested):
                live.console.print(rest_line(event), markup=False)
            live.update(Group(bar, board.table()))

        yield watch


def _plain(console: Console, board: Leaderboard) -> Watcher:
    pace = _Pace()
    shown = time.monotonic()

    def watch(event: Event) -> None:
        nonlocal shown
        board.see(event)
        if isinstance(event, RoundDone):
            pace.add(event)
            if time.monotonic() - shown > 10 or event.number in (1, event.total):
                shown = time.monotonic()
                left = as_duration(pace.seconds_left(event))
                console.print(f"round {event.number}/{event.total} · {pace.rate} · {left} left")
        elif isinstance(event, Evaluated):
            console.print(
                f"{event.adapter} step {event.step}: held-out loss {event.loss:.4f}, "
                f"{'preferences right' if event.measures else 'exact answers'} {event.accuracy:.1%}"
                f"{' (best)' if event.best else ''}"
            )
        elif isinstance(event, Phased):
            for line in phase_lines(event):
                console.print(line, markup=False)
        elif isinstance(event, Tried):
            for line in trial_lines(event):
                console.print(line, markup=False)
        elif isinstance(event, Rested):
            console.print(rest_line(event), markup=False)
        elif isinstance(event, Ended):
            detail = f" · {event.detail}" if event.detail else ""
            console.print(f"{event.adapter} step {event.step}: {event.reason}{detail}")
        elif isinstance(event, CheckpointSaved):
            console.print(f"checkpoint {event.path}")

    return watch


def phase_lines(event: Phased) -> list[str]:
    """What a phase was like, in a line of numbers, a sample, and what to look at."""
    told = event.measures
    if not told:  # a value adapter, whose policy has told it
        return []
    numbers = _numbers(told, "KL {:.2f} nats", "entropy {:.2f}", "{:.0f} tokens", "{:.0%} ended")
    if told.get("equal_groups"):
        numbers.append(f"all rewards equal for {told['equal_groups']:.0f} of {told['groups']:.0f} prompts")
    numbers += [f"{told[key]:.0f} {words}" for key, words in _LOST.items() if told.get(key)]
    lines = [f"{event.adapter} step {event.step}: {', '.join(numbers)}", *_sample_lines(event.samples)]
    return lines + [f"  look at this: {concern}" for concern in event.concerns]


def trial_lines(event: Tried) -> list[str]:
    """What a policy makes of prompts that are held out, in a line of numbers, and a sample."""
    told = event.measures
    numbers = _numbers(told, "KL {:.2f} nats", "entropy {:.2f}", "{:.0f} tokens", "{:.0%} ended", "distinct-2 {:.2f}")
    numbers += [f"{told[key]:.0f} {words}" for key, words in _LOST.items() if told.get(key)]
    best = " (best)" if event.best else ""
    asked = f"{told['answers']:.0f} held-out prompts"
    return [f"{event.adapter} step {event.step}, {asked}: {', '.join(numbers)}{best}", *_sample_lines(event.samples)]


def _numbers(told: Mapping[str, float], *words: str) -> list[str]:
    """Rewards by name, and some numbers of answers in these words."""
    keys = ("kl", "entropy", "length", "ended", "distinct_2")
    rewards = [f"{key.replace('_', ' ')} {told[key]:.3g}" for key in told if key.startswith("reward")]
    return rewards + [text.format(told[key]) for key, text in zip(keys, words, strict=False) if key in told]


def _sample_lines(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first of some answers, with its reward."""
    lines = []
    for sample in samples[:1]:
        reward = "no reward" if sample["reward"] is None else f"{sample['reward']:.3g}"
        lines.append(f"  {_short(sample['prompt'][-1]['content'])} → {_short(sample['answer'])} ({reward})")
    return lines


def rest_line(event: Rested) -> str:
    """Which steps are left out, and why."""
    steps = f"step {event.step}" if event.step == event.until else f"steps {event.step} to {event.until}"
    return f"{event.adapter} {steps} left out: {event.measures['moved']:.3g} nats a token from the policy that drew"


_LOST = {"failed": "answers without a reward", "left_out": "prompts that could not be asked"}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:69]}…"


class _Pace:
    """Smoothed tokens a second and seconds a round."""

    def __init__(self) -> None:
        self.tokens_per_second = 0.0
        self.round_seconds = 0.0

    def add(self, event: RoundDone) -> None:
        rate = event.tokens / max(event.seconds, 1e-9)
        weight = 0.1 if self.tokens_per_second else 1.0
        self.tokens_per_second += weight * (rate - self.tokens_per_second)
        self.round_seconds += weight * (event.seconds - self.round_seconds)

    @property
    def rate(self) -> str:
        return f"{self.tokens_per_second:,.0f} tokens/s"

    def seconds_left(self, event: RoundDone) -> float:
        return (event.total - event.number) * self.round_seconds
