"""All models answer all kinds of tasks in shared batches: the numbers are those of a model alone, by other means."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from graftlm import AdaptedModel
from graftlm.data.instances import Message
from graftlm.errors import UserError
from graftlm.evaluation.answering import Answering, Limits
from graftlm.evaluation.asking import why_not
from graftlm.evaluation.drift import drift_of_texts
from graftlm.evaluation.results import ItemResult, ResultFile
from graftlm.evaluation.speakers import Opened, open_adapters
from graftlm.evaluation.tasks.items import read_items
from graftlm.evaluation.tasks.task import EvalTask, TaskKeys
from tests.families import randomise
from tests.methods import METHODS

KINDS = ("lora", "seq_bn", "prefix", "prompt", "p-tuning-mlp")
CHOICE = {"kind": "choice", "prompt": "{{ q }}", "choices": "{{ options }}", "answer": "{{ label }}"}
ROWS: list[dict[str, Any]] = [
    {"q": "Tom has a ball. What does Tom have?", "options": ["a ball", "a very big dog", "no"], "label": 0},
    {"q": "The sky is", "options": ["blue", "green"], "label": "blue"},
]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The embedded base with one random adapter of each of some kinds, through their folders."""
    folder = tmp_path_factory.mktemp("adapters")
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    for number, name in enumerate(KINDS):
        randomise(model.add(name, METHODS[name]), seed=number, std=0.05)
        model.save(name, folder / name)
    return open_adapters([folder / name for name in KINDS], device="cpu")


def task_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> EvalTask:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return EvalTask("task", TaskKeys(**{"path": ("rows.jsonl",), **keys}), folder)


def answered(opened: Opened, task: EvalTask, folder: Path, tokens: int = 500) -> dict[str, list[ItemResult]]:
    items = read_items(task)
    files = {each.label: ResultFile(folder / f"{each.label}.jsonl", {}) for each in opened.speakers}
    told: list[int] = []
    Answering(opened, task, items, files, Limits(tokens, 4), told.append).run()
    assert sum(told) <= len(items) * len(files)
    return {label: ResultFile(file.path, {}).in_order(len(items)) for label, file in files.items()}


@torch.no_grad()
def log_prob_by_hand(opened: Opened, label: str, messages: tuple[Message, ...], answer: str) -> float:
    """From full logits of one row that the speaker's template renders whole."""
    speaker = opened.speaker(label)
    rendered = speaker.template.render((*messages, Message("assistant", answer)), opened.tokenizer)
    ids = torch.tensor([rendered.ids])
    logits = opened.model(ids, adapters=[speaker.stack or None]).logits[0].log_softmax(-1)
    places = [place for place, learnt in enumerate(rendered.supervised) if learnt and place]
    return float(sum(logits[place - 1, rendered.ids[place]] for place in places))


def test_choices_are_scored_as_by_hand(opened: Opened, tmp_path: Path) -> None:
    task = task_of(tmp_path, ROWS, **CHOICE)
    items = read_items(task)
    for label, results in answered(opened, task, tmp_path).items():
        for item, result in zip(items, results, strict=True):
            assert result.error is None
            assert result.sizes == tuple(len(text) for text in item.candidates)
            for candidate, value in zip(item.candidates, result.log_probs, strict=True):
                assert value == pytest.approx(log_prob_by_hand(opened, label, item.messages, candidate), rel=1e-4)


def test_a_killed_run_goes_on_and_does_no_more_than_is_missing(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(tmp_path, ROWS * 3, **CHOICE)
    whole = answered(opened, task, tmp_path / "whole")
    killed = tmp_path / "killed"
    stored = 0
    real = Answering._store

    def dying(self: Answering, found: Any) -> None:
        nonlocal stored
        real(self, found)
        stored += len(found)
        if stored > 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(Answering, "_store", dying)
    with pytest.raises(KeyboardInterrupt):
        answered(opened, task, killed, tokens=60)
    monkeypatch.setattr(Answering, "_store", real)
    kept = sum(len(ResultFile(killed / f"{each.label}.jsonl", {}).results) for each in opened.speakers)
    assert 9 < kept < len(whole) * 6
    again = answered(opened, task, killed, tokens=60)
    for label, results in whole.items():
        for one, other in zip(results, again[label], strict=True):
            assert one.log_probs == pytest.approx(other.log_probs, rel=1e-5)


def test_answers_are_what_the_model_writes(opened: Opened, tmp_path: Path) -> None:
    keys = {"kind": "generate", "prompt": "{{ q }}", "answer": "{{ options[0] }}", "max_tokens": 5}
    results = answered(opened, task_of(tmp_path, ROWS, **keys, scorers=("exact",)), tmp_path)
    for label, each in results.items():
        speaker = opened.speaker(label)
        prompt = list(speaker.template.render_prompt([Message("user", ROWS[1]["q"])], opened.tokenizer))
        begun = len(prompt)
        for _ in range(5):
            with torch.no_grad():
                logits = opened.model(torch.tensor([prompt]), adapters=[speaker.stack or None]).logits[0, -1]
            prompt.append(int(logits.argmax()))
            if prompt[-1] in speaker.stop_ids:
                break
        assert each[1].text is not None
        text = opened.tokenizer.decode(prompt[begun:], skip_special_tokens=True).strip()
        assert text.startswith(each[1].text)
        assert set(each[1].scores) == {"exact"}


def test_texts_longer_than_the_context_are_read_in_windows(opened: Opened, tmp_path: Path) -> None:
    long = "One day a girl went to the park. " * 260
    results = answered(
        opened, task_of(tmp_path, [{"t": long}, {"t": "A cat."}], kind="perplexity", text="{{ t }}"), tmp_path
    )
    ids = opened.tokenizer(long.strip(), add_special_tokens=False)["input_ids"]
    assert len(ids) > opened.model.context_length
    for each in results.values():
        assert each[0].error is None
        assert abs(each[0].tokens[0] - len(ids)) <= 2  # its begin and end


def test_an_answer_without_room_is_told(opened: Opened, tmp_path: Path) -> None:
    rows = [
        {"q": "Why?", "options": ["so", "x " * 2100], "label": 0},
        {"q": "Why?", "options": ["so", "x " * 2100], "label": 1},
        {"q": "y " * 2100, "options": ["so", "no"], "label": 1},
    ]
    for each in answered(opened, task_of(tmp_path, rows, **CHOICE), tmp_path).values():
        assert each[0].log_probs[1] is None
        assert each[0].log_probs[0] is not None
        assert [result.error is None for result in each] == [True, False, False]
        assert "longer than the context" in str(each[1].error)


def test_pairs_of_texts(opened: Opened, tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"a": "He runs home.", "b": "He run home."}], kind="pairs", good="{{ a }}", bad="{{ b }}")
    for each in answered(opened, task, tmp_path).values():
        assert each[0].error is None
        assert each[0].log_probs[0] != each[0].log_probs[1]


def test_drift_is_the_divergence_by_hand(opened: Opened, tmp_path: Path) -> None:
    texts = [
        {"t": "Once upon a time there was a dog."},
        {"t": "The sun is hot."},
        {"t": "A cat sat on the mat by the door."},
    ]
    task = task_of(tmp_path, texts, kind="perplexity", text="{{ t }}")
    items = read_items(task)
    for tokens in (10, 10_000):
        found = drift_of_texts(opened, task, items, opened.adapters, tokens)
        assert set(found) == set(KINDS)
        for label in ("lora", "prefix", "seq_bn"):
            for item, result in zip(items, found[label], strict=True):
                rendered = opened.base.template.render((Message("text", item.candidates[0]),), opened.tokenizer)
                ids = torch.tensor([rendered.ids])
                with torch.no_grad():
                    p = opened.model(ids).logits[0].double().log_softmax(-1)
                    q = opened.model(ids, adapters=[label]).logits[0].double().log_softmax(-1)
                places = [place - 1 for place, learnt in enumerate(rendered.supervised) if learnt and place]
                by_hand = float((p.exp() * (p - q)).sum(-1)[places].sum())
                assert by_hand > 0.01
                assert result.scores["kl"] == pytest.approx(by_hand, rel=1e-3)
                assert result.scores["tokens"] == len(places)


def test_the_drift_of_a_long_text_does_not_depend_on_who_else_is_asked(opened: Opened, tmp_path: Path) -> None:
    room = opened.model.context_length
    text = "The dog ran to the park. " * (room // 7 + 40)
    task = task_of(tmp_path, [{"t": text}], kind="perplexity", text="{{ t }}")
    items = read_items(task)
    lora, prefix = opened.speaker("lora"), opened.speaker("prefix")
    together = drift_of_texts(opened, task, items, [lora, prefix], 10_000)
    alone = drift_of_texts(opened, task, items, [lora], 10_000)
    assert together["lora"][0].scores["tokens"] == alone["lora"][0].scores["tokens"]
    assert together["lora"][0].scores["kl"] == pytest.approx(alone["lora"][0].scores["kl"], rel=1e-4)
    assert together["prefix"][0].scores["tokens"] < alone["lora"][0].scores["tokens"]


def test_who_cannot_be_asked(make_model: Callable[..., AdaptedModel], opened: Opened, tmp_path: Path) -> None:
    task = task_of(tmp_path, ROWS, kind="classify", prompt="{{ q }}", answer="{{ label }}")
    assert why_not(opened, opened.base, task, read_items(task)) == "it predicts no labels with a head"


def test_a_scorer_of_ones_own_that_raises_is_named(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def score(answer, references, row):\n    return 1 / 0\n")
    keys = {"kind": "generate", "prompt": "{{ q }}", "answer": "x", "max_tokens": 2}
    task = task_of(tmp_path, ROWS, **keys, scorers=({"name": "mine", "python": "own.py:score"},))
    with pytest.raises(UserError, match=r"own\.py"):
        answered(opened, task, tmp_path)
