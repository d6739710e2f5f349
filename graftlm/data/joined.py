"""Answers to one prompt that were labelled or rated in rows of their own, as one instance that compares them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from graftlm.data.instances import Instance, Message, Verdict
from graftlm.data.verdicts import best_first

JOINED = "joined with an earlier row of the same prompt"


def joined_answers(
    instances: Iterable[Instance], note: Callable[[Instance], None] = lambda one: None
) -> list[Instance]:
    """The instances, those with labels or ratings alone joined where all that stands before the answers is the same.

    Labels and ratings are of one scale in all rows. Ranks are not: a row's best answer may be worse than another row's
    worst; instances with ranks, or in an order, stay as they are. ``note`` is told of each that is joined to an earlier
    one. An answer that stands in several rows is one answer, with what was said of it in each.
    """
    groups: dict[object, list[Instance]] = {}
    for number, instance in enumerate(instances):
        absolute = instance.verdicts and all(verdict.kind != "ranks" for verdict in instance.verdicts)
        key = instance.conversation[:-1] if absolute else number
        group = groups.setdefault(key, [])
        if group:
            note(instance)
        group.append(instance)
    return [group[0] if len(group) == 1 else _join(group) for group in groups.values()]


def _join(group: list[Instance]) -> Instance:
    texts: dict[str, str] = {}  # white space at the ends makes no other answer
    for instance in group:
        for answer in instance.answers:
            texts.setdefault(answer.strip(), answer)
    place = {text: number for number, text in enumerate(texts)}
    verdicts: list[Verdict] = []
    for instance in group:
        for verdict in instance.verdicts:
            values: list[float | None] = [None] * len(texts)
            for answer, value in zip(instance.answers, verdict.values, strict=True):
                values[place[answer.strip()]] = value
            verdicts.append(replace(verdict, values=tuple(values)))
    answers, moved = best_first([*texts.values()], _merged(verdicts))
    first = group[0].conversation
    messages = (
        *first[:-1],
        replace(first[-1], content=answers[0]),
        *(Message("rejected", each) for each in answers[1:]),
    )
    return replace(group[0], messages=messages, verdicts=moved)


def _merged(verdicts: list[Verdict]) -> list[Verdict]:
    """Verdicts of one kind, criterion and annotator as one, as long as none of them judges the same answer again."""
    found: list[Verdict] = []
    for verdict in verdicts:
        for number, other in enumerate(found):
            same = replace(other, values=verdict.values) == verdict
            if same and not any(
                a is not None and b is not None for a, b in zip(other.values, verdict.values, strict=True)
            ):
                values = tuple(b if a is None else a for a, b in zip(other.values, verdict.values, strict=True))
                found[number] = replace(other, values=values)
                break
        else:
            found.append(verdict)
    return found
