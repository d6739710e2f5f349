"""Use cases and languages of single prompts."""

from __future__ import annotations

import pytest

from graftlm.data.collecting.language import UNKNOWN, detect
from graftlm.data.collecting.use_cases import use_case, use_cases

CASES = [
    ("Write a short story about a bear who finds a hat.", "generation"),
    ("给我写一封求职信", "generation"),
    ("What is the capital of Peru?", "open QA"),
    ("为什么天空是蓝色的？", "open QA"),
    ("Wie hoch ist der Mont Blanc?", "open QA"),
    ("List five ideas for how to regain enthusiasm for my career", "brainstorming"),
    ("给我五个周末活动的点子", "brainstorming"),
    ("Propose trois titres pour mon blog de cuisine", "brainstorming"),
    ("The following is a conversation with an AI assistant.\nHuman: Hello\nAI:", "chat"),
    ("你好", "chat"),
    ("Rephrase the following paragraph for me: ...", "rewriting"),
    ("请把下面的句子翻译成英文：天气很好", "rewriting"),
    ("Traduce al inglés: buenos días", "rewriting"),
    ("Summarize this for a second-grader: ...", "summarising"),
    ("请总结下面这篇文章", "summarising"),
    ("Fasse den folgenden Text zusammen: ...", "summarising"),
    ("Is the sentiment of this tweet positive or negative? I love it", "classification"),
    ("下面这条评论的情感倾向是什么？", "classification"),
    ("Based on the following passage, who won? Ann ran and Bob fell.", "closed QA"),
    ("根据下面的材料回答问题：谁赢了？", "closed QA"),
    ("Extract all course titles from the table below:", "extraction"),
    ("从这段话中提取所有人名", "extraction"),
    ("start up", "other"),
]


@pytest.mark.parametrize(("prompt", "expected"), CASES)
def test_use_case(prompt, expected):
    assert use_case(prompt)[0] == expected


def test_every_use_case_has_a_rule_in_english_and_chinese():
    from graftlm.data.collecting.use_cases import _load

    names, rules = _load()
    assert len(names) == 10 == len(set(names))
    assert {rule.use_case for rule in rules} == set(use_cases())
    assert len({rule.name for rule in rules}) == len(rules)


def test_a_pasted_text_does_not_decide():
    """Words in the middle of a long text say nothing about what is asked."""
    text = "Summarize: " + "The poet said: write, list ideas, translate and classify. " * 30
    assert use_case(text)[0] == "summarising"
    text = (
        "Here is a text. " + "It is long. " * 30 + "Translate it. " + "It is long. " * 30 + "What do you think of it?"
    )
    assert use_case(text)[0] == "closed QA"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Write a poem about the spring rain", "en"),
        ("Bonjour tout le monde, comment ça va ?", "fr"),
        ("Wie geht es dir heute Morgen?", "de"),
        ("Escribe un poema sobre la lluvia de abril", "es"),
        ("写一首关于春雨的诗", "zh"),
        ("请翻译成英文：It rains", "zh"),
        ("春の雨について書いてください", "ja"),
        ("봄비에 대해 써 주세요", "ko"),
        ("<EMAIL> 12 + 30", UNKNOWN),
        ("", UNKNOWN),
    ],
)
def test_language(text, language):
    assert detect(text) == language
