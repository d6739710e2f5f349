"""graftlm chat and graftlm generate, and how they open adapter folders."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from graftlm import AdaptedModel, LoRA
from graftlm.cli._prompts import read_prompts
from graftlm.cli.chat import Chat, chat
from graftlm.cli.generate import generate
from graftlm.data.instances import Message
from graftlm.data.templates import resolve_chat_template
from graftlm.errors import UserError
from graftlm.evaluation.speakers import Opened, find_adapters, open_adapters
from graftlm.generation import Engine, SamplingSettings
from tests.families import randomise

TEMPLATES = {"one": "plain", "two": "alpaca"}
SHORT = SamplingSettings(max_new_tokens=8)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two adapters of different chat templates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    assert model.tokenizer is not None
    for number, (name, template) in enumerate(TEMPLATES.items()):
        model.add(name, LoRA(rank=4))
        randomise(model.adapters[name], seed=number, std=0.03)
        chosen = resolve_chat_template(template, model.tokenizer)
        model.notes[name] = {"template": chosen.to_dict(), "template_hash": chosen.hash}
        model.save(name, folder / "adapters" / name)
    return folder


@pytest.fixture(scope="module")
def opened(run_folder: Path) -> Opened:
    return open_adapters([run_folder], device="cpu")


@pytest.fixture
def talk(opened: Opened) -> Chat:
    return Chat(opened, Engine(opened.model), SHORT)


@pytest.fixture
def reuse(monkeypatch: pytest.MonkeyPatch, opened: Opened) -> None:
    """Commands get the opened adapters, which spares loading the base again."""
    monkeypatch.setattr("graftlm.evaluation.speakers.open_adapters", lambda *_args, **_settings: opened)


def run(command: Callable[..., None], *arguments: str | Path, given: str | None = None) -> Result:
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)


def answer(opened: Opened, name: str, *said: str, system: str | None = None) -> str:
    """What a speaker says greedily, by way of its template and the engine."""
    turns = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(said)]
    messages = [Message("system", system), *turns] if system else turns
    completion = Engine(opened.model).run([opened.speaker(name).request(messages, opened.tokenizer, SHORT)])[0]
    assert completion.text is not None
    return completion.text.strip()


# --- opening ------------------------------------------------------------------------------------------------


def test_each_adapter_has_the_template_of_its_training(opened: Opened) -> None:
    assert [speaker.label for speaker in opened.speakers] == ["one", "two", "base"]
    assert [speaker.template.name for speaker in opened.speakers] == ["plain", "alpaca", "plain"]
    assert [speaker.stack for speaker in opened.speakers] == [("one",), ("two",), ()]


def test_folders_of_runs_and_of_adapters(run_folder: Path, tmp_path: Path) -> None:
    both = [run_folder / "adapters" / name for name in TEMPLATES]
    assert find_adapters([run_folder]) == find_adapters([run_folder / "adapters"]) == both
    assert find_adapters([both[1], run_folder]) == [both[1], both[0]]
    with pytest.raises(UserError, match="there is no adapter folder"):
        find_adapters([tmp_path / "nothing"])
    with pytest.raises(UserError, match="is not an adapter folder"):
        find_adapters([tmp_path])
    (tmp_path / "recipe.yaml").touch()
    with pytest.raises(UserError, match="has saved no adapters yet"):
        find_adapters([tmp_path])


def test_what_an_adapter_needs_to_be_opened(run_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "same", tmp_path / "b" / "same"
    shutil.copytree(run_folder / "adapters" / "one", one)
    shutil.copytree(run_folder / "adapters" / "two", two)
    notes = json.loads((two / "graftlm.json").read_text())

    def write(**changes: Any) -> None:
        (two / "graftlm.json").write_text(json.dumps({**notes, **changes}))

    write(under=[str(one)], template=None)
    stacked = open_adapters([two], device="cpu", chat_template="alpaca")
    assert stacked.adapters[0].stack == ("same", "same-2")
    assert "stores no chat template; 'alpaca' is used" in stacked.notes[0]
    write(under=[str(tmp_path / "gone")])
    with pytest.raises(UserError, match="was trained on top of"):
        open_adapters([two], device="cpu")
    write(template={**notes["template"], "user": "Q: {content}\n"})
    with pytest.raises(UserError, match="is not the one of training"):
        open_adapters([two], device="cpu")
    write(base={**notes["base"], "name": "other", "source": "some/other"})
    with pytest.raises(UserError, match="different bases"):
        open_adapters([one, two], device="cpu")


# --- chat ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reuse")
def test_chat_from_a_pipe(opened: Opened) -> None:
    lines = "Where is he?\n\n/use two\nWhere is he?\n/nope\n/use oen\n/all of you\n"
    lines += "/all\nWho are you?\n/base\nA cat\n/quit\nnever\n"
    result = run(chat, "--temperature", "0", "--max-new-tokens", "8", given=lines)
    assert result.exit_code == 0, result.output
    firsts = {name: answer(opened, name, "Where is he?") for name in TEMPLATES}
    assert firsts["one"] != firsts["two"]
    for text in firsts.values():
        assert text in result.stdout
    for name, first in firsts.items():
        assert f"{name}: {answer(opened, name, 'Where is he?', first, 'Who are you?')}\n" in result.stdout
    at_base = answer(opened, "base", "Who are you?")
    assert f"base: {at_base}\n" in result.stdout
    assert answer(opened, "base", "Who are you?", at_base, "A cat") in result.stdout
    assert "unknown command '/nope'" in result.stderr
    assert "/all stands alone; 'of you' was not read" in result.stderr
    assert "Did you mean 'one'?" in result.stderr


@pytest.mark.usefixtures("reuse")
def test_chat_one_shot(opened: Opened) -> None:
    options = ("--temperature", "0", "--max-new-tokens", "8", "--system", "Be kind.")
    result = run(chat, *options, "-m", "Hello", "--use", "two")
    assert result.stdout == answer(opened, "two", "Hello", system="Be kind.") + "\n"
    result = run(chat, *options, "-m", "Hello", "--all")
    expected = [f"{name}: {answer(opened, name, 'Hello', system='Be kind.')}\n" for name in ("one", "two", "base")]
    assert result.stdout == "".join(expected)
    assert isinstance(run(chat, "-m", "Hello", "--use", "three").exception, UserError)
    assert isinstance(run(chat, "-m", "Hello", "--top-p", "0").exception, UserError)


def test_system_and_reset_begin_new_conversations(talk: Chat, opened: Opened) -> None:
    talk.say("Who are you?")
    assert len(talk.histories["one"]) == 2
    talk.command("/system Be brief.")
    assert not talk.histories
    talk.say("Who are you?")
    assert talk.histories["one"][1].content == answer(opened, "one", "Who are you?", system="Be brief.")
    talk.command("/reset")
    assert not talk.histories
    assert talk.system == "Be brief."


def test_the_same_seed_gives_the_same_talk(opened: Opened) -> None:
    def conversation() -> list[Message]:
        hot = replace(SHORT, temperature=1.5, seed=5)
        talk = Chat(opened, Engine(opened.model), hot)
        talk.say("Who are you?")
        talk.say("Who are you?")
        return talk.histories["one"]

    assert conversation() == conversation()
    assert conversation()[1] != conversation()[3]


def test_a_turn_reads_only_what_is_new(opened: Opened) -> None:
    talk = Chat.of(opened, replace(SHORT, max_new_tokens=40))
    counts = talk.engine.statistics
    talk.say("Tell me a story about a dog and a cat who live in a house by the sea.")
    first = counts.read
    assert counts.reused == 0
    prompt = talk._prepare(opened.speaker("one"), Message("user", "And then?"), 0).request.prompt_ids
    talk.say("And then?")
    new = counts.read - first
    assert counts.reused + new == len(prompt)
    assert counts.reused > first + 16  # the first question, and most of its answer
    assert new < 16 + len(opened.tokenizer("And then?")["input_ids"]) + 16
    fresh = Chat(opened, Engine(opened.model), talk.sampling, histories={"one": talk.histories["one"][:2]})
    fresh.say("And then?")
    assert fresh.histories == {"one": talk.histories["one"]}


def test_an_error_of_an_answer_is_told(
    talk: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_step, steps = talk.engine.step, iter(range(3))

    def step() -> Any:
        events = whole_step()
        return events + (talk.engine._drop(talk.engine._slots.rows, "no luck") if next(steps, None) == 2 else [])

    monkeypatch.setattr(talk.engine, "step", step)
    talk.say("Who are you?")
    assert "(no answer: no luck)" in capsys.readouterr().err
    assert not talk.histories.get("one")


def test_the_oldest_turns_leave_when_the_context_is_full(talk: Chat, opened: Opened) -> None:
    talk.system = "Be kind."
    long = "word " * 500
    talk.histories["one"] = [Message("user" if n % 2 == 0 else "assistant", long) for n in range(8)]
    made = talk._prepare(opened.speaker("one"), Message("user", "And now?"), 0)
    assert made.left_out >= 2
    assert made.left_out % 2 == 0
    assert opened.model.context_length * 0.5 < len(made.request.prompt_ids) < opened.model.context_length
    assert "no longer fit" in made.note
    with pytest.raises(UserError, match="the context of the model is 2,048"):
        talk.say(long * 5)
    talk.say("Who are you?")  # and the talk goes on


def test_ctrl_c_stops_the_answer_only(
    talk: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole_step, steps = talk.engine.step, iter(range(4))

    def step() -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return whole_step()

    monkeypatch.setattr(talk.engine, "step", step)
    talk.say("Who are you?")
    assert "(stopped)" in capsys.readouterr().out
    monkeypatch.undo()
    assert not talk.engine.busy
    partial = talk.histories["one"][1].content
    assert partial
    talk.say("Who are you?")
    assert len(talk.histories["one"]) == 4


# --- prompts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "A"}, ["A"]),
        ({"prompt": "A", "completion": "never"}, ["A"]),
        ({"instruction": "A", "input": "B"}, ["A\n\nB"]),
        ({"instruction": "A", "input": "", "output": "never"}, ["A"]),
        ({"question": "A", "answer": None}, ["A"]),
        ({"input": "A"}, ["A"]),
        ({"text": "A"}, ["A"]),
        ({"messages": [{"role": "user", "content": "A"}]}, ["A"]),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("system", "S"), ("user", "A"), ("assistant", "no"))]},
            ["S", "A"],
        ),
        (
            {"conversations": [{"from": f, "value": v} for f, v in (("human", "A"), ("gpt", "B"), ("human", "C"))]},
            "ABC",
        ),
    ],
)
def test_prompts_of_every_format(tmp_path: Path, row: dict[str, Any], expected: list[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(row) + "\n")
    prompts, _ = read_prompts(str(path))
    assert [message.content for message in prompts[0].messages] == list(expected)
    assert (prompts[0].row, prompts[0].problem) == (1, None)


def test_prompts_of_tables_texts_and_patterns(tmp_path: Path) -> None:
    text = tmp_path / "x.txt"
    text.write_text("First\n\nSecond\n", encoding="utf-8")
    prompts, name = read_prompts(str(text), system="S")
    assert name == "lines of text"
    assert [(p.row, [m.content for m in p.messages]) for p in prompts] == [(1, ["S", "First"]), (3, ["S", "Second"])]
    table = tmp_path / "x.csv"
    table.write_text("id,review\n7,Good\n8,Bad\n", encoding="utf-8")
    with pytest.raises(UserError, match="their columns are: id, review"):
        read_prompts(str(table))
    prompts, _ = read_prompts(str(table), pattern="Review {id}: {review}", limit=1)
    assert [p.shown for p in prompts] == ["Review 7: Good"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="the file is empty"):
        read_prompts(str(tmp_path / "empty.txt"))


# --- generate -----------------------------------------------------------------------------------------------


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Hello"}, {"prompt": 'Tell me about "dogs" 🐕 and a much longer list of other animals'}]
    rows += [{"prompt": f"Count to {number}"} for number in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def options(prompts: Path, out: str = "out.jsonl") -> tuple[Path, str, Path, str, str]:
    return prompts, "--out", prompts.parent / out, "--max-new-tokens", "8"


@pytest.mark.usefixtures("reuse")
def test_generate_answers_with_every_adapter(opened: Opened, prompts: Path) -> None:
    result = run(generate, *options(prompts), "--with-base", "--batch-rows", "5")
    assert result.exit_code == 0, result.output
    found = records(prompts.parent / "out.jsonl")
    keys = [(row, name) for row in range(1, 9) for name in ("one", "two", None)]
    assert [(record["row"], record["adapter"]) for record in found] == keys
    for record in found[:6]:
        assert record["answer"] == answer(opened, record["adapter"] or "base", record["prompt"])
        assert record["finish_reason"] in ("stop", "length")


@pytest.mark.usefixtures("reuse")
def test_generate_refuses_to_overwrite_and_resumes(prompts: Path) -> None:
    whole, part = prompts.parent / "out.jsonl", prompts.parent / "part.jsonl"
    run(generate, *options(prompts))
    again = run(generate, *options(prompts))
    assert isinstance(again.exception, UserError)
    assert "exists already" in str(again.exception)
    lines = whole.read_text(encoding="utf-8").splitlines(keepends=True)
    part.write_text("".join(lines[9:4:-1]) + lines[12][:20], encoding="utf-8")  # out of order, the last cut short
    result = run(generate, *options(prompts, "part.jsonl"), "--resume")
    assert result.exit_code == 0, result.output
    assert "11 answers" in result.stderr
    assert "5 were there" in result.stderr
    assert part.read_bytes() == whole.read_bytes()
    part.write_text("{}\n{}\n")
    assert "cannot be resumed" in str(run(generate, *options(prompts, "part.jsonl"), "--resume").exception)
    prompts.write_text('{"prompt": "Other"}\n')
    assert "is not the prompt" in str(run(generate, *options(prompts), "--resume").exception)
    assert len(whole.read_text(encoding="utf-8").splitlines()) == 16


@pytest.mark.usefixtures("reuse")
def test_generate_stopped_by_ctrl_c_keeps_what_is_done(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_step, steps = Engine.step, iter(range(12))

    def step(engine: Engine) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return whole_step(engine)

    monkeypatch.setattr(Engine, "step", step)
    result = run(generate, *options(prompts), "--batch-rows", "4")
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    done = records(prompts.parent / "out.jsonl")
    assert 0 < len(done) < 16
    monkeypatch.undo()


@pytest.mark.usefixtures("reuse")
def test_rows_without_an_answer_are_recorded_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": "Hi"}, {"promt": "Hi"}, {"prompt": " "}, {"prompt": "long " * 2500}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(generate, *options(path))
    assert result.exit_code == 0, result.output
    found = [record for record in records(tmp_path / "out.jsonl") if record["adapter"] == "one"]
    assert [record.get("error", "")[:36] for record in found] == [
        "",
        "missing field 'prompt'",
        "empty prompt",
        "the prompt has 2,513 tokens, and the",
    ]
    assert [record["answer"] is None for record in found] == [False, True, True, True]
    assert "no answer to row 3: empty prompt" in result.stderr
    path.write_text('{"prompt": ""}\n')
    failed = run(generate, *options(path, "none.jsonl"))
    assert "none of its prompts can be answered; row 1: empty prompt" in str(failed.exception)
    assert not (tmp_path / "none.jsonl").exists()


def test_generate_opens_a_run_folder(run_folder: Path, prompts: Path) -> None:
    result = run(generate, *options(prompts), "--adapter", run_folder, "--limit", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert [record["adapter"] for record in records(prompts.parent / "out.jsonl")] == ["one", "two"]
