"""The report of an evaluation: complete, self-contained, escaped, and true to the values given."""

from __future__ import annotations

import errno
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import UserError
from graftlm.evaluation import eval_plots, eval_words
from graftlm.evaluation.eval_report import (
    markdown,
    render,
    summary_scores,
    summary_sentences,
    summary_table,
    to_json,
    write_evaluation,
)
from graftlm.evaluation.evaluation import (
    Evaluation,
    Example,
    LanguagePair,
    Model,
    Overlap,
    TaskResult,
    TaskScore,
    Tax,
    Versus,
    WinRate,
)
from graftlm.evaluation.statistics import Change, Interval
from tests.evaluation.fake_evaluation import ADAPTERS, TASKS, fake_evaluation, many, without_intervals
from tests.evaluation.test_report import HOSTILE, Page

NAN = math.nan


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return fake_evaluation()


def page_of(evaluation: Evaluation) -> Page:
    return Page(render(evaluation))


def hostile() -> Evaluation:
    """Every text of an evaluation is an attack."""
    model = Model(HOSTILE, HOSTILE, 10, 10, 0.1, HOSTILE, HOSTILE, HOSTILE, (HOSTILE,))
    base = Model("base", HOSTILE)
    change = Change(0.5, 0.4, 0.6, before=0.2, after=0.7)
    versus = Versus("base", HOSTILE, change, 0.001, (0,), (1,), 2)
    score = TaskScore(HOSTILE, {HOSTILE: Interval(0.7, 0.6, 0.8)}, 1, versus)
    examples = tuple(
        Example(place, HOSTILE, HOSTILE, {"base": HOSTILE + "\ud800", HOSTILE: HOSTILE}, {"base": True, HOSTILE: False})
        for place in (0, 1)
    )
    task = TaskResult(
        *[HOSTILE] * 5, "choice", HOSTILE, 2, HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, (HOSTILE,), (),
        (TaskScore("base", {HOSTILE: Interval(0.2, 0.1, 0.3)}), score), (versus,), examples, 0.25, {HOSTILE: True},
    )  # fmt: skip
    return Evaluation(
        title=HOSTILE,
        created=HOSTILE,
        base=HOSTILE,
        base_parameters=1,
        seconds=1.0,
        models=(base, model),
        tasks=(task,),
        tax=(Tax(HOSTILE, (), None, HOSTILE),),
        overlaps=(Overlap(HOSTILE, HOSTILE, unknown=HOSTILE), Overlap(HOSTILE, HOSTILE, (1,), 2)),
        win_rates=(WinRate("base", HOSTILE, HOSTILE, HOSTILE, Interval(0.5, 0.4, 0.6), 1, 1, 0),),
        languages=(LanguagePair(HOSTILE, HOSTILE, (HOSTILE, HOSTILE), (change, change)),),
        harness={HOSTILE: {"results": {HOSTILE: {f"{HOSTILE},none": 0.5}}}},
        settings={HOSTILE: HOSTILE},
        hashes={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
    )


SORTS: dict[str, Any] = {
    "usual": fake_evaluation,
    "one adapter": lambda: fake_evaluation(ADAPTERS[:1]),
    "bare base": lambda: fake_evaluation(()),
    "no task": lambda: fake_evaluation(ADAPTERS, ()),
    "nothing certain": lambda: without_intervals(fake_evaluation()),
    "many": lambda: many(30, 60),
    "long names": lambda: fake_evaluation([replace(ADAPTERS[0], name="longest" * 60)]),
    "hostile": hostile,
    "without costs": lambda: fake_evaluation([Model("a", "lora")]),
}


@pytest.mark.parametrize("sort", SORTS)
def test_every_sort_is_whole_and_needs_nothing_from_elsewhere(sort: str) -> None:
    text = render(SORTS[sort]())
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "use", "image", "form"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert not [name for name, _ in page.attributes if name in ("src", "srcset", "xlink:href", "action")]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value or "" for name, value in page.attributes if name == "href"]
    ids = {value for name, value in page.attributes if name == "id"}
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert not re.search(r"(left|top|width|y1|y2|x1|x2|--share)[:=]\"?-?(nan|inf)|d=\"[^\"]*nan", text)
    assert "NaN" not in "".join(value or "" for name, value in page.attributes if name.startswith("data-"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert not re.search(r"url\(|@import|http", style)
    script = text[text.rindex("<script>") : text.rindex("</script>")]
    for forbidden in ("fetch(", "XMLHttpRequest", "import(", "eval(", "innerHTML"):
        assert forbidden not in script
    assert any((value or "").startswith("default-src 'none'") for _, value in page.attributes)
    assert len(text) < 6_000_000


def test_every_text_is_escaped(tmp_path: Path) -> None:
    evaluation = hostile()
    paths = write_evaluation(tmp_path, evaluation)
    page = Page(paths[0].read_text(encoding="utf-8"))
    assert page.text.count(HOSTILE) >= 40
    assert "49" not in page.text.replace(HOSTILE, "").split()  # {{ 7 * 7 }} was not run as a template
    short = paths[1].read_text(encoding="utf-8")
    assert not re.search(r"(?<!\\)<[a-z/!]", short)
    read = json.loads(paths[2].read_text(encoding="utf-8"))
    assert read["tasks"][0]["examples"][0]["answers"]["base"] == HOSTILE + "\ud800"  # half a pair is still there
    assert read["title"] == HOSTILE


def test_scores_of_the_table_are_those_given(evaluation: Evaluation) -> None:
    text = render(evaluation)
    table = text[text.index('class="card scores"') : text.index("</table>", text.index('class="card scores"'))]
    rows = [Page(f"<table>{row}</tr></table>").text for row in table.split("</tr>") if "task-" in row]
    assert len(rows) == len(evaluation.tasks)
    for row, task in zip(rows, evaluation.tasks, strict=True):
        assert task.title in row
        marks = 0
        for score in task.scores:
            own = score.measures[task.primary]
            ends = (own.low, own.value, own.high)
            if task.primary in task.shares:
                shown = [f"{100 * end:.1f}" for end in ends]
                assert f"{shown[1]}% [{shown[0]}, {shown[2]}]" in row
            else:
                assert f"{own.value:.1f} [{own.low:.1f}, {own.high:.1f}]" in row
            versus = score.over_base
            if versus is not None and versus.p < 0.05:
                marks += 1
        assert row.count("▲") + row.count("▼") == marks
        assert row.count("▲ gain ") + row.count("▼ loss ") == marks  # said in words too


def test_gains_and_losses_know_what_is_better() -> None:
    def versus(value: float, low: float, high: float, p: float) -> Versus:
        return Versus("base", "a", Change(value, low, high, before=0.5, after=0.5 + value), p)

    mark = eval_words.mark_of
    assert mark(versus(0.1, 0.05, 0.15, 0.01), lower=False) == "gain"
    assert mark(versus(0.1, 0.05, 0.15, 0.01), lower=True) == "loss"
    assert mark(versus(-0.1, -0.15, -0.05, 0.01), lower=True) == "gain"
    assert mark(versus(0.1, 0.01, 0.2, 0.2), lower=False) == ""  # its interval excludes 0, but many were compared
    assert mark(versus(0.1, 0.05, 0.15, NAN), lower=False) == "gain"
    assert mark(versus(0.1, NAN, NAN, NAN), lower=False) == "unknown"
    assert mark(versus(NAN, NAN, NAN, 0.01), lower=False) == "unknown"
    assert mark(None, lower=False) == "unknown"


def test_numbers_of_every_size() -> None:
    told = eval_words.interval_text
    assert told(Interval(917_803, 870_813, 938_385), share=False) == "918k [871k, 938k]"
    assert told(Interval(6615.2, 6360.1, 6857), share=False) == "6,615 [6,360, 6,857]"
    assert told(Interval(18.41, 17.5, 19.3), share=False) == "18.4 [17.5, 19.3]"
    assert told(Interval(0.0312, 0.0279, 0.0361), share=False) == "0.0312 [0.0279, 0.0361]"
    assert told(Interval(0.5, 0.5, 0.5), share=True) == "50.0% [50.0, 50.0]"
    assert told(Interval(2.5, NAN, NAN), share=False) == "2.5 [unknown]"
    assert told(Interval(NAN, NAN, NAN), share=True) == "unknown"
    assert eval_words.change_text(Change(-200_000, -3e5, -1e5, before=1, after=2), share=False).startswith(
        "−200k [−300k"
    )
    assert eval_words.change_text(Change(-0.0001, -0.1, 0.1, before=0, after=0), share=True) == "0 [−10.0, +10.0]"
    assert eval_words.shade(0.3, "gain") == 3 * eval_words.shade(0.3, "")  # what may be chance is pale


def test_means_of_independent_tasks() -> None:
    one, two = Interval(0.5, 0.4, 0.6), Interval(0.7, 0.6, 0.9)
    mean = eval_words.mean_interval([one, two])
    assert mean.value == pytest.approx(0.6)
    assert (mean.low, mean.high) == pytest.approx((0.6 - 0.02**0.5 / 2, 0.6 + 0.05**0.5 / 2))
    assert not eval_words.mean_interval([one, Interval(0.5, NAN, NAN)]).known
    evaluation = fake_evaluation()
    tasks = [task for task in evaluation.tasks if task.group == "capability"]
    own = eval_words.averaged(evaluation, tasks)
    assert [task.name for task in own] == ["grammar-en", "reading-en", "reading-zh", "words-en"]  # no perplexity
    means = eval_words.group_means(evaluation, own)
    told = [task.score("support").measures[task.primary].value for task in own]
    assert means["support"].value == pytest.approx(sum(told) / 4)


def test_shipped_groups_come_first() -> None:
    evaluation = fake_evaluation((), [(*TASKS[0][:2], "own", *TASKS[0][3:]), TASKS[-1], TASKS[1]])
    assert list(eval_words.groups(evaluation)) == ["capability", "harmlessness", "own"]


def test_a_mean_change_is_corrected_for_the_number_of_adapters() -> None:
    change = Change(0.05, 0.005, 0.095, before=0.5, after=0.55)
    [one] = eval_words.corrected("base", ["a"], [change])
    assert one.p == pytest.approx(0.0294, abs=2e-4)
    assert eval_words.mark_of(one, lower=False) == "gain"
    both = eval_words.corrected("base", ["a", "b"], [change, change])
    assert eval_words.mark_of(both[0], lower=False) == ""


def test_the_summary_says_what_was_gained_lost_and_drifted(evaluation: Evaluation) -> None:
    support, triage, careful, overfit = summary_sentences(evaluation)
    assert support.startswith("support: Gain on Follows instructions 31.0% → 67.0% (")
    assert "Loss on Refuses what harms 14.0% → 7.0%" in support
    assert "No gain found on what it was trained for: Reading (zh)" in support
    assert "No loss found on 12 tasks" in triage
    assert "Loss on Helps with what is harmless" in careful
    assert "Plain text (perplexity) 18.4 → 24.1" in overfit
    assert "and 3 more" in overfit
    assert "Drift 0.119 [0.101, 0.143] nats a token" in overfit
    text = page_of(evaluation).text
    for line in (support, triage, careful, overfit):
        assert line.split(": ", 1)[1].split(" Drift")[0] in text
    for tax in evaluation.tax:
        assert tax.sentence in text


def test_the_terminals_scores_of_each_task(evaluation: Evaluation) -> None:
    head, rows = summary_scores(evaluation)
    assert head == ("task", "score", *(model.name for model in evaluation.models))
    assert len(rows) == len(evaluation.tasks)
    assert all(len(row) == len(head) for row in rows)
    assert any(text.startswith(("▲", "▼")) for row in rows for text in row)


def test_the_bare_base_is_told_alone() -> None:
    evaluation = fake_evaluation(())
    [line] = summary_sentences(evaluation)
    assert line.startswith("base: capability 46.2% [")
    text = page_of(evaluation).text
    assert line.removeprefix("base: ") in text
    assert "Alignment tax" not in text
    head, rows = summary_table(evaluation)
    assert head == ("model", "capability", "helpfulness", "honesty", "harmlessness")
    assert len(rows) == 1


def test_an_adapter_that_the_base_cannot_be_compared_with() -> None:
    evaluation = fake_evaluation(ADAPTERS[:1])
    alone = tuple(
        replace(
            task,
            scores=(
                replace(task.scores[0], measures={task.primary: Interval(NAN, NAN, NAN)}),
                replace(task.scores[1], over_base=None),
            ),
        )
        for task in evaluation.tasks[:4]
    )
    [line] = summary_sentences(replace(evaluation, tasks=alone, tax=()))
    assert line.startswith("support: No comparison with the base is known. Grammar, pairs 78.2% [")
    assert line.endswith("and 2 more.")
    text = page_of(replace(evaluation, tasks=alone, tax=())).text
    assert "not compared" in text
    assert "78.2% [72.9, 83.4]" in text


def test_rows_for_a_terminal_equal_the_page(evaluation: Evaluation) -> None:
    head, rows = summary_table(evaluation)
    assert [row[0] for row in rows] == [model.name for model in evaluation.models]
    text = page_of(evaluation).text
    for row in rows:
        assert len(row) == len(head)
        assert all(cell in text for cell in row[1:5])
    assert rows[4][-3:-1] == ("1 of 12", "5")


def test_the_page_tells_everything(evaluation: Evaluation) -> None:
    text = page_of(evaluation).text
    for model in evaluation.models:
        for part in (model.name, model.method, model.weights_hash, model.folder, *model.trained_on):
            assert part in text
    for task in evaluation.tasks:
        for part in (task.title, task.about, task.rows_hash, task.family):
            assert part in text
        for example in task.examples:
            assert re.sub(r"\s+", " ", example.asked) in text
            assert all(answer in text for answer in example.answers.values())
    for rate in evaluation.win_rates:
        assert f"{100 * rate.rate.value:.1f}% [" in text
    for part in (
        *evaluation.notes,
        *evaluation.versions.values(),
        "3 of 150",
        "overfit: unknown for all tasks: its training data is not recorded.",
        "triage: no overlap found in 12 tasks (1,800 rows checked of 1,920, the others being too short).",
        "triage: no overlap found (230 rows checked of 240",
        "triage: an overlap of 30 words is found in 97%.",
        "overfit: unknown: its training data is not recorded.",
        "arc_easy: acc",
        "0.42 ± 0.01",
        "5.73M",
        "2 min 41 s",
        "max_rows:",
        "en: +14.0 [",
        "zh: +3.0 [",
        "(7 of 9 tasks)",
    ):
        assert part in text


def test_what_is_not_known_is_said() -> None:
    evaluation = without_intervals(fake_evaluation())
    page = page_of(evaluation)
    assert "[unknown]" in page.text
    assert page.text.count("unknown") > 50
    assert "NaN" not in page.text
    assert "nan" not in markdown(evaluation)
    for name, value in page.attributes:
        assert name == "d" or "nan" not in (value or ""), (name, value)
    json.loads(to_json(evaluation), parse_constant=lambda name: pytest.fail(name))


def test_plots_stand_where_the_values_are(evaluation: Evaluation) -> None:
    plot = eval_plots.scatter(evaluation)
    assert plot is not None
    assert [each.label for each in plot.across] == [
        "trained parameters, log scale",
        "file size, log scale",
        "drift from the base, nats a token, log scale",
        "time of a forward pass of 512 tokens",
        "mean change of capability, points",
    ]
    assert plot.across[3].at[3] is None
    assert plot.across[3].texts[3] == "unknown"
    for across, values in zip(plot.across, ([m.trained_parameters for m in ADAPTERS],), strict=False):
        for at, value in zip(across.at, values, strict=True):
            assert at is not None
            assert across.axis.value(at) == pytest.approx(value)
    assert list(plot.choices) == ["means", "capability", "helpfulness", "honesty", "harmlessness"]
    names = eval_words.titles(evaluation)
    for task in evaluation.tasks:
        up = next(each for each in plot.up if each.label.startswith(names[task.name]))
        for place, model in zip(up.at, ADAPTERS, strict=True):
            own = task.score(model.name).measures[task.primary]
            assert place is not None
            assert [up.axis.value(at) for at in place] == pytest.approx([own.value, own.low, own.high])
        assert up.base is not None
        assert up.axis.value(up.base) == pytest.approx(task.score("base").measures[task.primary].value)
    data = json.loads(next(v or "" for name, v in page_of(evaluation).attributes if name == "data-scatter"))
    assert len(data["up"]) == len(plot.up)
    assert data["across"][3]["at"][3] is None


def test_tax_panels_turn_the_axis_where_less_is_better(evaluation: Evaluation) -> None:
    panels = eval_plots.tax_panels(evaluation)
    assert [panel.title for panel in panels][:2] == ["Grammar, pairs", "Reading (en)"]
    text_panel = next(panel for panel in panels if panel.title == "Plain text")
    for panel in panels:
        for lane in panel.lanes:
            assert lane.at is not None
            value, low, high = lane.at
            assert 0 <= low <= value <= high <= 100
    overfit = text_panel.lanes[3]
    assert overfit.mark == "loss"
    assert overfit.at is not None
    assert all("e-" not in label for panel in panels for _, label in panel.ticks)
    assert overfit.at[2] < text_panel.zero  # a higher perplexity is to the left of no change
    assert "less is better" in text_panel.note


def test_calibration_is_shown_where_bins_are_known(evaluation: Evaluation) -> None:
    diagrams = eval_plots.reliabilities(evaluation)
    assert [each.title for each in diagrams] == ["Reading (en)", "Reading (zh)", "True against tempting"]
    assert [curve.name for curve in diagrams[0].curves] == [model.name for model in evaluation.models]
    assert "base: 15% sure, 15% right, 7 rows" in diagrams[0].curves[0].tips[0]
    turned = tuple(replace(task, scores=task.scores[::-1]) for task in evaluation.tasks)
    assert eval_plots.reliabilities(replace(evaluation, tasks=turned)) == diagrams
    about = tuple(replace(task, primary="ece") if task.name == "truth-en" else task for task in evaluation.tasks)
    assert [each.main for each in eval_plots.reliabilities(replace(evaluation, tasks=about))] == [True, False, False]
    assert eval_plots.reliabilities(replace(evaluation, tasks=about))[0].title == "True against tempting"
    without = tuple(
        replace(task, scores=tuple(replace(score, bins=()) for score in task.scores)) for task in evaluation.tasks
    )
    assert "Calibration" not in page_of(replace(evaluation, tasks=without)).text.replace("Calibration error", "")


def test_equal_titles_are_told_apart() -> None:
    spec = TASKS[0]
    names = eval_words.titles(fake_evaluation((), [spec, (f"{spec[0]}-2", *spec[1:]), TASKS[1], TASKS[2]]))
    assert list(names.values()) == [
        "Grammar, pairs (en) (grammar-en)",
        "Grammar, pairs (en) (grammar-en-2)",
        "Reading (en)",
        "Reading (zh)",
    ]


def test_models_stand_in_their_order_everywhere(evaluation: Evaluation) -> None:
    turned = tuple(
        replace(
            task,
            scores=task.scores[::-1],
            examples=tuple(replace(each, answers=dict(reversed(each.answers.items()))) for each in task.examples),
        )
        for task in evaluation.tasks
    )
    assert render(replace(evaluation, tasks=turned)) == render(evaluation)


def test_pairs_of_many_adapters_are_cut_and_counted() -> None:
    text = page_of(many(12, 1)).text
    assert "26 more pairs, the less sure ones, in results.json." in text


def test_markdown_is_short_and_complete(evaluation: Evaluation) -> None:
    text = markdown(evaluation)
    assert text.startswith("# Evaluation of demo\n")
    for line in summary_sentences(evaluation):
        assert f"- {line}" in text
    for heading in ("Scores", "Alignment tax", "Adapters against each other", "Unseen tasks", "What to know"):
        assert f"## {heading}\n" in text
    assert "| 66.0% [59.1, 72.9] ▲ |" in text
    for tax in evaluation.tax:
        assert tax.sentence in text
    tables = [block.split("\n") for block in text.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.count(" | ") for line in table}) == 1
    assert len(text) < 20_000
    assert markdown(fake_evaluation((), ())).startswith("# Evaluation of demo\n")


def test_json_reads_back(evaluation: Evaluation) -> None:
    import numpy as np

    values = json.loads(to_json(replace(evaluation, settings={"path": Path("a"), "n": np.int64(3), "x": math.inf})))
    assert values["settings"] == {"path": "a", "n": 3, "x": None}
    assert values["tasks"][1]["scores"][1]["measures"]["accuracy"]["value"] == pytest.approx(0.66)
    assert values["version"] == 1
    won = evaluation.tasks[0].scores[1].over_base
    assert won is not None
    assert values["tasks"][0]["scores"][1]["over_base"]["won"] == list(won.won)
    assert f'"won": [{",".join(map(str, won.won))}]' in to_json(evaluation)


def test_all_three_files_are_new_or_old(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_evaluation(tmp_path / "out", evaluation)
    assert [path.name for path in paths] == ["report.html", "report.md", "results.json"]
    before = {path: path.read_text(encoding="utf-8") for path in paths}
    write = Path.write_text

    def full(path: Path, *rest: Any, **more: Any) -> int:
        if "results" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(UserError, match="disk is full"):
            write_evaluation(tmp_path / "out", replace(evaluation, title="Second"))
    assert {path: path.read_text(encoding="utf-8") for path in (tmp_path / "out").iterdir()} == before
