"""What each filter removes and leaves, and that all of it is counted."""

from __future__ import annotations

import pytest

from graftlm.data.contradictions import Contradictions
from graftlm.data.filters import (
    Contamination,
    CopiedAnswer,
    Duplicates,
    EmptyAnswer,
    LabelBalance,
    Language,
    Length,
    NearDuplicates,
    SharedAnswers,
    WordList,
    apply_filters,
    near_groups,
    units,
)
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.sets import SetCard
from graftlm.errors import UserError


def instance(prompt, answer="yes", row=1, language=""):
    return Instance(
        (Message("user", prompt), Message("assistant", answer)), "a.csv", row, Provenance(language=language)
    )


def judged(rule, *instances):
    return [rule.judge("task", each) for each in instances]


def test_units():
    assert units("It's 3 o'clock_now, 你好吗 (OK)") == ["it", "s", "3", "o", "clock", "now", "你", "好", "吗", "ok"]


def test_length():
    rule = Length(prompt=(2, 4), answer=(1, 2))
    assert judged(rule, instance("one"), instance("one two"), instance("one two three four five")) == [
        "prompt shorter than 2 words",
        None,
        "prompt longer than 4 words",
    ]
    assert judged(rule, instance("一二三四五"), instance("one two", "a b c")) == [
        "prompt longer than 4 words",
        "answer longer than 2 words",
    ]


def test_language():
    rule = Language(["en", "zh"])
    assert judged(rule, instance("hi", language="en"), instance("hi", language="fr")) == [None, "language fr"]
    french = instance("Bonjour tout le monde, comment allez-vous ?", "Très bien, merci.")
    assert judged(rule, instance("今天天气很好", "是的"), instance("これは何ですか", "本です"), french) == [
        None,
        "language ja",
        "language fr",
    ]
    assert judged(rule, instance("1 + 1", "2")) == [None]
    assert judged(Language(["en"], unknown=False), instance("1 + 1", "2")) == ["language not known"]


def test_empty_answers():
    assert judged(EmptyAnswer(), instance("a", "…!"), instance("a", " "), instance("a", "5"), instance("a", "👍")) == [
        "empty answer",
        "empty answer",
        None,
        None,
    ]


def test_copied_answers():
    copied = "answer copied from the input"
    text = "The cat sat on the mat."
    assert judged(
        CopiedAnswer(),
        instance(text, "the cat sat on the mat"),
        instance(f"Make this simpler:\n\n{text}", text),
        instance(f"Make this simpler:\n\n{text}", "The cat sat."),
        instance("Is it good? good or bad\n\ngood", "good"),  # a label may well stand in the prompt
        Instance((Message("text", text),), "a", 1),
    ) == [copied, copied, None, None, None]


def test_word_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("bad\nvery  ugly\n坏话\nc++\n\n", encoding="utf-8")
    rule = WordList.read(path)
    hit = "word of the list"
    assert judged(rule, instance("BAD!"), instance("badge"), instance("x", "very\nugly")) == [hit, None, hit]
    assert judged(rule, instance("他说坏话了"), instance("I write C++."), instance("fine")) == [hit, hit, None]
    path.write_text("\n")
    with pytest.raises(UserError, match=r"words\.txt: the word list is empty"):
        WordList.read(path)


def test_duplicates():
    rule = Duplicates()
    assert judged(rule, instance("a b"), instance("A  b "), instance("a b", "no"), instance("a", "b yes")) == [
        None,
        "exact duplicate",
        None,
        None,
    ]


def test_near_duplicates():
    pytest.importorskip("datasketch")
    rule = NearDuplicates(0.7)
    text = " ".join(f"word{i}" for i in range(60))
    near, far = text + " and more", " ".join(f"other{i}" for i in range(60))
    assert judged(rule, instance(text), instance(near), instance(far)) == [None, "near duplicate", None]


def test_groups_of_near_duplicates():
    pytest.importorskip("datasketch")
    texts = [" ".join(f"{kind}{i}" for i in range(60)) for kind in "abc"]
    items = [instance(text + end) for end in ("", " and", " and more") for text in texts[: 1 + (end == "") * 2]]
    assert near_groups(items, 0.7) == [[items[0], items[3], items[4]]]


def test_contradictions_go_all():
    card = SetCard()
    stream = [("t", instance("q one", "yes", 1)), ("t", instance("q two", "yes", 2)), ("t", instance("q One", "no", 3))]
    stream += [("t", instance("q two", "Yes", 4)), ("t", Instance((Message("text", "a"),), "a", 5))]
    stream += [("t", Instance((Message("text", "b"),), "a", 6))]
    kept = sorted(i.row for _, i in apply_filters(stream, [Contradictions()], card))
    assert (kept, card.dropped) == ([2, 4, 5, 6], {"same input, other answer": 2})


def test_label_balance():
    stream = [("a", instance(f"q{n}", "yes" if n % 4 else "no", n)) for n in range(100)]  # 75 and 25
    stream += [("b", instance(f"q{n}", f"answer {n}", n)) for n in range(50)]  # no labels: left alone
    card = SetCard()
    kept = list(apply_filters(stream, [LabelBalance(2.0)], card, seed=1))
    answers = [i.messages[-1].content for task, i in kept if task == "a"]
    assert (answers.count("yes"), answers.count("no"), len(kept)) == (50, 25, 125)
    assert card.dropped == {"over the balance of labels": 25}
    assert kept == list(apply_filters(reversed(stream), [LabelBalance(2.0)], SetCard(), seed=1))
    assert kept != list(apply_filters(stream, [LabelBalance(2.0)], SetCard(), seed=2))


def test_contamination():
    rule = Contamination(width=5, shortest=3)
    rule.add("exam", ["a b c d e f", "x y z", "p q", "我们今天去公园"])
    hit = "overlaps with exam"
    assert judged(
        rule,
        instance("say: B, c, d; e F!"),  # five in a row
        instance("a b c d"),  # four
        instance("so x y z it is"),  # a short text as a whole
        instance("p q"),  # too short to look for
        instance("昨天我们今天去玩"),  # 我们今天去: five signs
        instance("我们今天不去公园"),
        instance("q", "b c d e f"),  # in an answer
        instance("a b c x d e f"),
    ) == [hit, None, hit, None, hit, None, hit, None]
    assert rule.too_short == {"exam": 1}


def test_everything_removed_is_counted_and_shown():
    card = SetCard()
    stream = [("t", instance(f"q{n}", "..." if n < 5 else "yes", n)) for n in range(8)]
    stream.append(("t", instance("q7", "yes", 9)))
    kept = list(apply_filters(stream, [EmptyAnswer(), Duplicates()], card))
    assert [i.row for _, i in kept] == [5, 6, 7]
    assert card.dropped == {"empty answer": 5, "exact duplicate": 1}
    assert card.examples["exact duplicate"] == ["a.csv:9"]
    shown = card.notes["removed"]["empty answer"]
    assert [each["place"] for each in shown] == ["a.csv:0", "a.csv:1", "a.csv:2"]
    assert shown[0] == {"task": "t", "place": "a.csv:0", "prompt": "q0", "answer": "..."}


def test_answers_of_an_evaluation_set():
    rule = SharedAnswers()
    rule.add("exam", [instance("Is it?", "Yes,  it is"), instance("Who?", "我")])
    rule.add("other", [instance("Is it?", "yes, it is")])
    assert judged(
        rule, instance("Q", " yes, IT is\n"), instance("Q", "yes"), instance("Is it?", "no"), instance("Q", "我")
    ) == [
        "answer of exam",
        None,
        None,
        "answer of exam",
    ]
