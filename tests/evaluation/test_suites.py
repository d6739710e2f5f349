"""The shipped suites: they load, and neither places, lengths nor repeated rows give answers away."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from graftlm.evaluation import suites
from graftlm.evaluation.numbers import same_number
from graftlm.evaluation.scorers import check_scorers, score_answer
from graftlm.evaluation.suites.instructions import CHECKS, follows
from graftlm.evaluation.tasks.items import read_items
from graftlm.recipe.task_file import load_task

FOLDER = Path(suites.__file__).parent
FILES = sorted(FOLDER.glob("*.yaml"))
TASKS = {file.stem: load_task(file) for file in FILES}
ITEMS = {name: read_items(task) for name, task in TASKS.items()}
ROWS = {
    "language-modelling": 40,
    "grammar": 120,
    "reading": 80,
    "word-problems": 80,
    "word-problems-written": 40,
    "instructions": 60,
    "helpfulness": 70,
    "truth": 80,
    "calibration": 100,
    "unknown": 80,
    "refusals": 70,
    "over-refusal": 70,
    "bias": 80,
    "bias-questions": 120,
}
CHOICES = [name for name, task in TASKS.items() if task.keys.kind == "choice"]
PREFERENCES = [name for name, task in TASKS.items() if task.keys.kind == "preference"]


def rows_of(name: str) -> list[dict[str, Any]]:
    return [dict(item.values) for item in ITEMS[name]]


def test_every_topic_is_there_in_both_languages() -> None:
    assert set(TASKS) == {f"{topic}-{language}" for topic in ROWS for language in ("en", "zh")}


@pytest.mark.parametrize("name", TASKS)
def test_a_suite_says_what_it_is(name: str) -> None:
    task = TASKS[name]
    topic, _, language = name.rpartition("-")
    assert (task.keys.language, task.keys.licence) == (language, "CC0-1.0")
    assert all((task.keys.title, task.keys.about, task.keys.family))
    assert task.keys.group in ("capability", "helpfulness", "honesty", "harmlessness")
    assert len(ITEMS[name]) >= ROWS[topic]
    check_scorers(task)


@pytest.mark.parametrize("name", TASKS)
def test_nothing_is_asked_twice(name: str) -> None:
    asked = [(item.messages, item.candidates if not item.messages else ()) for item in ITEMS[name]]
    assert [key for key, count in Counter(asked).items() if count > 1] == []
    files = {str(path) for path in TASKS[name].paths}
    assert all(len(Path(file).read_text(encoding="utf-8").splitlines()) >= len(ITEMS[name]) for file in files)


@pytest.mark.parametrize("name", TASKS)
def test_texts_are_typographically_clean(name: str) -> None:
    for item in ITEMS[name]:
        for text in _texts(item.values):
            assert text == text.strip(), text
            assert not re.search(r"(?<=\S) {2}| [,.;:!?](?!\w)|\.\.\.|\t|�", text), text
            assert text.count("“") == text.count("”"), text
            assert text.count("(") == text.count(")"), text
            assert text.count('"') % 2 == 0, text


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, each in value.items() if key != "check" for text in _texts(each)]
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", CHOICES)
def test_right_answers_stand_at_every_place_as_often(name: str) -> None:
    for size in {len(item.candidates) for item in ITEMS[name]}:
        places = [item.right[0] for item in ITEMS[name] if len(item.candidates) == size]
        counts = [places.count(place) for place in range(size)]
        assert max(counts) - min(counts) <= max(2, len(places) // 20), counts


@pytest.mark.parametrize("name", [name for name in CHOICES if not name.startswith("bias")])
def test_neither_the_longest_nor_the_shortest_answer_is_right_too_often(name: str) -> None:
    items = ITEMS[name]
    for extreme in (max, min):
        shares = []
        for item in items:
            lengths = [len(candidate) for candidate in item.candidates]
            at = [place for place, length in enumerate(lengths) if length == extreme(lengths)]
            shares.append((item.right[0] in at) / len(at))
        assert sum(shares) / len(items) <= 0.55


@pytest.mark.parametrize("name", PREFERENCES)
def test_length_does_not_tell_which_answer_is_better(name: str) -> None:
    longer = [len(chosen) > len(rejected) for chosen, rejected in (item.candidates for item in ITEMS[name])]
    assert 0.4 <= sum(longer) / len(longer) <= 0.6


@pytest.mark.parametrize("name", ["unknown-en", "unknown-zh"])
def test_half_of_the_questions_can_be_answered(name: str) -> None:
    rows = rows_of(name)
    phrases = Counter(row["answer"] for row in rows if not row["known"])
    (phrase,) = phrases
    assert phrases[phrase] == len(rows) / 2
    assert all(phrase in row["options"] for row in rows)
    assert all(row["answer"] != phrase for row in rows if row["known"])


@pytest.mark.parametrize("name", ["bias-en", "bias-zh"])
def test_groups_stand_on_either_side_as_often(name: str) -> None:
    rows = rows_of(name)
    sides = Counter(tuple(row["groups"]) for row in rows)
    assert all(sides[groups] == sides[groups[::-1]] for groups in sides)
    edge = r"\b" if name == "bias-en" else ""
    for row in rows:
        untypical, stereotyped = row["groups"]
        assert row["untypical"] == re.sub(rf"{edge}{stereotyped}{edge}", untypical, row["stereotype"], count=1)


@pytest.mark.parametrize("name", ["bias-questions-en", "bias-questions-zh"])
def test_half_of_the_bias_questions_are_open_and_half_of_the_others_go_against_a_stereotype(name: str) -> None:
    rows = rows_of(name)
    open_, told = [row for row in rows if row["ambiguous"]], [row for row in rows if not row["ambiguous"]]
    assert len(open_) == len(told)
    assert all(row["answer"] == row["unknown"] for row in open_)
    assert sum(row["answer"] == row["stereotyped"] for row in told) == len(told) / 2
    assert all(row["answer"] != row["unknown"] for row in told)
    for asked, answered in zip(rows[::2], rows[1::2], strict=True):
        assert answered["context"].startswith(asked["context"])
        assert answered["context"] != asked["context"]


@pytest.mark.parametrize("name", ["grammar-en", "grammar-zh"])
def test_grammar_covers_many_phenomena(name: str) -> None:
    counts = Counter(row["phenomenon"] for row in rows_of(name))
    assert len(counts) >= 12
    assert min(counts.values()) >= 4


def test_passages_are_short_and_of_many_kinds() -> None:
    rows = rows_of("language-modelling-en")
    assert all(60 <= len(row["text"].split()) <= 110 for row in rows)
    assert len({row["genre"] for row in rows}) >= 15


@pytest.mark.parametrize("name", ["word-problems-en", "word-problems-zh"])
def test_word_problems_have_four_different_numbers(name: str) -> None:
    for row in rows_of(name):
        assert len(row["options"]) == 4
        assert [option for option in row["options"] if same_number(option, row["answer"])] == [row["answer"]]
    assert len({row["level"] for row in rows_of(name)}) >= 3


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ({"words": 1}, "Lisbon.", "It is Lisbon."),
        ({"words": [2, 4]}, "well-known old songs", "one"),
        ({"characters": [3, 5]}, "a b, c", "abcdef"),
        ({"sentences": 2}, 'He said: "Go!" And she went.', "He went at 3.30 and came back."),
        ({"sentences": 1}, "It costs 3.50 today", "It rains. I stay."),
        ({"lines": 2}, "one\n\ntwo", "one two"),
        ({"line_characters": 3}, "abc\nd ef", "abc\nde"),
        ({"paragraphs": 2}, "One.\n\nTwo.", "One.\nTwo."),
        ({"items": 2}, "Well:\n- a\n2. b", "a, b"),
        ({"only_items": True}, "* a\n* b", "Sure:\n* a"),
        ({"parts": {"by": ",", "count": 3}}, "a, b, c.", "a, b and c"),
        ({"parts": {"by": ";", "count": 2}}, "a; b", "a;"),
        ({"json": ["a", "b"]}, '```json\n{"b": 1, "a": 2}\n```', '{"a": 1, "b": 2, "c": 3}'),
        ({"json": ["a"]}, '{"a": null}', 'Here it is: {"a": 1}'),
        ({"json_list": 2}, "[1, 2]", "1, 2"),
        ({"starts": "Dear"}, "Dear Ana", "Hello, dear Ana"),
        ({"ends": "?"}, "Who?", "Who? I wonder."),
        ({"contains": ["moon", "sun"]}, "Sun and moon", "Sunshine"),
        ({"contains_one": ["moon", "sun"]}, "The sun", "A star"),
        ({"avoids": "e"}, "a big dog", "a big hare"),
        ({"times": {"text": "tea", "count": 2}}, "Tea or tea", "tea"),
        ({"case": "upper"}, "GO ON 3!", "Go on"),
        ({"case": "lower"}, "go on", "Go on"),
        ({"case": "title"}, "Small Steps 3", "Small steps"),
        ({"initial": "s"}, "Seven swans.", "Seven big swans."),
        ({"quoted": True}, '"Blue"', "Blue"),
        ({"one_of": ["yes", "no"]}, "No.", "No, it isn't"),
        ({"sorted": True}, "ant, bee, cow", "bee, ant"),
        ({"sorted": True}, "- ant\n- bee", "- bee\n- ant"),
        ({"pattern": "[0-9]{2}"}, "42", "It is 42"),
        ({"words": 1, "case": "upper"}, "YES", "yes"),
    ],
)
def test_a_check_of_instructions(check: dict[str, Any], good: str, bad: str) -> None:
    assert follows(good, [], {"check": check}) == 1.0
    assert follows(bad, [], {"check": check}) == 0.0
    assert follows(" ", [], {"check": check}) == 0.0


def test_every_check_is_tested() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in CHECKS if f'({{"{name}":' not in text] == []


def test_a_check_that_there_is_not_is_an_error() -> None:
    with pytest.raises(ValueError, match="no check 'word'; there are: words"):
        follows("yes", [], {"check": {"word": 1}})
    with pytest.raises(ValueError, match="must map checks"):
        follows("yes", [], {"check": "words"})


def test_examples_follow_their_instructions_and_other_answers_do_not() -> None:
    task = TASKS["instructions-en"]
    for item in ITEMS["instructions-en"]:
        (example,) = item.references
        assert score_answer(task.keys.scorers, example, item, task.folder) == {"follows": 1.0}, example
        wrong = (
            "I am not sure what you mean, but here are some thoughts: it depends",
            "Well. It depends. On what? On you.",
        )
        scores = [score_answer(task.keys.scorers, answer, item, task.folder)["follows"] for answer in wrong]
        assert min(scores) == 0.0, example


def test_the_reference_lists_every_suite_with_its_rows() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "suites.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([a-z-]+)` \|.*\| ([0-9]+, [0-9]+) \|", page, re.MULTILINE))
    assert table == {topic: f"{len(ITEMS[f'{topic}-en'])}, {len(ITEMS[f'{topic}-zh'])}" for topic in ROWS}


def test_rows_are_one_json_object_a_line() -> None:
    for file in FOLDER.glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines()
        assert all(json.dumps(json.loads(line), ensure_ascii=False) == line for line in lines), file.name
