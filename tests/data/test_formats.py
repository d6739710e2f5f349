from __future__ import annotations

import pytest

from graftlm.data.formats import RowProblem, fill, recognise
from graftlm.data.instances import Message
from graftlm.errors import UserError


def user(text):
    return Message("user", text)


def assistant(text, train=None):
    return Message("assistant", text, train)


def system(text):
    return Message("system", text)


def read(row, **patterns):
    form = recognise([row], "f", **patterns)
    return form.name, [i.messages for i in form.to_instances(row, "f", 1)]


QA = (user("q"), assistant("a"))


@pytest.mark.parametrize(
    ("row", "name", "messages"),
    [
        ({"instruction": "q", "output": "a"}, "Alpaca", QA),
        (
            {
                "instruction": "q",
                "input": "i",
                "output": "a",
                "system": "s",
                "history": [["h", "r"]],
            },
            "Alpaca",
            (system("s"), user("h"), assistant("r"), user("q\n\ni"), assistant("a")),
        ),
        ({"instruction": "q", "context": "c", "response": "a"}, "Dolly", (user("q\n\nc"), assistant("a"))),
        (
            {
                "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                "system": "s",
            },
            "ShareGPT",
            (system("s"), *QA),
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "q"}]},
                    {"role": "assistant", "content": "a", "weight": 0},
                ]
            },
            "messages",
            (system("s"), user("q"), assistant("a", False)),
        ),
        ({"prompt": "q", "completion": "a"}, "prompt/completion", QA),
        ({"prompt": "q", "response": "a", "id": 3}, "prompt/response", QA),
        ({"question": "q", "answer": 3}, "question/answer", (user("q"), assistant("3"))),
        ({"input": "q", "output": "a", "text": "qa"}, "input/output", QA),
        ({"text": "t", "title": "x"}, "plain text", (Message("text", "t"),)),
        (
            {"input": "### Human: q\n### Assistant: a ### Human: r ### Assistant:", "output": "b"},
            "OASST (### Human / ### Assistant)",
            (*QA, user("r"), assistant("b")),
        ),
    ],
)
def test_recognised(row, name, messages):
    assert read(row) == (name, [messages])


def test_self_instruct_rows_hold_several():
    row = {"instruction": "q", "instances": [{"input": "", "output": "a"}, {"input": "i", "output": "b"}]}
    assert read(row) == ("self-instruct", [QA, (user("q\n\ni"), assistant("b"))])


def chat(*roles):
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "q", "output": " \n"}, "empty answer"),
        ({"instruction": "", "input": "", "output": "a"}, "empty prompt"),
        ({"instruction": "q", "output": None}, "missing field 'output'"),
        ({"instruction": "q", "output": {"a": 1}}, "field 'output' is an object, not text"),
        (
            {"instruction": "q", "output": "a", "history": ["h"]},
            "field 'history' is not a list of pairs of texts",
        ),
        (chat("assistant", "user"), "roles out of order (assistant where user is due)"),
        (chat("user", "user", "assistant"), "roles out of order (user where assistant is due)"),
        (chat("user", "system"), "roles out of order (system where assistant is due)"),
        (chat("user"), "conversation ends without an answer"),
        (chat("user", "tool"), "a tool's result without its call"),
        (chat("user", "wizard"), "unknown role 'wizard'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "a turn holds more than text"),
        ({"text": " "}, "empty text"),
    ],
)
def test_rows_that_cannot_be_learnt(row, reason):
    with pytest.raises(RowProblem) as caught:
        read(row)
    assert reason in caught.value.reason


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"jinja": "{{x}}", "name": "n"}, "prompt templates"),
        ({"prompt": "q", "chosen": "a"}, "halves of preference pairs"),
    ],
)
def test_refused(row, kind):
    with pytest.raises(UserError, match=f"f: these are {kind}.*not instances"):
        recognise([row], "f")


def test_unrecognised_lists_columns_and_shows_how():
    with pytest.raises(UserError) as caught:
        recognise([{"sentence": "x", "label": 1}], "f.csv")
    assert "f.csv: the format of these rows is not known; their columns are: sentence, label" in str(caught.value)
    assert '--prompt "{sentence}" --answer "{label}"' in str(caught.value)
    with pytest.raises(UserError, match="columns are: text, label"):  # labelled, so no plain text
        recognise([{"text": "x", "label": 1}], "f")


def test_recognition_looks_at_several_rows():
    rows = [{"prompt": "q"}, {"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a"}]
    assert recognise(rows, "f").name == "prompt/completion"


def test_patterns():
    row = {"text": "x", "label": 1, "answers": {"text": ["a", "b"]}, "Best Answer": "c"}
    messages = (user("Is x good?"), assistant("1"))
    assert read(row, prompt="Is {text} good?", answer="{label}")[1] == [messages]
    assert read(row, prompt="{{{text}}}", answer="{answers[text][0]}")[1] == [(user("{x}"), assistant("a"))]
    assert read(row, prompt="{text}", answer="{Best Answer}", system="s")[1][0][0] == system("s")
    assert read(row, answer="{text}{label}")[1] == [(Message("text", "x1"),)]
    with pytest.raises(UserError, match=r"no column 'txt'.*text, label.*\n.*'text'"):
        read(row, prompt="{txt}", answer="{label}")
    with pytest.raises(UserError, match="pattern for the answer is needed"):
        read(row, prompt="{text}")
    with pytest.raises(UserError, match="--answer"):
        read(row, prompt="{text}", answer="{label")
    with pytest.raises(RowProblem, match="not in the row"):
        read(row, prompt="{text}", answer="{answers[text][9]}")
    with pytest.raises(UserError, match="no column"):  # attributes are no columns
        read(row, prompt="{text.__class__}", answer="{label}")


def test_fill():
    messages = (user("I am {{ name }}"), assistant("{{name}} of {{author}} {x}"))
    filled, names = fill(messages, {"name": "Ada"})
    assert filled == (user("I am Ada"), assistant("Ada of {{author}} {x}"))
    assert names == ["name", "name", "author"]
