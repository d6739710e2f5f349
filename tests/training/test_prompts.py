"""Virtual tokens in training and scoring: put in front, taken out, counted; together is alone; resumed is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from graftlm import AdaptedModel, LoRA, Prompt, PTuning
from graftlm.adapters.method import MethodConfig
from graftlm.data.batches import EncodedRow
from graftlm.training.events import RoundDone, Stepped
from graftlm.training.forward import RoutedRow, score_rows
from graftlm.training.plan import plan
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task
from graftlm.training.virtual_rows import fit
from tests.families import VOCABULARY, make_base, randomise
from tests.training.work import after_round, difference, make_rows, run, same_bits, weights

CONFIGS: dict[str, MethodConfig] = {
    "p": Prompt(length=3),
    "l": LoRA(rank=2),
    "q": Prompt(length=5, init="random"),
    "e": PTuning(length=2, encoder_hidden=4),
}
TASKS = {
    name: Task(
        name,
        make_rows(12, seed=number),
        AdapterTraining(learning_rate=0.02, batch_rows=2 + number, max_steps=20, epochs=9, max_grad_norm=0.5),
        held_out=make_rows(4, seed=number),
    )
    for number, name in enumerate(CONFIGS)
}


def model_with(names: str) -> AdaptedModel:
    model = AdaptedModel(make_base("llama", dtype=torch.float64))
    for name in names:
        randomise(model.add(name, CONFIGS[name]), seed=ord(name))
    return model


def test_rows_get_their_virtual_tokens_and_lose_those_of_others() -> None:
    row = EncodedRow([5, 6, 7], [False, True, True], "x", 1)
    front = fit(row, 2, 67)
    assert (front.ids, front.supervised) == ([67, 68, 5, 6, 7], [False, False, False, True, True])
    assert front.n_supervised == row.n_supervised
    assert fit(front, 2, 67) is front
    assert fit(row, 0, 67) is row
    back = fit(front, 0, 67)
    assert (back.ids, back.supervised) == (row.ids, row.supervised)
    inside = EncodedRow([67, 5, 68, 69, 7], [False, False, False, False, True], "x", 2)
    assert fit(inside, 3, 67) is inside
    assert fit(inside, 1, 67).ids == [67, 5, 7]  # under the first adapter of its stack alone
    assert fit(inside, 0, 67).ids == [5, 7]
    learnt_from_the_start = EncodedRow([5, 6], [True, True], "x", 3)
    assert fit(learnt_from_the_start, 1, 67).n_supervised == 1


def test_scores_are_those_of_vectors_put_in_by_hand() -> None:
    model = model_with("pl")
    rows = make_rows(5)
    scores = score_rows(model, [RoutedRow(row, ("p",)) for row in rows], 40)
    embedding = model.base.get_input_embeddings()
    vectors = model.adapter("p").virtual()
    for row, score in zip(rows, scores, strict=True):
        inputs = torch.cat([vectors, embedding(torch.tensor(row.ids))])[None]
        log_probs = model.base(inputs_embeds=inputs).logits[0, 3:].log_softmax(-1)
        learnt = [n for n in range(1, len(row.ids)) if row.supervised[n]]
        expected = sum(float(log_probs[n - 1, row.ids[n]].detach()) for n in learnt)
        assert score.log_prob == pytest.approx(expected, rel=1e-9)
        assert score.tokens == len(learnt)


def test_a_row_with_virtual_tokens_is_scored_by_the_base_without_them() -> None:
    model = model_with("p")
    rows = make_rows(3)
    placed = [fit(row, 3, VOCABULARY) for row in rows]
    found = score_rows(model, [RoutedRow(row, ()) for row in placed], 64)
    assert found == score_rows(model, [RoutedRow(row, ()) for row in rows], 64)
    again = score_rows(model, [RoutedRow(row, ("p",)) for row in placed], 64)
    assert again == score_rows(model, [RoutedRow(row, ("p",)) for row in rows], 64)


@pytest.mark.parametrize("settings", [RunSettings(), RunSettings(micro_batch_tokens=40, gradient_checkpointing=True)])
def test_beside_others_is_alone(settings: RunSettings) -> None:
    together = model_with("plqe")
    run(together, list(TASKS.values()), settings)
    for name in CONFIGS:
        alone = model_with(name)
        start = weights(alone, name)
        run(alone, [TASKS[name]])
        assert difference(weights(together, name), weights(alone, name)) < 1e-7
        assert difference(weights(alone, name), start) > 1e-2


def test_virtual_tokens_count_as_tokens_that_are_run() -> None:
    model = model_with("q")
    task = TASKS["q"]
    before = plan(model, [task], RunSettings()).tokens
    _, recorder = run(model, [task])
    rows = [index for step in task.steps for index in step]
    expected = sum(len(task.rows[index].ids) + 5 for index in rows)
    assert sum(event.tokens for event in recorder.of(RoundDone)) == expected == before
    learnt = sum(task.rows[index].n_supervised for index in rows)
    assert sum(event.learnt_tokens for event in recorder.of(Stepped)) == learnt


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    tasks = [TASKS[name] for name in "ple"]
    whole = model_with("ple")
    run(whole, tasks)
    stopped = model_with("ple")
    run(stopped, tasks, checkpoints=tmp_path, should_stop=after_round(7))
    resumed = model_with("ple")  # the checkpoint holds the encoder of P-tuning
    run(resumed, tasks, checkpoints=tmp_path, resume=True)
    for name in "ple":
        assert same_bits(weights(resumed, name), weights(whole, name))


def test_held_out_scores_follow_every_step() -> None:
    """Vectors that are made of others are made anew after a step of the fused optimizer."""
    model = model_with("e")
    outcome, _ = run(model, [TASKS["e"]], RunSettings(eval_every=4))
    losses = [entry["loss"] for entry in outcome.progress["e"].history]
    assert len(set(losses)) == len(losses) == 6
