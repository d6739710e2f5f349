"""The criterion of the alignment demo, by hand; and that the shipped preferences are what it says."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from graftlm.demo.criterion import ENDINGS, NAMES, Verdict, Wish, fulfils, judge, reward, sentences, wish_of
from graftlm.errors import UserError

PROMPT = "Write a story about a boy named Max and a blue boat. At the end, Max goes to sleep."
START = "Once upon a time, there was a boy named Max. He had a blue boat. "


@pytest.mark.parametrize(
    ("ending", "fulfilled"),
    [
        ("Max sang a song. Then Max went to sleep.", True),
        ("At last, Max fell asleep!", True),
        ("In the end, Max happily went to sleep.", True),
        ("Tom sang a song. Then Max went to sleep.", True),
        ("Max went to sleep. Then Max sang a song.", False),  # not the last
        ("Max sang a song.", False),  # not at all
        ("Max went to sleep. The sun was warm.", False),
        ("Tom sang a song. Then Tom went to sleep.", False),  # not he
        ("Max and Tom went to sleep.", False),
        ("Max saw that Tom went to sleep.", False),
        ("Max never went to sleep.", False),
        ("Max wanted to go to sleep.", False),
        ("Max sang a song and Max went to sleep.", False),  # two endings
        ("Then Max went to sleep", False),  # broken off
        ("Then he went to sleep.", False),  # the form asks for the name
        ("Tom ran. Tom sat. Tom hid. Tom saw Tom. Max went to sleep.", False),  # another name takes over
    ],
)
def test_the_last_sentence_has_to_be_the_ending(ending: str, fulfilled: bool) -> None:
    assert fulfils(PROMPT, START + ending) is fulfilled
    assert reward([{"role": "user", "content": PROMPT}], START + ending) == fulfilled


def test_each_part_is_told_apart() -> None:
    assert judge(PROMPT, START + "Max went to sleep.") == Verdict(name=True, thing=True, ending=True)
    assert judge(PROMPT, "Max had a red boat. Max went to sleep.") == Verdict(name=True, thing=False, ending=True)
    assert judge(PROMPT, "Max had blue boats. Max went to sleep.") == Verdict(name=True, thing=False, ending=True)
    assert judge(PROMPT, START + "Max sang a song.") == Verdict(name=True, thing=True, ending=False)
    other = START.replace("Max", "Tom")
    assert judge(PROMPT, other + "Max went to sleep.") == Verdict(name=False, thing=True, ending=True)
    assert not judge(PROMPT, " \n")


def test_the_same_words_in_another_order_change_the_verdict() -> None:
    right, wrong = START + "Max ate a cake. Max fell asleep.", START + "Max fell asleep. Max ate a cake."
    assert sorted(right.split()) == sorted(wrong.split())
    assert fulfils(PROMPT, right)
    assert not fulfils(PROMPT, wrong)
    cake = PROMPT.replace("goes to sleep", "eats a cake")
    assert fulfils(cake, wrong)
    assert not fulfils(cake, right)


def test_a_prompt_is_read_wherever_it_stands() -> None:
    wish = Wish("Max", "blue boat", "goes to sleep", "boy")
    assert wish.prompt == PROMPT
    assert wish_of(f"User: {PROMPT}\nAssistant:") == wish
    assert all(wish_of(Wish("Lily", "cup", ending, "girl").prompt).ending == ending for ending in ENDINGS)


def test_a_prompt_of_another_form_is_an_error() -> None:
    with pytest.raises(UserError, match="no prompt of the criterion"):
        judge("Tell me a story.", "Max went to sleep.")
    with pytest.raises(UserError, match=r"unknown ending 'flies'.*goes to sleep"):
        judge(PROMPT.replace("goes to sleep", "flies"), "Max flew.")


def test_sentences_keep_a_rest_without_an_end() -> None:
    assert sentences('One. "Two!" Three? Four') == ["One.", '"Two!"', "Three?", "Four"]
    assert sentences("") == []


def _rows(name: str) -> list[dict[str, str]]:
    text = (files("graftlm.demo") / "data" / "alignment" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_shipped_preferences_agree_with_the_criterion(part: str) -> None:
    rows = _rows(f"preferences.{part}.jsonl")
    assert len(rows) >= 100
    for row in rows:
        assert fulfils(row["prompt"], row["chosen"])
        assert not fulfils(row["prompt"], row["rejected"])
    lengths = [len(row["chosen"].split()) - len(row["rejected"].split()) for row in rows]
    assert sum(d > 0 for d in lengths) == sum(d < 0 for d in lengths)  # length alone does not tell


def test_preferences_hold_out_names_and_things() -> None:
    train, held_out = (
        [wish_of(row["prompt"]) for row in _rows(f"preferences.{part}.jsonl")] for part in ("train", "held_out")
    )
    assert not {wish.name for wish in train} & {wish.name for wish in held_out}
    assert not {wish.thing.split()[-1] for wish in train} & {wish.thing.split()[-1] for wish in held_out}
    assert {wish.name for wish in (*train, *held_out)} <= set(NAMES)


def test_the_start_is_neither_hopeless_nor_good() -> None:
    rows = _rows("wishes.train.jsonl")
    assert 0.3 < sum(fulfils(row["instruction"], row["output"]) for row in rows) / len(rows) < 0.45
