"""graftlm eval with lm-evaluation-harness: options, tables, and our tasks written for it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from graftlm import AdaptedModel, LoRA
from tests.cli.conftest import Cli
from tests.evaluation.harness.work import task
from tests.families import randomise

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = AdaptedModel.from_pretrained("tiny", device="cpu")
    randomise(model.add("mine", LoRA(rank=2)), std=0.05)
    return model.save("mine", tmp_path_factory.mktemp("adapters") / "mine")


def test_its_tasks_alone(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    task(tmp_path / "tasks", "sums")
    command = ["eval", adapter, "--lm-eval", "sums", "--lm-eval-path", tmp_path / "tasks", "--out", "out"]
    ended = cli(*command, "--limit", 4)
    assert ended.code == 0, ended.err
    head, *rows = ended.out.splitlines()
    assert head.split() == ["lm-evaluation-harness", "base", "mine"]
    assert rows[0].startswith("sums: acc")
    assert "loglikelihood: 12 requests, 2 models in one pass" in ended.err
    found = json.loads(Path("out/results.json").read_text("utf-8"))
    assert found["harness"]["mine"]["n-samples"]["sums"]["effective"] == 4
    assert found["settings"]["lm_eval"]["tasks"] == ["sums"]
    assert "sums: acc" in Path("out/report.md").read_text("utf-8")
    again = cli(*command, "--limit", 4)
    assert again.code == 0
    assert "requests" not in again.err  # all answers were kept
    chat = cli(*command, "--limit", 4, "--apply-chat-template")
    assert chat.code == 0
    assert "12 requests" in chat.err


def test_our_tasks_go_there_and_run_there(cli: Cli, adapter: Path, tmp_path: Path) -> None:
    rows = [{"q": f"Is {n} large?", "a": "yes" if n > 5 else "no"} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    own = tmp_path / "sizes.yaml"
    own.write_text("kind: choice\npath: rows.jsonl\nprompt: '{{ q }}'\nchoices: ['yes', 'no']\nanswer: '{{ a }}'\n")
    written = cli("eval", "--to-lm-eval", "there", "--task", own)
    assert (written.code, written.out.split()) == (0, ["graftlm_sizes"])
    ended = cli("eval", adapter, "--task", own, "--lm-eval", "graftlm", "--lm-eval-path", "there", "--no-drift")
    assert ended.code == 0, ended.err
    assert "sizes: acc" in ended.out


def test_options_without_it(cli: Cli, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = cli("eval", adapter, "--apply-chat-template")
    assert (ended.code, "--lm-eval" in ended.err) == (2, True)
    ended = cli("eval", adapter, "--lm-eval", "sums", "--lm-eval-path", "nowhere")
    assert (ended.code, "no folder nowhere" in ended.err) == (2, True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    ended = cli("eval", adapter, "--lm-eval", "sums")
    assert (ended.code, "graftlm[lm-eval]" in ended.err) == (2, True)
