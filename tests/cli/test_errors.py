"""Bad input to `train`: one clear error that says where, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Cli, Ended
from tests.runs.small import colour_rows, write_rows

GOOD = [json.dumps(row) for row in colour_rows()]


def refused(ended: Ended, *parts: str) -> None:
    assert ended.code == 2
    assert ended.err.startswith("error: ")
    assert ended.err.count("error: ") == 1
    for part in parts:
        assert part in ended.err


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("empty.json", "", ["empty.json: the file is empty"]),
        ("none.json", "[]", ["none.json: the file holds no rows"]),
        ("broken.jsonl", "\n".join([*GOOD[:2], GOOD[2][:20]]), ["broken.jsonl: row 3 is broken JSON: line 3, column"]),
        (
            "foo.jsonl",
            '{"foo": 1}\n',
            ["format of these rows is not known; their columns are: foo", '--prompt "{foo}"'],
        ),
        (
            "some.jsonl",
            "\n".join([*GOOD[:20], *['{"instruction": "Who?", "output": ""}'] * 4]),
            ["4 of 24 rows (16.7%) were dropped", "empty answer, for example", "some.jsonl:21", "max_dropped: 0.17"],
        ),
        ("all.jsonl", '{"instruction": "Who?", "output": ""}\n' * 3, ["no row is left of 3", "3 × empty answer"]),
        ("templates.jsonl", '{"jinja": "{{a}} ||| {{b}}", "name": "x"}\n', ["prompt templates (PromptSource"]),
        ("one.jsonl", GOOD[0] + "\n", ["held-out rows cannot be taken of 1 rows"]),
    ],
)
def test_data(cli: Cli, tmp_path: Path, name: str, text: str, parts: list[str]):
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused(cli("train", "--data", name), *parts)
    assert [path.name for path in tmp_path.iterdir()] in ([name], [name, "runs"], ["runs", name])
    assert not list((tmp_path / "runs").glob("*"))


def test_a_path_that_does_not_exist(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "colours.jsonl", colour_rows())
    refused(cli("train", "--data", "colors.jsonl"), "colors.jsonl: there is no such file", "colours.jsonl")
    refused(cli("train", "recipe.yaml"), "there is no recipe recipe.yaml")
    refused(cli("train", "colours.jsonl"), "looks like data", "graftlm train --data colours.jsonl")
    refused(cli("train"), "nothing to train on")
    refused(cli("train", "r.yaml", "--data", "colours.jsonl"), "a recipe or --data, not both")
    refused(cli("train", "r.yaml", "--set", "a=b"), "--set goes with --data")
    refused(cli("train", "--data", "colours.jsonl", "--set", "ab"), "--set ab: expected name=value")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"base": "nosuch"}, ["line 1, base: no base 'nosuch'"]),
        ({"base": "hollow"}, ["line 1, base: ", "it has no config.json"]),
        ({"dtype": "float8"}, ["line 6, dtype: ", "float32"]),
        ({"device": "gpu"}, ["unknown device 'gpu'", "cuda:N"]),
        (
            {"adapters": {"a": {"method": "lora", "targets": ["nothing"]}}},
            ["adapter 'a'", "'nothing' matches no", "q_proj"],
        ),
        (
            {"adapters": {"a": {"method": "lora", "under": "gone"}}},
            ["adapters.a.under: ", "no folder of a saved adapter"],
        ),
        ({"data": {"d": {"path": "rows.jsonl", "max_length": 10**6}}}, ["data set 'd': max_length is 1000000", "2048"]),
        ({"data": {"d": {"path": "rows.jsonl", "held_out": 24}}}, ["data set 'd'", "held-out rows cannot be taken"]),
    ],
)
def test_recipe(cli: Cli, tmp_path: Path, changes: dict[str, Any], parts: list[str]):
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    (tmp_path / "hollow").mkdir()
    values = {"base": "tiny", "data": {"d": {"path": "rows.jsonl"}}, "adapters": {"a": {"method": "lora"}}} | changes
    (tmp_path / "r.yaml").write_text(yaml(values))
    refused(cli("train", "r.yaml"), *parts)
    assert not list((tmp_path / "runs").glob("*"))


def yaml(values: dict[str, Any]) -> str:
    return "".join(
        f"{key}:\n  {json.dumps(value)}\n" if isinstance(value, dict) else f"{key}: {value}\n"
        for key, value in values.items()
    )


def test_three_errors_at_once_each_with_its_line(cli: Cli, tmp_path: Path):
    (tmp_path / "r.yaml").write_text(
        "base: tiny\ndata:\n  d: {path: gone.jsonl}\n"
        "adapters:\n  a: {method: lora, rnk: 4}\n  b: {method: lora, rank: -1}\n"
    )
    ended = cli("train", "r.yaml")
    refused(
        ended, "r.yaml has 3 errors", "line 3, data.d.path: ", "line 5, adapters.a.rnk: ", "line 6, adapters.b.rank: "
    )
    assert "did you mean 'rank'?" in ended.err
    refused(cli("plan", "r.yaml"), "r.yaml has 3 errors")


def test_adapter_names_that_stand_twice(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    (tmp_path / "r.yaml").write_text(
        "base: tiny\ndata:\n  d: {path: rows.jsonl}\nadapters:\n  a: {method: lora}\n  a: {method: lora, rank: 4}\n"
    )
    refused(cli("train", "r.yaml"), "line 6, adapters.a: stands twice; the first is in line 5")


def test_the_results_folder_is_a_file(cli: Cli, tmp_path: Path):
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    (tmp_path / "out").write_text("mine")
    refused(cli("train", "--data", "rows.jsonl", "--out", "out"), "out is a file; the results need a folder")
    refused(cli("train", "--data", "rows.jsonl", "--out", "out/below"), "could not be written")
    assert (tmp_path / "out").read_text() == "mine"


def test_adapter_folders(cli: Cli, trained: Path, tmp_path: Path):
    """One that is cut short, missing, or for another base: in every command that opens adapters."""
    cut = shutil.copytree(trained / "adapters" / "both", tmp_path / "cut")
    with (cut / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(3000)
    other = shutil.copytree(trained / "adapters" / "both", tmp_path / "other")
    notes = json.loads((other / "graftlm.json").read_text())
    notes["base"] |= {"fingerprint": "0" * 64, "hidden_size": 99}
    (other / "graftlm.json").write_text(json.dumps(notes))
    write_rows(tmp_path / "rows.jsonl", colour_rows())
    for folder, parts in {
        "cut": ["cut/adapter_model.safetensors is cut short or broken"],
        "other": ["was trained on another base", "0" * 16, notes["base"]["name"], "hidden_size 99 against"],
        "gone": ["gone"],
    }.items():
        values = {"base": "tiny", "data": {"d": {"path": "rows.jsonl"}}}
        (tmp_path / "r.yaml").write_text(yaml({**values, "adapters": {"a": {"method": "lora", "under": folder}}}))
        for command in (
            ["chat", folder, "-m", "Hello"],
            ["export", folder, "--out", "merged"],
            ["generate", "rows.jsonl", "--out", "answers.jsonl", "--adapter", folder],
            ["train", "r.yaml"],
        ):
            ended = cli(*command)
            assert ended.code == 2, command
            assert ended.err.count("error: ") == 1
            assert all(part in ended.err for part in parts), (command, ended.err)
            assert sorted(path.name for path in tmp_path.iterdir() if path.name != "runs") == [
                "cut",
                "other",
                "r.yaml",
                "rows.jsonl",
            ]
    assert not list((tmp_path / "runs").glob("*"))


@pytest.mark.parametrize(
    ("option", "parts"),
    [
        (["--base", "/nope"], ["no base '/nope'"]),
        (["--base", "hollow"], ["the folder hollow holds no model: it has no config.json"]),
        (["--device", "gpu"], ["unknown device 'gpu'", "Use auto, cpu, cuda or cuda:N."]),
        (["--dtype", "float8"], ["unknown dtype 'float8'; there are: auto"]),
        (["--chat-template", "chatlm"], ["chatml"]),
        (["--use", "colors"], ["unknown adapter 'colors'; there are: base"]),
        (["--top-p", "7"], ["top_p is 7.0"]),
    ],
)
def test_options_of_chat(cli: Cli, tmp_path: Path, option: list[str], parts: list[str]):
    (tmp_path / "hollow").mkdir()
    refused(cli("chat", "-m", "Hello", *option), *parts)
