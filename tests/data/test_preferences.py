"""Preference rows: read from the usual forms, kept in sets, and learnt from only where somebody says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.base.loading import load_tokenizer
from graftlm.cli.data_format import as_row
from graftlm.data.filters import Duplicates
from graftlm.data.instances import Instance, Message
from graftlm.data.mixing import row_key
from graftlm.data.prepare import RowCounts, load_instances, prepare, read_instances
from graftlm.data.sets import SetCard, read_set, write_set
from graftlm.data.splits import share_of
from graftlm.data.templates import resolve_chat_template
from graftlm.data.texts import answer_of, prompt_of
from graftlm.errors import UserError

ASKED = Message("user", "Where is the cat?")
EXPECTED = (ASKED, Message("assistant", "On the mat."), Message("rejected", "No idea."))


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def said(role: str, content: str) -> dict[str, str]:
    return {"from": role, "value": content}


QUESTION = turn("user", "Where is the cat?")
HUMAN = "\n\nHuman: Where is the cat?\n\nAssistant: "
ROWS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Where is the cat?", "chosen": "On the mat.", "rejected": "No idea."},
    "question": {"question": "Where is the cat?", "chosen": "On the mat.", "rejected": "No idea."},
    "instruction": {"instruction": "Where is the cat?", "input": "", "chosen": "On the mat.", "rejected": "No idea."},
    "turns": {
        "prompt": [QUESTION],
        "chosen": [turn("assistant", "On the mat.")],
        "rejected": [turn("assistant", "No idea.")],
    },
    "whole": {
        "chosen": [QUESTION, turn("assistant", "On the mat.")],
        "rejected": [QUESTION, turn("assistant", "No idea.")],
    },
    "prompt and whole": {
        "prompt": "Where is the cat?",
        "chosen": [QUESTION, turn("assistant", "On the mat.")],
        "rejected": [QUESTION, turn("assistant", "No idea.")],
    },
    "sharegpt": {
        "conversations": [said("human", "Where is the cat?")],
        "chosen": said("gpt", "On the mat."),
        "rejected": said("gpt", "No idea."),
    },
    "one text": {"chosen": HUMAN + "On the mat.", "rejected": HUMAN + "No idea."},
}


def write(folder: Path, *rows: dict[str, Any]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("form", ROWS)
def test_the_usual_forms_are_read(form: str, tmp_path: Path) -> None:
    [instance] = load_instances(write(tmp_path, ROWS[form])).items
    assert instance.messages == EXPECTED
    assert instance.rejected == EXPECTED[-1]
    assert instance.conversation == instance.chosen.messages == EXPECTED[:-1]
    assert (prompt_of(instance), answer_of(instance)) == ("Where is the cat?", "On the mat.")


def test_longer_conversations_with_a_system_message(tmp_path: Path) -> None:
    before = [turn("system", "Be short."), QUESTION, turn("assistant", "Which?"), turn("user", "Tom.")]
    row = {"messages": before, "chosen": turn("assistant", "There."), "rejected": turn("assistant", "Where?")}
    [instance] = load_instances(write(tmp_path, row)).items
    assert [m.role for m in instance.messages] == ["system", "user", "assistant", "user", "assistant", "rejected"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROWS["texts"], "rejected": "On the mat."}, "the chosen and the rejected answer are the same"),
        ({**ROWS["texts"], "rejected": " "}, "empty rejected answer"),
        ({**ROWS["texts"], "chosen": 3}, "field 'chosen' is no answer"),
        ({**ROWS["texts"], "chosen": [QUESTION]}, "a chosen or rejected conversation ends without an answer"),
        (
            {"chosen": HUMAN + "Yes.", "rejected": HUMAN.replace("cat", "dog") + "No."},
            "the two conversations part before their last answers",
        ),
    ],
)
def test_rows_that_are_no_pair_are_counted(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    counts = RowCounts()
    assert len(list(read_instances(str(write(tmp_path, ROWS["texts"], row)), counts).instances)) == 1
    assert counts.dropped == {reason: 1}


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="without the other"):
        load_instances(write(tmp_path, {"prompt": "a", "chosen": "b"}))


def test_a_set_and_a_file_of_chats_keep_both_answers(tmp_path: Path) -> None:
    found = load_instances(write(tmp_path, ROWS["texts"])).items
    write_set(tmp_path / "set", found, SetCard())
    assert [each.messages for each in read_set(tmp_path / "set")] == [EXPECTED]
    assert load_instances(write(tmp_path, as_row(found[0]))).items[0].messages == EXPECTED


def test_pairs_that_differ_in_the_rejected_answer_are_two() -> None:
    one = Instance(EXPECTED, "f", 1)
    other = Instance((*EXPECTED[:-1], Message("rejected", "Go away.")), "f", 1)
    assert row_key(one, 0) != row_key(other, 0)
    assert share_of(one, 0) == share_of(other, 0)
    same = Duplicates()
    assert [same.judge("", each) for each in (one, other, one)] == [None, None, "exact duplicate"]


def test_instruction_tuning_takes_them_only_where_somebody_says_so(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("tiny")
    template = resolve_chat_template("plain", tokenizer)
    file = write(tmp_path, ROWS["texts"], ROWS["turns"])
    with pytest.raises(UserError, match=r"row 1: a preference row.* 2 of them") as caught:
        prepare(file, template, tokenizer)
    assert "preferences: chosen" in str(caught.value.hint)
    data = prepare(file, template, tokenizer, preferences="chosen")
    assert data.rows[0].ids == template.render(EXPECTED[:-1], tokenizer).ids
    assert "idea" not in tokenizer.decode(data.rows[0].ids)
