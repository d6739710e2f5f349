"""A whole run on the embedded base, and everything that it leaves in its folder."""

from __future__ import annotations

import html
import json
import math
import re
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import graftlm
from graftlm.base.fingerprint import base_fingerprint
from graftlm.base.loading import resolve_base
from graftlm.data.prepare import load_instances
from graftlm.data.sets import SetCard, write_set
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.evaluation.report import summary_lines
from graftlm.runs import RunFolder, execute, set_up
from graftlm.runs.execute import ANSWER_TOKENS, _with_room
from graftlm.training.metrics import read_metrics
from tests.families import make_base
from tests.runs.conftest import FinishedRun
from tests.runs.small import animal_rows, colour_rows, small_recipe, small_values, write_rows


def test_what_was_done_is_said_with_every_row_accounted_for(finished: FinishedRun):
    said = "\n".join(finished.said)
    assert "base tiny: " in said
    assert "data colours: read as Alpaca: 25 rows; 19 to learn from, 5 held out" in said
    assert "1 dropped (empty answer)" in said
    assert "adapter both: " in said


def test_run_json(finished: FinishedRun):
    summary = json.loads(finished.folder.summary.read_text())
    assert summary["base"] == {"name": "tiny", "fingerprint": finished.run.model.fingerprint}
    assert summary["planned"] == finished.plan.to_dict()
    assert summary["actual"]["tokens"] == finished.result.outcome.tokens == finished.plan.tokens
    assert summary["actual"]["seconds"] > 0
    assert summary["actual"]["peak_memory"] == pytest.approx(summary["planned"]["peak_memory"], rel=0.15)
    assert summary["padding_share"] == pytest.approx(finished.plan.padding_share)
    assert summary["data"]["colours"]["kept"] == 24
    assert summary["data"]["colours"]["dropped"] == {"empty answer": 1}
    assert summary["adapters"]["colours"]["steps"] == 6
    assert summary["adapters"]["both"]["steps"] == 4
    assert set(summary["versions"]) == {"graftlm", "torch", "transformers"}


def test_metrics(finished: FinishedRun):
    lines = read_metrics(finished.folder.metrics)
    for name, steps in {"colours": 6, "both": 4}.items():
        own = [line for line in lines if line.get("adapter") == name]
        assert [line["step"] for line in own if line["kind"] == "step"] == list(range(1, steps + 1))
        assert [line["step"] for line in own if line["kind"] == "evaluation"] == list(range(0, steps + 1, 2))
        assert [line["reason"] for line in own if line["kind"] == "end"] == ["finished"]
        assert all(math.isfinite(line["loss"]) for line in own if "loss" in line)
    assert [line["round"] for line in lines if line["kind"] == "round"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["colours", "both"])
def test_graftlm_json_of_an_adapter(finished: FinishedRun, name: str):
    notes = json.loads((finished.folder.adapters / name / "graftlm.json").read_text())
    assert notes["name"] == name
    assert notes["base"]["fingerprint"] == finished.run.model.fingerprint
    assert ChatTemplate.from_dict(notes["template"]).hash == notes["template_hash"] == finished.run.template.hash
    assert notes["recipe"]["adapter"] == finished.run.recipe.adapters[name].to_dict()
    assert notes["data"]["colours"]["dropped"] == {"empty answer": 1}
    assert set(notes["data"]) == set(finished.run.recipe.adapters[name].data)
    metrics = notes["metrics"]
    assert metrics["held_out_loss"] < metrics["base_loss"]
    assert metrics["held_out_rows"] == {"colours": 5, "both": 9}[name]
    best = [e for e in finished.result.outcome.progress[name].history if e["step"] == metrics["best_step"]]
    assert metrics["held_out_loss"] == pytest.approx(best[0]["loss"], rel=1e-5)
    assert notes["versions"]["torch"] == torch.__version__


def test_recipe_in_the_folder_is_the_whole_recipe(finished: FinishedRun):
    from graftlm.recipe import load_recipe

    assert load_recipe(finished.folder.recipe) == finished.run.recipe


def test_report_has_the_numbers_and_needs_nothing_else(finished: FinishedRun):
    page = finished.folder.report.read_text()
    assert finished.result.report is not None
    for adapter in finished.result.report.adapters:
        assert adapter.name in page
        assert len(adapter.examples) == len(adapter.before) == len(adapter.after)
    for name, result, *numbers in summary_lines(finished.result.report):
        assert all(text in html.unescape(page) for text in (name, result, *numbers))
    assert "empty answer" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


@pytest.mark.parametrize("name", ["colours", "both"])
def test_peft_loads_the_adapter_and_gives_the_same_logits(finished: FinishedRun, name: str):
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(resolve_base("tiny"), dtype=torch.float32), finished.folder.adapters / name
    ).eval()
    ours = graftlm.AdaptedModel.from_pretrained("tiny")
    ours.load(finished.folder.adapters / name, name=name)
    ids = torch.arange(40, 80).reshape(2, 20)
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        bare = ours(ids, adapters=[None, None]).logits
        actual = ours(ids, adapters=[name, name]).logits
    assert (expected - bare).abs().max() > 0.01
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_base_is_as_it_was(finished: FinishedRun):
    fresh = graftlm.AdaptedModel.from_pretrained("tiny")
    assert base_fingerprint(finished.run.model.base) == fresh.fingerprint == finished.run.model.fingerprint


def test_an_adapter_trained_beside_another_equals_itself_alone(tmp_path: Path):
    values = small_values(tmp_path)
    trained = {}
    for kept in (["colours", "both"], ["colours"], ["both"]):
        recipe = small_recipe(tmp_path, dtype="float64", adapters={k: values["adapters"][k] for k in kept})
        folder = RunFolder(tmp_path / "-".join(kept))
        execute(set_up(recipe), folder)
        for name in kept:
            trained[len(kept), name] = load_file(folder.adapters / name / "adapter_model.safetensors")
    for name in ("colours", "both"):
        assert trained[2, name].keys() == trained[1, name].keys()
        for key, value in trained[1, name].items():
            assert value.norm() > 0
            assert (trained[2, name][key] - value).norm() <= 1e-7 * value.norm(), key


def test_an_adapter_on_top_of_another_trains_and_leaves_it_as_it_is(finished: FinishedRun, tmp_path: Path):
    under = finished.folder.adapters / "colours"
    before = (under / "adapter_model.safetensors").read_bytes()
    values = small_values(tmp_path)
    values["adapters"] = {"top": {"method": "lora", "rank": 2, "data": "animals", "under": str(under), "max_steps": 2}}
    folder = RunFolder(tmp_path / "out")
    result = execute(set_up(small_recipe(tmp_path, **values)), folder)
    assert (under / "adapter_model.safetensors").read_bytes() == before
    notes = json.loads((folder.adapters / "top" / "graftlm.json").read_text())
    assert notes["under"] == [str(under)]
    assert result.report is not None
    assert [path.name for path in folder.adapters.iterdir()] == ["top"]


def test_an_adapter_goes_on_from_another(finished: FinishedRun, tmp_path: Path):
    start = finished.folder.adapters / "colours"
    values = small_values(tmp_path)
    given = dict(values["adapters"]["colours"])
    values["adapters"] = {"more": {**given, "data": "animals", "init_from": str(start), "max_steps": 1}}
    run = set_up(small_recipe(tmp_path, **values))
    run.model.load(start, "start")
    for one, other in zip(run.model.adapter("more").parameters(), run.model.adapter("start").parameters(), strict=True):
        assert torch.equal(one, other)


def test_held_out_files_of_their_own_are_accounted_for(tmp_path: Path):
    values = small_values(tmp_path)
    rows = [*animal_rows()[:20], {"instruction": "Who?", "output": ""}]
    held_out = write_rows(tmp_path / "held_out.jsonl", rows)
    values["data"] = {
        "colours": {"path": str(write_rows(tmp_path / "c.jsonl", colour_rows())), "held_out_path": str(held_out)}
    }
    values["adapters"] = {"colours": {"method": "lora", "rank": 1}}
    said: list[str] = []
    run = set_up(small_recipe(tmp_path, **values), said.append)
    assert len(run.held_out["colours"]) == 20
    assert run.data["colours"].counts()["held_out"]["dropped"] == {"empty answer": 1}
    assert any("held-out file" in line and "1 dropped (empty answer)" in line for line in said)


def test_a_split_of_a_set_is_held_out(tmp_path: Path):
    values = small_values(tmp_path)
    place = tmp_path / "set"
    found = load_instances(write_rows(tmp_path / "c.jsonl", colour_rows())).items
    card = write_set(place, iter(found), SetCard(), split=lambda one: "test" if one.row % 4 == 0 else "train")
    values["adapters"] = {"colours": {"method": "lora", "rank": 1}}
    values["data"] = {"colours": {"path": str(place), "held_out_split": "test"}}
    run = set_up(small_recipe(tmp_path, **values))
    assert len(run.tasks[0].rows) == card.splits["train"]
    assert [one.row for one in run.held_out["colours"]] == [one.row for one in found if one.row % 4 == 0]

    values["data"]["colours"] = {"path": str(tmp_path / "c.jsonl"), "held_out_path": str(place)}
    values["data"]["colours"]["held_out_split"] = "test"
    assert len(set_up(small_recipe(tmp_path, **values)).held_out["colours"]) == card.splits["test"]

    values["data"]["colours"] = {"path": str(place), "held_out_split": "exam"}
    with pytest.raises(UserError, match=r"data set 'colours'.*no split 'exam'; there are: test, train"):
        set_up(small_recipe(tmp_path, **values))
    for keys in ({"held_out_split": "test"}, {"split": "test"}):
        values["data"]["colours"] = {"path": str(tmp_path / "c.jsonl"), **keys}
        with pytest.raises(UserError, match=r"data set 'colours': .*c.jsonl is a file, and has no split 'test'"):
            set_up(small_recipe(tmp_path, **values))


def test_nothing_held_out(tmp_path: Path):
    values = small_values(tmp_path)
    del values["data"]["animals"]
    values["data"]["colours"]["held_out"] = 0
    values["adapters"] = {"only": {"method": "lora", "rank": 1, "max_steps": 2}}
    folder = RunFolder(tmp_path / "out")
    result = execute(set_up(small_recipe(tmp_path, **values)), folder)
    assert result.report is not None
    assert "held_out_loss" not in json.loads((folder.adapters / "only" / "graftlm.json").read_text())["metrics"]
    assert folder.report.exists()


def test_next_commands_name_a_real_adapter(finished: FinishedRun):
    assert finished.result.report is not None
    export = [command for command in finished.result.report.next_commands if " export " in command]
    assert export == [f"graftlm export {finished.folder.adapters / 'colours'} --out merged"]


def test_prompts_in_a_small_context_leave_room_for_an_answer(tmp_path: Path):
    """Some of the prompt and some room stay, however small the context: a run does not end for want of examples."""
    model = graftlm.AdaptedModel(make_base("llama"))
    room = model.room(None)
    assert room < ANSWER_TOKENS
    prompt = tuple(5 + place % 50 for place in range(room))
    assert _with_room(model, prompt, ()) == prompt[room // 2 :]
    assert _with_room(model, [5, 6, 7], ()) == (5, 6, 7)
