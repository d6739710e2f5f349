"""All models answer all items of a task, in shared batches over one base; results go to their files as they come."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.errors import UserError
from graftlm.evaluation.asking import Asked, Reasons, ask
from graftlm.evaluation.labels import Predictor
from graftlm.evaluation.results import ItemResult, ResultFile
from graftlm.evaluation.scorers import score_answer
from graftlm.evaluation.shared_prompts import score_groups
from graftlm.evaluation.speakers import Opened, Speaker
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask
from graftlm.generation.engine import Engine
from graftlm.generation.requests import Completion, SamplingSettings
from graftlm.training.forward import RoutedRow, RowScore, class_log_probs

BLOCK = 4096  # items × models that are rendered at a time
AHEAD = 4  # times the engine's rows, requests are in it at most
Tell = Callable[[int], None]  # called with how many more items have their result
Key = tuple[str, int]  # the label of a model, the place of an item


@dataclass(frozen=True)
class Limits:
    """``batch_tokens``: how many run together in scoring; ``batch_rows``: answers written at the same time."""

    batch_tokens: int
    batch_rows: int = 32


@dataclass(frozen=True)
class Answering:
    """One task, its items, and the file of each model that answers them, by the label of its speaker."""

    opened: Opened
    task: EvalTask
    items: Sequence[Item]
    files: Mapping[str, ResultFile]
    limits: Limits
    tell: Tell = lambda _done: None

    def run(self) -> None:
        """Fill in what is missing in the files.

        Raises:
            UserError: a scorer of the task's own fails; the disk is full.
        """
        missing = [
            (label, place)
            for place in range(len(self.items))
            for label, file in self.files.items()
            if place not in file.results
        ]
        if self.task.keys.kind == "generate":
            self._write(missing)
            return
        for start in range(0, len(missing), BLOCK):
            block = missing[start : start + BLOCK]
            self._label([key for key in block if self._speaker(key[0]).head is not None])
            self._score([key for key in block if self._speaker(key[0]).head is None])

    def _speaker(self, label: str) -> Speaker:
        return self.opened.speaker(label)

    def _failure(self, key: Key, why: str) -> ItemResult:
        return ItemResult(self.items[key[1]].hash, error=why)

    def _store(self, found: Mapping[Key, ItemResult]) -> None:
        for label in dict.fromkeys(label for label, _ in found):
            self.files[label].add({place: result for (owner, place), result in found.items() if owner == label})
        self.tell(len(found))

    # --- by likelihood ------------------------------------------------------------------------------------------

    def _score(self, keys: Sequence[Key]) -> None:
        asked: dict[Key, Asked] = {}
        for label, places in _by_label(keys).items():
            rows = ask(self.opened, self._speaker(label), self.task, [self.items[place] for place in places])
            asked |= {(label, place): each for place, each in zip(places, rows, strict=True)}
        failed = {key: self._failure(key, each.problem) for key, each in asked.items() if each.problem is not None}
        self._store(failed)
        order = [key for key in asked if key not in failed]
        groups = [asked[key].flat for key in order]
        for batch in score_groups(self.opened.model, groups, self.limits.batch_tokens):
            found = [(order[number], scores) for number, scores in batch]
            self._store({key: self._likelihoods(key, asked[key], scores) for key, scores in found})

    def _likelihoods(self, key: Key, asked: Asked, scores: Sequence[RowScore]) -> ItemResult:
        """log p of each candidate, with its tokens and bytes."""
        item, each = self.items[key[1]], iter(scores)
        own = [[next(each) for _ in rows] for rows in asked.rows]
        log_probs = tuple(sum(score.log_prob for score in part) if part else None for part in own)
        wrong = next((value for value in log_probs if value is not None and not math.isfinite(value)), None)
        if wrong is not None:
            return self._failure(key, f"the model gives {wrong} as a log-probability")
        tokens = tuple(sum(score.tokens for score in part) for part in own)
        return ItemResult(item.hash, log_probs=log_probs, tokens=tokens, sizes=_sizes(item))

    # --- by a head ----------------------------------------------------------------------------------------------

    def _label(self, keys: Sequence[Key]) -> None:
        """Labels of adapters with a head, those of all adapters in shared batches."""
        rows: dict[Key, RoutedRow] = {}
        found: dict[Key, ItemResult] = {}
        predictors: dict[str, Predictor] = {}
        for label, places in _by_label(keys).items():
            speaker, account = self._speaker(label), Reasons()
            assert speaker.head is not None
            predictor = Predictor.of(
                self.opened.model, self.opened.tokenizer, speaker.stack, speaker.head, speaker.template
            )
            predictors[label] = predictor
            instances = [predictor.asked(self.items[place].messages, place) for place in places]
            for instance, encoded in predictor.rendering.rows(instances, account):
                rows[label, instance.row] = RoutedRow(encoded, predictor.stack)
            for place, reason in account.reasons.items():
                found[label, place] = self._failure((label, place), reason)
        words = {predictor.stack: predictor.words for predictor in predictors.values()}
        tables = (
            class_log_probs(self.opened.model, list(rows.values()), self.limits.batch_tokens, words) if rows else []
        )
        for key, table in zip(rows, tables, strict=True):
            found[key] = _labelled(self.items[key[1]], predictors[key[0]], table[0])
        self._store(found)

    # --- by writing ---------------------------------------------------------------------------------------------

    def _write(self, keys: Sequence[Key]) -> None:
        """Greedy answers of all models from one engine, the longest prompts first; stored some at a time."""
        sampling = SamplingSettings(max_new_tokens=self.task.keys.max_tokens, stop=self.task.keys.stop)
        engine = Engine(self.opened.model, self.opened.tokenizer, max_batch_rows=self.limits.batch_rows)
        waiting = deque(sorted(keys, key=lambda key: -sum(len(m.content) for m in self.items[key[1]].messages)))
        asked: dict[object, Key] = {}
        found: dict[Key, ItemResult] = {}
        while waiting or engine.busy:
            while waiting and len(asked) < AHEAD * self.limits.batch_rows:
                key = waiting.popleft()
                messages = self.items[key[1]].messages
                try:
                    request = self._speaker(key[0]).request(messages, self.opened.tokenizer, sampling)
                    asked[engine.submit(request)] = key
                except UserError as error:
                    found[key] = self._failure(key, error.message)
            for event in engine.step():
                if event.completion is not None:
                    key = asked.pop(event.request_id)
                    found[key] = self._written(key, event.completion)
            if len(found) >= self.limits.batch_rows:
                self._store(found)
                found = {}
        self._store(found)

    def _written(self, key: Key, completion: Completion) -> ItemResult:
        if completion.error is not None:
            return self._failure(key, completion.error)
        item, text = self.items[key[1]], (completion.text or "").strip()
        scores = score_answer(self.task.keys.all_scorers, text, item, self.task.folder)
        return ItemResult(item.hash, text=text, ended=completion.finish_reason == "stop", scores=scores)


def _by_label(keys: Sequence[Key]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for label, place in keys:
        found.setdefault(label, []).append(place)
    return found


def _labelled(item: Item, predictor: Predictor, table: torch.Tensor) -> ItemResult:
    """What a head says: its label; and log p of each candidate, where the item has some."""
    labels = predictor.head.labels
    best = labels[int(table.argmax())]
    if not item.candidates:
        return ItemResult(item.hash, predicted=best)
    values = tuple(float(table[labels.index(candidate)]) for candidate in item.candidates)
    return ItemResult(item.hash, log_probs=values, tokens=(1,) * len(values), sizes=_sizes(item), predicted=best)


def _sizes(item: Item) -> tuple[int, ...]:
    return tuple(len(text.encode("utf-8", "replace")) for text in item.candidates)
