"""The harness's tasks over local files, for all models in one pass; what is kept, and what goes wrong."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graftlm.base.loading import load_base
from graftlm.data.templates import ChatTemplate, resolve_chat_template
from graftlm.errors import UserError
from graftlm.evaluation.harness import HarnessSettings, harness_lines, run_harness
from graftlm.evaluation.harness import answers as answers_module
from graftlm.evaluation.harness.answers import Answers
from graftlm.evaluation.harness.encoding import as_context
from graftlm.evaluation.harness.run import offline
from graftlm.evaluation.speakers import Opened
from graftlm.training.forward import RoutedRow, score_rows
from tests.evaluation.harness.work import ROWS, opened, task

pytest.importorskip("lm_eval")

WRITE = {"output_type": "generate_until", "doc_to_target": "{{options[0]}}"}
UNTIL = {"generation_kwargs": {"until": ["."], "max_gen_toks": 6}}
EXACT = {"metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]}
TEXTS = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups of rows each call to score had."""
    calls: list[int] = []
    score = answers_module.score_groups

    def counting(model: Any, groups: Any, max_tokens: int) -> Any:
        calls.append(len(groups))
        return score(model, groups, max_tokens)

    monkeypatch.setattr(answers_module, "score_groups", counting)
    return calls


def run(models: Opened, path: Path, *names: str, **settings: Any) -> dict[str, dict[str, Any]]:
    return run_harness(models, HarnessSettings(names, path, **settings))


def values(reported: dict[str, dict[str, Any]], name: str, measure: str) -> dict[str, float]:
    return {model: report["results"][name][measure] for model, report in reported.items()}


def test_all_models_in_one_pass_as_the_harness_reports_its_own(tmp_path: Path, scored: list[int]) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    task(tmp_path, "sums")
    task(tmp_path, "texts", **TEXTS)
    task(tmp_path, "written", **WRITE, **UNTIL, **EXACT)
    models = opened(2)
    reported = run(models, tmp_path, "sums", "texts", "written", shots=2)
    assert list(reported) == ["base", "lora-0", "lora-1"]
    assert scored == [3 * len(ROWS), 3 * len(ROWS)]  # choices and texts: one call each, for all three models

    loaded = load_base("tiny", dtype="float32")
    peer = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4)
    wanted = simple_evaluate(
        peer,
        tasks=["sums", "texts", "written"],
        num_fewshot=2,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
        log_samples=False,
    )
    for name, measures in wanted["results"].items():
        for measure, value in measures.items():
            if measure.endswith(",none") and "stderr" not in measure:
                assert reported["base"]["results"][name][measure] == pytest.approx(value, rel=1e-4), (name, measure)


def test_patterns_limits_and_lines(tmp_path: Path) -> None:
    task(tmp_path, "sums_a")
    task(tmp_path, "sums_b")
    reported = run(opened(1), tmp_path, "sums_*", limit=4)
    assert reported["base"]["n-samples"]["sums_a"]["effective"] == 4
    lines = harness_lines(reported)
    assert [(line.task, line.measure) for line in lines if line.measure == "acc"] == [
        ("sums_a", "acc"),
        ("sums_b", "acc"),
    ]
    first = lines[0]
    assert set(first.values) == set(first.errors) == {"base", "lora-0"}
    assert first.higher_is_better is True


def test_a_group_has_a_line_of_its_own(tmp_path: Path) -> None:
    task(tmp_path, "sums_a")
    task(tmp_path, "sums_b")
    group = "group: both\ntask: [sums_a, sums_b]\naggregate_metric_list: [{metric: acc}]\n"
    (tmp_path / "both.yaml").write_text(group)
    lines = harness_lines(run(opened(1), tmp_path, "both"))
    found = {line.task: line.values for line in lines if line.measure == "acc"}
    assert set(found) == {"both", "sums_a", "sums_b"}
    for model in ("base", "lora-0"):
        assert found["both"][model] == pytest.approx((found["sums_a"][model] + found["sums_b"][model]) / 2)


def test_a_file_is_a_task(tmp_path: Path) -> None:
    path = task(tmp_path, "sums")
    assert set(run(opened(0), tmp_path, str(path))["base"]["results"]) == {"sums"}


def test_answers_are_kept_and_only_what_is_missing_is_computed(tmp_path: Path, scored: list[int]) -> None:
    task(tmp_path, "sums")
    models, folder = opened(2), tmp_path / "kept"
    settings = HarnessSettings(("sums",), tmp_path)
    first = run_harness(models, settings, folder=folder)
    assert run_harness(models, settings, folder=folder) == first
    assert scored == [3 * len(ROWS)]
    cut = folder / "lora-0.jsonl"
    cut.write_bytes(cut.read_bytes()[:-7])  # killed while it wrote
    assert run_harness(models, settings, folder=folder) == first
    assert scored == [3 * len(ROWS), 1]
    weight = next(models.model.adapter("lora-1").parameters())
    weight.data += 1
    run_harness(models, settings, folder=folder)
    assert scored == [3 * len(ROWS), 1, len(ROWS)]  # other weights: nothing of the old ones is taken


def test_a_run_that_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task(tmp_path, "sums")
    settings, folder = HarnessSettings(("sums",), tmp_path, max_tokens=1), tmp_path / "kept"
    wanted = run_harness(opened(1), settings)
    score = answers_module.score_groups

    def killed(model: Any, groups: Any, max_tokens: int) -> Any:
        for number, batch in enumerate(score(model, groups, max_tokens)):
            if number == 5:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(answers_module, "score_groups", killed)
    with pytest.raises(KeyboardInterrupt):
        run_harness(opened(1), settings, folder=folder)
    monkeypatch.setattr(answers_module, "score_groups", score)
    assert sum(len(path.read_text().splitlines()) for path in folder.iterdir()) == 2 + 5 * 3  # three choices a group
    assert run_harness(opened(1), settings, folder=folder) == wanted


def test_conversations_are_rendered_with_each_models_own_template(tmp_path: Path) -> None:
    models = opened(2)
    plain, alpaca = (resolve_chat_template(name, models.tokenizer) for name in ("plain", "alpaca"))
    models = opened(2, (alpaca, plain))
    context = as_context([{"role": "system", "content": "Be short."}, {"role": "user", "content": "Who?"}])
    answers = Answers(models, [models.base, *models.adapters], chat=True)
    asked = [(context, "A tall man."), (context, "Nobody")]
    for speaker in (models.base, *models.adapters):
        found = answers.of(speaker.label, "loglikelihood", asked)
        for (_, rest), (value, _) in zip(asked, found, strict=True):
            assert value == pytest.approx(by_hand(models, speaker.template, speaker.stack, rest), abs=1e-4)
    text = answers.of("lora-0", "generate_until", [(context, {"until": [], "max_gen_toks": 4})])[0]
    assert text == models_text(models, alpaca)


def by_hand(models: Opened, template: ChatTemplate, stack: tuple[str, ...], rest: str) -> float:
    from graftlm.data.batches import EncodedRow
    from graftlm.data.instances import Message

    messages = [Message("system", "Be short."), Message("user", "Who?"), Message("assistant", rest)]
    rendered = template.render(messages, models.tokenizer)
    own = [origin == "assistant" for origin in rendered.origin]
    return score_rows(models.model, [RoutedRow(EncodedRow(rendered.ids, own, "", 1), stack)], 1000)[0].log_prob


def models_text(models: Opened, template: ChatTemplate) -> str | None:
    from graftlm.data.instances import Message
    from graftlm.generation.engine import Engine
    from graftlm.generation.requests import Request, SamplingSettings

    prompt = template.render_prompt([Message("system", "Be short."), Message("user", "Who?")], models.tokenizer)
    sampling = SamplingSettings(max_new_tokens=4, stop_ids=())
    return Engine(models.model, models.tokenizer).run([Request(tuple(prompt), "lora-0", sampling)])[0].text


def test_an_answer_that_has_begun_is_gone_on_with() -> None:
    models = opened(0, (resolve_chat_template("plain", opened(0).tokenizer),))
    history = [{"role": "user", "content": "Who?"}]
    begun = as_context([*history, {"role": "assistant", "content": "It was"}])
    answers = Answers(models, [models.base], chat=True)
    whole, part = (
        answers.of("base", "loglikelihood", [pair])[0][0]
        for pair in [(as_context(history), "It was a man"), (as_context(history), "It was")]
    )
    assert answers.of("base", "loglikelihood", [(begun, " a man")])[0][0] == pytest.approx(whole - part, abs=1e-4)


@pytest.mark.parametrize("multiturn", [True, False])
def test_conversations_with_demonstrations(tmp_path: Path, multiturn: bool) -> None:
    task(tmp_path, "sums", description="Choose.")
    template = resolve_chat_template("plain", opened(0).tokenizer)
    models = opened(1, (template,) if multiturn else (resolve_chat_template("alpaca", opened(0).tokenizer), template))
    reported = run(models, tmp_path, "sums", shots=2, chat=True)
    plain = run(models, tmp_path, "sums", shots=2)
    assert 0 <= reported["lora-0"]["results"]["sums"]["acc,none"] <= 1
    assert reported["base"]["n-shot"] == plain["base"]["n-shot"] == {"sums": 2}


def test_samples_of_one_prompt_differ_and_come_again() -> None:
    models = opened(1)
    asked = [("Once upon a time", {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0})] * 3
    first = Answers(models, [models.base, *models.adapters])
    found = first.of("base", "generate_until", asked)
    assert len(set(found)) > 1
    assert Answers(models, [models.base]).of("base", "generate_until", asked) == found


# --- what goes wrong ------------------------------------------------------------------------------------------------


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def test_unknown_tasks_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    task(tmp_path, "sums")
    manager = lm_eval.tasks.TaskManager
    # The harness's own thousands of tasks take ten seconds to look through.
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path, include_defaults=False: manager(None, include_path, False)
    )
    refused(lambda: run(opened(0), tmp_path, "sum"), "no task 'sum'", "Did you mean 'sums'")
    refused(lambda: run(opened(0), tmp_path / "nowhere", "sums"), "there is no folder")


def test_rows_that_only_the_hub_has(tmp_path: Path) -> None:
    task(tmp_path, "sums", dataset_path="somebody/nowhere", dataset_kwargs=None)
    refused(lambda: run(opened(0), tmp_path, "sums"), "sums cannot be loaded", "network is not used")


def test_a_task_without_rows(tmp_path: Path) -> None:
    task(tmp_path, "sums", [])
    refused(lambda: run(opened(0), tmp_path, "sums"), "sums cannot be loaded")


def test_a_scorer_that_raises(tmp_path: Path) -> None:
    path = task(tmp_path, "sums")
    (tmp_path / "own.py").write_text("def score(doc, results):\n    raise ValueError('no idea')\n")
    path.write_text(path.read_text() + "process_results: !function own.score\n")
    refused(lambda: run(opened(0), tmp_path, "sums"), "sums fails", "ValueError: no idea")


def test_settings_of_generation(tmp_path: Path) -> None:
    for given, words in [
        ({"until": ["."], "max_gen_toks": 3, "typical_p": 1.0}, ["typical_p", "Did you mean 'top_p'"]),
        ({"until": ["."], "max_gen_toks": 3, "do_sample": True}, ["temperature above 0"]),
        ({"until": ["."], "max_gen_toks": 99999}, ["new tokens", "reads at most"]),
    ]:
        task(tmp_path, "written", **WRITE, **EXACT, generation_kwargs=given)
        refused(lambda: run(opened(0), tmp_path, "written"), *words)


def test_continuations_without_room_or_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    models = opened(0)
    monkeypatch.setattr(models.model, "context_length", 5)
    answers = Answers(models, [models.base])
    refused(lambda: answers.of("base", "loglikelihood", [("a", " one two three four five six seven")]), "at most 5")
    refused(lambda: answers.of("base", "loglikelihood", [("a", "")]), "no token of its own")


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    refused(lambda: run(opened(0), tmp_path, "sums"), "not installed", "graftlm[lm-eval]")


def test_it_is_imported_only_where_it_is_used() -> None:
    code = "import sys, graftlm.cli.app, graftlm.evaluation.harness; print('lm_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_network_is_off_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)

    def broken() -> None:
        with offline():
            assert huggingface_hub.constants.HF_HUB_OFFLINE
            assert huggingface_hub.constants.is_offline_mode()
            assert datasets.config.HF_HUB_OFFLINE
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
