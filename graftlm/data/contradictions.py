"""Instances that answer one input in different ways: found, named, removed.

Labelled rows are compared by their keys, so that a drawn description hides no pair; others, such as chats, by their
prompts and answers. White space and case do not count.
"""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy

from graftlm.data.instances import Instance
from graftlm.data.keys import QUESTION
from graftlm.data.prepare import RowCounts
from graftlm.data.texts import answer_of, hash_texts, prompt_of
from graftlm.errors import UserError

REASON = "same input, other answer"
SHOWN = 3  # pairs that are named
WORDS, LETTERS = 10_000, 40  # answers that are kept to be named, and how much of each


@dataclass(frozen=True)
class Pair:
    """Two instances with one input, as places ("file:row") and the beginnings of their answers."""

    places: tuple[str, str]
    answers: tuple[str, str]

    def __str__(self) -> str:
        return " and ".join(f"{place} '{text}'" for place, text in zip(self.places, self.answers, strict=True))


def input_of(instance: Instance, *, prompts: bool = True) -> int | None:
    """64 bits of what an instance is asked; None where there is nothing to compare.

    That is where many answers are right (inverted tasks), where there is no prompt, and without ``prompts`` wherever
    an instance has no keys.
    """
    origin = instance.provenance
    if origin.input_key:
        return _mixed(origin.input_key, origin.answer_key[:QUESTION]) if origin.answer_key else None
    prompt = prompt_of(instance) if prompts else ""
    return hash_texts(prompt) if prompt else None


def _mixed(key: str, question: str) -> int:
    """64 bits of an input's key and of what is asked about it."""
    try:
        return (int(key, 16) + int(question, 16) * 0x9E3779B97F4A7C15) % 2**64
    except ValueError:  # a file may hold keys of another kind
        return hash_texts(key, question)


class Answers:
    """What instances answer to what, in 16 bytes for each. ``prompts``: those without keys too, by their prompts."""

    def __init__(self, *, prompts: bool = True) -> None:
        self.prompts = prompts
        self.inputs, self.answers, self.rows = array("Q"), array("I"), array("I")
        self.starts: list[int] = []  # the first instance of each stretch of one source
        self.sources: list[tuple[str, str]] = []
        self.words: dict[int, str] = {}

    def add(self, instance: Instance) -> None:
        """One more instance."""
        key = input_of(instance, prompts=self.prompts)
        if key is None:
            return
        source = (instance.source, instance.provenance.task)
        if not self.sources or self.sources[-1] != source:
            self.starts.append(len(self.inputs))
            self.sources.append(source)
        said = answer_of(instance)
        text = instance.provenance.answer_key or " ".join(said.casefold().split())
        answer = zlib.crc32(text.encode("utf-8", "surrogatepass"))
        if answer not in self.words and len(self.words) < WORDS:
            self.words[answer] = " ".join(said[: 2 * LETTERS].split())[:LETTERS].encode("utf-8", "replace").decode()
        self.inputs.append(key)
        self.answers.append(answer)
        self.rows.append(instance.row % 2**32)

    @cached_property
    def _found(self) -> tuple[Any, Any]:
        """The instances that contradict each other, together by input, and their inputs; read when all are in."""
        inputs, answers = numpy.frombuffer(self.inputs, numpy.uint64), numpy.frombuffer(self.answers, numpy.uint32)
        order = numpy.argsort(inputs, kind="stable")
        sorted_inputs, sorted_answers = inputs[order], answers[order]
        same = sorted_inputs[1:] == sorted_inputs[:-1]  # if answers of one input differ, two neighbours' do
        bad = numpy.unique(sorted_inputs[1:][same & (sorted_answers[1:] != sorted_answers[:-1])])
        if not len(bad):
            return bad, bad
        nearest = numpy.searchsorted(bad, sorted_inputs).clip(max=len(bad) - 1)
        return order[bad[nearest] == sorted_inputs], bad

    @property
    def number(self) -> int:
        """How many instances contradict another one."""
        return len(self._found[0])

    @property
    def contradicted(self) -> frozenset[int]:
        """The inputs that have several answers; see :func:`input_of`."""
        return frozenset(self._found[1].tolist())

    def by_task(self) -> dict[str, int]:
        """:attr:`number` by task."""
        return dict(sorted(Counter(self._source(index)[1] for index in self._found[0].tolist()).items()))

    def pairs(self, most: int = SHOWN) -> list[Pair]:
        """The first few contradictions, in the order in which they came: an instance and the first that differs."""
        groups: dict[int, list[int]] = {}
        for index in self._found[0].tolist():
            groups.setdefault(self.inputs[index], []).append(index)
        pairs: dict[tuple[str, str], Pair] = {}  # once, if a row became several instances
        for group in sorted(groups.values()):
            one = group[0]
            other = next(index for index in group if self.answers[index] != self.answers[one])
            places = (self._place(one), self._place(other))
            pairs.setdefault(places, Pair(places, (self._word(one), self._word(other))))
            if len(pairs) == most:
                break
        return list(pairs.values())

    def note(self) -> dict[str, Any]:
        """The account for a card: how many, by task, and the first few."""
        return {"rows": self.number, "tasks": self.by_task(), "examples": [str(pair) for pair in self.pairs()]}

    def _source(self, index: int) -> tuple[str, str]:
        return self.sources[bisect_right(self.starts, index) - 1]

    def _place(self, index: int) -> str:
        return f"{self._source(index)[0]}:{self.rows[index]}"

    def _word(self, index: int) -> str:
        return self.words.get(self.answers[index], "another answer")


def compared(
    instances: Iterable[Instance],
    answers: Answers,
    counts: RowCounts | None = None,
    *,
    reason: str = "",
    notes: dict[str, Any] | None = None,
    refuse: str = "",
) -> Iterator[Instance]:
    """The instances as they come, while ``answers`` looks at them; at the end ``notes`` gets the account.

    With ``counts``, ``answers`` has seen them all before, and those that contradict another are dropped by ``reason``.

    Raises:
        UserError: ``refuse`` says what must not differ (label, answer), and it does.
    """
    if counts is not None:
        bad = answers.contradicted
        for instance in instances:
            if bad and input_of(instance, prompts=answers.prompts) in bad:
                counts.kept -= 1
                counts.drop(reason, instance.source, instance.row)
            else:
                yield instance
        return
    for instance in instances:
        answers.add(instance)
        yield instance
    if answers.number and refuse:
        what = f"{answers.number:,} rows have the same input and another {refuse}, and nothing is written:"
        raise UserError(
            "\n".join([what, *(f"  {pair}" for pair in answers.pairs())]),
            hint="Mend them, or leave them out: --contradictions drop.",
        )
    if answers.number and notes is not None:
        notes["contradictions"] = answers.note()


class Contradictions:
    """A filter of instances with one input and different answers: all of them are removed."""

    def __init__(self) -> None:
        self.answers = Answers()
        self.bad: frozenset[int] | None = None
        self.found: dict[str, Any] = {}

    def look(self, task: str, instance: Instance) -> None:
        self.answers.add(instance)

    def judge(self, task: str, instance: Instance) -> str | None:
        if self.bad is None:
            self.bad, self.found = self.answers.contradicted, self.answers.note()
            self.answers = Answers()  # the rest of the build has no use for it
        return REASON if self.bad and input_of(instance) in self.bad else None
