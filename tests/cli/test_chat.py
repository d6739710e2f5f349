"""`graftlm chat` and `graftlm generate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.runs.small import write_rows

GREEDY = ["--temperature", "0", "--max-new-tokens", "6"]


def test_one_message(cli: Cli, trained: Path):
    ended = cli("chat", trained, "-m", "The cat is red. Which colour is the cat?", *GREEDY)
    assert ended.code == 0
    assert ended.out.strip()
    assert ended.err.strip() in ("", "(cut at --max-new-tokens)")  # what is no answer goes to stderr
    again = cli("chat", trained, "-m", "The cat is red. Which colour is the cat?", *GREEDY)
    assert again.out == ended.out
    assert "--message is empty" in cli("chat", trained, "-m", " ").err


def test_lines_from_a_pipe(cli: Cli, trained: Path):
    said = (
        "/list\nHello\n/all\nHello\n/use colors\n/foo\n/use both\nHello\n/system Be kind\nHello\n/help\n/quit\nHello\n"
    )
    ended = cli("chat", trained, *GREEDY, stdin=said)
    assert ended.code == 0
    lines = ended.out.splitlines()
    assert lines[:3] == ["› both", "  colours", "  base"]
    assert "both, colours and base will answer" in lines
    assert {"both", "colours", "base"} <= {line.partition(": ")[0] for line in lines}
    assert "unknown adapter 'colors'; there are: base, both, colours" in ended.err
    assert "Did you mean 'colours'?" in ended.err
    assert "unknown command '/foo'" in ended.err
    assert "/reset" in ended.out
    assert max(len(line) for line in ended.out.partition("/use NAME")[2].partition("/quit")[0].splitlines()) < 80


def test_side_by_side_is_each_alone(cli: Cli, trained: Path):
    together = cli("chat", trained, "--all", "-m", "Who is it?", *GREEDY).out
    for name in ("both", "colours", "base"):
        alone = cli("chat", trained, "--use", name, "-m", "Who is it?", *GREEDY).out
        assert f"{name}: {alone.strip()}" in together


def test_a_run_without_adapters(cli: Cli, tmp_path: Path):
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "recipe.yaml").write_text("base: tiny\n")
    assert "has saved no adapters yet" in cli("chat", "begun").err
    (tmp_path / "empty").mkdir()
    assert "empty is not an adapter folder" in cli("chat", "empty").err


def test_generate_and_resume(cli: Cli, trained: Path, tmp_path: Path):
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": text} for text in ("Hello", "Who is it?", "", "Why?")])
    options = ["--adapter", trained, "--with-base", "--max-new-tokens", "5"]
    ended = cli("generate", "prompts.jsonl", "--out", "answers.jsonl", *options)
    assert ended.code == 0
    assert ended.out == "answers.jsonl\n"
    assert "9 answers" in ended.err
    assert "no answer to row 3" in ended.err
    records = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [(record["row"], record["adapter"]) for record in records] == [
        (row, name) for row in (1, 2, 3, 4) for name in ("both", "colours", None)
    ]
    assert "exists already" in cli("generate", "prompts.jsonl", "--out", "answers.jsonl", *options).err
    whole = (tmp_path / "answers.jsonl").read_bytes()
    (tmp_path / "answers.jsonl").write_bytes(whole[: len(whole) // 2])  # cut in the middle of a line
    assert cli("generate", "prompts.jsonl", "--out", "answers.jsonl", *options, "--resume").code == 0
    assert (tmp_path / "answers.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("empty.txt", "", "empty.txt: the file is empty"),
        ("broken.jsonl", '{"prompt": "a"}\n{"pro', "broken.jsonl: row 2 is broken JSON"),
        ("foo.jsonl", '{"foo": 1}\n', "no prompt is known in these rows; their columns are: foo"),
        ("recipe.yaml", "base: tiny\n", "recipe.yaml: unknown kind of file"),
    ],
)
def test_prompts_that_cannot_be_read(cli: Cli, tmp_path: Path, name: str, text: str, part: str):
    (tmp_path / name).write_text(text)
    ended = cli("generate", name, "--out", "answers.jsonl")
    assert ended.code == 2
    assert part in ended.err
    assert not (tmp_path / "answers.jsonl").exists()
