"""Policies in the training loop: prompts, answers, rewards, advantages, and the rows that a policy learns from.

All policies whose answers are due answer from one engine with the weights as they are, and are scored in shared
micro-batches, each beside its reference. What a policy learns depends on its own answers alone.
"""

from __future__ import annotations

import hashlib
import math
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch

from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import Stack, mix_seed
from graftlm.alignment.advantages import MovingBaseline
from graftlm.alignment.controller import AdaptiveKL, FixedKL, KLController, controller_from_state
from graftlm.alignment.episodes import Episodes, group_episodes, penalised_answers, ppo_episodes, reinforce_episodes
from graftlm.alignment.rewards import Reward, Rewarded, reward_rollouts
from graftlm.alignment.rollouts import Prompt, Rollouts, Sampling, roll_out
from graftlm.alignment.scoring import Roles, Scores, score_rollouts, scores_at
from graftlm.alignment.watching import WINDOW, PhaseStatistics, concerns, phase_statistics, shown_answers
from graftlm.data.batches import EncodedRow
from graftlm.data.sampled import Sampled
from graftlm.evaluation.speakers import Speaker
from graftlm.training.online_settings import OnlineSettings, online_settings
from graftlm.training.settings import AdapterTraining, RunSettings
from graftlm.training.source import Phase, Trial, Turn


@dataclass(frozen=True)
class Policy:
    """A source of rows: the answers of one policy to its prompts.

    ``speaker``: as :func:`graftlm.alignment.make_policy` makes it, under the adapter's name. ``reference``: the stack
    that divergence is counted from, such as () for the bare base. ``value``: the stack of PPO's value adapter, whose
    source is :class:`Values`. ``identity``: what the rewards are, in words that
    change where they do. ``texts``: plain texts, of which some are learnt at each step where the settings say so.
    ``held_out``: prompts that the policy is tried on and does not learn from.
    """

    speaker: Speaker
    prompts: tuple[Prompt, ...]
    rewards: tuple[Reward, ...]
    training: AdapterTraining
    reference: Stack = ()
    identity: str = ""
    value: Stack | None = None
    texts: tuple[EncodedRow, ...] = ()
    held_out: tuple[Prompt, ...] = ()
    kind: str = "policy"

    @cached_property
    def settings(self) -> OnlineSettings:
        """With all defaults filled in."""
        return online_settings(self.training, len(self.prompts))

    @property
    def phases_an_epoch(self) -> int:
        """How many phases ask every prompt once."""
        return math.ceil(len(self.prompts) / self.settings.prompts)

    @property
    def total(self) -> int:
        """Optimizer steps in all."""
        phases = max(1, round(self.training.epochs * self.phases_an_epoch))
        return min(phases * self.settings.steps, self.training.max_steps or phases * self.settings.steps)

    @cached_property
    def digest(self) -> str:
        """Of prompts, rewards and settings."""
        digest = hashlib.sha256(repr((self.settings, self.identity, self.reference)).encode())
        for prompt in self.prompts:
            digest.update(repr(prompt).encode("utf-8", "surrogatepass") + b"|")
        for prompt in self.held_out:
            digest.update(b"held out" + repr(prompt).encode("utf-8", "surrogatepass") + b"|")
        for text in self.texts:
            digest.update(array("q", text.ids).tobytes() + b"|")
        return digest.hexdigest()

    @property
    def bounded(self) -> bool:
        """Whether there is a bound of the divergence."""
        return self.settings.kl_stop is not None

    @property
    def tried(self) -> bool:
        """Whether prompts are held out."""
        return bool(self.held_out)

    def trials(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Trial]:
        """One answer to each held-out prompt, drawn as in training, at every trial by the same seeds; never learnt.

        Raises:
            UserError: a reward or an answer fails, or rollout and scoring disagree.
        """
        alike: dict[tuple[int, float], list[Policy]] = {}
        for turn in turns:
            own = _policy(turn).settings
            alike.setdefault((own.max_new_tokens, own.temperature), []).append(_policy(turn))
        found: dict[str, Trial] = {}
        with _without_checkpointing(model):
            for (longest, temperature), policies in alike.items():
                sampling = Sampling(max_new_tokens=longest, temperature=temperature, n=1)
                found |= _trials(model, policies, sampling, settings)
        return [found[_policy(turn).speaker.label] for turn in turns]

    def enough(self, measures: Mapping[str, float]) -> bool:
        """Whether the policy is as far from the one that drew as it may go in one phase."""
        most = self.settings.moved_stop
        return most is not None and measures["moved"] > most

    def epochs_after(self, step: int) -> float:
        """Passes over the prompts that ``step`` steps make."""
        return step / (self.settings.steps * self.phases_an_epoch)

    def sketch(self) -> list[EncodedRow]:
        """Rows of the largest shape that a step may have: the longest prompt, as many tokens as an answer may have."""
        signs = max(sum(len(message.content.encode()) for message in prompt.messages) for prompt in self.prompts)
        prompt, answer = 16 + signs // 3, self.settings.max_new_tokens
        row = EncodedRow([0] * (prompt + answer), [False] * prompt + [True] * answer, "a sketch", 1)
        if self.speaker.reads_source:
            row = EncodedRow([0] * (answer + 1), [False] + [True] * answer, "a sketch", 1, source_ids=[0] * prompt)
        longest = sorted(self.texts, key=lambda text: -text.tokens)[: self.settings.texts]
        return [row] * math.ceil(self.settings.prompts * self.settings.group / self.settings.batches) + longest

    def asked(self, phase: int) -> list[Prompt]:
        """The prompts of a phase (from 0): every epoch asks all of them once, in an order of its own."""
        epoch, number = divmod(phase, self.phases_an_epoch)
        order = list(range(len(self.prompts)))
        random.Random(mix_seed(self.training.seed, self.speaker.label, "prompts", epoch)).shuffle(order)
        return [self.prompts[place] for place in order[number :: self.phases_an_epoch]]

    def phases(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Phase]:
        """Answers of all ``turns``, from one engine where they draw alike, and what each learns from them.

        Raises:
            UserError: a reward or an answer fails, or rollout and scoring disagree.
        """
        # A policy and its values learn the same answers; where one of them has ended, the other goes on with it.
        once = {_policy(turn).speaker.label: turn for turn in turns}
        alike: dict[tuple[int, int, float, int], list[str]] = {}
        for name, turn in once.items():
            own = _policy(turn).settings
            alike.setdefault((own.group, own.max_new_tokens, own.temperature, turn.step // own.steps), []).append(name)
        found: dict[str, Phase] = {}
        with _without_checkpointing(model):
            for (group, longest, temperature, phase), names in alike.items():
                sampling = Sampling(n=group, max_new_tokens=longest, temperature=temperature)
                together = [once[name] for name in names]
                found |= zip(names, _phases(model, together, sampling, phase, settings), strict=True)
        return [
            _with_texts(turn.source, phase)
            if isinstance(turn.source, Policy)
            else replace(phase, measures={}, samples=(), concerns=())
            for turn in turns
            for phase in (found[_policy(turn).speaker.label],)
        ]


@dataclass(frozen=True)
class Values:
    """The source of PPO's value adapter: the answers of its policy, which are made once for both."""

    policy: Policy
    kind: str = "policy"

    @property
    def total(self) -> int:
        """As many steps as the policy has."""
        return self.policy.total

    @property
    def digest(self) -> str:
        """The policy's."""
        return self.policy.digest

    @property
    def bounded(self) -> bool:
        """As the policy: it ends with it."""
        return self.policy.bounded

    @property
    def tried(self) -> bool:
        """The policy is, and not its values."""
        return False

    def trials(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Trial]:
        """See :meth:`Policy.trials`."""
        return self.policy.trials(model, turns, settings)

    def enough(self, measures: Mapping[str, float]) -> bool:
        """Values go on where their policy rests."""
        return False

    def epochs_after(self, step: int) -> float:
        """As the policy."""
        return self.policy.epochs_after(step)

    def sketch(self) -> list[EncodedRow]:
        """As the policy."""
        return self.policy.sketch()

    def phases(self, model: AdaptedModel, turns: Sequence[Turn], settings: RunSettings) -> list[Phase]:
        """See :meth:`Policy.phases`."""
        return self.policy.phases(model, turns, settings)


def _policy(turn: Turn) -> Policy:
    source = turn.source.policy if isinstance(turn.source, Values) else turn.source
    assert isinstance(source, Policy)
    return source


def _phases(
    model: AdaptedModel, turns: Sequence[Turn], sampling: Sampling, phase: int, settings: RunSettings
) -> list[Phase]:
    policies = [_policy(turn) for turn in turns]
    names = [policy.speaker.label for policy in policies]
    rollouts, scores = _answers(
        model,
        policies,
        {name: policy.asked(phase) for name, policy in zip(names, policies, strict=True)},
        sampling,
        phase,
        {name: policy.training.seed for name, policy in zip(names, policies, strict=True)},
        {
            name: Roles(reference=policy.reference, value=policy.value)
            for name, policy in zip(names, policies, strict=True)
        },
        settings,
    )
    return [
        _phase(turn, phase, rollouts.only(name), scores_at(scores, rollouts.of(name)))
        for turn, name in zip(turns, names, strict=True)
    ]


@contextmanager
def _without_checkpointing(model: AdaptedModel) -> Iterator[None]:
    """Inside, no activations are recomputed: there are no gradients."""
    checkpointing, model.gradient_checkpointing = model.gradient_checkpointing, False
    try:
        yield
    finally:
        model.gradient_checkpointing = checkpointing


def _trials(
    model: AdaptedModel, policies: Sequence[Policy], sampling: Sampling, settings: RunSettings
) -> dict[str, Trial]:
    """Those of several policies that draw alike, by name."""
    rollouts, scores = _answers(
        model,
        policies,
        {policy.speaker.label: policy.held_out for policy in policies},
        sampling,
        0,
        {policy.speaker.label: mix_seed(policy.training.seed, "held out") for policy in policies},
        {policy.speaker.label: Roles(reference=policy.reference) for policy in policies},
        settings,
    )
    found = {}
    for policy in policies:
        name, own = policy.speaker.label, policy.settings
        answers = rollouts.only(name)
        rewarded = reward_rollouts(answers, policy.rewards, missing_end_penalty=own.missing_end_penalty)
        statistics = phase_statistics(answers, scores_at(scores, rollouts.of(name)), rewarded, name)
        samples = tuple(shown_answers(answers, rewarded, name))
        found[name] = Trial(statistics.reward_mean, not _exceeded(own, statistics), _measures(statistics), samples)
    return found


def _answers(
    model: AdaptedModel,
    policies: Sequence[Policy],
    prompts: Mapping[str, Sequence[Prompt]],
    sampling: Sampling,
    phase: int,
    seeds: Mapping[str, int],
    roles: Mapping[str, Roles],
    settings: RunSettings,
) -> tuple[Rollouts, Scores]:
    """Answers of policies to their prompts (both by name), and what training's own forward says of them."""
    rollouts = roll_out(model, [policy.speaker for policy in policies], prompts, sampling, phase, seeds=seeds)
    bounds = [each for policy in policies if (each := policy.settings.max_deviation) is not None]
    scores = score_rollouts(
        model, rollouts, roles, max_tokens=settings.micro_batch_tokens, bound=min(bounds, default=None)
    )
    return rollouts, scores


def _phase(turn: Turn, phase: int, rollouts: Rollouts, scores: Scores) -> Phase:
    """What one policy learns from its answers, and what is told of them."""
    policy, name = _policy(turn), _policy(turn).speaker.label
    own = policy.settings
    rewarded = reward_rollouts(rollouts, policy.rewards, missing_end_penalty=own.missing_end_penalty)
    statistics = phase_statistics(rollouts, scores, rewarded, name)
    price = _price(own, turn.state)
    episodes, baseline = _episodes(own, rollouts, scores, rewarded, name, price.coefficient, turn.state)
    history = [*turn.state.get("history", ()), statistics.to_dict()]
    known = [PhaseStatistics(**each) for each in history]
    state = {
        "kl": price.updated(statistics.kl_k1 or 0.0).state(),
        "baseline": None if baseline is None else asdict(baseline),
        # The first phase, and as many of the latest as warnings look back.
        "history": history[:1] + history[1:][-WINDOW:],
    }
    coefficient = own.loss_kl or price.coefficient
    compared = own.group > 1 or statistics.reward_std == 0.0  # a lone answer has nothing to be equal to
    return Phase(
        turn.step,
        _rows(episodes, own.temperature),
        _steps(policy, phase, len(episodes.rows)),
        state,
        {**_measures(statistics), "kl_coefficient": coefficient},
        tuple(shown_answers(rollouts, rewarded, name)),
        tuple(f"{each.seen}. {each.advice}" for each in concerns(known) if each.kind != "equal_rewards" or compared),
        _exceeded(own, statistics),
    )


def _exceeded(own: OnlineSettings, statistics: PhaseStatistics) -> str:
    """What is said where the divergence is above its bound."""
    if own.kl_stop is None or statistics.kl_k1 is None or statistics.kl_k1 <= own.kl_stop:
        return ""
    return f"{statistics.kl_k1:.2f} nats an answer from its start, above kl_stop {own.kl_stop:g}"


def _price(own: OnlineSettings, state: Mapping[str, Any]) -> KLController:
    """What divergence costs in the reward now."""
    if "kl" in state:
        return controller_from_state(dict(state["kl"]))
    return FixedKL(own.reward_kl) if own.kl_target is None else AdaptiveKL(own.kl_target, own.reward_kl)


def _episodes(
    own: OnlineSettings,
    rollouts: Rollouts,
    scores: Scores,
    rewarded: Rewarded,
    name: str,
    coefficient: float,
    state: Mapping[str, Any],
) -> tuple[Episodes, MovingBaseline | None]:
    if own.type == "ppo":
        return ppo_episodes(rollouts, scores, rewarded, name, kl_coefficient=coefficient, lam=own.lam), None
    if own.type != "reinforce":
        baseline: Any = own.baseline
        return group_episodes(rollouts, scores, rewarded, name, baseline=baseline, kl_coefficient=coefficient), None
    baseline_ = MovingBaseline(**(state.get("baseline") or {}))
    episodes = reinforce_episodes(rollouts, scores, rewarded, name, baseline=baseline_, kl_coefficient=coefficient)
    return episodes, baseline_.updated(penalised_answers(episodes, coefficient))


def _rows(episodes: Episodes, temperature: float) -> tuple[EncodedRow, ...]:
    """The answers with what the loss must know of each token."""
    empty: list[tuple[float, ...]] = [()] * len(episodes.rows)

    def by_row(values: torch.Tensor | None) -> list[tuple[float, ...]]:
        if values is None:
            return empty
        return [tuple(part.tolist()) for part in values.split(list(episodes.counts))]  # type: ignore[no-untyped-call]

    parts = zip(
        *map(
            by_row,
            (
                episodes.old_log_probs,
                episodes.advantages,
                episodes.reference_log_probs,
                episodes.old_values,
                episodes.returns,
            ),
        ),
        strict=True,
    )
    return tuple(
        replace(row, sampled=replace(Sampled(*known), temperature=temperature))
        for row, known in zip(episodes.rows, parts, strict=True)
    )


def _with_texts(policy: Policy, phase: Phase) -> Phase:
    """The phase with the texts that each step learns beside its answers: drawn for the step, each once in it."""
    number = min(policy.settings.texts, len(policy.texts))
    rows, steps = list(phase.rows), []
    for place, step in enumerate(phase.steps):
        seed = mix_seed(policy.training.seed, policy.speaker.label, "pretraining", phase.first + place)
        steps.append((*step, *range(len(rows), len(rows) + number)))
        rows += random.Random(seed).sample(policy.texts, number)
    return replace(phase, rows=tuple(rows), steps=tuple(steps))


def _steps(policy: Policy, phase: int, rows: int) -> tuple[tuple[int, ...], ...]:
    """Which rows each step learns: all of them once a pass, in an order of the pass's own, in even parts.

    Where so few answers have a reward that there are more steps than rows, a step without any takes all.
    """
    own = policy.settings
    steps: list[tuple[int, ...]] = []
    for number in range(own.passes):
        order = list(range(rows))
        if own.batches > 1:
            seed = mix_seed(policy.training.seed, policy.speaker.label, "batches", phase, number)
            random.Random(seed).shuffle(order)
        steps += [tuple(order[start :: own.batches]) or tuple(order) for start in range(own.batches)]
    return tuple(steps)


def _measures(statistics: PhaseStatistics) -> dict[str, float]:
    """The numbers of a phase by name, in the order in which people look at them."""
    values = statistics.to_dict()
    rewards = {f"reward_{name}": value for name, value in values.pop("rewards").items()}
    found = {"reward": values.pop("reward_mean"), "reward_deviation": values.pop("reward_std"), **rewards}
    found |= {"kl": values.pop("kl_k1"), "kl_k3": values.pop("kl_k3")}
    for key in ("policy", "step"):
        values.pop(key)
    if values["answers"] == values["groups"]:  # one answer a prompt
        values.pop("equal_groups")
    return {key: value for key, value in (found | values).items() if value is not None}
