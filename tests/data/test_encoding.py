"""Rows to token rows in one go: the same as step by step, however many processes work on them."""

from __future__ import annotations

import os
import random
import signal
import sys
from dataclasses import replace

import pytest

from graftlm.base.loading import load_tokenizer
from graftlm.data.contradictions import Contradictions
from graftlm.data.encoding import encode_labelled
from graftlm.data.filters import _UNIT as UNIT
from graftlm.data.filters import Duplicates, EmptyAnswer, Filter, Length, NearDuplicates, units
from graftlm.data.formatting import FormatSettings, format_rows
from graftlm.data.parallel import in_chunks
from graftlm.data.pieces import tokenize
from graftlm.data.prepare import RowCounts
from graftlm.data.rendering import Conversations
from graftlm.data.task_template import load_task_template
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError

WORDS = ["the", "film", "was", "a", "joy", "<eos>", "dull", "naïve", "真好", "and", "I", "3", "times", "slept", "badly"]


def labelled(count: int) -> list[tuple[int, dict[str, str]]]:
    rng = random.Random(1)
    rows = [" ".join(rng.choices(WORDS, k=rng.randint(1, 20))) for _ in range(count)]
    labels = [rng.choice(("pos", "neg", "neg", "odd")) for _ in rows]
    return [(n, {"text": text, "label": label}) for n, (text, label) in enumerate(zip(rows, labels, strict=True), 1)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_rows_and_the_account_are_those_of_the_steps_one_by_one(processes: int) -> None:
    tokenizer = load_tokenizer("tiny")
    rendering = Conversations(resolve_chat_template("plain", tokenizer), tokenizer, max_length=40)
    template, settings = load_task_template("sentiment"), FormatSettings(source="reviews.jsonl")
    filters = [EmptyAnswer(), Length(prompt=(18, 28))]
    rows = labelled(2600)

    steps = RowCounts()
    instances = []
    for instance in format_rows(rows, template, settings, 3, counts=steps):
        reason = next((why for each in filters if (why := each.judge("", instance))), None)
        if reason is None:
            instances.append(instance)
        else:
            steps.drop(reason, instance.source, instance.row)
    expected = [row for _, row in rendering.rows(instances, steps)]

    counts = RowCounts()
    parts = encode_labelled(
        iter(rows), template, settings, 3, rendering, filters=filters, counts=counts, processes=processes
    )
    found = [row for part in parts for row in part]
    assert [(r.ids, r.supervised, r.source, r.row) for r in found] == [
        (r.ids, r.supervised, r.source, r.row) for r in expected
    ]
    assert len(counts.dropped) >= 4, counts.dropped
    assert replace(counts, kept=0, examples={}) == replace(steps, kept=0, examples={})
    assert counts.examples == steps.examples
    assert counts.read == counts.kept + sum(counts.dropped.values()) == 2600


@pytest.mark.parametrize("each", [Duplicates(), NearDuplicates(), Contradictions()])
def test_filters_that_look_at_other_rows_are_refused(each: Filter) -> None:
    tokenizer = load_tokenizer("tiny")
    rendering = Conversations(resolve_chat_template("plain", tokenizer), tokenizer)
    parts = encode_labelled(
        labelled(5), load_task_template("sentiment"), FormatSettings(), 0, rendering, filters=[each]
    )
    with pytest.raises(UserError, match="looks at other rows"):
        next(parts)


def test_chunks_come_in_order_and_never_more_than_a_few_are_taken() -> None:
    taken: list[int] = []

    def stream() -> object:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_chunks(sum, stream(), chunk=10, processes=2)  # type: ignore[arg-type]
    first = next(results)
    assert first == sum(range(10))
    assert len(taken) <= 60
    assert [first, *results] == [sum(range(n, n + 10)) for n in range(0, 1000, 10)]


def test_what_goes_wrong_in_a_process_keeps_its_words_and_its_hint() -> None:
    def work(items: list[int]) -> int:
        if 25 in items:
            raise UserError("row 25 is wrong", hint="Mend it.")
        return len(items)

    results = in_chunks(work, range(100), chunk=10, processes=2)
    assert [next(results), next(results)] == [10, 10]
    with pytest.raises(UserError, match="row 25 is wrong") as caught:
        list(results)
    assert caught.value.hint == "Mend it."


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")
def test_a_process_that_is_killed_is_an_error() -> None:
    def work(items: list[int]) -> int:
        if 25 in items:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(items)

    with pytest.raises(UserError, match="ended from outside"):
        list(in_chunks(work, range(100), chunk=10, processes=2))


def test_texts_are_tokenised_as_a_call_of_the_tokenizer_does() -> None:
    tokenizer = load_tokenizer("tiny")
    rng = random.Random(2)
    texts = ["".join(rng.choices(["<eos>", "<bos>", " ", "\n", "a", "Zug", "é", "真", "🙂"], k=12)) for _ in range(300)]
    for special in (True, False):
        tokenizer(texts[:2], padding=True, truncation=True, max_length=3)  # settings that must not stay
        expected = tokenizer(texts, add_special_tokens=False, split_special_tokens=not special)["input_ids"]
        tokenizer(texts[:2], padding=True, truncation=True, max_length=3)
        assert tokenize(texts, tokenizer, special=special) == expected


def test_words_of_ascii_texts_are_those_of_the_pattern() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        text = "".join(chr(rng.randrange(128)) for _ in range(rng.randrange(40)))
        assert units(text) == UNIT.findall(text.lower())
