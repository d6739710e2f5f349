"""`graftlm generate`: samples, log-probabilities, biases, failures of one row, and being killed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from graftlm.generation import Engine
from tests.cli.conftest import Cli
from tests.cli.test_killed import lines, start
from tests.runs.small import write_rows

PROMPTS = [{"prompt": text} for text in ("Hello", "Who is it?", "Why do the birds sing in the morning?", "A cat")]
# With seed 0 a draw stands at the border of two tokens, where rounding decides.
SAMPLED = ["--n", "3", "--temperature", "1.2", "--max-new-tokens", "6", "--seed", "1"]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.fixture
def prompts(cli: Cli, tmp_path: Path) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", PROMPTS)


def test_samples_are_lines_of_their_own(cli: Cli, prompts: Path, tmp_path: Path):
    assert cli("generate", prompts, "--out", "three.jsonl", *SAMPLED).code == 0
    found = records(tmp_path / "three.jsonl")
    assert [(record["row"], record["sample"]) for record in found] == [(r, s) for r in range(1, 5) for s in range(1, 4)]
    assert len({record["answer"] for record in found[:3]}) == 3
    # The first sample is what --n 1 gives, and more samples can be added later.
    one = ["--temperature", "1.2", "--max-new-tokens", "6", "--seed", "1"]
    assert cli("generate", prompts, "--out", "one.jsonl", *one).code == 0
    alone = records(tmp_path / "one.jsonl")
    assert all("sample" not in record for record in alone)
    assert [record["answer"] for record in alone] == [record["answer"] for record in found[::3]]
    ended = cli("generate", prompts, "--out", "one.jsonl", *SAMPLED, "--resume")
    assert "8 answers" in ended.err
    assert "4 were there" in ended.err
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "three.jsonl").read_bytes()


def test_beams_are_samples_the_best_first(cli: Cli, prompts: Path, tmp_path: Path):
    options = ["--beams", "3", "--max-new-tokens", "5", "--log-probs"]
    assert cli("generate", prompts, "--out", "two.jsonl", "--n", "2", *options).code == 0
    assert cli("generate", prompts, "--out", "one.jsonl", *options).code == 0
    two = records(tmp_path / "two.jsonl")
    assert [record["answer"] for record in two[::2]] == [r["answer"] for r in records(tmp_path / "one.jsonl")]
    means = [sum(entry["log_prob"] for entry in record["log_probs"]) / record["tokens"] for record in two]
    assert all(first >= second for first, second in zip(means[::2], means[1::2], strict=True))
    # All beams of a prompt fail together, and the others go on.
    ended = cli("generate", prompts, "--out", "few.jsonl", "--n", "2", *options, "--batch-tokens", "60")
    assert ended.code == 0
    few = records(tmp_path / "few.jsonl")
    assert [record["finish_reason"] == "error" for record in few] == [
        False,
        False,
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_missing_samples_are_added(cli: Cli, prompts: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    assert cli("generate", prompts, "--out", out, *SAMPLED).code == 0
    whole = out.read_bytes()
    kept = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(kept[7:3:-2]) + kept[0][:30])
    assert cli("generate", prompts, "--out", out, *SAMPLED, "--resume").code == 0
    assert out.read_bytes() == whole


def test_log_probabilities(cli: Cli, prompts: Path, tmp_path: Path):
    options = ["--max-new-tokens", "4", "--prompt-log-probs"]
    assert cli("generate", prompts, "--out", "out.jsonl", *options, "--log-probs").code == 0
    for record in records(tmp_path / "out.jsonl"):
        scored = record["log_probs"]
        assert len(scored) == record["tokens"]
        assert "".join(entry["token"] for entry in scored if entry["id"] != 0).strip().startswith(record["answer"])
        assert all(entry["log_prob"] <= 0 for entry in scored)
        of_prompt = record["prompt_log_probs"]
        assert of_prompt[0]["log_prob"] is None
        assert all(entry["log_prob"] < 0 for entry in of_prompt[1:])
        assert record["prompt"] in "".join(entry["token"] for entry in of_prompt)


def test_forms_biases_and_tokens(cli: Cli, prompts: Path, tmp_path: Path):
    assert cli("generate", prompts, "--out", "yes.jsonl", "--regex", "yes|no").code == 0
    assert {record["answer"] for record in records(tmp_path / "yes.jsonl")} <= {"yes", "no"}
    (tmp_path / "rule.lark").write_text('start: "red" " "? "cat"\n')
    assert cli("generate", prompts, "--out", "red.jsonl", "--grammar", "rule.lark").code == 0
    assert {record["answer"] for record in records(tmp_path / "red.jsonl")} <= {"redcat", "red cat"}
    assert "cat" in cli("chat", "-m", "Hello", "--grammar", "rule.lark").out
    assert cli("generate", prompts, "--out", "cat.jsonl", "--logit-bias", " cat=100", "--max-new-tokens", "3").code == 0
    assert {record["answer"] for record in records(tmp_path / "cat.jsonl")} == {"cat cat cat"}


def test_wrong_biases(cli: Cli, prompts: Path, tmp_path: Path):
    for text, part in [
        ("x", "allowed: TOKEN=BIAS"),
        ("=3", "allowed: TOKEN=BIAS"),
        ("5=much", "allowed: TOKEN=BIAS"),
        ("9999999=1", "has the tokens 0 to "),
        ("Constantinople=1", "which is "),
        ("5=nan", "logit_bias of token 5 is nan; allowed: "),
    ]:
        ended = cli("generate", prompts, "--out", "out.jsonl", "--logit-bias", text)
        assert ended.code == 2
        assert part in ended.err, text
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--n", "2"], "greedy answers are all the same"),
        (["--n", "0"], "n is 0; allowed: 1 to 1,000"),
        (["--beams", "2", "--temperature", "1"], "beam search draws nothing"),
        (["--top-p", "0"], "top_p is 0"),
        (["--presence-penalty", "1000"], "presence_penalty is 1000"),
        (["--top-log-probs", "50"], "top_log_probs is 50"),
        (["--max-new-tokens", "0"], "--max-new-tokens"),
        (["--regex", "a", "--grammar", "grammar.lark"], "regex and grammar are set"),
        (["--json-schema", "nothing.json"], "--json-schema nothing.json: there is no such file"),
        (["--json-schema", "broken.json"], "--json-schema broken.json: broken JSON"),
        (["--grammar", "empty.lark"], "--grammar empty.lark: the file is empty"),
        ([part for n in range(65) for part in ("--stop", f"<{n}>")], "stop has 65 texts; allowed: at most 64"),
        (["--json-schema", "never.json"], "the JSON schema can never be met"),
        (["--regex", "[yes"], "the regular expression is not right"),
        (["--adapter", "nowhere"], "there is no adapter folder nowhere"),
    ],
)
def test_wrong_options(cli: Cli, prompts: Path, tmp_path: Path, options: list[str], part: str):
    (tmp_path / "broken.json").write_text('{"type": ')
    (tmp_path / "never.json").write_text('{"allOf": [{"type": "string"}, {"type": "integer"}]}')
    (tmp_path / "empty.lark").write_text("\n")
    (tmp_path / "grammar.lark").write_text('start: "a"\n')
    ended = cli("generate", prompts, "--out", "out.jsonl", *options)
    assert ended.code == 2
    assert part in ended.err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_that_fails_stops_no_other(cli: Cli, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert cli("generate", prompts, "--out", "whole.jsonl", "--max-new-tokens", "12").code == 0
    # Too little room for the longest prompt, and an error while another one runs.
    whole_step, steps = Engine.step, iter(range(4))

    def step(engine: Engine) -> Any:
        events = whole_step(engine)
        return events + (engine._drop(engine._slots.rows, "no luck") if next(steps, None) == 3 else [])

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        ended = cli("generate", prompts, "--out", "out.jsonl", "--max-new-tokens", "12", "--batch-tokens", "28")
    assert ended.code == 0
    assert "2 answers" in ended.err
    found, whole = records(tmp_path / "out.jsonl"), records(tmp_path / "whole.jsonl")
    failed = [record for record in found if record["answer"] is None]
    assert {record["finish_reason"] for record in failed} == {"error"}
    assert any("there is memory for 28" in record["error"] for record in failed)
    assert any(record["error"] == "no luck" for record in failed)
    assert [record for record in found if record["answer"] is not None] == [
        record for record, other in zip(whole, found, strict=True) if other["answer"] is not None
    ]
    ended = cli("generate", prompts, "--out", "out.jsonl", "--max-new-tokens", "12", "--resume")
    assert "2 answers" in ended.err
    assert "2 were there" in ended.err
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_no_row_that_can_be_answered(cli: Cli, prompts: Path, tmp_path: Path):
    ended = cli("generate", prompts, "--out", "out.jsonl", "--batch-tokens", "5")
    assert ended.code == 2
    assert "none of its prompts can be answered; row 1: the request needs keys and values of" in ended.err
    assert all(record["finish_reason"] == "error" for record in records(tmp_path / "out.jsonl"))


def test_answers_with_ends_of_lines_of_other_kinds(cli: Cli, prompts: Path, tmp_path: Path):
    out = tmp_path / "out.jsonl"
    assert cli("generate", prompts, "--out", out, "--max-new-tokens", "4").code == 0
    first, *rest = records(out)
    first["answer"] = "one\u2028two\x85three"
    out.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in [first, *rest]), encoding="utf-8"
    )
    before = out.read_bytes()
    assert cli("generate", prompts, "--out", out, "--max-new-tokens", "4", "--resume").code == 0
    assert out.read_bytes() == before


def test_killed_with_rows_in_flight(cli: Cli, tmp_path: Path):
    prompts = write_rows(tmp_path / "many.jsonl", [{"prompt": f"Count to {number}"} for number in range(40)])
    # In float64, for bytes that do not hang on a draw at the very border of two tokens.
    sampled = ["--n", "2", "--temperature", "1", "--dtype", "float64"]
    options = [str(prompts), *sampled, "--max-new-tokens", "60", "--batch-rows", "8"]
    assert cli("generate", *options, "--out", "whole.jsonl").code == 0
    killed = 0
    for moment in (1, 25, 50):
        resume = ["--resume"] if (tmp_path / "out.jsonl").exists() else []
        process = start("generate", *options, "--out", "out.jsonl", *resume, folder=tmp_path)
        deadline = time.monotonic() + 120
        while lines(tmp_path / "out.jsonl") < moment and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        killed += process.wait() != 0
    assert killed >= 2
    assert cli("generate", *options, "--out", "out.jsonl", "--resume").code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
