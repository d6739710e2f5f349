"""Rows with one input and different answers are found, named and counted, whatever words are around the input."""

from __future__ import annotations

import pytest

from graftlm.data.contradictions import Answers, Contradictions, compared
from graftlm.data.filters import apply_filters
from graftlm.data.formatting import FormatSettings, demonstration_pool, format_rows
from graftlm.data.instances import Instance, Message
from graftlm.data.prepare import RowCounts
from graftlm.data.sets import SetCard
from graftlm.data.task_template import load_task_template
from graftlm.errors import UserError

ROWS = [{"text": f"film {n}", "label": ("pos", "neg")[n % 2]} for n in range(40)]
ROWS += [{"text": "Film 3", "label": "pos"}, {"text": "film 4 ", "label": "neg"}, {"text": "film 5", "label": "neg"}]


def made(rows=ROWS, **settings):
    known = FormatSettings(source="a.csv", **settings)
    task, numbered = load_task_template("sentiment"), list(enumerate(rows, 1))
    pool = demonstration_pool(numbered, task, known, 0) if known.demonstrations[1] else None
    return list(format_rows(numbered, task, known, 0, pool=pool))


@pytest.mark.parametrize("settings", [{}, {"demonstrations": (0, 3)}, {"language": "zh"}])
def test_a_drawn_description_hides_no_pair(settings):
    card = SetCard()
    kept = [i.row for _, i in apply_filters((("t", i) for i in made(**settings)), [Contradictions()], card)]
    assert sorted(set(range(1, 44)) - set(kept)) == [4, 5, 41, 42]
    assert card.dropped == {"same input, other answer": 4}


def test_the_rows_and_both_labels_are_named():
    answers = Answers()
    for instance in [*made(), *made([{"text": "film 4", "label": "neg"}])]:
        answers.add(instance)
    assert answers.number == 5
    assert [str(pair) for pair in answers.pairs()] == [
        "a.csv:4 'negative' and a.csv:41 'positive'",
        "a.csv:5 'positive' and a.csv:42 'negative'",
    ]
    assert answers.note()["tasks"] == {"sentiment": 5}


def test_inverted_tasks_are_not_compared():
    answers = Answers()
    for instance in made([{"text": f"film {n}", "label": "pos"} for n in range(9)], inverted=True):
        answers.add(instance)
    assert answers.number == 0


def test_others_are_compared_by_their_prompts():
    answers, labelled = Answers(), Answers(prompts=False)
    for row, said in enumerate(("yes", "no", "Yes ")):
        chat = Instance((Message("user", "Is it?"), Message("assistant", said)), "b.jsonl", row)
        answers.add(chat)
        labelled.add(chat)
    assert (answers.number, labelled.number) == (3, 0)
    assert Answers().number == 0


def test_kept_dropped_or_refused():
    notes: dict[str, object] = {}
    assert len(list(compared(made(), Answers(), notes=notes))) == 43
    assert notes["contradictions"]["rows"] == 4
    with pytest.raises(UserError, match=r"4 rows have the same input and another label, .*:\n  a.csv:4"):
        list(compared(made(), Answers(), refuse="label"))
    seen, counts = Answers(), RowCounts(kept=43)
    assert len(list(compared(made(), seen))) == 43
    assert len(list(compared(made(), seen, counts, reason="other"))) == 39
    assert (counts.kept, counts.dropped, counts.examples["other"][0]) == (39, {"other": 4}, "a.csv:4")
