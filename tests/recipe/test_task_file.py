"""The file of a task: every mistake with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from graftlm.errors import UserError
from graftlm.recipe.problems import RecipeError
from graftlm.recipe.task_file import load_task, parse_task

GOOD = """\
title: Sums
kind: choice
path: rows.jsonl
prompt: "{{ q }}"
choices: [one, two]
answer: "{{ label }}"
"""


def parse(folder: Path, text: str) -> str:
    (folder / "rows.jsonl").write_text('{"q": "a", "label": "one"}\n')
    with pytest.raises(RecipeError) as caught:
        parse_task(text, "sums.yaml", folder=folder)
    return str(caught.value)


def test_an_empty_file_is_sent_to_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_task("# nothing\n", "sums.yaml", folder=tmp_path)
    assert caught.value.hint == "A task must be a mapping (kind: choice …)."


def test_a_good_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "label": "one"}\n')
    (tmp_path / "sums.yaml").write_text(GOOD)
    task = load_task(tmp_path / "sums.yaml")
    assert (task.name, task.title, task.keys.choices, task.keys.primary) == ("sums", "Sums", ("one", "two"), "accuracy")
    assert task.paths == [tmp_path / "rows.jsonl"]
    generate = parse_task("kind: generate\npath: rows.jsonl\nprompt: x\nanswer: y\n", folder=tmp_path)
    assert [scorer.name for scorer in generate.keys.all_scorers] == ["exact", "f1"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("kind: choice", "kind: chois"), ["line 2", "did you mean 'choice'"]),
        (("path: rows.jsonl", "path: row.jsonl"), ["line 3", "row.jsonl"]),
        (("prompt:", "promt:"), ["line 4", "did you mean 'prompt'"]),
        (("{{ q }}", "{{ q "), ["line 4", "prompt"]),
        (('answer: "{{ label }}"', "max_tokens: 4"), ["missing: answer"]),
        (("title: Sums", "max_tokens: 3"), ["max_tokens: is not for choice"]),
        (("title: Sums", "metric: rouge"), ["metric: must be one of accuracy"]),
        (("[one, two]", "[one]"), ["needs two different answers"]),
        (("title: Sums", "metric: bias"), ["bias needs stereotyped and unknown"]),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], says: list[str]) -> None:
    message = parse(tmp_path, GOOD.replace(*change))
    for words in says:
        assert words in message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_task(tmp_path / "no.yaml")


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        ("exat", "unknown scorer 'exat'"),
        ("{name: mine, regex: '('}", "the expression '(' cannot be read"),
        ("{name: mine, python: 'mine.py:score'}", "there is no file"),
    ],
)
def test_scorers_are_tried_before_anything_is_asked(tmp_path: Path, scorer: str, says: str) -> None:
    text = f"kind: generate\npath: rows.jsonl\nprompt: x\nanswer: y\nscorers:\n  - {scorer}\n"
    message = parse(tmp_path, text)
    assert says in message
    assert "line 5" in message
