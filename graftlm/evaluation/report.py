"""The report of a training run: values in, one HTML file out that needs nothing else to be shown.

The page loads nothing from anywhere (its content security policy forbids it) and every text in it is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from graftlm.base.files import disk_errors, write_text
from graftlm.evaluation import charts, reward_charts, wording
from graftlm.evaluation.charts import Axis, Curve, Plot
from graftlm.evaluation.phase_charts import PhaseCurve, phase_curves, reward_sentence
from graftlm.evaluation.rank_charts import RankCurve, RankMap, RankScore, rank_curve, rank_map
from graftlm.evaluation.reward_charts import RewardRow, reward_rows
from graftlm.evaluation.reward_quality import RewardQuality
from graftlm.evaluation.statistics import Change, Interval, Score
from graftlm.evaluation.verdicts import Verdict, judge

SHOWN_EXAMPLES = 4  # of each adapter; the rest is one click away
SUMMARY_COLUMNS = ("adapter", "result", "exact answers", "change", "loss", "change")


@dataclass(frozen=True)
class Example:
    """A held-out prompt with its expected answer and what each model answered (name → answer, "base" first)."""

    prompt: str
    expected: str
    answers: Mapping[str, str]

    def exact(self, model: str) -> bool:
        """Whether the model's answer is the expected one, apart from blanks around it."""
        return self.answers[model].strip() == self.expected.strip()


@dataclass(frozen=True)
class AdapterReport:
    """One adapter of a run.

    ``counts`` is the row account of its data (``RowCounts.to_dict()``), ``ended`` why training stopped and a detail,
    ``train_loss`` (step, loss), ``held_out`` (step, loss, share of exact answers) with step 0 before training,
    ``before`` and ``after`` the scores of the same held-out rows. ``ranks``: what rank a method that chooses ranks
    left each matrix; ``by_rank``: held-out scores of an adapter that serves at several ranks. ``right``: what a row is
    that is right; ``notes``: sentences to stand below the curve.
    ``phases``: of a policy, the numbers of each phase of answers, with its ``step``;
    ``trials``: the same of answers to held-out prompts. ``rewards``: what each
    criterion of a reward head is worth.
    """

    name: str
    method: str
    trained_parameters: int
    data: str
    counts: Mapping[str, Any]
    steps: int
    epochs: float
    learning_rate: float
    ended: tuple[str, str]
    train_loss: Sequence[tuple[int, float]]
    held_out: Sequence[tuple[int, float, float]]
    before: Sequence[Score]
    after: Sequence[Score]
    best_step: int
    folder: str
    examples: Sequence[Example] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    by_rank: Sequence[RankScore] = ()
    phases: Sequence[Mapping[str, float]] = ()
    trials: Sequence[Mapping[str, float]] = ()
    right: str = "exact answers"
    notes: Sequence[str] = ()
    rewards: Sequence[RewardQuality] = ()

    @property
    def curve(self) -> Curve:
        """The part that is drawn."""
        held_out = [(float(step), loss) for step, loss, _ in self.held_out]
        train = [(float(step), loss) for step, loss in self.train_loss]
        best = next((point for point in held_out if point[0] == self.best_step), None)
        broke = None
        if self.ended[0] == "diverged":
            broke = next((step for step, loss in train if not math.isfinite(loss)), train[-1][0] if train else None)
        return Curve(train, held_out, best, broke)


@dataclass(frozen=True)
class RunReport:
    """A whole run. ``seconds`` and ``tokens`` of training, ``peak_memory`` in bytes, ``padding_share`` from 0 to 1.

    ``planned`` holds what ``graftlm plan`` promised: "peak_memory" in bytes and "seconds", each if known.
    """

    title: str
    base: str
    base_parameters: int
    created: str
    seconds: float
    tokens: int
    padding_share: float
    peak_memory: float | None
    planned: Mapping[str, float] | None
    adapters: Sequence[AdapterReport]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    next_commands: Sequence[str]


@dataclass(frozen=True)
class Track:
    """One line of a before-and-after chart: both intervals in percent of the axis (None: not a finite number)."""

    name: str
    before: tuple[float, float, float] | None
    after: tuple[float, float, float] | None
    text: str
    change: str
    note: str


@dataclass(frozen=True)
class Section:
    """One adapter as the page shows it."""

    adapter: AdapterReport
    verdict: Verdict
    plot: Plot
    alternative: str
    row_account: list[tuple[str, int, str]]
    ranks: RankMap | None
    by_rank: RankCurve | None
    phases: tuple[PhaseCurve, ...] = ()
    rewards: tuple[RewardRow, ...] = ()


def write_report(path: Path, report: RunReport) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        UserError: the disk is full or the place may not be written; an earlier report stays.
    """
    write_text(path, render(report))


def save_curves_png(report: RunReport, path: Path) -> None:
    """The loss curves of all adapters as one PNG picture, written whole or not at all."""
    picture = io.BytesIO()
    charts.draw_png([(a.name, a.curve, axis, a.steps) for a, axis in _with_axes(report)], picture, report.title)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.part")
        try:
            fresh.write_bytes(picture.getvalue())
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)


def summary_lines(report: RunReport) -> list[tuple[str, ...]]:
    """A row of texts for each adapter, under ``SUMMARY_COLUMNS``: the page's own numbers for a terminal."""
    return [(adapter.name, *_summary_cells(verdict)) for adapter, verdict in _verdicts(report)]


def summary_sentences(report: RunReport) -> list[str]:
    """One sentence for each adapter, e.g. "feelings: exact answers 2% → 91% (+85 to +93 points), loss 3.10 → 0.21"."""
    return [f"{adapter.name}: {verdict.sentence}" for adapter, verdict in _verdicts(report)]


def render(report: RunReport) -> str:
    """The page as text."""
    sections = [
        Section(
            adapter,
            verdict,
            plot := charts.lay_out(adapter.curve, axis, adapter.steps),
            _alternative(adapter, plot),
            _row_account(adapter.counts),
            rank_map(adapter.ranks),
            rank_curve(adapter.by_rank),
            phase_curves(adapter.phases, adapter.trials),
            reward_rows(adapter.rewards),
        )
        for (adapter, verdict), (_, axis) in zip(_verdicts(report), _with_axes(report), strict=True)
    ]
    measured = [section for section in sections if section.verdict.loss]
    environment = page_environment()
    script = environment.loader.get_source(environment, "report.js")[0] if environment.loader else ""
    page = environment.get_template("report.html.j2").render(
        report=report,
        sections=sections,
        facts=_facts(report),
        accuracy=_accuracy_tracks(measured),
        loss=_loss_tracks(measured),
        settings=settings_yaml(report.settings),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        shown=SHOWN_EXAMPLES,
        reward_columns=reward_charts.COLUMNS,
        sure_axis=reward_charts.SURE,
        right_axis=reward_charts.RIGHT,
        w=wording,
    )
    # Data may hold half of a surrogate pair (JSON allows it), which UTF-8 cannot.
    return page.encode("utf-8", "replace").decode()


@cache
def page_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("graftlm.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return environment


def _verdicts(report: RunReport) -> list[tuple[AdapterReport, Verdict]]:
    return [(adapter, _verdict(adapter)) for adapter in report.adapters]


def _verdict(a: AdapterReport) -> Verdict:
    found = judge(a.before, a.after, ended=a.ended, train_loss=a.train_loss, best_step=a.best_step, right=a.right)
    if not a.phases or found.kind != "not measured":
        return found
    return replace(
        found, sentence=reward_sentence(a.phases, a.trials, a.best_step)
    )  # the loss of a policy says nothing


def _with_axes(report: RunReport) -> list[tuple[AdapterReport, Axis]]:
    """Adapters of the same data share a loss axis, so that they can be compared; other losses cannot be anyway."""
    of_data: dict[str, list[Curve]] = {}
    for adapter in report.adapters:
        of_data.setdefault(adapter.data, []).append(adapter.curve)
    axes = {data: charts.shared_loss_axis(curves) for data, curves in of_data.items()}
    return [(adapter, axes[adapter.data]) for adapter in report.adapters]


def _summary_cells(verdict: Verdict) -> tuple[str, ...]:
    if verdict.accuracy is None or verdict.loss is None:
        return (verdict.kind, "–", "–", "–", "–")
    return (
        verdict.kind,
        *_accuracy_texts(verdict.accuracy),
        *_loss_texts(verdict.loss),
    )


def _accuracy_texts(change: Change) -> tuple[str, str]:
    return f"{wording.share(change.before)} → {wording.share(change.after)}", wording.share_pair(change)


def _loss_texts(change: Change) -> tuple[str, str]:
    decimals = wording.loss_decimals(change)
    return (
        f"{wording.loss(change.before, decimals)} → {wording.loss(change.after, decimals)}",
        wording.loss_pair(change, decimals),
    )


def _facts(report: RunReport) -> list[tuple[str, str, str]]:
    """Name, value and small print of what the run took, planned beside actual."""
    planned = report.planned or {}
    trained = sum(adapter.trained_parameters for adapter in report.adapters)
    part = f"{100 * trained / report.base_parameters:.2g}% of the base" if report.base_parameters else ""
    speed = f"{report.tokens / report.seconds:,.0f} a second" if report.seconds > 0 else ""
    facts = [
        ("Base", report.base, f"{wording.short_count(report.base_parameters)} parameters, unchanged"),
        ("Trained parameters", wording.short_count(trained), part),
        ("Training time", wording.duration(report.seconds), _plan(planned.get("seconds"), wording.duration)),
        ("Tokens", wording.short_count(report.tokens), speed),
        ("Padding", f"{100 * report.padding_share:.1f}%", "of the tokens computed"),
    ]
    if report.peak_memory is not None:
        memory = wording.size(report.peak_memory)
        facts.append(("Peak memory", memory, _plan(planned.get("peak_memory"), wording.size)))
    return facts


def _plan(planned: float | None, text: Any) -> str:
    return "" if planned is None else f"planned {text(planned)}"


def _accuracy_tracks(sections: Sequence[Section]) -> tuple[Axis, list[Track]]:
    marks = tuple(charts.Tick(at, f"{at}%") for at in (0, 25, 50, 75, 100))
    axis = Axis(0.0, 1.0, log=False, ticks=marks)
    tracks = []
    for section in sections:
        verdict, change = section.verdict, section.verdict.accuracy
        assert change is not None
        text, interval = _accuracy_texts(change)
        right = round(change.after * verdict.rows)
        note = f"{right:,} of {verdict.rows:,} rows"
        tracks.append(_track(section, axis, verdict.accuracy_before, verdict.accuracy_after, text, interval, note))
    return axis, tracks


def _loss_tracks(sections: Sequence[Section]) -> tuple[Axis, list[Track]]:
    shown = [i for s in sections for i in (s.verdict.loss_before, s.verdict.loss_after) if i is not None]
    ends = [x for i in shown for x in (i.low, i.value, i.high) if math.isfinite(x)]
    axis = charts.linear_axis(min(0.0, *ends), max(ends)) if len(ends) > 1 else Axis(0.0, 1.0, log=False)
    tracks = []
    for section in sections:
        verdict, change = section.verdict, section.verdict.loss
        assert change is not None
        text, interval = _loss_texts(change)
        tokens = wording.plural(sum(score.tokens for score in section.adapter.after), "token")
        tracks.append(_track(section, axis, verdict.loss_before, verdict.loss_after, text, interval, tokens))
    return axis, tracks


def _track(
    section: Section, axis: Axis, before: Interval | None, after: Interval | None, text: str, change: str, note: str
) -> Track:
    name = section.adapter.name
    return Track(name, _on_axis(before, axis), _on_axis(after, axis), text, change, note)


def _on_axis(interval: Interval | None, axis: Axis) -> tuple[float, float, float] | None:
    """Value, low end and width in percent of the axis."""
    if interval is None or not math.isfinite(interval.value):
        return None
    low = interval.low if interval.known else interval.value
    high = interval.high if interval.known else interval.value
    return axis.at(interval.value), axis.at(low), axis.at(high) - axis.at(low)


def _alternative(adapter: AdapterReport, plot: Plot) -> str:
    """The loss curve in words, for those who do not see it."""
    parts = []
    train = [(step, loss) for step, loss in charts.smoothed(adapter.curve.train) if math.isfinite(loss)]
    if train:
        ends = f"from {wording.loss(train[0][1])} at step {train[0][0]:,.0f} to {wording.loss(train[-1][1])}"
        parts.append(f"training loss (smoothed) {ends} at step {train[-1][0]:,.0f}")
    if adapter.held_out:
        told = ", ".join(f"{wording.loss(loss)} at step {step:,}" for step, loss, _ in adapter.held_out)
        parts.append(f"held-out loss {told}")
    if plot.best:
        parts.append(f"best at step {adapter.best_step:,}")
    if plot.broke is not None:
        parts.append("the loss stopped being a finite number")
    scale = "logarithmic" if plot.y.log else "linear"
    return f"Loss curve of {adapter.name}, {scale} scale: {'; '.join(parts) or 'no steps'}."


def _row_account(counts: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """(what happened, rows, where for example), dropped and truncated rows by reason."""
    places: Mapping[str, Sequence[str]] = counts.get("examples") or {}
    account: list[tuple[str, int, str]] = []
    for key in ("read", "kept"):
        if key in counts:
            account.append((key, int(counts[key]), ""))
    for key in ("truncated", "dropped"):
        for reason, number in (counts.get(key) or {}).items():
            account.append((f"{key}: {reason}", int(number), ", ".join(places.get(reason, [])[:3])))
    if counts.get("duplicates"):
        account.append(("kept, but equal to an earlier row", int(counts["duplicates"]), ""))
    return account


def settings_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML that reads back."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.allow_unicode = True
    yaml.width = 100
    text = io.StringIO()
    yaml.dump(json.loads(json.dumps(settings, default=str)), text)  # paths and tuples become plain values
    return text.getvalue()
