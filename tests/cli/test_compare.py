"""`graftlm compare`: a recipe with a sweep, finished runs, and what is wrong."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from graftlm.recipe import recipe_from_dict
from tests.cli.conftest import Cli
from tests.runs.small import animal_rows, colour_rows, write_rows


def values(place: Path, **adapters: Any) -> dict[str, Any]:
    """A recipe on colours, of which there are five: choices."""
    write_rows(place / "colours.jsonl", colour_rows(30))
    given = adapters or {
        "lora": {"method": "lora", "rank": 2, "learning_rate": [1e-3, 4e-3], "seed": [0, 1]},
        "high": {"method": "lora", "rank": 8, "learning_rate": 4e-3},
    }
    return {
        "base": "tiny",
        "name": "small",
        "data": {"colours": {"path": str(place / "colours.jsonl"), "held_out": 12}},
        "adapters": given,
        "training": {"max_steps": 3, "batch_rows": 4},
    }


def write_recipe(place: Path, recipe: dict[str, Any], name: str = "small") -> Path:
    path = place / f"{name}.yaml"
    path.write_text(recipe_from_dict(recipe, folder=place).to_yaml(), encoding="utf-8")
    return path


def numbers(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "compare.json").read_text())["comparisons"]
    return found


def test_a_recipe_is_trained_once_and_its_sweep_decided_on_rows_of_its_own(cli: Cli, tmp_path: Path):
    recipe = write_recipe(tmp_path, values(tmp_path))
    ended = cli("compare", recipe)
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "small"
    assert sorted(path.suffix for path in run.glob("compare.*")) == [".html", ".json", ".md", ".png"]
    (found,) = numbers(run)
    assert (found["rows"], found["tuning_rows"], found["metric"]) == (8, 4, "accuracy")
    assert found["choices"] == ["black", "blue", "green", "red", "white"]
    by_name = {each["name"]: each for each in found["contenders"]}
    assert by_name.keys() == {"lora", "high"}
    lora = by_name["lora"]
    assert lora["tuning"].keys() == {"0.001", "0.004"}
    rate = {0.001: "1e-3", 0.004: "4e-3"}[lora["learning_rate"]]
    assert lora["adapters"].keys() == {f"lora-lr{rate}-s0", f"lora-lr{rate}-s1"}
    assert lora["score"]["value"] == pytest.approx(sum(lora["adapters"].values()) / 2)
    assert by_name["high"]["tuning"] == {}
    for each in found["contenders"]:
        assert each["adapter_bytes"] == 4 * each["trained_parameters"]
        assert 2 * each["adapter_bytes"] < each["optimizer_bytes"] < 2 * each["adapter_bytes"] + 4000
        assert each["file_bytes"] > each["adapter_bytes"]
        assert each["step_seconds"] > 0
    assert "4 other held-out rows, the tuning rows" in ended.out
    assert "Untouched base:" in ended.out
    assert "within a table" not in ended.out
    # the kept step was chosen on the tuning rows
    notes = json.loads((run / "adapters" / "high" / "graftlm.json").read_text())
    assert notes["metrics"]["held_out_rows"] == 4

    weights = (run / "adapters" / "high" / "adapter_model.safetensors").read_bytes()
    again = cli("compare", recipe, "--metric", "matthews", "--normalise", "token")
    assert "is trained already" in again.out
    assert numbers(run)[0]["metric"] == "matthews"
    assert (run / "adapters" / "high" / "adapter_model.safetensors").read_bytes() == weights

    shutil.copytree(run, tmp_path / "runs" / "other")
    both = cli("compare", run, tmp_path / "runs" / "other", "--choices", "none")
    assert both.code == 0, both.err
    (found,) = numbers(tmp_path / "runs" / "compare")
    assert (found["metric"], found["choices"]) == ("exact", [])
    assert {name for each in found["contenders"] for name in each["adapters"]} >= {"small-high", "other-high"}

    changed = write_recipe(tmp_path, values(tmp_path, one={"method": "lora"}), "changed")
    ended = cli("compare", changed, "--out", run)
    assert ended.code == 2
    assert "not the one that the run in" in ended.err


def test_finished_runs_are_scored_for_each_set_of_rows(cli: Cli, trained: Path, tmp_path: Path):
    ended = cli("compare", trained, "--out", "here", "--metric", "perplexity")
    assert ended.code == 0, ended.err
    found = {each["data"]: each for each in numbers(tmp_path / "here")}
    assert found.keys() == {"colours", "colours, animals"}
    assert (found["colours"]["rows"], found["colours"]["tuning_rows"]) == (5, 0)
    assert "flatters every adapter a little" in ended.out
    assert ended.out.count("scores compare within a table") == 2
    summary = json.loads((trained / "run.json").read_text())["adapters"]["colours"]
    assert found["colours"]["majority"] is None
    (line,) = found["colours"]["contenders"]
    assert line["score"]["value"] == pytest.approx(math.exp(summary["held_out_loss"]), rel=1e-4)
    assert found["colours"]["base"]["value"] == pytest.approx(math.exp(summary["base_loss"]), rel=1e-4)


def test_wrong_words(cli: Cli, trained: Path, tmp_path: Path):
    for arguments, message in [
        (
            ["--metric", "acuracy"],
            "unknown metric 'acuracy'; there are: accuracy, exact, f1, loss, matthews, perplexity",
        ),
        (["--normalise", "words"], "unknown normalisation 'words'; there are: byte, sum, token"),
        (["--choices", ","], "needs two different answers or more"),
        (["--choices", "red, blue"], "the data has the answer 'black', which is not among them"),
        (["--choices", "none", "--metric", "matthews"], "needs answers that are a few classes"),
    ]:
        ended = cli("compare", trained, *arguments)
        assert ended.code == 2, arguments
        assert message in ended.err


def test_wrong_places(cli: Cli, trained: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path, values(tmp_path))
    assert "give one recipe, or folders of finished runs" in cli("compare", recipe, trained).err
    assert "there is no run in nowhere" in cli("compare", "nowhere").err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(trained, unfinished)
    (unfinished / "run.json").unlink()
    ended = cli("compare", trained, unfinished)
    assert ended.code == 2
    assert "is not finished" in ended.err
    assert "--resume --out" in ended.err
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    summary = json.loads((other / "run.json").read_text())
    summary["base"]["fingerprint"] = "0" * 64
    (other / "run.json").write_text(json.dumps(summary))
    ended = cli("compare", trained, other)
    assert "these runs are of different bases" in ended.err
    assert "000000000000" in ended.err


def test_without_enough_held_out_rows(cli: Cli, tmp_path: Path):
    one = values(tmp_path, one={"method": "lora"})
    one["data"]["colours"]["held_out"] = 0
    ended = cli("compare", write_recipe(tmp_path, one))
    assert (ended.code, "adapter 'one' has no held-out rows" in ended.err) == (2, True)
    one["data"]["colours"]["held_out"] = 2
    ended = cli("compare", write_recipe(tmp_path, one))
    assert (ended.code, "2 held-out rows are too few" in ended.err) == (2, True)
    assert not (tmp_path / "runs" / "small" / "recipe.yaml").exists()


def test_an_adapter_with_a_template_of_its_own_beside_others(cli: Cli, tmp_path: Path):
    """Its choices are rendered in its template, those of the bare base in the run's; what is trained is counted."""
    tuned = {"method": "p-tuning", "length": 4, "encoder_hidden": 16, "learning_rate": 1e-3}
    free = tuned | {"template": "[P×3] {input} [P×2] is {target}", "length": None}
    recipe = values(tmp_path, front=tuned, free=free, bare={"method": "lora", "rank": 2})
    ended = cli("compare", write_recipe(tmp_path, recipe))
    assert ended.code == 0, ended.err
    (found,) = numbers(tmp_path / "runs" / "small")
    assert {each["name"] for each in found["contenders"]} == {"front", "free", "bare"}
    assert found["base"] is not None
    for each in found["contenders"]:
        if each["name"] != "bare":  # its encoder is trained, and is not in the folder
            assert each["adapter_bytes"] == 4 * each["trained_parameters"] > each["file_bytes"]


def test_a_group_of_unlike_adapters(cli: Cli, tmp_path: Path):
    adapters = {name: {"method": "lora", "rank": rank, "group": "g"} for name, rank in (("a", 2), ("b", 4))}
    write_rows(tmp_path / "animals.jsonl", animal_rows())
    ended = cli("compare", write_recipe(tmp_path, values(tmp_path, **adapters)))
    assert ended.code == 2
    assert "'a' and 'b' of the group 'g' differ in more than learning rate, seed and data" in ended.err
    assert not (tmp_path / "runs" / "small" / "recipe.yaml").exists()


def test_a_classifier_beside_a_writer(cli: Cli, tmp_path: Path):
    recipe = values(
        tmp_path,
        head={"method": "lora", "rank": 2, "learning_rate": 1e-2, "head": {"type": "classifier"}},
        text={"method": "lora", "rank": 2, "learning_rate": 1e-2},
    )
    path = write_recipe(tmp_path, recipe)
    assert cli("train", path, "--no-plan").code == 0
    ended = cli("compare", tmp_path / "runs" / "small")
    assert ended.code == 0, ended.err
    (found,) = numbers(tmp_path / "runs" / "small")
    by_name = {each["name"]: each for each in found["contenders"]}
    trained = json.loads((tmp_path / "runs" / "small" / "run.json").read_text())["adapters"]
    assert by_name.keys() == {"head", "text"}
    assert by_name["head"]["score"]["value"] == pytest.approx(trained["head"]["held_out_accuracy"])
    assert by_name["text"]["score"]["value"] >= trained["text"]["held_out_accuracy"]  # exact answers are right choices
    assert found["base"] is not None
    assert "predicts classes with a head of its own" in cli("compare", path, "--metric", "perplexity").err


def test_a_comparison_leaves_other_runs_alone(cli: Cli, tmp_path: Path):
    (tmp_path / "runs" / "compare").mkdir(parents=True)
    (tmp_path / "runs" / "compare" / "recipe.yaml").touch()
    ended = cli("compare", "runs/one", "runs/two")
    assert (ended.code, "runs/compare holds another run" in ended.err) == (2, True)


def mixed_set(place: Path) -> tuple[Path, Path]:
    """A set of colours (few answers), of animals as template rows with other choices, and of open questions."""
    colours, animals = ({"task": t, "template": t} for t in ("colours", "animals"))
    rows = [{"prompt": row["instruction"], "completion": row["output"]} | colours for row in colour_rows(30)]
    rows += [{"prompt": row["instruction"], "completion": row["output"]} | animals for row in animal_rows(30)]
    rows += [
        {"prompt": f"Tell me of {n}.", "completion": f"It is {n}.", "task": "open", "template": "open"}
        for n in range(12)
    ]
    write_rows(place / "rows.jsonl", rows)
    (place / "set.yaml").write_text("sources: {rows: {path: rows.jsonl}}\nsplits: {test: 0.4}\n")
    unseen = [row for row in rows if row["task"] == "colours"][::2]
    write_rows(place / "unseen.jsonl", [row | {"task": "unseen"} for row in unseen])
    return place / "set.yaml", place / "unseen.jsonl"


def test_parts_of_the_held_out_rows_are_scored_apart(cli: Cli, tmp_path: Path):
    recipe, _ = mixed_set(tmp_path)
    assert cli("data", "build", recipe, "--out", "set").code == 0
    given = values(tmp_path, lora={"method": "lora", "rank": 2, "learning_rate": [1e-3, 4e-3]})
    given["data"] = {"mixed": {"path": str(tmp_path / "set"), "held_out_split": "test"}}
    path = write_recipe(tmp_path, given)
    ended = cli("compare", path, "--by", "task")
    assert ended.code == 0, ended.err
    run = tmp_path / "runs" / "small"
    found = {each["data"]: each for each in numbers(run)}
    assert list(found) == ["all 2 parts", "animals", "colours", "open"]
    whole, animals, colours, rest = found.values()
    assert (whole["metric"], whole["part_of"], whole["majority_of"]) == ("accuracy", None, "each part")
    assert (colours["choices"], colours["part_of"]) == (["black", "blue", "green", "red", "white"], "task")
    assert animals["choices"] == ["bird", "cat", "cow", "dog", "fish", "horse"]
    assert (rest["metric"], rest["choices"], rest["majority"]) == ("exact", [], 0.0)
    assert whole["rows"] == animals["rows"] + colours["rows"]
    right = sum(each["rows"] * each["base"]["value"] for each in (animals, colours))
    assert whole["base"]["value"] == pytest.approx(right / whole["rows"])
    rates = {each["contenders"][0]["learning_rate"] for each in found.values()}
    assert len(rates) == 1  # one for all parts
    assert "tuning rows; none of them is scored here" in ended.out
    assert ended.out.count("tuning rows; none of them is scored here") == 1
    assert "By task" in ended.out

    # the same rows scored as one: the same loss, whatever the parts
    assert cli("compare", run, "--by", "source", "--metric", "loss", "--out", "loss").code == 0
    (alone,) = numbers(tmp_path / "loss")  # all rows are of one file: one part, and no other
    assert cli("compare", run, "--by", "task", "--metric", "loss", "--out", "loss").code == 0
    joint, *parts = numbers(tmp_path / "loss")
    assert (joint["data"], len(parts)) == ("all 3 parts", 3)
    assert joint["base"]["value"] == pytest.approx(alone["base"]["value"], rel=1e-6)
    assert cli("compare", run, "--by", "task", "--metric", "f1").err.count("needs answers that are a few classes") == 1
    assert "unknown kind of parts 'tusk'" in cli("compare", run, "--by", "tusk").err


def test_adapters_of_other_data_share_a_line_if_they_are_scored_on_the_same_rows(cli: Cli, tmp_path: Path):
    """And where nothing like the scored rows was learnt, the rows themselves say what is commonest."""
    _, unseen = mixed_set(tmp_path)
    adapters = {
        name: {"method": "lora", "rank": 2, "data": name, "group": "g", "seed": seed}
        for seed, name in enumerate(("colours", "animals"))
    }
    given = values(tmp_path, **adapters)
    write_rows(tmp_path / "animals.jsonl", animal_rows(30))
    held_out = {"held_out_path": str(unseen)}
    given["data"] = {name: {"path": str(tmp_path / f"{name}.jsonl")} | held_out for name in ("colours", "animals")}
    ended = cli("compare", write_recipe(tmp_path, given), "--by", "task")
    assert ended.code == 0, ended.err
    (found,) = numbers(tmp_path / "runs" / "small")
    (line,) = found["contenders"]
    assert (line["name"], line["adapters"].keys()) == ("g", {"colours", "animals"})
    assert (found["data"], found["majority_of"]) == ("unseen", "these rows")
    assert found["majority"] >= 1 / 5
