"""`graftlm data inspect`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.conftest import Cli
from tests.runs.small import animal_rows, colour_rows, write_rows

RECIPE = """\
sources:
  colours: {path: colours.jsonl, task: colours, licence: CC BY}
  odd: {path: odd.jsonl, language: en}
"""


def test_a_page_of_a_set(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "colours.jsonl", [*colour_rows(), *colour_rows(1)])
    odd = {"<script>alert(1)</script> ends": "& so on", "empty": "\ud800", "broken": "good \ud800"}
    write_rows(tmp_path / "odd.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in odd.items()])
    exam = [{"question": "The cat is red. Which colour is the cat?"}, {"question": "Who?"}]
    write_rows(tmp_path / "exam.jsonl", exam)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    assert cli("data", "build", "recipe.yaml", "--out", "set").code == 0
    ended = cli("data", "inspect", "set", "--against", "exam=exam.jsonl", "--rows", "30")
    assert ended.code == 0
    assert "set.html: 25 instances" in ended.out
    assert "1 overlaps with exam" in ended.out
    page = (tmp_path / "set.html").read_text(encoding="utf-8")
    assert page.count("<article") == 25
    assert "<script" not in page
    assert "&lt;" in page
    assert not re.search(r"""(src|href)\s*=""", page)
    assert "CC BY" in page
    assert "the cat" in page  # how prompts begin
    assert "1 text of exam is shorter" in page
    assert "1: exact duplicate" in page
    assert "1: a text is not valid Unicode" in page
    learnt = ["".join(re.findall(r"<b[^>]*>([^<]*)</b>", part)) for part in page.split("<article")[1:]]
    assert any("red" in text for text in learnt)
    assert not any("Which" in text for text in learnt)


def test_a_page_names_rows_that_disagree(cli: Cli, tmp_path: Path):
    rows = [{"text": f"film {n % 5}", "label": ("pos", "neg")[n == 5]} for n in range(6)]
    write_rows(tmp_path / "moods.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text("sources: {moods: {path: moods.jsonl, template: sentiment}}\n")
    ended = cli("data", "build", "recipe.yaml", "--out", "set")
    told = (
        "2 with the same input and another answer (sentiment 2): moods.jsonl:1 'positive' and moods.jsonl:6 'negative'"
    )
    assert f"kept {told}\n" in ended.out
    assert cli("data", "inspect", "set").code == 0
    page = (tmp_path / "set.html").read_text(encoding="utf-8")
    assert told.replace("'", "&#39;") in page


def test_a_page_of_a_file(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "animals.jsonl", animal_rows(5))
    ended = cli("data", "inspect", "animals.jsonl", "--out", "page.html", "--rows", "2")
    assert ended.code == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<article") == 2
    assert "Not looked for" in page
    assert "Left out" not in page


def test_mistakes(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "animals.jsonl", animal_rows(5))
    assert "expected NAME=FILE" in cli("data", "inspect", "animals.jsonl", "--against", "exam").err
    assert "no such file" in cli("data", "inspect", "nothing.jsonl").err
