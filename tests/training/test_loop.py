"""The loop: pace, evaluation, best parameters, early stopping, stacks, and what is told of it all."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from graftlm import LoRA
from graftlm.errors import UserError
from graftlm.training.events import Ended, Evaluated, RoundDone, Stepped
from graftlm.training.forward import RoutedRow, score_rows
from graftlm.training.loop import train
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.task import Task, exact_share, mean_loss
from tests.training.work import (
    Weights,
    make_rows,
    model_with,
    rates,
    round_numbers,
    run,
    same_bits,
    train_one,
    weights,
)

ROWS = make_rows(12, seed=1)
TWO = {"a": LoRA(rank=2, dropout=0.5), "b": LoRA(rank=3)}


# --- pace ---


def test_what_is_told_of_steps_and_rounds() -> None:
    settings = AdapterTraining(batch_rows=4, epochs=2)
    model = model_with(TWO)
    tasks = [Task("a", ROWS, settings), Task("b", make_rows(8, seed=2), settings)]
    outcome, recorder = run(model, tasks)
    for task in tasks:
        told = recorder.of(Stepped, task.adapter)
        assert [event.step for event in told] == list(range(1, len(task.steps) + 1))
        assert {event.total for event in told} == {len(task.steps)}
        for event, step in zip(told, task.steps, strict=True):
            assert event.tokens == sum(len(task.rows[index].ids) for index in step)
            assert event.learnt_tokens == sum(task.rows[index].n_supervised for index in step)
    assert round_numbers(recorder) == [1, 2, 3, 4, 5, 6]
    rounds = recorder.of(RoundDone)
    steps = recorder.of(Stepped)
    assert sum(event.tokens for event in rounds) == sum(event.tokens for event in steps) == outcome.tokens
    assert all(event.tokens <= event.padded_tokens and event.seconds > 0 for event in rounds)
    assert outcome.padded_tokens == sum(event.padded_tokens for event in rounds)
    assert [(event.adapter, event.reason, event.step) for event in recorder.of(Ended)] == [
        ("b", "finished", 4),
        ("a", "finished", 6),
    ]
    assert not outcome.interrupted


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"batch_rows": 4, "epochs": 2}, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]),
        ({"batch_rows": 4, "epochs": 2, "max_steps": 2}, [1 / 3, 2 / 3]),
        ({"batch_rows": 3, "epochs": 0.5}, [0.25, 0.5]),
    ],
)
def test_epochs_told_are_rows_seen(settings: dict[str, float], epochs: list[float]) -> None:
    _, _, recorder = train_one(AdapterTraining.model_validate(settings), ROWS)
    assert [event.epoch for event in recorder.of(Stepped)] == pytest.approx(epochs)


def test_max_steps_ends_schedule_and_training() -> None:
    settings = AdapterTraining(learning_rate=1.0, schedule="linear", warmup=0, batch_rows=2, epochs=5, max_steps=4)
    _, outcome, recorder = train_one(settings.model_copy(update={"learning_rate": 1e-3}), ROWS)
    assert rates(recorder) == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert outcome.progress["a"].reason == "finished"


# --- evaluation ---


@pytest.mark.parametrize(
    ("every", "steps"),
    [(None, [0, 2, 4, 6, 8, 10, 12]), (5, [0, 5, 10, 12]), (6, [0, 6, 12]), (100, [0, 12])],
)
def test_when_it_evaluates(every: int | None, steps: list[int]) -> None:
    run_settings = RunSettings(eval_every=every)
    _, _, recorder = train_one(AdapterTraining(batch_rows=1), ROWS, run_settings, held_out=ROWS[:2])
    assert [event.step for event in recorder.of(Evaluated)] == steps


def test_the_held_out_loss_is_that_of_the_answers_alone() -> None:
    """And dropout is off: against full logits, row by row."""
    model = model_with(TWO)
    held_out = make_rows(5, seed=7)
    losses, exact = [], 0
    for row in held_out:
        logits = model(torch.tensor([row.ids]), adapters="a").logits[0].detach()
        places = [place for place in range(1, len(row.ids)) if row.supervised[place]]
        losses += [nn.functional.cross_entropy(logits[p - 1], torch.tensor(row.ids[p])) for p in places]
        exact += all(int(logits[p - 1].argmax()) == row.ids[p] for p in places)
    _, recorder = run(model, [Task("a", ROWS, held_out=held_out)])
    first = recorder.of(Evaluated)[0]
    assert first.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-9)
    assert first.accuracy == exact / 5


def test_rows_learnt_by_heart_are_exact() -> None:
    rows = make_rows(2, seed=3)
    settings = AdapterTraining(learning_rate=0.03, batch_rows=2, epochs=60)
    model, _, recorder = train_one(settings, rows, held_out=rows)
    told = recorder.of(Evaluated)
    assert told[0].accuracy == 0.0
    assert told[-1].accuracy == 1.0
    scores = score_rows(model, [RoutedRow(row, ("a",)) for row in rows], 64)
    assert exact_share(scores) == 1.0
    assert mean_loss(scores) == pytest.approx(min(event.loss for event in told), rel=1e-9)


def best_and_last(patience: int | None = None) -> tuple[AdapterTraining, RunSettings]:
    settings = AdapterTraining(
        learning_rate=0.02, epochs=5, batch_rows=3, patience=patience, seed=1, schedule="constant"
    )
    return settings, RunSettings(eval_every=2)


def test_the_best_parameters_are_put_back() -> None:
    settings, run_settings = best_and_last()
    held_out = (ROWS[0], *make_rows(3, seed=11))
    model, outcome, recorder = train_one(settings, ROWS, run_settings, held_out=held_out)
    told = recorder.of(Evaluated)
    best = min(told, key=lambda event: event.loss)
    assert 0 < best.step < 20, "a run that gets worse again"
    assert outcome.progress["a"].best_step == best.step
    assert outcome.progress["a"].best_loss == best.loss
    assert [event.best for event in told] == [
        event.loss < min((before.loss for before in told[:number]), default=float("inf"))
        for number, event in enumerate(told)
    ]
    scores = score_rows(model, [RoutedRow(row, ("a",)) for row in held_out], 4096)
    assert mean_loss(scores) == pytest.approx(best.loss, rel=1e-12)
    shorter = settings.model_copy(update={"max_steps": best.step})
    until_best, _, _ = train_one(shorter, ROWS, run_settings)
    assert same_bits(weights(model, "a"), weights(until_best, "a"))


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience(patience: int) -> None:
    settings, run_settings = best_and_last(patience)
    held_out = (ROWS[0], *make_rows(3, seed=11))
    model, outcome, recorder = train_one(settings, ROWS, run_settings, held_out=held_out)
    losses = [event.loss for event in recorder.of(Evaluated)]
    (ended,) = recorder.of(Ended)
    assert ended.reason == "early stop"
    best = outcome.progress["a"].best_step
    assert f"in {patience} evaluations; the best was at step {best}" in ended.detail
    assert ended.step == best + 2 * patience < 20
    assert min(losses) == losses[best // 2]
    assert mean_loss(score_rows(model, [RoutedRow(row, ("a",)) for row in held_out], 4096)) == pytest.approx(
        min(losses)
    )


def test_without_held_out_rows_the_last_parameters_stay_and_patience_waits() -> None:
    settings, run_settings = best_and_last(patience=1)
    _, outcome, recorder = train_one(settings, ROWS, run_settings)
    assert not recorder.of(Evaluated)
    progress = outcome.progress["a"]
    assert (progress.reason, progress.step, progress.best_loss) == ("finished", 20, None)


def test_one_with_held_out_rows_beside_one_without() -> None:
    tasks = [Task("a", ROWS, AdapterTraining(batch_rows=6), ROWS[:3]), Task("b", ROWS, AdapterTraining(batch_rows=6))]
    _, recorder = run(model_with(TWO), tasks)
    assert {event.adapter for event in recorder.of(Evaluated)} == {"a"}


# --- stacks ---


def stacked_run(dropout: float, *, lower_frozen: bool = False) -> tuple[Weights, list[float]]:
    """The upper adapter's final weights and its losses; the lower one must stay as it is in every way."""
    model = model_with({"lower": LoRA(rank=3, dropout=dropout), "a": LoRA(rank=2, dropout=0.3)})
    lower = list(model.adapter("lower").parameters())
    for parameter in lower:
        parameter.requires_grad_(not lower_frozen)
    before = weights(model, "lower")
    task = Task("a", ROWS, AdapterTraining(batch_rows=3, learning_rate=1e-2), ROWS[:2], under=("lower",))
    _, recorder = run(model, [task])
    assert same_bits(weights(model, "lower"), before)
    assert all(parameter.grad is None and parameter.requires_grad != lower_frozen for parameter in lower)
    return weights(model, "a"), [event.loss for event in recorder.of(Stepped)]


def test_the_adapter_below_stays_and_does_not_drop() -> None:
    upper, losses = stacked_run(dropout=0.0)
    for other, other_losses in (stacked_run(dropout=0.9), stacked_run(dropout=0.0, lower_frozen=True)):
        assert same_bits(upper, other)
        assert losses == other_losses


def test_the_adapter_below_takes_part() -> None:
    """The loss of the first step is that of the stack, by full logits."""
    rows = ROWS[:4]
    losses = []
    for under in ((), ("lower",)):
        model = model_with({"lower": LoRA(rank=3), "a": LoRA(rank=2)})
        scores = []
        for row in rows:
            log_probs = model(torch.tensor([row.ids]), adapters=(*under, "a")).logits[0].log_softmax(-1).detach()
            scores += [log_probs[p - 1, row.ids[p]] for p in range(1, len(row.ids)) if row.supervised[p]]
        _, recorder = run(model, [Task("a", rows, under=under)])
        losses.append(recorder.of(Stepped)[0].loss)
        assert losses[-1] == pytest.approx(-float(torch.stack(scores).mean()), rel=1e-9)
    assert abs(losses[0] - losses[1]) > 1e-3


# --- what cannot be run ---


def test_tasks_that_cannot_be_run() -> None:
    model = model_with(TWO)
    with pytest.raises(UserError, match=r"unknown adapter 'c'.*there are: a, b"):
        train(model, [Task("c", ROWS)])
    with pytest.raises(UserError, match="'a' is given twice"):
        train(model, [Task("a", ROWS), Task("a", make_rows(3))])
    with pytest.raises(UserError, match="'b' has no rows"):
        train(model, [Task("a", ROWS), Task("b", ())])
    with pytest.raises(UserError, match="'b' is stacked on 'a', which is trained in the same run"):
        train(model, [Task("a", ROWS), Task("b", ROWS, under=("a",))])
    with pytest.raises(UserError, match="nothing to train"):
        train(model, [])


def test_all_rows_and_none_but_the_own_are_run() -> None:
    """Every token of a step's rows passes the base once, and no other."""
    model = model_with(TWO)
    seen: list[tuple[int, ...]] = []
    model.base.get_input_embeddings().register_forward_pre_hook(
        lambda _, inputs: seen.extend(tuple(row) for row in inputs[0].tolist())
    )
    rows = tuple(replace(row, ids=list(row.ids)) for row in ROWS)
    run(model, [Task("a", rows, AdapterTraining(batch_rows=4)), Task("b", rows, AdapterTraining(batch_rows=3))])
    wanted = sorted(itertools.chain.from_iterable(tuple(row.ids) for row in rows for _ in range(2)))
    assert len(seen) == 24
    assert sorted(token for row in seen for token in row if token) == wanted
