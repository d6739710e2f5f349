"""The page: complete, self-contained, escaped, and true to the numbers given."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from graftlm.evaluation.report import (
    SUMMARY_COLUMNS,
    Example,
    RunReport,
    render,
    save_curves_png,
    summary_lines,
    summary_sentences,
    write_report,
)
from graftlm.evaluation.reward_quality import JudgedGroup, reward_quality
from graftlm.evaluation.statistics import exact_share, mean_loss
from graftlm.training.forward import RowScore
from tests.evaluation.fake_run import Row, fake_run, with_divergence

VOID = {"meta", "br", "hr", "img", "input", "link", "base", "source", "embed"}
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}&amp;"


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


@pytest.fixture(scope="module")
def report() -> RunReport:
    return fake_run()


def hostile_run(report: RunReport) -> RunReport:
    adapter = replace(
        report.adapters[0],
        **dict.fromkeys(("name", "method", "data", "folder"), HOSTILE),
        ended=("diverged", HOSTILE),
        counts={"read": 2, "kept": 1, "dropped": {HOSTILE: 1}, "examples": {HOSTILE: [HOSTILE]}},
        examples=[Example(HOSTILE, HOSTILE, {"base": HOSTILE + "\ud800", HOSTILE: HOSTILE})],
    )
    return replace(
        report,
        title=HOSTILE,
        base=HOSTILE,
        created=HOSTILE,
        adapters=[adapter],
        settings={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        next_commands=[HOSTILE],
    )


def test_every_text_is_escaped(report: RunReport, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, hostile_run(report))
    page = Page(path.read_text(encoding="utf-8"))
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 15
    assert "49" not in page.text.replace(HOSTILE, "").split()  # {{ 7 * 7 }} was not run as a template


def test_rewards_by_criterion(report: RunReport) -> None:
    """The numbers of each criterion and its diagram: 75% sure and right, at the middle of 50 to 100% and at the top."""
    rewards = [math.log(3), 0.0]
    groups = [JudgedGroup(number, [(0, 1)], [9, 4], rewards=rewards) for number in range(4)]
    quality = reward_quality(HOSTILE, groups, groups)
    assert quality is not None
    adapter = replace(report.adapters[0], rewards=[quality])
    page = Page(render(replace(report, adapters=[adapter])))
    for text in ("Rewards by criterion", "51.0 to 100.0; 4 groups", "the longer answer", "25.0 points", "r = +1.00"):
        assert text in page.text
    assert "75% sure, 100% right, 4 comparisons" in page.text
    assert ("d", "M50.0 0.0h0") in page.attributes
    assert HOSTILE in page.text
    assert "img" not in page.tags
    assert "Rewards by criterion" not in render(report)


@pytest.mark.parametrize("hostile", [False, True])
def test_the_page_needs_nothing_from_elsewhere(report: RunReport, hostile: bool) -> None:
    text = render(hostile_run(report) if hostile else report)
    page = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "use", "image"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset", "xlink:href", "action")]
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "http" not in style
    script = text[text.rindex("<script>") : text.rindex("</script>")]
    assert "http" not in script
    assert "fetch(" not in script
    assert any((value or "").startswith("default-src 'none'") for _, value in page.attributes)


def test_the_page_says_the_numbers_that_were_given(report: RunReport) -> None:
    text = Page(render(report)).text
    for adapter in report.adapters:
        shown = [
            f"{adapter.trained_parameters:,}",
            adapter.method,
            adapter.folder,
            adapter.ended[0],
            f"{adapter.learning_rate:g}".replace("e-0", "e-"),
            f"{mean_loss(adapter.before):.2f} → {mean_loss(adapter.after):.2f}",
            f"{round(exact_share(adapter.after) * len(adapter.after))} of {len(adapter.after)} rows",
            str(adapter.counts["kept"]),
            *(f"{loss:.3f}" for _, loss, _ in adapter.held_out),
        ]
        for part in shown:
            assert part in text, (adapter.name, part)
        for example in adapter.examples:
            for answer in (example.expected, *example.answers.values()):
                assert re.sub(r"\s+", " ", answer.strip()) in text
    for part in ("5.73M", "2 min 41 s", "planned 2 min 30 s", "412k", "3.1%", "1.42 GB", "planned 1.38 GB"):
        assert part in text
    for part in (*report.next_commands, *report.versions.values(), "micro_batch_tokens: 4096"):
        assert part in text
    assert "dropped: empty answer" in text
    assert "feelings.train.jsonl:14" in text
    for sentence in summary_sentences(report):
        assert sentence.split(": ", 1)[1] in text


def test_drawn_points_are_the_points_given(report: RunReport) -> None:
    text = render(report)
    adapter = report.adapters[1]
    hovers = [value or "" for name, value in Page(text).attributes if name == "data-points"]
    for step, loss, _ in adapter.held_out:
        assert f"step {step:,}: held-out {loss:.3g}" in hovers[1]
    labels = [value or "" for name, value in Page(text).attributes if name == "aria-label"]
    label = next(value for value in labels if value.startswith("Loss curve of questions"))
    assert f"best at step {adapter.best_step}" in label
    assert f"{adapter.held_out[0][1]:.2f} at step 0" in label


def test_right_answers_are_marked_in_words(report: RunReport) -> None:
    examples = [example for adapter in report.adapters for example in adapter.examples]
    right = sum(example.exact(model) for example in examples for model in example.answers)
    text = Page(render(report)).text
    assert text.count("✓ exact") == right
    assert text.count("differs") == sum(len(example.answers) for example in examples) - right


def test_terminal_rows_equal_the_page(report: RunReport) -> None:
    lines = summary_lines(report)
    text = Page(render(report)).text
    assert [line[0] for line in lines] == [adapter.name for adapter in report.adapters]
    assert [line[1] for line in lines] == ["better", "better", "no gain found"]
    for line in lines:
        assert len(line) == len(SUMMARY_COLUMNS)
        assert all(cell in text for cell in line)


def test_real_row_scores_are_taken(report: RunReport) -> None:
    adapter = report.adapters[0]
    real = replace(
        adapter,
        before=[RowScore(row.log_prob, row.tokens, row.hits) for row in adapter.before],
        after=[RowScore(row.log_prob, row.tokens, row.hits) for row in adapter.after],
    )
    assert summary_lines(replace(report, adapters=[real])) == summary_lines(replace(report, adapters=[adapter]))


def test_divergence_is_plain_to_see(report: RunReport) -> None:
    text = render(with_divergence(report))
    assert 'class="chip diverged"' in text
    assert "the loss of step 40 is NaN" in Page(text).text
    assert not re.search(r'(left|top|width):nan|d="[^"]*nan', text)
    assert summary_lines(with_divergence(report))[2][1] == "diverged"


def test_scores_that_are_not_finite(report: RunReport) -> None:
    adapter = replace(
        report.adapters[0],
        after=[Row(math.nan, row.tokens, 0) for row in report.adapters[0].after],
        train_loss=[(1, math.nan), (2, math.nan)],
        held_out=[(0, 3.0, 0.0), (2, math.nan, 0.0)],
    )
    text = render(replace(report, adapters=[adapter]))
    assert "not a finite number" in Page(text).text
    assert not re.search(r'(left|top|width):nan|d="[^"]*nan', text)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"before": [], "after": [], "held_out": []},
        {"examples": []},
        {"train_loss": []},
        {"counts": {}},
        {"before": [], "after": [], "held_out": [], "examples": [], "train_loss": [], "counts": {}, "steps": 0},
        {"held_out": [], "best_step": 0},
        {"train_loss": [(1, 2.0)], "steps": 1},
    ],
)
def test_one_adapter_with_parts_missing(report: RunReport, changes: dict[str, object], tmp_path: Path) -> None:
    one = replace(report, adapters=[replace(report.adapters[0], **changes)])
    page = Page(render(one))
    assert ("Answers side by side" in page.text) == bool(one.adapters[0].examples)
    if not one.adapters[0].after:
        assert "not measured" in page.text
        assert "nothing can be said about unseen text" in page.text
    save_curves_png(one, tmp_path / "curves.png")


def test_run_without_plan_memory_or_commands(report: RunReport) -> None:
    text = Page(
        render(replace(report, planned=None, peak_memory=None, next_commands=[], versions={}, seconds=0.0))
    ).text
    assert "planned" not in text
    assert "Peak memory" not in text
    assert "What to type next" not in text


def test_settings_are_shown_as_yaml_that_reads_back(report: RunReport) -> None:
    from ruamel.yaml import YAML

    settings = {"path": Path("a/b"), "betas": (0.9, 0.999), "on": "no", "rate": 1e-5, "名": None, "z": 1, "a": 2}
    text = render(replace(report, settings=settings))
    shown = re.search(r"<pre tabindex=\"0\"><code>(.*?)</code></pre>", text, re.S)
    assert shown
    from html import unescape

    read = YAML(typ="safe").load(unescape(shown[1]))
    assert read == {"path": "a/b", "betas": [0.9, 0.999], "on": "no", "rate": 1e-5, "名": None, "z": 1, "a": 2}
    assert list(read) == list(settings)


def test_writing_replaces_and_leaves_no_parts(report: RunReport, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, report)
    write_report(path, replace(report, title="Second"))
    assert "<title>Second</title>" in path.read_text(encoding="utf-8")
    save_curves_png(with_divergence(report), path.with_name("curves.png"))
    assert path.with_name("curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["curves.png", "report.html"]
