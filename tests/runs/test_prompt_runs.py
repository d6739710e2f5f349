"""Runs with virtual tokens: templates of an adapter's own, from the recipe to the files and to what uses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from graftlm.adapters.p_tuning import EncodedVectors
from graftlm.cli.app import app
from graftlm.cli.export import export
from graftlm.data.instances import Message
from graftlm.data.prompt_template import PromptTemplate
from graftlm.errors import UserError
from graftlm.evaluation.speakers import open_adapters
from graftlm.generation import Engine, SamplingSettings
from graftlm.runs import PreparedRun, RunFolder, execute, locked, set_up
from graftlm.runs.execute import _with_room
from tests.runs.small import colour_rows, small_recipe, write_rows

TEMPLATE = "[P×3] {input} [P×2] It is {target}"
ADAPTERS: dict[str, Any] = {
    "lora": {"method": "lora", "rank": 4, "data": "colours"},
    "front": {"method": "prompt", "length": 6, "data": "colours", "init": "text", "init_text": "Name the colour."},
    "inside": {"method": "p-tuning", "template": TEMPLATE, "encoder_hidden": 16, "data": ["colours", "animals"]},
    "behind": {"method": "p-tuning", "length": 4, "encoder": "mlp", "encoder_hidden": 16, "data": "animals"},
}
TRAINING = {"max_steps": 6, "batch_rows": 4, "learning_rate": 0.002, "eval_every": 3, "epochs": 9}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedRun, RunFolder, list[str]]:
    place = tmp_path_factory.mktemp("prompts")
    said: list[str] = []
    run = set_up(small_recipe(place, adapters=ADAPTERS, training=TRAINING), said.append)
    folder = RunFolder(place / "out")
    with locked(folder):
        execute(run, folder)
    return run, folder, said


def test_an_own_template_renders_the_rows_apart(done: tuple[PreparedRun, RunFolder, list[str]]) -> None:
    run, _, said = done
    vocabulary = run.model.places.embedding.vocabulary
    held = {name: max(max(row.ids) for row in task.rows) for name, task in zip(ADAPTERS, run.tasks, strict=True)}
    assert held["inside"] == vocabulary + 4
    assert max(held[name] for name in ("lora", "front", "behind")) < vocabulary
    assert run.parts["lora"]["colours"] is run.parts["front"]["colours"]
    assert run.parts["inside"]["colours"] is not run.parts["lora"]["colours"]
    assert run.parts["inside"]["colours"].counts() == run.parts["lora"]["colours"].counts()
    ours, theirs = (run.parts[name]["colours"].held_out.instances for name in ("inside", "lora"))
    assert ours == theirs
    assert f"adapter inside: template {TEMPLATE}" in said


def test_every_adapter_learns_and_is_stored_with_its_template(
    done: tuple[PreparedRun, RunFolder, list[str]],
) -> None:
    run, folder, _ = done
    for name in ADAPTERS:
        notes = json.loads((folder.adapters / name / "graftlm.json").read_text())
        assert notes["template_hash"] == run.templates[name].hash
        assert notes["metrics"]["best_step"] > 0
        assert notes["template"].get("kind") == ("prompt" if name == "inside" else None)
        assert (folder.adapters / name / "adapter_config.json").exists() == (name != "inside")
    assert isinstance(run.model.adapter("inside").virtual, EncodedVectors)
    front = json.loads((folder.adapters / "front" / "graftlm.json").read_text())
    ids = front["method"]["init_ids"]
    assert run.tokenizer.decode(ids) == "Name the colour."


def test_chat_and_generate_render_as_training_did(done: tuple[PreparedRun, RunFolder, list[str]]) -> None:
    run, folder, _ = done
    opened = open_adapters([folder.path])
    task = run.tasks[list(ADAPTERS).index("inside")]
    speaker = opened.speaker("inside")
    assert isinstance(speaker.template, PromptTemplate)
    instance, row = run.held_out["inside"][0], task.held_out[0]
    request = speaker.request(instance.messages[:-1], opened.tokenizer, SamplingSettings(max_new_tokens=8))
    first = list(row.supervised).index(True)
    assert list(request.prompt_ids) == list(row.ids)[:first]
    completions = Engine(opened.model).run(
        [
            each.request(instance.messages[:-1], opened.tokenizer, SamplingSettings(max_new_tokens=8))
            for each in opened.speakers
        ]
    )
    assert all(completion.text is not None for completion in completions)
    turns = [*instance.messages, Message("user", "And then?")]
    with pytest.raises(UserError, match="place for one question"):
        speaker.request(turns, opened.tokenizer, SamplingSettings())


def test_a_long_prompt_is_cut_between_its_virtual_tokens(done: tuple[PreparedRun, RunFolder, list[str]]) -> None:
    run, _, _ = done
    first = run.model.places.embedding.vocabulary
    prompt = [first, first + 1, first + 2, *[5] * 3000, 7, first + 3, first + 4, 8]
    cut = _with_room(run.model, prompt, ("inside",))
    assert len(cut) == run.model.context_length - 96
    assert cut[:4] == (first, first + 1, first + 2, 5)
    assert cut[-4:] == (7, first + 3, first + 4, 8)
    assert _with_room(run.model, prompt, ()) == (*[5] * (run.model.context_length - 98), 7, 8)
    assert len(_with_room(run.model, [5] * 9, ("front",))) == 15


def test_stacked_on_an_adapter_with_a_template_of_its_own(
    done: tuple[PreparedRun, RunFolder, list[str]], tmp_path: Path
) -> None:
    _, folder, _ = done
    beneath = str(folder.adapters / "inside")
    above = {"method": "lora", "rank": 2, "data": "colours", "under": [beneath]}
    run = set_up(small_recipe(tmp_path, adapters={"above": above}, training=TRAINING))
    assert isinstance(run.templates["above"], PromptTemplate)
    assert run.templates["above"] is not run.template
    for method, said in (
        ({"method": "prompt", "length": 2}, "the places of 5 virtual tokens, and the adapters have 7 together"),
        ({"method": "p-tuning", "template": TEMPLATE}, "another chat template"),
    ):
        other = {**method, "data": "colours", "under": [beneath]}
        with pytest.raises(UserError, match=said):
            set_up(small_recipe(tmp_path, adapters={"above": other}, training=TRAINING))


def test_rows_that_leave_no_room_are_refused(tmp_path: Path) -> None:
    rows = [*colour_rows(), {"instruction": "word " * 1100, "output": "red"}]
    data = {"colours": {"path": str(write_rows(tmp_path / "long.jsonl", rows)), "held_out": 5}}
    adapters = {"front": {"method": "prompt", "length": 1000, "data": "colours"}}
    with pytest.raises(UserError, match=r"1000 virtual tokens .* leave room for 1048 tokens"):
        set_up(small_recipe(tmp_path, data=data, adapters=adapters, training=TRAINING))


def test_the_command_line_uses_the_template(done: tuple[PreparedRun, RunFolder, list[str]], tmp_path: Path) -> None:
    _, folder, _ = done
    inside, front = folder.adapters / "inside", folder.adapters / "front"
    commands = CliRunner()
    with pytest.raises(UserError, match="peft puts virtual tokens in front only"):
        export([inside], tmp_path / "peft", peft=True)
    assert not (tmp_path / "peft").exists()
    export([front], tmp_path / "front", peft=True)
    assert (tmp_path / "front" / "adapter_config.json").is_file()
    with pytest.raises(UserError, match="is no change of weights alone, and cannot be merged"):
        export([front], tmp_path / "merged")
    said = commands.invoke(
        app, ["chat", str(inside), "-m", "The cat is red.", "-m", "The dog is blue.", "--max-new-tokens", "4"]
    )
    assert said.exit_code == 0, said.output  # the second question starts anew: the template has the place of one
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "The cat is red. Which colour?"}])
    options = ["-o", str(tmp_path / "answers.jsonl"), "--max-new-tokens", "4", "--repetition-penalty", "1.3"]
    written = commands.invoke(app, ["generate", str(prompts), "-a", str(inside), "-a", str(front), *options])
    assert written.exit_code == 0, written.output
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [answer["adapter"] for answer in answers] == ["inside", "front"]
