"""Whole runs with rewards, by recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from graftlm.errors import UserError
from graftlm.evaluation.rewards import reward_model
from graftlm.recipe import Recipe, RecipeError, parse_recipe, recipe_from_dict
from graftlm.runs import RunFolder, execute, locked, set_up
from graftlm.training.metrics import read_metrics
from graftlm.training.plan import plan
from tests.runs.small import colour_rows, write_rows

REWARDS = """
def letters(messages, answer):
    return min(1.0, 10 * answer.count("e") / max(1, len(answer)))

def right(messages, answer, reference):
    return float(reference in answer)
"""


def online_recipe(folder: Path, objective: dict[str, Any], adapters: dict[str, Any], **training: Any) -> Recipe:
    path = write_rows(folder / "colours.jsonl", colour_rows())
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    common = {"method": "lora", "rank": 4}
    own = {"rewards": {"letters": {"python": "rewards.py:letters"}}, "max_new_tokens": 12, "prompts": 4, **objective}
    values = {
        "name": "online",
        "base": "tiny",
        "data": {"colours": {"path": str(path), "held_out": 4}},
        "adapters": {
            name: {**common, **(extra if "objective" in extra else {"objective": own}), **extra}
            for name, extra in adapters.items()
        },
        "training": {"max_steps": 2, "learning_rate": 0.003, **training},
    }
    return recipe_from_dict(values, folder=folder)


def carry_out(recipe: Recipe, out: Path, **options: Any) -> RunFolder:
    folder = RunFolder(out)
    with locked(folder):
        execute(set_up(recipe, kept=folder.rewards), folder, **options)
    return folder


def test_a_run_beside_instruction_tuning(tmp_path: Path) -> None:
    recipe = online_recipe(
        tmp_path,
        {
            "type": "grpo",
            "group": 3,
            "rewards": {
                "letters": {"python": "rewards.py:letters"},
                "right": {"python": "rewards.py:right", "weight": 0.5},
            },
        },
        {"policy": {}, "sft": {"objective": "sft", "batch_rows": 4}},
    )
    assert parse_recipe(recipe.to_yaml()).to_dict() == recipe.to_dict()
    folder = carry_out(recipe, tmp_path / "run")
    phases = [line for line in read_metrics(folder.metrics) if line["kind"] == "phase"]
    assert [line["step"] for line in phases] == [0, 1]
    assert {"reward", "reward_letters", "reward_right", "kl", "entropy", "length", "ended"} <= phases[0].keys()
    total = phases[0]["reward_letters"] + 0.5 * phases[0]["reward_right"]
    assert phases[0]["reward"] == pytest.approx(total)
    assert phases[0]["kl"] == 0.0
    assert phases[0]["samples"][0]["answer"]
    page = folder.report.read_text(encoding="utf-8")
    assert "Rewards while training" in page
    assert page.count("answers it learnt from (thick), held-out prompts (thin)") == 4
    trials = [line for line in read_metrics(folder.metrics) if line["kind"] == "trial"]
    assert [line["step"] for line in trials] == [0, 1, 2]
    assert {"reward", "reward_letters", "kl", "length", "distinct_2", "samples"} <= trials[0].keys()
    told = json.loads(folder.summary.read_text())["adapters"]["policy"]
    kept = next(line for line in trials if line["step"] == told["best_step"])
    assert told["held_out_prompts"]["kept"]["reward"] == kept["reward"] == max(line["reward"] for line in trials)
    assert f"reward {trials[0]['reward']:.3g} → {kept['reward']:.3g}" in page
    assert "(4 held-out prompts, step" in page
    assert (folder.adapters / "policy").is_dir()


def test_ppo_has_a_value_adapter_of_its_own(tmp_path: Path) -> None:
    objective = {"type": "ppo", "value": "critic", "passes": 2}
    recipe = online_recipe(tmp_path, objective, {"critic": {"objective": "value"}, "policy": {}})
    folder = carry_out(recipe, tmp_path / "run")
    lines = read_metrics(folder.metrics)
    assert [line["adapter"] for line in lines if line["kind"] == "step"] == ["critic", "policy"] * 2
    assert all("value_error" in line for line in lines if line["kind"] == "step" and line["adapter"] == "critic")
    assert (folder.adapters / "critic").is_dir()
    adapters = {"policy": {}, "lone": {"objective": "value"}}
    with pytest.raises(RecipeError) as caught:
        online_recipe(tmp_path, objective, adapters)
    assert "no adapter with objective: value 'critic'" in str(caught.value)
    assert "no ppo adapter says value: lone" in str(caught.value)


def test_texts_are_learnt_beside_the_answers(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("The cat sat.\n\nThe dog ran far.\n", encoding="utf-8")
    objective = {"type": "rloo", "group": 2, "temperature": 0.9, "pretraining": {"data": "texts.txt", "rows": 2}}
    recipe = online_recipe(tmp_path, objective, {"policy": {}, "shipped": {"objective": "sft", "batch_rows": 4}})
    assert parse_recipe(recipe.to_yaml()).to_dict() == recipe.to_dict()
    folder = carry_out(recipe, tmp_path / "run")
    steps = [line for line in read_metrics(folder.metrics) if line["kind"] == "step" and line["adapter"] == "policy"]
    assert all(line["pretraining_loss"] > 0 for line in steps)
    assert json.loads(folder.summary.read_text())["data"]["pretraining of policy"]["kept"] == 2
    record = json.loads((folder.adapters / "policy" / "graftlm.json").read_text())["trained_on"]
    assert "texts.txt" in json.dumps(record)

    shipped = online_recipe(tmp_path, {"type": "grpo", "group": 2, "pretraining": {}}, {"policy": {}})
    assert len(set_up(shipped).texts["policy"].rows) == 300
    chats = {"type": "grpo", "group": 2, "pretraining": {"data": "colours.jsonl"}}
    with pytest.raises(UserError, match=r"row 1 is a conversation, not a plain text"):
        set_up(online_recipe(tmp_path, chats, {"policy": {}}))
    with pytest.raises(RecipeError, match=r"pretraining\.wieght: unknown key; did you mean 'weight'"):
        online_recipe(tmp_path, {"type": "grpo", "pretraining": {"wieght": 1}}, {"policy": {}})
    with pytest.raises(RecipeError, match="nowhere"):
        online_recipe(tmp_path, {"type": "grpo", "pretraining": {"data": "nowhere.jsonl"}}, {"policy": {}})


def test_a_plan_knows_the_largest_shape(tmp_path: Path) -> None:
    recipe = online_recipe(tmp_path, {"type": "rloo", "group": 2}, {"policy": {"batch_rows": 4}})
    run = set_up(recipe)
    planned = plan(run.model, run.tasks, recipe.training)
    assert planned.rounds == 2
    assert planned.learnt_tokens == 2 * 4 * 12


def test_the_start_is_the_reference_and_a_reward_adapter_the_reward(tmp_path: Path) -> None:
    pairs = [
        {"prompt": row["instruction"], "chosen": row["output"], "rejected": "pink and more"} for row in colour_rows()
    ]
    write_rows(tmp_path / "pairs.jsonl", pairs)
    values = {
        "name": "first",
        "base": "tiny",
        "data": {
            "pairs": {"path": str(tmp_path / "pairs.jsonl"), "held_out": 4, "preferences": "chosen"},
        },
        "adapters": {
            "liked": {"method": "lora", "rank": 2, "objective": "reward"},
            "start": {"method": "lora", "rank": 4},
        },
        "training": {"max_steps": 3, "batch_rows": 4, "learning_rate": 0.003},
    }
    first = carry_out(recipe_from_dict(values, folder=tmp_path), tmp_path / "first")
    rewards = {"liked": {"adapter": str(first.adapters / "liked")}}
    recipe = online_recipe(
        tmp_path,
        {"type": "grpo", "group": 2, "rewards": rewards},
        {"policy": {"init_from": str(first.adapters / "start")}},
    )
    run = set_up(recipe)
    folder = RunFolder(tmp_path / "second")
    with locked(folder):
        execute(run, folder)
    phases = [line for line in read_metrics(folder.metrics) if line["kind"] == "phase"]
    assert phases[0]["kl"] == 0.0  # it starts as what it went on from
    assert phases[1]["kl_k3"] > 0.0
    (stack,) = [(name,) for name in run.model.adapters if "liked" in name]
    sample = phases[0]["samples"][0]
    asked = [instance for instance in run.parts["policy"]["colours"].train.instances if instance.row == sample["row"]]
    (reward,) = reward_model(run.model, stack)([(asked[0].conversation[:-1], sample["answer"])])
    assert sample["reward"] == pytest.approx(reward, abs=1e-4)


@pytest.mark.slow
def test_a_reward_is_raised(tmp_path: Path) -> None:
    recipe = online_recipe(
        tmp_path,
        {"type": "grpo", "group": 8},
        {"policy": {"learning_rate": 0.01, "max_steps": 12, "epochs": 3, "schedule": "constant"}},
    )
    folder = carry_out(recipe, tmp_path / "run")
    rewards = [line["reward"] for line in read_metrics(folder.metrics) if line["kind"] == "phase"]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:2]) / 2 + 0.1


def test_mistakes_in_a_recipe_have_their_lines(tmp_path: Path) -> None:
    text = """base: tiny
data: {colours: {path: colours.jsonl}}
adapters:
  a:
    method: lora
    objective:
      type: grpo
      groups: 4
      rewards:
        right: {python: "rewards.py:right", wieght: 2}
        gone: {python: "nowhere.py:right"}
        both: {python: "rewards.py:right", url: "http://localhost:1"}
  b: {method: lora, objective: grpo}
  c: {method: lora, objective: {type: rloo, group: 1, rewards: {right: {python: "rewards.py:right"}}}}
"""
    write_rows(tmp_path / "colours.jsonl", colour_rows())
    (tmp_path / "rewards.py").write_text(REWARDS, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, folder=tmp_path)
    said = {(problem.line, problem.message) for problem in caught.value.problems}
    lines = {line for line, _ in said}
    for line, words in ((8, "group"), (10, "weight"), (11, "no such file"), (13, "rewards"), (14, "two or more")):
        assert any(where == line and words in message for where, message in said), (line, said)
    assert 12 in lines


def test_adapters_that_cannot_be_policies(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dropout": 0.1}, "with dropout it would be another one"),
        ({"batch_tokens": 100}, "how long answers are is not known"),
        ({"method": "dylora"}, "trains a part of it at a time"),
    ]
    for extra, said in cases:
        with pytest.raises(UserError, match=said):
            set_up(online_recipe(tmp_path, {"type": "grpo"}, {"policy": extra}))


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": f"Tell me of {name}.", "level": 1} for name in ("cats", "dogs", "birds", "fish", "bees", "ants")],
        [
            {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"Hello {number}"}]}
            for number in range(6)
        ],
        [{"prompt": [{"role": "user", "content": f"Hello {number}"}]} for number in range(6)],
    ],
)
def test_prompts_without_answers(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Policies read them; whoever learns answers says that there are none."""
    objective = {"type": "grpo", "group": 2, "prompts": 2}
    recipe = online_recipe(tmp_path, objective, {"policy": {}}, max_steps=1)
    write_rows(tmp_path / "colours.jsonl", rows)
    run = set_up(recipe)
    split = run.parts["policy"]["colours"]
    assert split.held_out is not None
    assert (len(split.train.rows), len(split.held_out.rows)) == (2, 4)
    folder = carry_out(recipe, tmp_path / "run")
    (phase,) = [line for line in read_metrics(folder.metrics) if line["kind"] == "phase"]
    assert phase["samples"][0]["prompt"][-1]["role"] == "user"
    assert ("Hello" if "level" not in rows[0] else "Tell me of") in folder.report.read_text(encoding="utf-8")
    both = online_recipe(tmp_path, objective, {"policy": {}, "tuned": {"objective": "sft", "batch_rows": 2}})
    write_rows(tmp_path / "colours.jsonl", rows)
    with pytest.raises(UserError) as caught:
        set_up(both)
    assert "Prompts without answers are for policies alone" in f"{caught.value.message} {caught.value.hint}"


def test_answers_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    told = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        recipe = online_recipe(tmp_path / name, {"type": "grpo", "group": 2}, {"policy": {}}, max_steps=1)
        lines = read_metrics(carry_out(recipe, tmp_path / name / "run").metrics)
        told.append([each["answer"] for line in lines for each in line.get("samples", ())])
    assert told[0] == told[1]
