"""The file that people write demonstrations into: what is asked and checked, and that training reads the result."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graftlm.cli.data import app
from graftlm.data.collecting.collect import Settings, collect
from graftlm.data.collecting.demonstrations import check_sheet
from graftlm.data.prepare import load_instances
from graftlm.data.sets import read_card, read_set
from graftlm.errors import UserError

PROMPTS = [
    "Write a poem about rivers",
    "What is rain?",
    "Suggest five names for a cat,\nplease",
    '总结这段话："春天来了"',
    "Translate to German: cheese",
    "Tell me a joke about trains",
]


@pytest.fixture
def folder(write, tmp_path):
    rows = [{"query": text, "user_id": n, "consent": "yes"} for n, text in enumerate(PROMPTS)]
    log = write("log.jsonl", rows)
    collect([log], tmp_path / "out", Settings(shares=(0.5, 0.25, 0.25)), demonstrations=tmp_path / "sheet.jsonl")
    return tmp_path / "out"


def sheet(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_is_well(folder, write, tmp_path):
    rows = sheet(tmp_path / "sheet.jsonl")
    assert {row["prompt"] for row in rows} == set(PROMPTS)
    assert {row["demonstration"] for row in rows} == {""}
    back = write("back.jsonl", [{**row, "demonstration": f"An answer to {row['id']}."} for row in rows])
    checked = check_sheet(back, folder, tmp_path / "chats", tmp_path / "set")
    assert (checked.asked, checked.read, checked.good, checked.problems) == (6, 6, 6, {})
    files = [path for path in (tmp_path / "chats").glob("*.jsonl") if path.stat().st_size]
    loaded = load_instances(files)
    assert len(loaded.items) == 6
    assert not loaded.counts.dropped
    assert {item.messages[0].content for item in loaded.items} == set(PROMPTS)
    assert all(item.messages[1].content.startswith("An answer to ") for item in loaded.items)
    chats = {item.messages[0].content: item for item in read_set(tmp_path / "set")}
    assert set(chats) == set(PROMPTS)
    assert chats["What is rain?"].provenance.task == "open QA"
    assert read_card(tmp_path / "set").splits == checked.splits


def test_each_problem_is_named(folder, write, tmp_path):
    rows = [{**row, "demonstration": "A good answer."} for row in sheet(tmp_path / "sheet.jsonl")]
    rows[0]["demonstration"] = "  "
    rows[1]["prompt"] += " Today?"
    rows[2]["demonstration"] = "Write to ada@example.org or call +49 30 1234567."
    rows[3]["demonstration"] = rows[3]["prompt"] + "!"
    rows.append({**rows[4], "demonstration": "Another."})
    rows.append({**rows[4], "id": "0000"})
    del rows[5]
    checked = check_sheet(write("back.jsonl", rows), folder, tmp_path / "chats")
    assert checked.problems == {
        "empty demonstration": 1,
        "changed prompt": 1,
        "personal data in the demonstration: email, phone": 1,
        "demonstration repeats the prompt": 1,
        "id stands twice": 1,
        "unknown id": 1,
        "missing row": 1,
    }
    assert checked.good == 1
    assert checked.examples["empty demonstration"] == [f"row 1 ({rows[0]['id']})"]
    assert "ada" not in str(checked.examples)


def test_a_spreadsheet_may_change_line_ends(folder, tmp_path):
    """A CSV that comes back with other quotation marks and line ends is still the same."""
    rows = sheet(tmp_path / "sheet.jsonl")
    path = tmp_path / "back.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), quoting=csv.QUOTE_ALL)
        table.writeheader()
        for row in rows:
            table.writerow({**row, "prompt": row["prompt"].replace("\n", "\r\n"), "demonstration": "Fine,\nso."})
    assert check_sheet(path, folder).good == 6


def test_use_case_by_hand(folder, write, tmp_path):
    rows = [{**row, "demonstration": "Fine.", "use_case_by_hand": "other"} for row in sheet(tmp_path / "sheet.jsonl")]
    rows[0]["use_case_by_hand"] = "poems"
    checked = check_sheet(write("back.jsonl", rows), folder, tmp_path / "chats")
    assert checked.problems == {"unknown use case by hand": 1}
    chats = [line for path in (tmp_path / "chats").glob("*.jsonl") for line in sheet(path)]
    assert {chat["use_case"] for chat in chats} == {"other"}


def test_refused(folder, write, tmp_path):
    with pytest.raises(UserError, match="row 1 has no 'demonstration'"):
        check_sheet(write("back.jsonl", [{"id": "x", "prompt": "y"}]), folder)
    with pytest.raises(UserError, match="no demonstrations were asked for"):
        check_sheet(tmp_path / "sheet.jsonl", tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        check_sheet(tmp_path / "sheet.jsonl", tmp_path / "none")
    with pytest.raises(UserError, match="may hold demonstrations"):
        collect([tmp_path / "log.jsonl"], folder, demonstrations=tmp_path / "sheet.jsonl")


def test_command(folder, write, tmp_path):
    rows = [{**row, "demonstration": "A good answer."} for row in sheet(tmp_path / "sheet.jsonl")]
    arguments = ["--prompts", str(folder), "--out", str(tmp_path / "chats")]
    result = CliRunner().invoke(app, ["check-demonstrations", str(write("back.jsonl", rows)), *arguments])
    assert result.exit_code == 0, result.output
    assert "asked for 6, rows 6, good 6" in result.output
    result = CliRunner().invoke(app, ["check-demonstrations", str(write("short.jsonl", rows[1:])), *arguments])
    assert isinstance(result.exception, UserError)
    assert "1 missing row" in result.output
