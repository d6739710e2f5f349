"""Standings, and how a comparison is written and drawn."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graftlm.evaluation.compare_report import markdown, parts_table, table, to_dict, write_comparison
from graftlm.evaluation.comparison import best_rate, stand
from graftlm.evaluation.metrics import METRICS, Outcomes, joined
from graftlm.evaluation.parts_report import MOST_PARTS
from graftlm.evaluation.statistics import paired_share_change, wilson_interval
from tests.evaluation.fake_comparison import METHODS, comparison, contender, outcomes, report

ACCURACY = METRICS["accuracy"]


def test_one_adapter_of_a_share_gets_wilson_and_newcombe() -> None:
    good, bad, base = contender("good", 0.9, 10), contender("bad", 0.6, 10), outcomes(0.5, seed=0)
    score, standings = stand([bad, good], base, outcomes(0.5, seed=0), ACCURACY)
    assert [each.contender.name for each in standings] == ["good", "bad"]
    right = good.outcomes[0].correct
    assert standings[0].score == wilson_interval(int(right.sum()), 400)
    assert standings[0].over_base == paired_share_change(base.correct.tolist(), right.tolist())
    assert standings[0].to_best is None
    assert standings[1].p < 0.001
    assert score is not None
    assert score.value == ACCURACY.of(base)


def test_seeds_are_averaged_over_the_same_rows() -> None:
    several = contender("several", 0.8, 10, seeds=3)
    _, (standing,) = stand([several], None, outcomes(0.5), ACCURACY)
    each = [ACCURACY.of(outcome) for outcome in several.outcomes]
    assert standing.each == pytest.approx(each)
    assert standing.score.value == pytest.approx(np.mean(each))
    # independent answers of three adapters: the mean varies less than one of them
    assert standing.score.high - standing.score.low < 0.8 * (2 * 1.96 * math.sqrt(0.8 * 0.2 / 400))
    assert standing.over_base is None


def test_a_low_perplexity_is_the_best_and_nan_the_worst() -> None:
    metric = METRICS["perplexity"]
    broken = contender("broken", 0.7, 10)
    nan = Outcomes(*(getattr(broken.outcomes[0], key) for key in ("truth", "predicted", "classes")),
                   np.full(400, np.nan), np.ones(400))  # fmt: skip
    broken = type(broken)(**(vars(broken) | {"outcomes": (nan,)}))
    _, standings = stand([contender("a", 0.6, 10), broken, contender("b", 0.9, 10)], None, outcomes(0.5), metric)
    assert [each.contender.name for each in standings] == ["b", "a", "broken"]
    assert not standings[2].score.known
    assert math.isnan(standings[2].p)


def test_the_best_learning_rate_by_the_mean_of_seeds() -> None:
    rate, means = best_rate({3e-3: [0.9, 0.5], 1e-3: [0.8, 0.8], 1e-2: [math.nan, 1.0]}, ACCURACY)
    assert rate == 1e-3
    assert means[3e-3] == pytest.approx(0.7)
    assert best_rate({1e-3: [2.0], 1e-2: [1.5]}, METRICS["perplexity"])[0] == 1e-2
    assert best_rate({1e-2: [0.5], 1e-3: [0.5]}, ACCURACY)[0] == 1e-3


def test_all_files_hold_the_same_numbers(tmp_path: Path) -> None:
    whole = report(comparison(), comparison("matthews", seeds=1, with_base=False, data="cola"))
    paths = write_comparison(whole, tmp_path)
    assert sorted(path.name for path in paths) == ["compare.html", "compare.json", "compare.md", "compare.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    values = json.loads((tmp_path / "compare.json").read_text())
    assert values == json.loads(json.dumps(to_dict(whole)))
    assert values["comparisons"][0]["contenders"][0]["name"] in ("lora-r64", "full")
    assert values["comparisons"][1]["base"] is None
    page, text = (tmp_path / "compare.html").read_text(), (tmp_path / "compare.md").read_text()
    for line in table(whole.comparisons[0]):
        assert "| " + " | ".join(line) + " |" in text
        for cell in line:
            assert cell.replace("<", "&lt;") in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_escaped(tmp_path: Path) -> None:
    odd = comparison(data="<b>|$x_1$")
    write_comparison(report(odd), tmp_path)
    assert "<b>|" not in (tmp_path / "compare.html").read_text()
    assert "<b>\\|$x_1$" in markdown(report(odd))


def test_labels_of_the_picture_lie_on_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from graftlm.evaluation import compare_chart

    placed: list[object] = []
    overlaps: list[float] = []
    place = compare_chart._place_labels

    def watch(canvas, axes, shown, labels) -> None:
        place(canvas, axes, shown, labels)
        boxes = [compare_chart._text_box(label, canvas.get_renderer()) for label in labels]
        placed.extend(labels)
        overlaps.extend(compare_chart._overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n])

    monkeypatch.setattr(compare_chart, "_place_labels", watch)
    write_comparison(report(comparison()), tmp_path)
    assert len(placed) == len(METHODS)
    assert max(overlaps) == 0


def test_parts_are_a_table_and_a_picture(tmp_path: Path) -> None:
    parts = [replace(comparison(data=name, seeds=1), part_of="task") for name in ("cola", "sst2 | dev")]
    parts.append(replace(comparison("loss", data="gsm8k", seeds=2), part_of="task", majority_of="these rows"))
    whole = report(replace(comparison(), data="all 2 parts", majority_of="each part"), *parts)
    write_comparison(whole, tmp_path)
    values = json.loads((tmp_path / "compare.json").read_text())
    assert [each["part_of"] for each in values["comparisons"]] == [None, "task", "task", "task"]
    page, text = (tmp_path / "compare.html").read_text(), (tmp_path / "compare.md").read_text()
    assert (
        text.count("## ") == page.count("<h2>") - 1 == 2
    )  # the whole and the table of parts; the page has a picture too
    assert "## By task" in text
    lines = parts_table(whole)
    assert [line[0] for line in lines if line[0]] == ["cola", "sst2 | dev", "gsm8k"]
    assert len(lines) == 3 * len(METHODS)
    for line in lines:
        assert "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" in text
    assert "Always the commonest class of each part" in text
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_too_many_parts_says_what_it_leaves_out(tmp_path: Path) -> None:
    one = replace(comparison(seeds=1), part_of="template")
    one = replace(one, standings=one.standings[:1])
    nothing = replace(one, standings=tuple(replace(each, over_base=None) for each in one.standings), base=None)
    parts = [replace(one, data=f"{'long ' * 12}{number}") for number in range(MOST_PARTS + 3)]
    write_comparison(report(*parts, nothing), tmp_path)
    for name in ("compare.html", "compare.md"):
        assert "The picture leaves out 4 parts" in (tmp_path / name).read_text()
    write_comparison(report(nothing), tmp_path)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_classes_of_parts_are_not_mixed_up_in_what_is_joined() -> None:
    one, other = outcomes(0.8, rows=60), outcomes(0.4, rows=40, seed=1)
    both = joined([one, replace(other, classes=5)])
    assert both.classes == 5
    assert ACCURACY.of(both) == pytest.approx(0.6 * ACCURACY.of(one) + 0.4 * ACCURACY.of(other))
