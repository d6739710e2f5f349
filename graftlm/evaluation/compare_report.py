"""A comparison as people read it: tables for the terminal and Markdown, a picture, and a page that loads nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from graftlm.base.files import disk_errors, write_json, write_text
from graftlm.evaluation import wording
from graftlm.evaluation.charts import Axis, Tick, linear_axis
from graftlm.evaluation.compare_chart import draw_comparison
from graftlm.evaluation.comparison import Comparison, Standing
from graftlm.evaluation.metrics import Metric
from graftlm.evaluation.parts_report import by_name, draw_parts, left_out
from graftlm.evaluation.report import page_environment
from graftlm.evaluation.statistics import Interval


@dataclass(frozen=True)
class CompareReport:
    """Comparisons of one base's adapters, one for each set of held-out rows."""

    title: str
    base: str
    base_parameters: int
    created: str
    comparisons: Sequence[Comparison]
    versions: Mapping[str, str]

    @property
    def whole(self) -> list[Comparison]:
        """Those of all held-out rows, or of all parts of one metric."""
        return [each for each in self.comparisons if not each.part_of]

    @property
    def parts(self) -> list[Comparison]:
        """Those of one part of the held-out rows each."""
        return [each for each in self.comparisons if each.part_of]


@dataclass(frozen=True)
class Lane:
    """A contender in the page's chart, in percent of the axis: (value, low end, width), and what is said of it."""

    name: str
    place: tuple[float, float, float]
    text: str


def write_comparison(report: CompareReport, folder: Path) -> list[Path]:
    """Write compare.json, .md, .png and .html into a folder, each whole or not at all; gives their paths.

    Raises:
        UserError: the disk is full or the place may not be written.
    """
    names = {kind: folder / f"compare.{kind}" for kind in ("json", "md", "png", "html")}
    picture = io.BytesIO()
    missing = 0
    if report.parts:
        missing = draw_parts(report.parts, picture, report.title)
    else:
        draw_comparison(report.comparisons, picture, report.title)
    write_json(names["json"], to_dict(report))
    write_text(names["md"], markdown(report, left_out(missing)))
    with disk_errors(names["png"]):
        fresh = folder / ".compare.png.part"
        try:
            fresh.write_bytes(picture.getvalue())
            fresh.replace(names["png"])
        finally:
            fresh.unlink(missing_ok=True)
    write_text(names["html"], page(report, picture.getvalue(), left_out(missing)))
    return list(names.values())


def to_dict(report: CompareReport) -> dict[str, Any]:
    """All numbers, as JSON."""
    return {
        "title": report.title,
        "base": {"name": report.base, "parameters": report.base_parameters},
        "created": report.created,
        "comparisons": [comparison.to_dict() for comparison in report.comparisons],
        "versions": dict(report.versions),
    }


def heading(comparison: Comparison) -> str:
    """What was measured, on what: "sst2: accuracy on 400 held-out rows"."""
    rows = wording.plural(comparison.rows, "held-out row")
    return f"{comparison.data}: {comparison.metric.label} on {rows}"


def reference_lines(comparison: Comparison) -> list[str]:
    """The scores to beat, the choices, and what a reader must know."""
    score = partial(shown, comparison.metric)
    lines = []
    if comparison.base is not None:
        lines.append(f"Untouched base: {interval_text(comparison.metric, comparison.base)}.")
    if math.isfinite(comparison.majority):
        what = "class" if comparison.metric.needs_classes else "answer"
        lines.append(f"Always the commonest {what} of {comparison.majority_of}: {score(comparison.majority)}.")
    if comparison.choices:
        by = {"sum": "log-likelihood", "token": "log-likelihood a token", "byte": "log-likelihood a byte"}
        listed = ", ".join(comparison.choices)
        lines.append(
            f"Choices: {listed}. The answer with the highest {by[comparison.normalise]} counts, or the class that an "
            "adapter's own head says."
        )
    return [*lines, *comparison.notes]


def columns(comparison: Comparison) -> tuple[str, ...]:
    """The table's head."""
    several = any(len(each.contender.members) > 1 for each in comparison.standings)
    tuned = any(each.contender.tried for each in comparison.standings)
    return (
        "adapter",
        f"{comparison.metric.label} (95%)",
        *(("seeds",) if several else ()),
        *(("over base",) if comparison.base is not None else ()),
        "to best (p)",
        *(("learning rate",) if tuned else ()),
        "trained",
        "memory",
        "step",
        "file",
    )


def table(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row of texts for each contender, under :func:`columns`."""
    several, tuned = "seeds" in columns(comparison), "learning rate" in columns(comparison)
    rows = []
    for standing in comparison.standings:
        contender, metric = standing.contender, comparison.metric
        cost = contender.cost
        rows.append(
            (
                contender.name,
                interval_text(metric, standing.score),
                *((_seeds(metric, standing),) if several else ()),
                *((_difference(metric, standing.over_base),) if comparison.base is not None else ()),
                _to_best(metric, standing),
                *((f"{contender.learning_rate:g}",) if tuned else ()),
                wording.short_count(contender.trained_parameters),
                f"{wording.size(cost.adapter_bytes)} + {wording.size(cost.optimizer_bytes)}",
                milliseconds(cost.step_seconds),
                wording.size(cost.file_bytes),
            )
        )
    return rows


PART_COLUMNS = ("part", "rows", "score", "commonest", "base", "adapter", "with it (95%)", "over base")


def parts_table(report: CompareReport) -> list[tuple[str, ...]]:
    """A row of texts for each adapter on each part, under :data:`PART_COLUMNS`; a part is named once."""
    rows: list[tuple[str, ...]] = []
    for part in report.parts:
        score = partial(shown, part.metric)
        told: tuple[str, ...] = (
            part.data,
            f"{part.rows:,}",
            part.metric.label,
            score(part.majority) + ("*" if part.majority_of == "these rows" and math.isfinite(part.majority) else ""),
            "–" if part.base is None else interval_text(part.metric, part.base),
        )
        for standing in by_name(part):
            over = _difference(part.metric, standing.over_base) or "–"
            rows.append((*told, standing.contender.name, interval_text(part.metric, standing.score), over))
            told = ("",) * len(told)
    return rows


def parts_heading(report: CompareReport) -> str:
    """What the parts are."""
    return f"By {report.parts[0].part_of}"


PARTS_LEGEND = (
    "Commonest: always the commonest answer of the training rows of this part; with a star, of the held-out rows "
    "themselves, where nothing of the part was learnt from."
)
LEGEND = (
    "Seeds: lowest to highest of the adapters that differ in their seed only; the score is their mean. "
    "To best: difference to the first line on the same rows, with its p-value after Holm's correction. "
    "Memory: parameters + optimizer state. Step: one optimizer step of 16 rows, the adapter alone. Trained, memory and "
    "step are those of the beginning of training; file is what is left of it. "
    "Intervals are over rows and hold for these trained adapters: Wilson's and Newcombe's for a share of one adapter "
    "(p: McNemar, exact), a paired bootstrap otherwise."
)


def markdown(report: CompareReport, remarks: Sequence[str] = ()) -> str:
    """The whole comparison as Markdown; ``remarks`` are about its picture."""
    size = f"{wording.short_count(report.base_parameters)} parameters"
    parts = [f"# {report.title}\n", f"Base {report.base} ({size}), {report.created}.\n"]
    for comparison in report.whole:
        head = columns(comparison)
        lines = [_row(head), _row(["---"] * len(head)), *(_row(line) for line in table(comparison))]
        parts += [f"## {_escaped(heading(comparison))}\n", "\n".join(lines) + "\n"]
        parts += ["\n".join(f"- {_escaped(line)}" for line in reference_lines(comparison)) + "\n"]
    what = "Score against trained parameters"
    if report.parts:
        what = "Difference to the base on each part"
        lines = [_row(PART_COLUMNS), _row(["---"] * len(PART_COLUMNS)), *map(_row, parts_table(report))]
        parts += [f"## {parts_heading(report)}\n", "\n".join(lines) + "\n", PARTS_LEGEND + "\n"]
        if not report.whole:
            parts += ["\n".join(f"- {_escaped(note)}" for note in report.parts[0].notes) + "\n"]
    return "\n".join([*parts, f"![{what}](compare.png)\n", *remarks, LEGEND + "\n"])


def page(report: CompareReport, picture: bytes, remarks: Sequence[str] = ()) -> str:
    """The page as text; it loads nothing. ``remarks`` are about its picture."""
    environment = page_environment()
    text = environment.get_template("compare.html.j2").render(
        report=report,
        sections=[
            {
                "heading": heading(comparison),
                "columns": columns(comparison),
                "rows": table(comparison),
                "methods": [standing.contender.method for standing in comparison.standings],
                "lines": reference_lines(comparison),
                "axis": axis,
                "lanes": lanes,
                "marks": marks,
                "tuned": _tuned(comparison),
            }
            for comparison in report.whole
            for axis, lanes, marks in (_lanes(comparison),)
        ],
        parts=parts_table(report),
        part_columns=PART_COLUMNS,
        parts_heading=parts_heading(report) if report.parts else "",
        parts_legend=PARTS_LEGEND,
        part_notes=report.parts[0].notes if report.parts and not report.whole else (),
        remarks=remarks,
        picture=base64.b64encode(picture).decode(),
        legend=LEGEND,
        w=wording,
    )
    return text.encode("utf-8", "replace").decode()


def shown(metric: Metric, value: float) -> str:
    """A score: 91.3%, 0.532, or a perplexity of 12.3."""
    if not math.isfinite(value):
        return "–"
    if metric.is_share:
        return f"{100 * value:.1f}%"
    return f"{value:.3g}" if metric.name == "perplexity" else wording.loss(value, 3)


def interval_text(metric: Metric, interval: Interval) -> str:
    """A score with its interval: 91.3% [88.0, 93.8]."""
    value = shown(metric, interval.value)
    if not interval.known:
        return value
    ends = [shown(metric, end).removesuffix("%") for end in (interval.low, interval.high)]
    return f"{value} [{ends[0]}, {ends[1]}]"


def milliseconds(seconds: float) -> str:
    """The time of a step: 38 ms."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else wording.duration(seconds)


def _difference(metric: Metric, change: Interval | None) -> str:
    if change is None:
        return ""
    text = [_signed(metric, value) for value in (change.value, change.low, change.high)]
    return f"{text[0]} [{text[1]}, {text[2]}]" if change.known else text[0]


def _signed(metric: Metric, value: float) -> str:
    if not math.isfinite(value):
        return "–"
    scaled = f"{100 * value:+.1f}" if metric.is_share else f"{value:+.3g}"
    return scaled.replace("-", wording.MINUS)


def _to_best(metric: Metric, standing: Standing) -> str:
    if standing.to_best is None:
        return "best"
    p = standing.p
    told = "" if math.isnan(p) else (" (p < 0.001)" if p < 0.001 else f" (p = {p:.2g})")
    return f"{_signed(metric, standing.to_best.value)}{told}"


def _seeds(metric: Metric, standing: Standing) -> str:
    if len(standing.each) == 1:
        return "1"
    ends = [shown(metric, end(standing.each)).removesuffix("%") for end in (min, max)]
    return f"{len(standing.each)}: {ends[0]} to {ends[1]}"


def _tuned(comparison: Comparison) -> list[tuple[str, str]]:
    """Contender, and its scores on the tuning rows by learning rate."""
    return [
        (
            each.contender.name,
            ", ".join(f"{rate:g}: {shown(comparison.metric, score)}" for rate, score in each.contender.tried.items()),
        )
        for each in comparison.standings
        if each.contender.tried
    ]


def _lanes(comparison: Comparison) -> tuple[Axis, list[Lane], list[tuple[str, float]]]:
    """The chart of the page: an axis, a lane for each contender, and where base and majority stand."""
    marks = [("base", comparison.base.value)] if comparison.base is not None else []
    marks += [("majority", comparison.majority)]
    marks = [(name, value) for name, value in marks if math.isfinite(value)]
    scores = [each.score for each in comparison.standings if math.isfinite(each.score.value)]
    ends = [end for one in scores for end in ((one.low, one.high) if one.known else (one.value,))]
    ends += [value for _, value in marks]
    if comparison.metric.is_share:
        axis = Axis(0.0, 1.0, log=False, ticks=tuple(Tick(at, f"{at}%") for at in (0, 25, 50, 75, 100)))
    else:
        axis = linear_axis(min(ends, default=0.0), max(ends, default=1.0))
    lanes = []
    for each in comparison.standings:
        score = each.score
        if math.isfinite(score.value):
            low, high = (score.low, score.high) if score.known else (score.value, score.value)
            place = (axis.at(score.value), axis.at(low), axis.at(high) - axis.at(low))
            lanes.append(Lane(each.contender.name, place, interval_text(comparison.metric, score)))
    return axis, lanes, [(name, axis.at(value)) for name, value in marks]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
