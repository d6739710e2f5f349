"""The shipped demo data: made by its script, well formed, balanced, and held out for real."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "graftlm" / "demo" / "data"
TASKS = ("feelings", "questions", "advice")
SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_demo_data", ROOT / "scripts" / "make_demo_data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(task: str, split: str) -> list[dict[str, str]]:
    text = (FOLDER / f"{task}.{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_script_makes_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    written = script.write(tmp_path)
    assert {path.name for path in written} == {path.name for path in FOLDER.glob("*.jsonl")}
    for path in written:
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), f"{path.name} is stale"


def test_size() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_000_000


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASKS)
def test_rows(script: ModuleType, task: str, split: str) -> None:
    rows = read(task, split)
    wanted = script.TRAIN_ROWS if split == "train" else script.HELD_OUT_ROWS
    assert len(rows) == wanted[task]
    for row in rows:
        assert list(row) == ["instruction", "input", "output"]
        assert all(text and text == text.strip() and text.isascii() for text in row.values())
        assert not any(mark in text for text in row.values() for mark in "{}=<>")
        assert "  " not in row["input"]
        assert row["input"][0].isupper() or row["input"][0] == '"'


@pytest.mark.parametrize("task", TASKS)
def test_no_input_twice(task: str) -> None:
    inputs = Counter(row["input"] for split in SPLITS for row in read(task, split))
    assert inputs.most_common(1)[0][1] == 1


@pytest.mark.parametrize("split", SPLITS)
def test_balance(script: ModuleType, split: str) -> None:
    feelings = Counter(row["output"] for row in read("feelings", split))
    assert set(feelings) == set(script.FEELINGS)
    assert max(feelings.values()) - min(feelings.values()) <= 2
    advice = Counter(row["output"] for row in read("advice", split))
    assert set(advice) == set(script.problems(split))
    assert max(advice.values()) < 0.1 * sum(advice.values())
    answers = Counter(row["output"] for row in read("questions", split))
    assert max(answers.values()) < 0.1 * sum(answers.values())


# What each task is made of: (train, held out). These are disjoint; instructions, openers, greetings and the
# answers of feelings and advice are shared on purpose.


def material(script: ModuleType, split: str) -> dict[str, list[str]]:
    return {
        "names": [*script.GIRLS[split], *script.BOYS[split]],
        "feelings: causes": [text for texts in script.CAUSES[split].values() for text in texts],
        "feelings: signs": [text for texts in script.SIGNS[split].values() for text in texts],
        "questions: stories": sorted({story for story, _, _ in script.stories(split)}),
        "questions: wheres": script.WHERES[split],
        "questions: things": script.THINGS[split],
        "questions: characters": script.CHARACTERS[split],
        "advice: problems": [text for texts in script.problems(split).values() for text in texts],
    }


def test_material_is_disjoint(script: ModuleType) -> None:
    train, held_out = material(script, "train"), material(script, "held_out")
    for kind in train:
        entries = Counter(train[kind] + held_out[kind])
        assert [text for text, count in entries.items() if count > 1] == [], kind


def test_held_out_texts_hold_no_training_material(script: ModuleType) -> None:
    """In the shipped rows themselves: no training cause, sign or problem, whatever the name in it."""
    for task in ("feelings", "advice"):
        forms: set[str] = set()
        for kind, texts in material(script, "train").items():
            if kind.startswith(task):
                for who in script.PRONOUNS.values():
                    forms |= {script.sentence(text.format(n="NAME", **who)) for text in texts}
        held_out_names = material(script, "held_out")["names"]
        for row in read(task, "held_out"):
            text = row["input"]
            for name in held_out_names:
                text = text.replace(name, "NAME")
            assert not [form for form in forms if form in text], row


def test_held_out_questions_have_new_answers() -> None:
    seen = {row["output"].lower() for row in read("questions", "train")}
    assert [row for row in read("questions", "held_out") if row["output"].lower() in seen] == []
