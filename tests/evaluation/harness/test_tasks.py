"""Our tasks in the harness: the same rows, and with plain text the same scores."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graftlm.base.loading import load_base
from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Message
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.evaluation.choices import Normalise, Question, score_choices
from graftlm.evaluation.harness import Written, write_harness_tasks
from graftlm.evaluation.tasks.items import Item, read_items
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys
from tests.evaluation.harness.work import opened

pytest.importorskip("lm_eval")

#: As the harness writes a question and an answer: a space between them, and no end.
SPACE = ChatTemplate("space", system="{content}\n\n", user="{content}", assistant=" {content}{end}")
WORDS = ["red", "green", "blue", "a dark brown", "white as snow", "black"]


def make(folder: Path, name: str, rows: list[dict[str, Any]], **keys: Any) -> EvalTask:
    (folder / f"{name}.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvalTask(name, TaskKeys.model_validate({"path": [f"{name}.rows.jsonl"], **keys}), folder)


def choice(folder: Path, **keys: Any) -> EvalTask:
    things = ["grass", "snow", "the sky", "a tree", "coal", "blood", "milk", "the sea", "a rose", "night"]
    rows = [
        {"thing": thing, "options": [WORDS[(n + step) % 6] for step in range(4)], "right": n % 4}
        for n, thing in enumerate(things)
    ]
    pattern = {"prompt": "What colour is {{ thing }}?\nAnswer:", "choices": "{{ options }}", "answer": "{{ right }}"}
    return make(folder, "colours", rows, kind="choice", **pattern, **keys)


@pytest.fixture(scope="module")
def evaluated() -> Callable[[Written], dict[str, Any]]:
    """What the harness says of tasks with its own model."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = load_base("tiny", dtype="float32")
    peer = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)

    def evaluate(written: Written) -> dict[str, Any]:
        manager = TaskManager(include_path=str(written.folder), include_defaults=False)
        found = simple_evaluate(peer, tasks=["graftlm"], task_manager=manager, bootstrap_iters=0)
        assert found is not None
        return dict(found)

    return evaluate


def accuracy(items: list[Item], normalise: Normalise, template: ChatTemplate = SPACE) -> float:
    """Our own score of the bare base."""
    models = opened(0)
    questions = []
    for item in items:
        rows = []
        for candidate in item.candidates:
            messages = [*item.messages, Message("assistant", candidate)]
            rendered = template.render(messages, models.tokenizer)
            rows.append(EncodedRow(rendered.ids, rendered.supervised, "", 1))
        questions.append(Question(tuple(rows), tuple(len(each.encode()) for each in item.candidates)))
    found = score_choices(models.model, questions, [()], 2000, normalise)[()]
    best = np.argmax(found, axis=1)
    return float(np.mean([place in item.right for place, item in zip(best, items, strict=True)]))


def test_choices_score_alike(tmp_path: Path, evaluated: Callable[[Written], dict[str, Any]]) -> None:
    task = choice(tmp_path, normalise="byte")
    found = evaluated(write_harness_tasks([task], tmp_path / "out"))["results"]["graftlm_colours"]
    items = read_items(task)
    assert found["acc,none"] == accuracy(items, "sum")
    assert found["acc_bytes,none"] == found["acc_norm,none"] == accuracy(items, "byte")  # all letters are ASCII
    assert found["acc,none"] != found["acc_bytes,none"]


def test_several_right_choices(tmp_path: Path, evaluated: Callable[[Written], dict[str, Any]]) -> None:
    rows = [
        {"q": "Name a colour.", "options": WORDS[:3], "right": [0, 1]},
        {"q": "Name a number.", "options": ["seven", "apple", "tree"], "right": [0]},
    ]
    keys = {"prompt": "{{ q }}", "choices": "{{ options }}", "answer": "{{ right }}", "system": "Be short."}
    task = make(tmp_path, "several", rows, kind="choice", **keys)
    written = write_harness_tasks([task], tmp_path / "out")
    found = evaluated(written)["results"]["graftlm_several"]
    assert found["acc,none"] == accuracy(read_items(task), "sum")
    first = json.loads((tmp_path / "out" / "graftlm_several.jsonl").read_text().splitlines()[0])
    assert first["prompt"] == "Be short.\n\nName a colour."
    assert first["answer"] == [0, 1]


def test_pairs_preferences_and_texts(tmp_path: Path, evaluated: Callable[[Written], dict[str, Any]]) -> None:
    pairs = make(
        tmp_path,
        "grammar",
        [
            {"good": "The cats are asleep.", "bad": "The cats is asleep."},
            {"good": "She has gone home.", "bad": "She have gone home."},
        ],
        kind="pairs",
        good="{{ good }}",
        bad="{{ bad }}",
    )
    preference = make(
        tmp_path,
        "kind",
        [{"q": "Hello!", "yes": "Hello, how can I help?", "no": "Go away now."}],
        kind="preference",
        prompt="{{ q }}",
        chosen="{{ yes }}",
        rejected="{{ no }}",
    )
    texts = make(tmp_path, "prose", [{"t": "It was a dark night."}], kind="perplexity", text="{{ t }}")
    heads = make(tmp_path, "labels", [{"t": "x", "y": "y"}], kind="classify", prompt="{{ t }}", answer="{{ y }}")
    written = write_harness_tasks([pairs, preference, texts, heads], tmp_path / "out")
    assert written.names == ("graftlm_grammar", "graftlm_kind", "graftlm_prose")
    assert list(written.left_out) == ["labels"]
    found = evaluated(written)["results"]
    bare = ChatTemplate("begun", start="<s>", user="{content}", assistant="{content}{end}")
    items = [Item("", 1, (Message("user", ""),), item.candidates, item.right) for item in read_items(pairs)]
    assert found["graftlm_grammar"]["acc,none"] == accuracy(items, "sum", bare)
    assert found["graftlm_kind"]["acc,none"] == accuracy(read_items(preference), "sum")
    assert math.log2(found["graftlm_prose"]["byte_perplexity,none"]) == pytest.approx(
        found["graftlm_prose"]["bits_per_byte,none"]
    )


def test_written_answers_are_scored_by_our_scorers(
    tmp_path: Path, evaluated: Callable[[Written], dict[str, Any]]
) -> None:
    from graftlm.evaluation.scorers import score_answer

    (tmp_path / "own.py").write_text("def third(answer, references, row):\n    return row['n'] / 3\n")
    task = make(
        tmp_path,
        "sums",
        [{"q": "What is 1 + 1?", "a": "2", "n": 1}, {"q": "What is 1 + 2?", "a": ["3", "three"], "n": 2}],
        kind="generate",
        prompt="{{ q }}\nAnswer:",
        answer="{{ a }}",
        max_tokens=8,
        stop=["\n\n"],
        scorers=[
            "f1",
            "number",
            {"name": "has-digit", "regex": "[0-9]"},
            {"name": "third", "python": "own.py:third"},
        ],
    )
    report = evaluated(write_harness_tasks([task], tmp_path / "out"))
    found = report["results"]["graftlm_sums"]
    assert found["third,none"] == pytest.approx(0.5)
    scores = [
        score_answer(task.keys.all_scorers, sample["resps"][0][0].strip(), item, tmp_path)
        for sample, item in zip(report["samples"]["graftlm_sums"], read_items(task), strict=True)
    ]
    for name in ("f1", "number", "has-digit", "third"):
        assert found[f"{name},none"] == pytest.approx(np.mean([score[name] for score in scores]))


def test_no_space_before_answers_in_chinese(tmp_path: Path) -> None:
    def delimiter(task: EvalTask) -> str:
        write_harness_tasks([task], tmp_path / "out")
        lines = (tmp_path / "out" / f"graftlm_{task.name}.yaml").read_text("utf-8").splitlines()
        return str(json.loads(next(line for line in lines if line.startswith("target_delimiter"))[18:]))

    assert delimiter(choice(tmp_path)) == " "
    assert delimiter(choice(tmp_path, language="zh")) == ""


def test_text_without_spaces_has_a_perplexity(tmp_path: Path, evaluated: Callable[[Written], dict[str, Any]]) -> None:
    rows = [{"t": "森林里有很多树，河边有一座小房子。" * 12}]
    texts = make(tmp_path, "prose", rows, kind="perplexity", text="{{ t }}", language="zh")
    found = evaluated(write_harness_tasks([texts], tmp_path / "out"))["results"]["graftlm_prose"]
    assert math.isfinite(found["byte_perplexity,none"])


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    task = choice(tmp_path)
    write_harness_tasks([task], tmp_path / "out")
    write_harness_tasks([task], tmp_path / "out")  # its own are
    (tmp_path / "out" / "graftlm_colours.yaml").write_text("task: mine\n")
    with pytest.raises(UserError, match="not of graftlm's making"):
        write_harness_tasks([task], tmp_path / "out")
