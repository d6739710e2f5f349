"""Scores of written answers, worked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftlm.errors import UserError
from graftlm.evaluation import scorers
from graftlm.evaluation.numbers import last_number, same_number
from graftlm.evaluation.refusals import is_refusal
from graftlm.evaluation.scorers import check_scorers, is_graded, normalised, score_answer
from graftlm.evaluation.tasks.task import Scorer
from tests.evaluation.fake_task import task_of, written


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The  Cat!", "the cat", 1),
        ("the cat sat", "the cat", 0),
        ("北京。", "北京", 1),
        ("ＡＢＣ", "abc", 1),
        ("3.5", "35", 0),
        ("-5", "5", 0),
        ("1,000", "1000", 1),
        ("it's", "its", 1),
        ("?", "?", 1),
        ("!", "?", 0),
        ("", "yes", 0),
    ],
)
def test_exact(answer: str, reference: str, score: float) -> None:
    assert scorers.exact(answer, [reference]) == score
    assert scorers.exact(answer, ["other", reference]) == score


def test_f1_counts_words_without_articles_and_characters_of_chinese() -> None:
    assert scorers.token_f1("The big cat.", ["a cat"]) == pytest.approx(2 / 3)  # big cat / cat
    assert scorers.token_f1("我爱北京", ["北京"]) == pytest.approx(2 * 2 / 6)
    assert scorers.token_f1("cat cat", ["cat dog"]) == pytest.approx(0.5)
    assert scorers.token_f1("", ["cat"]) == 0
    assert scorers.token_f1("the", ["a"]) == 1  # nothing is left of either
    assert scorers.token_f1("dog", ["cat", "dog"]) == 1


def test_rouge_l_is_of_the_longest_common_sequence() -> None:
    # the cat _ on the mat: 5 of 6 words in both
    assert scorers.rouge_l("The cat sat on the mat.", ["the cat was on the mat"]) == pytest.approx(5 / 6)
    # 我爱天安门: 5 of 7 and 5 of 5 characters; the library's own tokenizer would find none
    assert scorers.rouge_l("我爱北京天安门", ["我爱天安门"]) == pytest.approx(2 * 5 / 12)
    assert scorers.rouge_l("天", ["地", "天"]) == 1
    assert scorers.rouge_l("", ["cat"]) == 0


def test_chrf_runs_from_0_to_1() -> None:
    assert scorers.chrf("the cat sat", ["the cat sat"]) == pytest.approx(1)
    assert scorers.chrf("xyz", ["abc"]) == 0
    assert 0 < scorers.chrf("the cats", ["the cat sat"]) < 1
    assert scorers.chrf("我爱北京", ["我爱北京", "他"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("1,000", "1000.0", True),
        ("It is 42 apples.", "42", True),
        ("42 apples", "They have 40 + 2. #### 42", True),
        ("She has 3. #### 12\n\nQuestion: 5", "#### 12", True),
        ("x = -5", "−5", True),
        ("10-5", "5", True),
        ("-5", "5", False),
        ("0.75", "3/4", True),
        ("1 1/2", "1.5", True),
        ("1½", "1.5", True),
        ("0.3333333", "1/3", True),
        ("0.33", "1/3", False),
        ("共１，０００元。", "1000", True),
        ("3万", "30000", True),
        ("$1,234.50.", "1234.5", True),
        ("1, 2", "2", True),
        ("2e3", "2000", True),
        ("一共有二十一颗糖。", "21", True),
        ("答案是21，一样多。", "21", True),
        ("none", "0", False),
        ("1/0", "1", True),
        ("0", "0.0", True),
        ("9" * 5000, "9", False),
    ],
)
def test_number(answer: str, reference: str, same: bool) -> None:
    assert same_number(answer, reference) is same


def test_a_text_without_digits_has_no_number() -> None:
    assert last_number("none at all") is None
    assert scorers.number("none", ["none"]) == 0


@pytest.mark.parametrize(
    "answer",
    [
        "I can't help with that.",
        "I’m sorry, but I won't.",
        "As an AI language model, I cannot say that.",
        "Unfortunately, I cannot assist.",
        "I'm unable to do this.",
        "I must decline.",
        "“I cannot do this.”",
        "抱歉，我不能这样做。",
        "我无法提供这些信息。",
        "對不起，我不能。",
        "作为一个人工智能，我不能回答。",
        "我不能。",
        "这是诈骗，我不会帮你。",
        "网络暴力会伤人，我不帮。你可以投诉。",
        "我不教人偷东西。",
        "这个话题太敏感，我没有办法回答。",
        "你没有说清楚，所以我无法回答你的问题。",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)
    assert (scorers.refusal(answer, ()), scorers.no_refusal(answer, ())) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        "I can't wait to help!",
        "Sorry to hear that. Try this.",
        "Sure! You cannot go wrong.",
        "As an AI engineer I like cats.",
        "我不能吃辣，但是可以吃甜。",
        "不能，两样混在一起会放出氯气。",
        "不可以，这样会伤身体。",
        "他对我不做评价。",
        "今天是星期天，我不写作业。",
        "密码错了三次就不能再试。我不写在纸上。",
        "当然可以。",
        "The lock cannot be opened.",
    ],
)
def test_no_refusals(answer: str) -> None:
    assert not is_refusal(answer)
    assert scorers.no_refusal(answer, ()) == 1


def test_an_empty_answer_neither_refuses_nor_helps() -> None:
    assert (scorers.refusal(" ", ()), scorers.no_refusal(" ", ())) == (0, 0)


def scorer(name: str, **keys: str) -> Scorer:
    return Scorer.model_validate({"name": name, **keys})


def test_a_regex_compares_its_group_or_only_matches(tmp_path: Path) -> None:
    both = (scorer("letter", regex=r"answer is \(?([A-D])"), scorer("digits", regex=r"\d{2}"), scorer("exact"))
    item = written(1, "B")
    assert score_answer(both, "The answer is (B).", item, tmp_path) == {"letter": 1, "digits": 0, "exact": 0}
    assert score_answer(both, "The answer is C, 42", item, tmp_path) == {"letter": 0, "digits": 1, "exact": 0}
    assert score_answer([scorer("r", regex="(B)?x")], "x", item, tmp_path) == {"r": 0}


def test_which_scorers_grade() -> None:
    graded = [name for name in scorers.SCORERS if is_graded(scorer(name))]
    assert graded == ["f1", "rouge_l", "chrf"]
    assert is_graded(scorer("own", python="a.py:f"))
    assert not is_graded(scorer("f1", regex="x"))


OWN = """
loaded = []

def length(answer, references, row):
    return len(answer) / row["most"]

def strange(answer, references, row):
    return float("nan") if answer == "nan" else "yes"

def raises(answer, references, row):
    return 1 / 0

def right(answer, references, row):
    return answer in references
"""


def test_a_python_scorer_sees_answer_references_and_row(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    item = written(3, "ab", most=4)
    found = score_answer(
        [scorer("l", python="own.py:length"), scorer("r", python="own.py:right")], "ab", item, tmp_path
    )
    assert found == {"l": 0.5, "r": 1.0}


@pytest.mark.parametrize(
    ("function", "answer", "words"),
    [
        ("raises", "x", "raises ZeroDivisionError: division by zero"),
        ("strange", "nan", "gives nan; a score is a number from 0"),
        ("strange", "x", "gives 'yes'; a score is a number from 0"),
        ("length", "x" * 9, "gives 2.25; a score is a number from 0"),
    ],
)
def test_a_python_scorer_that_fails_is_named_with_its_row(
    tmp_path: Path, function: str, answer: str, words: str
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(UserError) as caught:
        score_answer([scorer("s", python=f"own.py:{function}")], answer, written(7, "x", most=4), tmp_path)
    assert words in caught.value.message
    assert f"own.py:{function} (quiz.jsonl, row 7)" in caught.value.message


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([{"name": "exat"}], "unknown scorer 'exat'"),
        (["exact", "exact"], "the scorer 'exact' is there twice"),
        ([{"name": "r", "regex": "("}], "the expression '(' cannot be read"),
        ([{"name": "p", "python": "none.py:f"}], "there is no file"),
        ([{"name": "p", "python": "own.py"}], "must be FILE.py:FUNCTION"),
        ([{"name": "p", "python": "own.py:g"}], "has no function 'g'; it has: length, raises, right, strange"),
        ([{"name": "p", "python": "bad.py:f"}], "cannot be read: SyntaxError"),
    ],
)
def test_scorers_that_cannot_be_used_are_found_at_once(tmp_path: Path, given: list[object], words: str) -> None:
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "bad.py").write_text("def f(:")
    with pytest.raises(UserError) as caught:
        check_scorers(task_of("generate", folder=tmp_path, scorers=given))
    assert words in caught.value.message


def test_normalised_keeps_numbers_whole() -> None:
    assert normalised(" Pi is 3.14, or -1,000:  U.S.! ") == "pi is 3.14 or -1000 us"


WRITTEN = st.text(
    st.sampled_from("0123456789 ,.-/#eE½¼⁄−$%万亿三十不无法我抱歉Iican't sorry\n٣²Ⅷ") | st.characters(), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(WRITTEN, st.lists(WRITTEN, min_size=1, max_size=2))
def test_no_text_breaks_a_scorer(answer: str, references: list[str]) -> None:
    for name, function in scorers.SCORERS.items():
        assert 0 <= function(answer, references) <= 1 + 1e-9, name
    assert scorers.exact(answer, [answer]) == 1
