"""Policies in the one loop: a step by hand, beside others as alone, resumed to the same bits, bad rewards."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graftlm import AdaptedModel, LoRA
from graftlm.alignment import (
    Policy,
    Roles,
    Sampling,
    Values,
    function_reward,
    group_episodes,
    make_policy,
    ppo_episodes,
    reward_rollouts,
    roll_out,
    score_rollouts,
)
from graftlm.base.fingerprint import exact_digest
from graftlm.data.batches import EncodedRow
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.objectives import grpo_loss, ppo_policy_loss, ppo_value_loss, step_share
from graftlm.objectives.sampled import Value
from graftlm.training.events import Ended, Phased, Rested, Stepped, Tried
from graftlm.training.forward import RoutedRow, build_micro_batch, micro_batch_values
from graftlm.training.loop import Outcome, train
from graftlm.training.objective_settings import ObjectiveSettings
from graftlm.training.optimizers import gradient_norm
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.source import Phase, Turn
from graftlm.training.task import Task
from tests.alignment.conftest import asked
from tests.families import make_base, randomise
from tests.training.work import Recorder, Weights, after_round, difference, make_rows, run, same_bits, weights

PROMPTS = asked("w7 w8", "w9", "w10 w11 w12", "w13 w14", "w15", "w16 w17")


def low_tokens(_messages: object, answer: str) -> float:
    """The share of words with an even number: something that a policy can learn."""
    words = answer.split()
    return sum(int(word[1:]) % 2 == 0 for word in words) / max(1, len(words))


def objective(type_: str = "grpo", **values: Any) -> ObjectiveSettings:
    given = {"group": 4, "prompts": 3, "max_new_tokens": 6, "rewards": {"even": {"python": "r.py:even"}}}
    return ObjectiveSettings.model_validate({"type": type_, **given, **values})


def policy_task(
    model: AdaptedModel,
    name: str,
    template: ChatTemplate,
    reward: Callable[..., float] = low_tokens,
    settings: ObjectiveSettings | None = None,
    **training: Any,
) -> Task:
    chosen = AdapterTraining(
        objective=settings or objective(),
        **{"learning_rate": 0.01, "schedule": "constant", "warmup": 0, "epochs": 2, **training},
    )
    source = Policy(make_policy(model, name, template), tuple(PROMPTS), (function_reward(reward, "even"),), chosen)
    return Task(name, (), chosen, objective=source.settings.objective(), source=source)


TEXTS = tuple(replace(row, supervised=[True] * len(row.ids)) for row in make_rows(5, seed=8))


def with_texts(task: Task, **settings: Any) -> Task:
    """The policy's task with texts of a pretraining mix."""
    given = task.settings.objective.model_dump(exclude_none=True) | {
        "pretraining": {"weight": 0.7, "rows": 3, **settings}
    }
    chosen = task.settings.model_copy(update={"objective": ObjectiveSettings.model_validate(given)})
    source = replace(cast(Policy, task.source), training=chosen, texts=TEXTS)
    return replace(task, settings=chosen, objective=source.settings.objective(), source=source)


def ppo_tasks(
    model: AdaptedModel,
    template: ChatTemplate,
    reward: Callable[..., float] = low_tokens,
    settings: ObjectiveSettings | None = None,
    **training: Any,
) -> list[Task]:
    """The policy p and its values v."""
    task = policy_task(model, "p", template, reward, settings or objective("ppo", value="v", passes=2), **training)
    source = replace(cast(Policy, with_texts(task).source), value=("v",))
    task = replace(task, objective=source.settings.objective())
    values = AdapterTraining(learning_rate=0.001, warmup=0, seed=9)
    return [replace(task, source=source), Task("v", (), values, objective=Value(), source=Values(source))]


def make_model(words: PreTrainedTokenizerBase, names: str, dtype: torch.dtype = torch.float64) -> AdaptedModel:
    model = AdaptedModel(make_base("llama", dtype=dtype), words, name="random-llama")
    for name in names:
        randomise(model.add(name, LoRA(rank=2), criteria=1 if name == "v" else None), seed=ord(name))
    return model


def test_a_grpo_step_by_hand(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Loss and gradient of the first step are those of the parts, put together here."""
    model = make_model(words, "a")
    task = policy_task(model, "a", template, seed=3, max_steps=1, max_grad_norm=0.0)
    assert isinstance(task.source, Policy)
    prompts = task.source.asked(0)
    rollouts = roll_out(model, [task.source.speaker], prompts, Sampling(n=4, max_new_tokens=6, seed=3), 0)
    scores = score_rollouts(model, rollouts, {"a": Roles(reference=())})
    rewarded = reward_rollouts(rollouts, [function_reward(low_tokens, "even")])
    episodes = group_episodes(rollouts, scores, rewarded, "a")
    rows = [RoutedRow(row, ("a",)) for row in episodes.rows]
    now = torch.cat(micro_batch_values(model, build_micro_batch(model, rows, list(range(len(rows))))))
    terms = grpo_loss(now, episodes.old_log_probs, episodes.advantages, episodes.reference_log_probs, kl_weight=0.04)
    loss = step_share(terms, episodes.counts, episodes.size, "row")
    loss.backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm(list(model.adapter("a").parameters()))

    fresh = make_model(words, "a")
    _, recorder = run(fresh, [policy_task(fresh, "a", template, seed=3, max_steps=1, max_grad_norm=0.0)])
    (step,) = recorder.of(Stepped)
    (phase,) = recorder.of(Phased)
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    assert step.gradient_norm == pytest.approx(norm, rel=1e-9)
    assert step.measures["largest_log_ratio"] < 1e-9  # the first update's ratio is 1
    assert step.measures["clip_share"] == 0.0
    assert phase.measures["reward"] == pytest.approx(float(rewarded.totals.mean()))
    assert phase.measures["largest_deviation"] < 1e-9
    assert phase.measures["answers"] == 12


def _cross_entropy(model: AdaptedModel, name: str, rows: Sequence[EncodedRow]) -> torch.Tensor:
    """The mean over all tokens but the first of each text, by the model's own logits."""
    parts = []
    for row in rows:
        ids = torch.tensor([list(row.ids)])
        logits = model(ids, adapters=[name]).logits[0, :-1].double()
        parts.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    return torch.cat(parts).mean()


def _texts_of(policy: Policy, model: AdaptedModel) -> list[list[EncodedRow]]:
    """The texts of the first phase's first step."""
    (phase,) = policy.phases(model, [Turn(policy, 0)], RunSettings())
    return [[row for _, row in phase.numbered(0) if row.sampled is None]]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_texts_of_a_pretraining_mix(words: PreTrainedTokenizerBase, template: ChatTemplate, temperature: float) -> None:
    """The gradient is that of the policy's loss and weight × cross-entropy, at any temperature of drawing."""
    model = make_model(words, "a")
    settings = objective(temperature=temperature)
    task = with_texts(policy_task(model, "a", template, settings=settings, seed=3, max_steps=1, max_grad_norm=0.0))
    policy = cast(Policy, task.source)
    (texts,) = _texts_of(policy, model)
    assert len({id(text) for text in texts}) == 3
    sampling = Sampling(n=4, max_new_tokens=6, seed=3, temperature=temperature)
    rollouts = roll_out(model, [policy.speaker], policy.asked(0), sampling, 0)
    scores = score_rollouts(model, rollouts, {"a": Roles(reference=())})
    episodes = group_episodes(rollouts, scores, reward_rollouts(rollouts, policy.rewards), "a")
    parts = []
    for row in episodes.rows:
        ids = torch.tensor([list(row.ids)])
        logits = model(ids, adapters=["a"]).logits[0, :-1].double() / temperature
        every = logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        parts.append(every[torch.tensor(list(row.supervised[1:]))])
    now = torch.cat(parts)
    terms = grpo_loss(now, episodes.old_log_probs, episodes.advantages, episodes.reference_log_probs, kl_weight=0.04)
    loss = step_share(terms, episodes.counts, episodes.size, "row") + 0.7 * _cross_entropy(model, "a", texts)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = gradient_norm(list(model.adapter("a").parameters()))

    fresh = make_model(words, "a")
    again = with_texts(policy_task(fresh, "a", template, settings=settings, seed=3, max_steps=1, max_grad_norm=0.0))
    _, recorder = run(fresh, [again], RunSettings(micro_batch_tokens=40))
    (step,) = recorder.of(Stepped)
    assert step.loss == pytest.approx(float(loss.detach()), rel=1e-8)
    assert step.gradient_norm == pytest.approx(norm, rel=1e-8)
    assert step.measures["largest_log_ratio"] < 1e-8
    assert step.measures["pretraining_loss"] == pytest.approx(float(_cross_entropy(model, "a", texts).detach()))


def test_a_ppo_step_by_hand(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """The first losses of policy and values are those of the parts; values learn from the policy's answers."""
    model = make_model(words, "pv")
    policy = cast(Policy, ppo_tasks(model, template, seed=3)[0].source)
    rollouts = roll_out(model, [policy.speaker], policy.asked(0), Sampling(n=4, max_new_tokens=6, seed=3), 0)
    scores = score_rollouts(model, rollouts, {"p": Roles(reference=(), value="v")})
    rewarded = reward_rollouts(rollouts, [function_reward(low_tokens, "even")])
    episodes = ppo_episodes(rollouts, scores, rewarded, "p", kl_coefficient=0.05)
    assert episodes.old_values is not None
    assert episodes.returns is not None
    # At the first step policy and values are still those that the advantages were made with.
    loss = ppo_policy_loss(episodes.old_log_probs, episodes.old_log_probs, episodes.advantages).mean()
    (drawn,) = _texts_of(policy, model)
    loss = loss + 0.7 * _cross_entropy(model, "p", drawn).detach()
    value_loss = ppo_value_loss(episodes.old_values, episodes.old_values, episodes.returns).mean()

    _, recorder = run(model, ppo_tasks(model, template, seed=3, max_steps=2))
    first, second = recorder.of(Stepped, "p")
    assert first.loss == pytest.approx(float(loss), abs=1e-9)
    assert first.measures["largest_log_ratio"] < 1e-9 < second.measures["largest_log_ratio"]
    one, two = recorder.of(Stepped, "v")
    assert one.loss == pytest.approx(float(value_loss), rel=1e-9)
    assert two.loss < one.loss


SETTINGS: dict[str, dict[str, Any]] = {
    "a": {"settings": objective(), "seed": 1},
    "b": {"settings": objective("rloo", passes=2, kl_target=0.5), "seed": 2, "batch_rows": 6},
    "c": {"settings": objective("reinforce", group=1, prompts=2), "seed": 3},
    "d": {"settings": objective(form="dapo", max_new_tokens=5, passes=2, temperature=0.7), "seed": 4},
}


def together(words: PreTrainedTokenizerBase, template: ChatTemplate, names: str, **run_: Any) -> dict[str, Any]:
    """Weights and what was told of each adapter; s is tuned on instructions."""
    model = make_model(words, names)
    before = exact_digest(model.base)
    tasks = [policy_task(model, name, template, **SETTINGS[name]) for name in names if name not in "spv"]
    if "p" in names:
        tasks += ppo_tasks(model, template, batch_rows=6, seed=6)
    if "s" in names:
        tasks.append(Task("s", make_rows(12, seed=5), AdapterTraining(batch_rows=3, epochs=1, seed=5)))
    _, recorder = run(model, tasks, RunSettings(**run_))
    assert exact_digest(model.base) == before
    return {
        name: (weights(model, name), [event.measures.get("reward") for event in recorder.of(Phased, name)])
        for name in names
    }


@pytest.mark.parametrize(("names", "run_"), [("ab", {}), ("dscab", {"micro_batch_tokens": 60}), ("apvs", {})])
def test_beside_others_is_alone(
    words: PreTrainedTokenizerBase, template: ChatTemplate, names: str, run_: dict[str, Any]
) -> None:
    found = together(words, template, names, **run_)
    for name in names:
        alone = together(words, template, "pv" if name in "pv" else name)[name]
        assert difference(alone[0], found[name][0]) < 1e-7, name
        assert found[name][1] == pytest.approx(alone[1])


def test_several_steps_a_phase(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Six prompts, three a phase, four answers each: two passes in two steps, and each step has its own rows."""
    model = make_model(words, "a")
    task = policy_task(model, "a", template, settings=objective(passes=2), batch_rows=6, epochs=1)
    _, recorder = run(model, [task])
    steps, phases = recorder.of(Stepped), recorder.of(Phased)
    assert (len(steps), [event.step for event in phases]) == (8, [0, 4])
    assert steps[-1].epoch == 1.0
    assert steps[0].measures["largest_log_ratio"] < 1e-9 < steps[1].measures["largest_log_ratio"]
    assert steps[4].measures["largest_log_ratio"] < 1e-9


# --- stopped, killed, resumed ---


def life(folder: Path, words: PreTrainedTokenizerBase, template: ChatTemplate, **options: Any) -> Weights | None:
    """One process's life in ``folder``; the weights where the run came to its end."""
    model = make_model(words, "bcspv", torch.float32)
    tasks = [*ppo_tasks(model, template, batch_rows=6, seed=6)]
    tasks += [policy_task(model, name, template, **SETTINGS[name]) for name in "bc"]
    tasks.append(Task("s", make_rows(12, seed=5), AdapterTraining(batch_rows=3, epochs=2, seed=5)))
    outcome = train(model, tasks, RunSettings(save_every=1), checkpoints=folder, resume=True, **options)
    if outcome.interrupted:
        return None
    return {f"{name}.{key}": value for name in "bcspv" for key, value in weights(model, name).items()}


def test_stopped_after_every_round(words: PreTrainedTokenizerBase, template: ChatTemplate, tmp_path: Path) -> None:
    whole = life(tmp_path / "whole", words, template)
    assert whole is not None
    found = None
    while found is None:
        found = life(tmp_path / "parts", words, template, should_stop=after_round(1))
    assert same_bits(whole, found)


class _Killing:
    """Ends the process at a certain call."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_anywhere(words: PreTrainedTokenizerBase, template: ChatTemplate, tmp_path: Path) -> None:
    """When prompts are chosen, before any answer, and at every event, in the middle of a round."""
    whole = life(tmp_path / "whole", words, template)
    assert whole is not None
    draw = random.Random(0)
    context = multiprocessing.get_context("fork")
    killed = 0
    for _ in range(6):
        killing = _Killing(draw.randint(1, 30))

        def child(killing: _Killing = killing) -> None:
            torch.set_num_threads(1)
            original = Policy.asked
            Policy.asked = lambda self, phase: (killing(), original(self, phase))[1]  # type: ignore[method-assign]
            life(tmp_path / "parts", words, template, watch=killing)

        process = context.Process(target=child)
        process.start()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 3
    found = life(tmp_path / "parts", words, template)
    assert found is not None
    assert same_bits(whole, found)


def test_a_phase_comes_back_to_the_bit(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    model = make_model(words, "a", torch.float32)
    outcome, _ = run(model, [policy_task(model, "a", template, max_steps=1)])
    phase = outcome.progress["a"].phase
    assert phase is not None
    back = Phase.from_dict(json.loads(json.dumps(phase.to_dict())))
    assert back.to_dict() == phase.to_dict()
    assert [row.sampled for row in back.rows] == [row.sampled for row in phase.rows]


def test_resumed_with_other_prompts_or_rewards(
    words: PreTrainedTokenizerBase, template: ChatTemplate, tmp_path: Path
) -> None:
    model = make_model(words, "a")
    train(model, [policy_task(model, "a", template, max_steps=1)], checkpoints=tmp_path)
    changed = policy_task(model, "a", template, max_steps=2, settings=objective(kl=0.5))
    with pytest.raises(UserError, match="the rows of a have changed since"):
        train(model, [changed], checkpoints=tmp_path, resume=True)


# --- bad rewards ---


def test_rewards_that_fail_stop_the_run(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    def raises(_messages: object, _answer: str) -> float:
        raise KeyError("no such thing")

    for reward, said in ((raises, "the reward even raises KeyError"), (lambda *_: math.nan, "a reward is a finite")):
        model = make_model(words, "a")
        with pytest.raises(UserError, match=said):
            run(model, [policy_task(model, "a", template, reward)])


def test_equal_rewards_are_told_and_change_nothing(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    model = make_model(words, "a")
    before = weights(model, "a")
    task = policy_task(model, "a", template, lambda *_: 1.0, objective(kl=0.0), epochs=1)
    _, recorder = run(model, [task])
    told = recorder.of(Phased)
    assert [event.measures["equal_groups"] for event in told] == [3, 3]
    assert any("nothing to learn from" in concern for concern in told[0].concerns)
    assert all(event.gradient_norm == 0.0 for event in recorder.of(Stepped))
    assert same_bits(before, weights(model, "a"))


def test_a_deviation_above_the_bound_stops_the_run(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    model = make_model(words, "a", torch.float32)
    with pytest.raises(UserError, match="differs by"):
        run(model, [policy_task(model, "a", template, settings=objective(max_deviation=1e-12))])


# --- stopped by divergence ---

BOUND = 2.0


def test_a_policy_stops_on_its_divergence(
    words: PreTrainedTokenizerBase, template: ChatTemplate, tmp_path: Path
) -> None:
    """Policy and values go back to the last phase within the bound; who learns beside them goes on, as alone."""

    def life_(folder: Path, **options: Any) -> tuple[Outcome, AdaptedModel, Recorder]:
        model = make_model(words, "abpv")
        bounded = objective("ppo", value="v", passes=2, kl_stop=BOUND)
        tasks = [
            *ppo_tasks(model, template, settings=bounded, epochs=3, learning_rate=0.05),
            policy_task(model, "a", template, seed=1, epochs=3),
            policy_task(model, "b", template, seed=2, settings=objective(kl_stop=1e6), epochs=3),
        ]
        recorder = Recorder()
        watch = options.pop("watch", lambda _event: None)
        outcome = train(
            model,
            tasks,
            RunSettings(save_every=1),
            checkpoints=folder,
            resume=True,
            watch=lambda event: (recorder(event), watch(event))[0],
            **options,
        )
        return outcome, model, recorder

    outcome, model, recorder = life_(tmp_path / "whole")
    phases = recorder.of(Phased, "p")
    kls = [event.measures["kl"] for event in phases]
    assert max(kls[:-1]) <= BOUND < kls[-1]
    assert len(phases) > 1
    ended = {event.adapter: event for event in recorder.of(Ended)}
    assert ended["p"].reason == ended["v"].reason == "KL stop"
    assert f"{kls[-1]:.2f} nats an answer from its start, above kl_stop {BOUND:g}" in ended["p"].detail
    assert f"back to step {phases[-2].step}" in ended["p"].detail
    assert outcome.progress["p"].step < outcome.progress["p"].total
    for name in "ab":
        assert outcome.progress[name].reason == "finished"
    # The state after the last step is looked at too.
    assert [event.step for event in recorder.of(Phased, "b")][-1] == outcome.progress["b"].total

    short = make_model(words, "pv")
    settings = objective("ppo", value="v", passes=2)
    tasks = ppo_tasks(short, template, settings=settings, epochs=3, learning_rate=0.05)
    run(short, tasks, should_stop=after_round(phases[-2].step))
    assert difference(weights(short, "p"), weights(model, "p")) < 1e-9
    assert difference(weights(short, "v"), weights(model, "v")) < 1e-9
    alone = make_model(words, "a")
    run(alone, [policy_task(alone, "a", template, seed=1, epochs=3)])
    assert difference(weights(alone, "a"), weights(model, "a")) < 1e-7

    interrupted = True
    while interrupted:
        found, parts, _ = life_(tmp_path / "parts", should_stop=after_round(1))
        interrupted = found.interrupted
    assert all(same_bits(weights(model, name), weights(parts, name)) for name in "abpv")
    assert found.progress["p"].detail == ended["p"].detail


def test_steps_are_left_out_where_the_policy_has_moved(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """A step is not made where the policy is too far from the one that drew; its values go on, and phases keep step."""
    model = make_model(words, "pv")
    settings = objective("ppo", value="v", passes=4, moved_stop=1e-5)
    outcome, recorder = run(model, ppo_tasks(model, template, settings=settings, epochs=1))
    rests = recorder.of(Rested)
    assert rests
    assert all(event.measures["moved"] > 1e-5 for event in rests)
    assert all(event.until % 4 == 0 for event in rests)
    done = {event.step for event in recorder.of(Stepped, "p")}
    left_out = {step for event in rests for step in range(event.step, event.until + 1)}
    assert done | left_out == set(range(1, 9))
    assert not done & left_out
    assert len(recorder.of(Stepped, "v")) == 8
    assert [event.step for event in recorder.of(Phased, "p")] == [0, 4]
    assert outcome.progress["p"].reason == "finished"


# --- tried on held-out prompts ---

HELD_OUT = tuple(replace(prompt, source="held out") for prompt in asked("w20", "w21 w22", "w23"))


def with_held_out(task: Task) -> Task:
    return replace(task, source=replace(cast(Policy, task.source), held_out=HELD_OUT))


def test_trials_on_held_out_prompts(words: PreTrainedTokenizerBase, template: ChatTemplate, tmp_path: Path) -> None:
    """One answer each by the same seeds, at regular steps; the best state by reward is kept, alone as beside others,
    and nothing that is learnt changes.
    """

    def life_(folder: Path, names: str, **options: Any) -> tuple[Outcome, AdaptedModel, Recorder]:
        model = make_model(words, names)
        tasks = [
            with_held_out(policy_task(model, name, template, seed=ord(name), epochs=3, learning_rate=0.05))
            for name in names
            if name not in "pv"
        ]
        if "p" in names:
            policy, values = ppo_tasks(model, template, epochs=2)
            tasks += [with_held_out(policy), values]
        recorder = Recorder()
        settings = RunSettings(save_every=1, eval_every=2)
        outcome = train(model, tasks, settings, checkpoints=folder, resume=True, watch=recorder, **options)
        return outcome, model, recorder

    outcome, model, recorder = life_(tmp_path / "whole", "abpv")
    tried = recorder.of(Tried, "a")
    assert [event.step for event in tried] == [0, 2, 4, 6]
    assert not recorder.of(Tried, "v")
    assert {"reward", "reward_even", "kl", "length", "distinct_2"} <= tried[0].measures.keys()
    assert tried[0].measures["answers"] == 3
    best = max(tried, key=lambda event: event.measures["reward"])
    assert outcome.progress["a"].best_step == best.step
    assert [event.step for event in tried if event.best][-1] == best.step
    first = make_model(words, "a")
    policy = cast(Policy, with_held_out(policy_task(first, "a", template, seed=97)).source)
    (trial,) = policy.trials(first, [Turn(policy, 5)], RunSettings())
    assert trial.measures == pytest.approx(tried[0].measures)

    plain = make_model(words, "a")
    _, told = run(plain, [policy_task(plain, "a", template, seed=97, epochs=3, learning_rate=0.05)])
    losses = [event.loss for event in recorder.of(Stepped, "a")]
    assert losses == pytest.approx([event.loss for event in told.of(Stepped, "a")])
    _, alone, heard = life_(tmp_path / "alone", "a")
    assert difference(weights(alone, "a"), weights(model, "a")) < 1e-7
    assert [event.measures["reward"] for event in heard.of(Tried)] == pytest.approx(
        [event.measures["reward"] for event in tried]
    )

    interrupted = True
    while interrupted:
        found, parts, _ = life_(tmp_path / "parts", "abpv", should_stop=after_round(1))
        interrupted = found.interrupted
    assert all(same_bits(weights(model, name), weights(parts, name)) for name in "abpv")


def test_a_state_beyond_the_bound_is_never_the_best(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    model = make_model(words, "a")
    settings = objective(kl_stop=1.5)
    task = with_held_out(policy_task(model, "a", template, settings=settings, seed=1, epochs=6, learning_rate=0.05))
    outcome, recorder = run(model, [task], RunSettings(eval_every=1))
    progress = outcome.progress["a"]
    assert progress.reason == "KL stop"
    assert all(event.measures["kl"] <= 1.5 for event in recorder.of(Tried) if event.best)
    assert progress.best_step <= (progress.within_step or 0)


def test_values_end_with_their_policy(words: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    model = make_model(words, "pv")
    policy, values = ppo_tasks(model, template, lambda *_: 1.0, epochs=9, patience=1)
    tasks = [with_held_out(policy), replace(values, follows="p")]
    outcome, _ = run(model, tasks, RunSettings(eval_every=1))
    assert outcome.progress["p"].reason == "early stop"
    assert "no better held-out reward" in outcome.progress["p"].detail
    assert outcome.progress["v"].step == outcome.progress["p"].step
    assert outcome.progress["v"].detail == "p, which it follows, has ended"
