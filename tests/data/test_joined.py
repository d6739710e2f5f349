"""Labelled and rated answers to one prompt, joined: nothing is lost, and ranks of different rows are not compared."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from graftlm.data.instances import Instance, Kind, Message, Verdict
from graftlm.data.joined import joined_answers
from graftlm.data.verdicts import scores_of, settled


def said(prompt: str, answer: str, value: float, row: int = 1, who: str = "", kind: Kind = "labels") -> Instance:
    messages = (Message("user", prompt), Message("assistant", answer))
    return Instance(messages, "f", row, verdicts=(Verdict(kind, (value,), "truthful", who),))


def test_good_answers_stand_above_bad_ones() -> None:
    rows = [said("q", "bad", 0, 1), said("r", "other", 1, 2), said("q", "good", 1, 3), said("q", " bad", 0, 4)]
    noted: list[int] = []
    [one, other] = joined_answers(rows, lambda each: noted.append(each.row))
    assert (one.answers, one.row, noted) == (("good", "bad"), 1, [3, 4])
    assert [verdict.values for verdict in one.verdicts] == [(1.0, 0.0), (None, 0.0)]
    assert scores_of(one, "truthful") == [1.0, 0.0]
    assert other is rows[1]


def test_annotators_and_criteria_stay_apart() -> None:
    rows = [said("q", "a", 4, who="x", kind="ratings"), said("q", "b", 5, who="x", kind="ratings")]
    rows += [said("q", "a", 2, who="y", kind="ratings"), said("q", "c", 1)]
    [one] = joined_answers(rows)
    assert one.answers == ("b", "a", "c")
    assert [(v.kind, v.annotator, v.values) for v in one.verdicts] == [
        ("ratings", "x", (5.0, 4.0, None)),
        ("ratings", "y", (None, 2.0, None)),
        ("labels", "", (None, None, 1.0)),
    ]


def test_ranks_orders_and_plain_rows_are_left_alone() -> None:
    messages = (Message("user", "q"), Message("assistant", "a"), Message("rejected", "b"))
    ranked = Instance(messages, "f", 1, verdicts=(Verdict("ranks", (0.0, 0.0)),))
    rows = [ranked, ranked, Instance(messages, "f", 2), Instance(messages[:2], "f", 3), Instance(messages[:2], "f", 3)]
    assert joined_answers(rows) == rows


ROW = st.tuples(st.sampled_from("qr"), st.sampled_from("abcd"), st.integers(0, 1), st.sampled_from(["", "x", "y"]))


@given(st.lists(ROW, max_size=20))
def test_every_label_is_kept(rows: list[tuple[str, str, int, str]]) -> None:
    noted: list[Instance] = []
    found = joined_answers([said(*row[:2], row[2], number, row[3]) for number, row in enumerate(rows)], noted.append)
    assert len(found) + len(noted) == len(rows)
    assert len(found) == len({row[0] for row in rows})
    again = Counter(
        (each.messages[0].content, answer, value, verdict.annotator)
        for each in found
        for verdict in each.verdicts
        for answer, value in zip(each.answers, verdict.values, strict=True)
        if value is not None
    )
    assert again == Counter(rows)
    for each in found:
        assert settled(each) == each
        scores = [score for score in scores_of(each) or [] if score is not None]
        assert scores == sorted(scores, reverse=True)
