"""Templates with virtual tokens: how they are read, and what tokens they become."""

from __future__ import annotations

import json

import pytest
from transformers import PreTrainedTokenizerBase

from graftlm.data.instances import Instance, Message
from graftlm.data.jinja import CannotRender
from graftlm.data.prepare import prepare
from graftlm.data.prompt_template import PromptTemplate, prompt_template, template_from_dict
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError
from graftlm.template_text import Part, count_virtual, is_behind, is_in_front, parse_template

FIRST = 10_000
TEMPLATE = "[P×3] {input} [P×2] is {target}"
CHAT = [Message("user", "What a film"), Message("assistant", "good")]


@pytest.mark.parametrize("mark", ["[P×3]", "[P*3]", "[Px3]", "[P3]", "[P × 3]", "[ P 3 ]"])
def test_ways_to_write_virtual_tokens(mark: str) -> None:
    parts = parse_template(f"{mark} {{input}}[P]{{ target }}")
    assert parts == (
        Part("virtual", count=3),
        Part("text", " "),
        Part("input"),
        Part("virtual", count=1),
        Part("target"),
    )
    assert count_virtual(parts) == 4


def test_where_virtual_tokens_stand() -> None:
    assert is_in_front(parse_template("[P4] {input} {target}"))
    assert not is_in_front(parse_template("[P4] {input} [P] {target}"))
    assert not is_in_front(parse_template(" [P4] {input} {target}"))
    assert not is_behind(parse_template(TEMPLATE))
    assert is_behind(parse_template("{input} {target} [P]"))
    assert parse_template("[Paris] [1] [P2] {input}: {target}")[0] == Part("text", "[Paris] [1] ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[P3] {target}", r"\{input\} 0 times"),
        ("[P3] {input} {input} {target}", r"\{input\} 2 times"),
        ("[P3] {input}", r"\{target\} 0 times"),
        ("[P3] {target} {input}", r"\{target\} stands before \{input\}"),
        ("[P3] {text} {target}", r"unknown placeholder \{text\}; there are \{input\}, \{target\}"),
        ("{input} {target}", "no virtual tokens"),
        ("[P0] {input} {target}", "no virtual tokens"),
        ("[P×] {input} {target}", r"\[P×\] lacks the number"),
        ("", r"\{input\} 0 times"),
    ],
)
def test_texts_that_are_no_template(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_template(text)


def test_a_misspelt_placeholder_is_guessed() -> None:
    with pytest.raises(UserError) as caught:
        parse_template("[P3] {inptu} {target}")
    assert caught.value.hint == "Did you mean {input}?"


def test_rendered_by_hand(tiny: PreTrainedTokenizerBase) -> None:
    """Front tokens before the beginning of sequence, as peft has them; a space goes to the word behind it."""

    def ids(text: str) -> list[int]:
        found: list[int] = tiny("\n" + text, add_special_tokens=False)["input_ids"]
        return found[len(tiny("\n", add_special_tokens=False)["input_ids"]) :]

    template = prompt_template(TEMPLATE, tiny, FIRST)
    rendered = template.render(CHAT, tiny)
    bos, eos = ([tiny.bos_token_id] if tiny.bos_token_id is not None else []), [tiny.eos_token_id]
    prompt = [FIRST, FIRST + 1, FIRST + 2, *bos, *ids("What a film"), FIRST + 3, FIRST + 4, *ids(" is")]
    assert rendered.ids == [*prompt, *ids(" good"), *eos]
    assert rendered.supervised == [False] * len(prompt) + [True] * (len(rendered.ids) - len(prompt))
    assert template.render_prompt(CHAT[:1], tiny) == prompt
    assert rendered.origin[:3] == ["virtual"] * 3
    assert template.stop_ids(tiny) == (tiny.eos_token_id,)


@pytest.mark.parametrize(
    "text",
    [
        TEMPLATE,
        "{input} [P]{target}",
        "{input}[P2]{target}",
        "Review: {input}\nIt was [P2]  {target}",
        "  Review [P1] : {input} [P] {target}",
        "[P2]{input} a [P] b [P] {target} and [P] so on",
    ],
)
def test_a_prompt_begins_what_is_learnt_and_all_virtual_tokens_are_there(
    text: str, tiny: PreTrainedTokenizerBase
) -> None:
    template = prompt_template(text, tiny, FIRST)
    rendered = template.render(CHAT, tiny)
    prompt = template.render_prompt(CHAT[:1], tiny)
    assert rendered.ids[: len(prompt)] == prompt
    assert not any(rendered.supervised[: len(prompt)])
    assert rendered.supervised[len(prompt)]
    virtual = [token for token in rendered.ids if token >= FIRST]
    assert virtual == list(range(FIRST, FIRST + count_virtual(parse_template(text))))
    # without the virtual tokens it is the text that one reads
    shown = tiny.decode([token for token in rendered.ids if token < FIRST], skip_special_tokens=True)
    expected = text.replace("{input}", "What a film").replace("{target}", "good")
    for mark in ("[P×3]", "[P×2]", "[P2]", "[P1]", "[P]"):
        expected = expected.replace(mark, "")
    assert " ".join(shown.split()) == " ".join(expected.split())
    assert "  " not in shown.replace("\n", "|")


def test_tokens_of_adapters_beneath_stand_in_front(tiny: PreTrainedTokenizerBase) -> None:
    rendered = prompt_template("{input} [P2] {target}", tiny, FIRST, beneath=3).render(CHAT, tiny)
    assert rendered.ids[:3] == [FIRST, FIRST + 1, FIRST + 2]
    assert [token for token in rendered.ids[3:] if token >= FIRST] == [FIRST + 3, FIRST + 4]


def test_a_system_message_stands_before_the_question(tiny: PreTrainedTokenizerBase) -> None:
    template = prompt_template(TEMPLATE, tiny, FIRST)
    joined = [Message("user", "Be brief.\n\nWhat a film"), CHAT[1]]
    assert template.render([Message("system", "Be brief."), *CHAT], tiny) == template.render(joined, tiny)


def test_what_has_no_place_is_refused_and_counted(tiny: PreTrainedTokenizerBase) -> None:
    template = prompt_template(TEMPLATE, tiny, FIRST)
    for messages in ([*CHAT, *CHAT], [Message("text", "only text")], [Message("assistant", "x")]):
        with pytest.raises(CannotRender):
            template.render(messages, tiny)
    instances = [Instance(tuple(CHAT), "x", 1), Instance((Message("text", "only text"),), "x", 2)]
    prepared = prepare(instances, template, tiny, max_dropped=0.5)
    assert prepared.counts.dropped == {"no answer to its question": 1}
    assert prepared.rows[0].ids == template.render(CHAT, tiny).ids


def test_it_is_stored_as_json(tiny: PreTrainedTokenizerBase) -> None:
    template = prompt_template(TEMPLATE, tiny, FIRST, beneath=2)
    again = template_from_dict(json.loads(json.dumps(template.to_dict())))
    assert again == template
    assert again.hash == template.hash
    assert isinstance(again, PromptTemplate)
    plain = resolve_chat_template("plain", tiny)
    assert template_from_dict(plain.to_dict()) == plain
    assert plain.hash != template.hash != prompt_template(TEMPLATE, tiny, FIRST + 1).hash
    with pytest.raises(UserError, match="unknown key 'more'"):
        template_from_dict({**template.to_dict(), "more": 1})
