"""Rows of a task become items: patterns, answers by text and number, examples; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import UserError
from graftlm.evaluation.tasks.items import read_items
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys

ROWS = [
    {"q": "One and one?", "options": ["2", "3"], "label": 0, "kind": "easy"},
    {"q": "Two and two?", "options": ["5", "4"], "label": 1, "kind": "easy"},
    {"q": "Nine and one?", "options": ["9", "10", "11"], "label": "10", "kind": "hard"},
]
CHOICE: dict[str, Any] = {
    "kind": "choice",
    "prompt": "{{ q }}",
    "choices": "{{ options }}",
    "answer": "{{ label }}",
}


def task_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> EvalTask:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalTask("sums", TaskKeys(**{"path": ("rows.jsonl",), **keys}), folder)


def test_choices_by_number_and_by_text(tmp_path: Path) -> None:
    items = read_items(task_of(tmp_path, ROWS, **CHOICE))
    assert [item.candidates for item in items] == [("2", "3"), ("5", "4"), ("9", "10", "11")]
    assert [item.right for item in items] == [(0,), (1,), (1,)]
    assert [(message.role, message.content) for message in items[2].messages] == [("user", "Nine and one?")]
    assert items[2].row == 3


def test_a_text_that_is_a_number_is_a_choice_before_it_is_a_place(tmp_path: Path) -> None:
    (item,) = read_items(task_of(tmp_path, [{"q": "?", "options": ["1", "0"], "label": "0"}], **CHOICE))
    assert item.right == (1,)


def test_several_right_answers(tmp_path: Path) -> None:
    rows = [{"q": "A vowel?", "options": ["a", "b", "e"], "label": ["a", "e"]}]
    (item,) = read_items(task_of(tmp_path, rows, **CHOICE))
    assert item.right == (0, 2)


def test_where_and_max_rows_and_unfold(tmp_path: Path) -> None:
    hard = read_items(task_of(tmp_path, ROWS, **CHOICE, where="{{ kind == 'hard' }}"))
    assert [item.row for item in hard] == [3]
    drawn = [read_items(task_of(tmp_path, ROWS, **CHOICE, max_rows=2, seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(item.row for item in items) for items in drawn}) > 1
    nested = [{"text": "T", "parts": [{"qas": [{"q": "a", "label": "x"}, {"q": "b", "label": "y"}]}]}]
    keys = {"kind": "generate", "prompt": "{{ text }} {{ q }}", "answer": "{{ label }}", "unfold": ("parts", "qas")}
    items = read_items(task_of(tmp_path, nested, **keys))
    assert [(item.messages[0].content, item.references) for item in items] == [("T a", ("x",)), ("T b", ("y",))]
    with pytest.raises(UserError, match="row 1: no list of objects in 'bits'"):
        read_items(task_of(tmp_path, nested, **{**keys, "unfold": ("bits",)}))


def test_solved_examples_never_ask_the_question_itself(tmp_path: Path) -> None:
    for item in read_items(task_of(tmp_path, [*ROWS, ROWS[0]], **CHOICE, shots=2)):
        *before, own = item.messages[0].content.split("\n\n")
        assert len(before) == 2
        assert own == item.values["q"]
        assert not any(each.startswith(own) for each in before)
    assert any(
        "Nine and one? 10" in item.messages[0].content
        for item in read_items(task_of(tmp_path, ROWS, **CHOICE, shots=2))
    )
    with pytest.raises(UserError, match="3 are wanted, and there are 2 other rows"):
        read_items(task_of(tmp_path, ROWS, **CHOICE, shots=3))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"q": "?", "options": ["a", "b"], "label": "c"}, r"row 1: answer: 'c' is none of the choices: 'a', 'b'"),
        ({"q": "?", "options": ["a", "b"], "label": 2}, "answer: '2' is none of the choices"),
        ({"q": "?", "options": ["a"], "label": "a"}, "choices: needs two answers or more"),
        ({"q": "?", "options": ["a", "a"], "label": "a"}, "choices: has an answer twice"),
        ({"q": "?", "options": "a, b", "label": "a"}, "choices: must give a list"),
        ({"q": "?", "option": ["a", "b"], "label": "a"}, "there is no column 'options'; there are: q, option, label"),
        ({"q": "?", "options": ["a", "b"], "label": []}, "answer: names no choice"),
    ],
)
def test_wrong_rows_of_choices(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        read_items(task_of(tmp_path, [row], **CHOICE))
    assert "rows.jsonl" in caught.value.message


def test_pairs_and_preferences(tmp_path: Path) -> None:
    rows = [{"a": "He runs.", "b": "He run."}]
    (item,) = read_items(task_of(tmp_path, rows, kind="pairs", good="{{ a }}", bad="{{ b }}"))
    assert (item.messages, item.candidates, item.right) == ((), ("He runs.", "He run."), (0,))
    with pytest.raises(UserError, match="good: is the same as bad"):
        read_items(task_of(tmp_path, [{"a": "x", "b": "x"}], kind="pairs", good="{{ a }}", bad="{{ b }}"))
    keys = {"kind": "preference", "prompt": "p", "chosen": "{{ a }}", "rejected": "{{ b }}"}
    task = task_of(tmp_path, [{"a": "x", "b": None}], **keys)
    with pytest.raises(UserError, match="rejected: is empty"):
        read_items(task)


def test_no_rows_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no rows that `where` keeps"):
        read_items(task_of(tmp_path, ROWS, **CHOICE, where="{{ kind == 'odd' }}"))
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        read_items(EvalTask("sums", TaskKeys(path=("rows.jsonl",), **CHOICE), tmp_path))
