"""Ranked lists, labels, ratings, ties, margins and annotators: what becomes of them, and what is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftlm.cli._prompts import read_prompts
from graftlm.cli.data_format import as_row
from graftlm.data.filters import Duplicates
from graftlm.data.instances import Instance, Message, RowProblem, Verdict
from graftlm.data.mixing import Spool, row_key
from graftlm.data.preferences import chosen_answers, form_of
from graftlm.data.prepare import Instances, RowCounts, load_instances
from graftlm.data.sets import SetCard, read_card, read_set, write_set
from graftlm.data.texts import prompt_of
from graftlm.data.verdicts import EMPTY, EQUAL, settled

Q = "Where is the cat?"
ASKED = {"role": "user", "content": Q}


def load(folder: Path, *rows: dict[str, Any]) -> Instances:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_instances(file)


def ranks(*values: float | None, **more: Any) -> Verdict:
    return Verdict("ranks", values, **more)


def ratings(*values: float | None, **more: Any) -> Verdict:
    return Verdict("ratings", values, **more)


def label(value: float, **more: Any) -> Verdict:
    return Verdict("labels", (value,), **more)


PAIR = {"prompt": Q, "chosen": "b", "rejected": "a"}
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[Verdict, ...]]] = {
    "list, best first": (
        {"instruction": Q, "input": "", "output": ["c", "b", "a"], "history": []},
        ("c", "b", "a"),
        (),
    ),
    "list with ranks": ({"prompt": Q, "answers": ["a", "b", "c"], "ranks": [3, 2, 1]}, ("c", "b", "a"), ()),
    "list with ties": (
        {"prompt": Q, "answers": ["a", "b", "c"], "ranks": [2, 1, 2]},
        ("b", "a", "c"),
        (ranks(1, 2, 2),),
    ),
    "list by an annotator": (
        {"prompt": Q, "ranked": ["b", "a"], "worker": "w"},
        ("b", "a"),
        (ranks(0, 1, annotator="w"),),
    ),
    "ranks by criterion": (
        {"prompt": [ASKED], "answers": ["a", "b"], "ranks": {"Helpfulness": [2, 1], "harmless": [1, 2]}},
        ("a", "b"),
        (ranks(2, 1, criterion="helpful"), ranks(1, 2, criterion="harmless")),
    ),
    "ratings beside each answer": (
        {"instruction": Q, "completions": [{"response": "a", "rating": 2}, {"response": "b", "rating": "4"}]},
        ("b", "a"),
        (ratings(4, 2),),
    ),
    "UltraFeedback": (
        {
            "instruction": Q,
            "completions": [
                {"response": "a", "annotations": {"honesty": {"Rating": "N/A"}, "helpfulness": {"Rating": "2"}}},
                {"response": "b", "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "1"}}},
            ],
        },
        ("b", "a"),
        (ratings(5, None, criterion="honest"), ratings(1, 2, criterion="helpful")),
    ),
    "a label": ({"messages": [ASKED, {"role": "assistant", "content": "a"}], "label": True}, ("a",), (label(1),)),
    "a label in words": ({"prompt": Q, "completion": "a", "label": "undesirable"}, ("a",), (label(0),)),
    "ratings of one answer": (
        {"prompt": Q, "response": "a", "helpfulness": 3, "verbosity": 1},
        ("a",),
        (ratings(3, criterion="helpful"), ratings(1, criterion="verbosity")),
    ),
    "a pair with all there is": (
        {**PAIR, "margin": 2, "criterion": "harmlessness", "annotator": 7},
        ("b", "a"),
        (ranks(0, 1, criterion="harmless", annotator="7", margin=2),),
    ),
    "a tie": ({**PAIR, "tie": True}, ("b", "a"), (ranks(0, 0),)),
    "a pair with scores": (
        {**PAIR, "score_chosen": 8.0, "score_rejected": 6.5},
        ("b", "a"),
        (ranks(0, 1), ratings(8, 6.5)),
    ),
    "implicit prompt": ({"chosen": f"{Q} b", "rejected": f"{Q} a"}, ("b", "a"), ()),
    "a dialogue as the prompt": ({**PAIR, "prompt": f"\n\nHuman: {Q}\n\nAssistant:"}, ("b", "a"), ()),
    "numbered": ({"prompt": Q, "response_0": "a", "response_1": "b", "better_response_id": 1}, ("b", "a"), None),  # type: ignore[dict-item]
    "lettered": ({"prompt": Q, "answer_a": "a", "answer_b": "b", "winner": "model_b"}, ("b", "a"), ()),
    "a lettered tie": ({"prompt": Q, "answer_a": "a", "answer_b": "b", "winner": "tie"}, ("a", "b"), (ranks(0, 0),)),
    "several annotators": (
        {
            "prompt": Q,
            "answers": ["a", "b"],
            "judgements": [{"annotator": "x", "ranks": [2, 1]}, {"annotator": "y", "ratings": {"polite": [3, 5]}}],
        },
        ("b", "a"),
        (ranks(1, 2, annotator="x"), ratings(5, 3, criterion="polite", annotator="y")),
    ),
    "TruthfulQA": (
        {"prompt": f"Q: {Q}\nA: a\nTrue:", "completion": " no"},
        ("a",),
        (label(0, criterion="truthful"),),
    ),
}
FORMS["numbered"] = (*FORMS["numbered"][:2], (ranks(0, 1, criterion="helpful"),))


@pytest.mark.parametrize("name", FORMS)
def test_forms(name: str, tmp_path: Path) -> None:
    row, answers, verdicts = FORMS[name]
    [instance] = load(tmp_path, row).items
    assert (instance.answers, instance.verdicts, prompt_of(instance)) == (answers, verdicts, Q)


def test_all_forms_are_kept_by_sets_spools_and_files_of_chats(tmp_path: Path) -> None:
    found = []
    for name, (row, _, _) in FORMS.items():
        (tmp_path / name).mkdir()
        found += load(tmp_path / name, row).items
    write_set(tmp_path / "set", found, SetCard())
    assert list(read_set(tmp_path / "set")) == found
    card = read_card(tmp_path / "set")
    assert card.answers == {"labelled answers": 3, "lists of 3": 3, "pairs": 13, "rated answers": 1}
    assert card.criteria["helpful"] == 4
    assert "| lists of 3 | 3 |" in (tmp_path / "set" / "card.md").read_text("utf-8")
    with Spool() as spool:
        for place, each in enumerate(found):
            spool.add(place, "", each)
        assert [each for _, _, each in spool.sorted()] == found
    again = load(tmp_path, *map(as_row, found)).items  # all of them in one file
    assert [(each.messages, each.verdicts) for each in again] == [(each.messages, each.verdicts) for each in found]
    labelled = [each for each in found if len(each.answers) == 1]
    again = load(tmp_path, *map(as_row, [*labelled, *found[:2]])).items
    assert [(each.messages, each.verdicts) for each in again] == [
        (each.messages, each.verdicts) for each in (*labelled, *found[:2])
    ]


FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "one": ({"instruction": Q, "output": ["a"]}, "a ranked list of one answer"),
    "none": ({"instruction": Q, "output": []}, "an empty list of answers"),
    "all equal": ({"instruction": Q, "output": ["a", "a ", "a"]}, "a ranked list of one answer"),
    "ranks": ({"prompt": Q, "ranked": ["a", "b"], "ranks": [1]}, "field 'ranks' has not one value for each answer"),
    "a word": ({"prompt": Q, "ranked": ["a", "b"], "ranks": [1, "x"]}, "field 'ranks' holds 'x', which is no number"),
    "nan": (
        {"prompt": Q, "ranked": ["a", "b"], "ratings": [1, "inf"]},
        "field 'ratings' holds 'inf', which is no number",
    ),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "nothing stands before the answers"),
    "margin": ({**PAIR, "margin": -1}, "a margin below 0"),
    "kind": ({**PAIR, "verdicts": [{"kind": "votes", "values": [1, 2]}]}, "unknown kind of verdict 'votes'"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_faulty_rows_are_dropped_and_named(name: str, tmp_path: Path) -> None:
    row, reason = FAULTY[name]
    counts = load(tmp_path, row).counts
    assert counts.dropped == {reason: 1}
    assert counts.examples == {reason: [f"{tmp_path / 'rows.jsonl'}:1"]}


def test_an_unknown_label_is_dropped_and_named(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": Q, "completion": "a", "label": each} for each in (True, "no", "perhaps", None)
    ]
    loaded = load(tmp_path, *rows)
    assert [each.verdicts[0].values for each in loaded.items] == [(1.0,), (0.0,)]
    assert loaded.counts.dropped == {"unknown label 'perhaps'": 1, "nothing is said of the answer": 1}
    assert loaded.counts.examples["unknown label 'perhaps'"][0].endswith("rows.jsonl:3")


def test_lists_lose_equal_and_empty_answers_and_say_so(tmp_path: Path) -> None:
    row = {"prompt": Q, "answers": ["a", " ", "b", "a ", "c"], "ratings": {"helpful": [5, 4, 3, 2, 1]}}
    loaded = load(tmp_path, row)
    [instance] = loaded.items
    assert (instance.answers, instance.verdicts) == (("a", "b", "c"), (ratings(5, 3, 1, criterion="helpful"),))
    assert loaded.counts.truncated == {EMPTY: 1, EQUAL: 1}
    assert loaded.counts.kept == loaded.counts.read - 1 == 0  # counted by who prepares them


def test_ties_among_many_pairs_are_kept_as_ties(tmp_path: Path) -> None:
    row = {
        "question": Q,
        "passages": [["Pets", "The cat is out."]],
        **{f"prediction {n}": "abcd"[n - 1] for n in range(1, 5)},
    }
    loaded = load(tmp_path, {**row, "preference": [0, 1, 2, 1, 0, 2]})
    assert [each.answers for each in loaded.items] == [
        ("a", "b"),
        ("a", "c"),
        ("d", "a"),
        ("b", "c"),
        ("b", "d"),
        ("d", "c"),
    ]
    assert [bool(each.verdicts) for each in loaded.items] == [True, False, False, False, True, False]
    assert {prompt_of(each) for each in loaded.items} == {f"{Q}\n\nPets\nThe cat is out."}
    counts = load(tmp_path, {**row, "preference": [0, 1]}).counts
    assert counts.dropped == {"field 'preference' has not one value for each pair of answers": 1}
    counts = load(tmp_path, {"prompt": Q, "answer_a": "a", "answer_b": "b", "winner": "c"}).counts
    assert counts.dropped == {"'c' names none of the answers": 1}


def test_lists_of_references_are_no_rankings(tmp_path: Path) -> None:
    loaded = load(tmp_path, {"question": Q, "answer": "a", "answers": ["a", "b"]})
    assert loaded.format == "question/answer"


def test_best_answers_alone(tmp_path: Path) -> None:
    rows = [
        row for name, (row, _, _) in FORMS.items() if name in ("a label", "a label in words", "a tie", "list with ties")
    ]
    loaded: list[Instance] = []
    for row in rows:
        loaded += load(tmp_path, row).items
    counts = RowCounts()
    kept = chosen_answers(loaded, counts)
    assert [(each.answers, each.is_preference) for each in kept] == [(("b",), False), (("a",), False)]
    assert counts.dropped == {"the answer was judged bad": 1, "a tie: none of the answers was liked best": 1}


def test_what_another_annotator_says_is_no_duplicate(tmp_path: Path) -> None:
    rows = [{**PAIR, "annotator": who} for who in ("x", "y", "x")]
    found = load(tmp_path, *rows).items
    seen = Duplicates()
    assert [seen.judge("", each) for each in found] == [None, None, "exact duplicate"]
    same = [Instance(each.messages, "f", 1, each.provenance, each.verdicts) for each in found]
    assert row_key(same[0], 0) != row_key(same[1], 0)


def test_a_verdict_of_another_number_of_answers() -> None:
    messages = (Message("user", Q), Message("assistant", "a"), Message("rejected", "b"))
    with pytest.raises(RowProblem, match="not one value"):
        settled(Instance(messages, "f", 1, verdicts=(ranks(0, 1, 2),)))


def test_one_answer_of_several() -> None:
    messages = (Message("user", Q), Message("assistant", "a"), Message("rejected", "b"), Message("rejected", "c"))
    instance = Instance(messages, "f", 1)
    assert form_of(instance) == "lists of 3"
    assert [instance.with_answer(n).messages[-1] for n in range(3)] == [Message("assistant", t) for t in "abc"]
    assert instance.rejected == messages[-1]
    assert instance.conversation == messages[:2]


def test_prompts_of_preference_rows_are_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        json.dumps(PAIR) + "\n" + json.dumps({"prompt": Q, "ranked": ["a", "b"]}) + "\n"
    )
    found, _ = read_prompts(str(tmp_path / "rows.jsonl"))
    assert [each.messages for each in found] == [(Message("user", Q),)] * 2


SECRET = "Mallory-4711"


@given(st.sampled_from(sorted(FORMS)), st.sampled_from(["annotator", "annotator_id", "worker", "user", "labeler"]))
def test_no_annotator_or_user_is_in_a_message(tmp_path_factory: pytest.TempPathFactory, name: str, column: str) -> None:
    row = {**FORMS[name][0], column: SECRET}
    if "judgements" in row:
        row["judgements"] = [{**each, "annotator": SECRET} for each in row["judgements"]]
    for instance in load(tmp_path_factory.mktemp("f"), row).items:
        assert not any(SECRET in message.content for message in instance.messages)
        assert all(SECRET not in answer for answer in instance.answers)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@given(st.lists(st.tuples(TEXT, st.integers(0, 3)), min_size=2, max_size=6))
def test_every_answer_is_kept_or_counted(tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int]]) -> None:
    """Whatever the answers and ranks are: the order is best first, and each answer goes somewhere that is counted."""
    row = {"prompt": Q, "answers": [text for text, _ in said], "ranks": [rank for _, rank in said]}
    loaded = load(tmp_path_factory.mktemp("f"), row)
    lost = sum(loaded.counts.truncated.values())
    if not loaded.items:
        assert sum(loaded.counts.dropped.values()) == 1
        return
    [instance] = loaded.items
    assert len(instance.answers) + lost == len(said)
    rank = {text.strip(): min(r for t, r in said if t.strip() == text.strip()) for text, _ in said}
    order = [rank[answer.strip()] for answer in instance.answers]
    assert order == sorted(order)
    if instance.verdicts:
        assert list(instance.verdicts[0].values) == order
