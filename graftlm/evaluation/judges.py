"""Who judges two answers: a model behind an endpoint, asked in both orders, or a reward of each answer."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftlm.adapters.files import read_notes
from graftlm.data.instances import Message
from graftlm.errors import UserError
from graftlm.evaluation.endpoint import KEY, Endpoint, ask_all
from graftlm.evaluation.judge_question import Choice, question, read_verdict
from graftlm.evaluation.kept import Kept, key_of
from graftlm.evaluation.python_file import load_function
from graftlm.evaluation.rewards import reward_model
from graftlm.evaluation.side_by_side import Duel, Verdict
from graftlm.evaluation.speakers import Opened, open_adapters, open_beside

#: What was asked, and an answer to it.
Answered = tuple[tuple[Message, ...], str]
#: How good answers are: one finite number each, more is better. A reward adapter is one, and so is a Python function.
Reward = Callable[[Sequence[Answered]], Sequence[float]]
BATCH = 64  # answers that a reward is asked for at once
TIMEOUT, AT_ONCE = 120.0, 8  # seconds for an answer of an endpoint, and questions on their way to it


@dataclass(frozen=True)
class EndpointJudge:
    """Asks a model behind an endpoint. ``progress`` is called with how many answers are there, and of how many."""

    endpoint: Endpoint
    kept: Kept
    progress: Callable[[int, int], None] = lambda _done, _all: None

    @property
    def name(self) -> str:
        return self.endpoint.model

    def verdicts(self, duels: Sequence[Duel]) -> list[Verdict]:
        """A verdict counts where it is the same in both orders, else it is a tie. Equal answers are a tie unasked.

        Raises:
            UserError: the endpoint refuses or cannot be reached; what it answered is kept.
        """
        asked = {
            self._key(text): text
            for duel in duels
            if duel.before != duel.after
            for text in (question(duel, swapped=False), question(duel, swapped=True))
        }
        open_ = {key: text for key, text in asked.items() if key not in self.kept}
        keys, done = list(open_), [len(asked) - len(open_)]

        def answered(number: int, text: str) -> None:
            self.kept.add({keys[number]: text})
            done[0] += 1
            self.progress(done[0], len(asked))

        if open_:
            ask_all(self.endpoint, list(open_.values()), answered)
        return [self._verdict(duel) for duel in duels]

    def _key(self, text: str) -> str:
        return key_of("judge", self.endpoint.shown, self.endpoint.model, text)

    def _verdict(self, duel: Duel) -> Verdict:
        if duel.before == duel.after:
            return Verdict("tie")
        plain, swapped = (
            read_verdict(self.kept[self._key(question(duel, swapped=swapped))]) for swapped in (False, True)
        )
        return both_orders(plain, swapped)


def both_orders(plain: Choice | None, swapped: Choice | None) -> Verdict:
    """The verdict of two: A is the answer of ``before`` in the first, and of ``after`` in the swapped one."""
    if plain is None or swapped is None:
        return Verdict("tie", read=False)
    turned: Mapping[Choice, Choice] = {"A": "B", "B": "A", "tie": "tie"}
    if plain != turned[swapped]:
        return Verdict("tie", consistent=False)
    return Verdict("tie" if plain == "tie" else "win" if plain == "B" else "loss", consistent=True)


@dataclass(frozen=True)
class RewardJudge:
    """The better answer is the one with the higher reward; equal rewards are a tie.

    ``identity``: what the rewards depend on, such as a hash of weights; kept rewards of another one are not used.
    """

    name: str
    reward: Reward
    identity: str
    kept: Kept | None = None

    def verdicts(self, duels: Sequence[Duel]) -> list[Verdict]:
        """Equal answers get one reward.

        Raises:
            UserError: the reward is no finite number.
        """
        rated = self._rate(list(dict.fromkeys((duel.messages, a) for duel in duels for a in (duel.before, duel.after))))
        found = []
        for duel in duels:
            gain = rated[duel.messages, duel.after] - rated[duel.messages, duel.before]
            found.append(Verdict("win" if gain > 0 else "loss" if gain < 0 else "tie"))
        return found

    def _rate(self, rows: list[Answered]) -> dict[Answered, float]:
        keys = {row: key_of("reward", self.identity, [[m.role, m.content] for m in row[0]], row[1]) for row in rows}
        known = {row: float(self.kept[keys[row]]) for row in rows if self.kept is not None and keys[row] in self.kept}
        rest = [row for row in rows if row not in known]
        for start in range(0, len(rest), BATCH):
            batch = rest[start : start + BATCH]
            rewards = list(self.reward(batch))
            if len(rewards) != len(batch):
                raise UserError(f"the reward {self.name} gives {len(rewards)} numbers for {len(batch)} answers")
            for row, value in zip(batch, rewards, strict=True):
                known[row] = _finite(value, self.name, row[1])
                if self.kept is not None:
                    self.kept.add({keys[row]: known[row]})
        return known


def _finite(value: Any, name: str, answer: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"the reward {name} gives {value!r:.60}; a reward is a finite number",
            hint=f"The answer was {answer[:80]!r}.",
        )
    return number


def open_judge(
    given: str,
    folder: Path,
    *,
    model: str | None = None,
    key_variable: str = KEY,
    timeout: float = TIMEOUT,
    at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> EndpointJudge | RewardJudge:
    """What ``--judge`` names: an address with a ``model``, or FILE.py:FUNCTION. Answers are kept in ``folder``.

    Raises:
        UserError: it is neither, the model's name is missing, or there is no such function.
    """
    if given.lower().startswith(("http://", "https://")):
        if not model:
            raise UserError(f"--judge {given}: which model is to judge?", hint="Name it: --judge-model NAME")
        return endpoint_judge(
            given, model, folder, key_variable=key_variable, timeout=timeout, at_once=at_once, progress=progress
        )
    if ".py:" not in given:
        raise UserError(
            f"--judge {given}: is neither an address, an adapter's folder, nor FILE.py:FUNCTION",
            hint="For example: --judge http://localhost:8000/v1 --judge-model NAME, or --judge judge.py:score",
        )
    return python_judge(given, folder)


def adapter_judge(opened: Opened, folder: Path, kept: Path) -> RewardJudge:
    """An adapter with a reward head as a judge: on the base that is open, or else on its own; see ``reward_model``.

    Raises:
        UserError: there is no such adapter, or it has no reward head.
    """
    notes = read_notes(folder)
    if (notes.get("base") or {}).get("fingerprint") == opened.model.fingerprint:
        model, stack = opened.model, open_beside(opened, folder).stack
    else:
        other = open_adapters([folder], device=str(opened.model.device))
        model, stack = other.model, other.adapters[0].stack
    reward = reward_model(model, stack)
    return RewardJudge(folder.resolve().name, reward, reward.identity, Kept(kept / "rewards.jsonl"))


def endpoint_judge(
    url: str,
    model: str,
    folder: Path,
    *,
    key_variable: str = KEY,
    timeout: float = TIMEOUT,
    at_once: int = AT_ONCE,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> EndpointJudge:
    """A judge behind an endpoint, with its answers kept in ``folder``; the key is read from the environment.

    Raises:
        UserError: the address is none.
    """
    key = os.environ.get(key_variable, "").strip() or None
    endpoint = Endpoint(url, model, key, timeout=timeout, at_once=at_once)
    _ = endpoint.address
    return EndpointJudge(endpoint, Kept(folder / "endpoint.jsonl"), progress)


def python_judge(place: str, folder: Path, *, beside: Path = Path()) -> RewardJudge:
    """A reward that a function of a Python file gives: ``FILE.py:FUNCTION``, the file relative to ``beside``.

    It is called as function(rows) with a list of (messages, answer), the messages as {"role": …, "content": …}, and
    gives a list of numbers.

    Raises:
        UserError: there is no such function.
    """
    function = load_function("judge", place, beside)
    path = beside / Path(place.rpartition(":")[0]).expanduser()

    def reward(rows: Sequence[Answered]) -> Sequence[float]:
        plain = [([{"role": m.role, "content": m.content} for m in messages], answer) for messages, answer in rows]
        try:
            return list(function(plain))
        except (Exception, SystemExit) as error:
            raise UserError(f"the judge {place} raises {type(error).__name__}: {error}") from error

    identity = f"{place.rpartition(':')[2]} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return RewardJudge(f"{path.name}:{place.rpartition(':')[2]}", reward, identity, Kept(folder / "rewards.jsonl"))
