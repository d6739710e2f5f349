"""`graftlm data format --template promptsource:FILE#dataset/name`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from graftlm.data.sets import read_card, read_set
from tests.cli.conftest import Cli

TEMPLATES = [
    {"dataset": "reviews", "name": "one", "jinja": "{{sentence}} Good?|||{{answer_choices[label]}}"}
    | {"answer_choices": "no ||| yes", "languages": ["en"]},
    {"dataset": "reviews", "name": "two", "jinja": "{% if label == 1 %}What is good?|||{{sentence}}{% endif %}"},
    {"dataset": "arts", "subset": "film", "name": "three", "jinja": "{{title}}|||{{label}}"},
    {"dataset": "arts", "subset": "film", "name": "four", "jinja": "{{title}}|||{{label}}"},
]
ROWS = [
    {"text": "A fine film.", "label": "positive"},
    {"text": "A bad film.", "label": "negative"},
    {"text": "A film.", "label": "mixed"},
]
OPTIONS = ["--column", "sentence=text", "--label", "negative=0", "--label", "positive=1"]


@pytest.fixture
def files(tmp_path: Path) -> None:
    for name, rows in (("templates.jsonl", TEMPLATES), ("rows.jsonl", ROWS)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _format(cli: Cli, name: str, out: str, *options: str):
    return cli(
        "data", "format", "rows.jsonl", "--template", f"promptsource:templates.jsonl{name}", "--out", out, *options
    )


@pytest.mark.usefixtures("files")
def test_one_template_to_a_file(cli: Cli, tmp_path: Path):
    ended = _format(cli, "#reviews/one", "out.jsonl", *OPTIONS, "--licence", "CC0")
    assert ended.code == 0
    assert "rows.jsonl by 'reviews/one': label ← label, sentence ← text\n" in ended.out
    assert "out.jsonl: 2 instances of 3 rows\n" in ended.out
    assert "dropped    1: field 'label' is none of its classes (rows.jsonl:3)" in ended.out
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == ["A fine film. Good?", "A bad film. Good?"]
    assert [row["messages"][1]["content"] for row in rows] == ["yes", "no"]
    assert rows[0]["template"] == "reviews/one"
    assert (rows[0]["language"], rows[0]["licence"], rows[0]["row"]) == ("en", "CC0", 1)


@pytest.mark.usefixtures("files")
def test_all_templates_to_a_set(cli: Cli, tmp_path: Path):
    ended = _format(cli, "#reviews", "out", "--all-descriptions", *OPTIONS)
    assert ended.code == 0
    assert "by the 2 templates of reviews" in ended.out
    instances = list(read_set(tmp_path / "out"))
    assert [(i.row, i.provenance.template) for i in instances] == [
        (1, "reviews/one"),
        (1, "reviews/two"),
        (2, "reviews/one"),
    ]
    dropped = {"field 'label' is none of its classes": 2, "template skips the row": 1}
    assert read_card(tmp_path / "out").dropped == dropped


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("#reviews/one", [], "'reviews/one' asks for sentence; its columns are: text, label"),
        ("#reviews/one", ["--column", "sentence=txt"], "rows.jsonl has no column 'txt'"),
        (
            "#reviews/one",
            ["--column", "sentense=text"],
            "no field 'sentense' in 'reviews/one'; there are: label, sentence",
        ),
        ("#reviews/one", [*OPTIONS, "--label", "mixed=neither"], "knows labels by number, and 'neither' is none"),
        ("#reviews/one", [*OPTIONS, "--demonstrations", "2"], "they take no demonstrations, joins or inverted tasks"),
        ("#reviews/three", OPTIONS, "unknown template 'reviews/three'"),
        ("#arts/film/tree", OPTIONS, "unknown template 'arts/film/tree'; there are: arts/film/four, arts/film/three →"),
        ("#arts/fim", OPTIONS, "unknown template 'arts/fim'; there are: arts/film →"),
        ("", OPTIONS, "names no template"),
    ],
)
def test_errors(cli: Cli, tmp_path: Path, name, options, error):
    ended = _format(cli, name, "out.jsonl", *options)
    assert ended.code == 2
    assert error in " ".join(ended.err.split())
    assert not (tmp_path / "out.jsonl").exists()
