"""All models answer all items of a task, in shared batches over one base; results go to their files as they come."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from graftlm.data.labelled import prompt_text
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


@dataclass(frozen=True)
class Limits:
    """``batch_tokens``: how many run together in scoring; ``batch_rows``: answers written at the same time."""

    batch_tokens: int
    batch_rows: int = 32


def answer_task(
    opened: Opened,
    task: EvalTask,
    items: Sequence[Item],
    files: Mapping[str, ResultFile],
    limits: Limits,
    tell: Tell = lambda _done: None,
) -> None:
    """Fill in what is missing in the files, by the label of their speaker.

    Raises:
        UserError: a scorer of the task's own fails; the disk is full.
    """
    speakers = {speaker.label: speaker for speaker in opened.speakers if speaker.label in files}
    missing = [(label, place) for place in range(len(items)) for label in files if place not in files[label].results]
    written = [key for key in missing if task.keys.kind == "generate"]
    if written:
        _write(opened, task, items, speakers, files, written, limits, tell)
        return
    for start in range(0, len(missing), BLOCK):
        block = missing[start : start + BLOCK]
        labelled = [(label, place) for label, place in block if speakers[label].head is not None]
        if labelled:
            _label(opened, task, items, speakers, files, labelled, limits, tell)
        rest = [key for key in block if speakers[key[0]].head is None]
        if rest:
            _score(opened, task, items, speakers, files, rest, limits, tell)


Key = tuple[str, int]


def _store(files: Mapping[str, ResultFile], found: Mapping[Key, ItemResult], tell: Tell) -> None:
    by_label: dict[str, dict[int, ItemResult]] = {}
    for (label, place), result in found.items():
        by_label.setdefault(label, {})[place] = result
    for label, results in by_label.items():
        files[label].add(results)
    tell(len(found))


# --- by likelihood ----------------------------------------------------------------------------------------------


def _score(
    opened: Opened,
    task: EvalTask,
    items: Sequence[Item],
    speakers: Mapping[str, Speaker],
    files: Mapping[str, ResultFile],
    keys: Sequence[Key],
    limits: Limits,
    tell: Tell,
) -> None:
    asked: dict[Key, Asked] = {}
    for label in dict.fromkeys(label for label, _ in keys):
        places = [place for owner, place in keys if owner == label]
        rows = ask(opened, speakers[label], task, [items[place] for place in places])
        asked |= {(label, place): each for place, each in zip(places, rows, strict=True)}
    failed = {
        key: ItemResult(items[key[1]].hash, error=each.problem)
        for key, each in asked.items()
        if each.problem is not None
    }
    if failed:
        _store(files, failed, tell)
    order = [key for key in asked if key not in failed]
    groups = [asked[key].flat for key in order]
    for batch in score_groups(opened.model, groups, limits.batch_tokens):
        found = {order[number]: _likelihoods(items[order[number][1]], asked[order[number]], scores) for number, scores in batch}
        _store(files, found, tell)


def _likelihoods(item: Item, asked: Asked, scores: Sequence[RowScore]) -> ItemResult:
    """log p of each candidate, with its tokens and bytes."""
    each = iter(scores)
    log_probs: list[float | None] = []
    tokens: list[int] = []
    for rows in asked.rows:
        own = [next(each) for _ in rows]
        log_probs.append(sum(score.log_prob for score in own) if own else None)
        tokens.append(sum(score.tokens for score in own))
    sizes = tuple(len(text.encode("utf-8", "replace")) for text in item.candidates)
    wrong = next((value for value in log_probs if value is not None and not math.isfinite(value)), None)
    if wrong is not None:
        return ItemResult(item.hash, error=f"the model gives {wrong} as a log-probability")
    return ItemResult(item.hash, log_probs=tuple(log_probs), tokens=tuple(tokens), sizes=sizes)


# --- by a head --------------------------------------------------------------------------------------------------


def _label(
    opened: Opened,
    task: EvalTask,
    items: Sequence[Item],
    speakers: Mapping[str, Speaker],
    files: Mapping[str, ResultFile],
    keys: Sequence[Key],
    limits: Limits,
    tell: Tell,
) -> None:
    """Labels of adapters with a head, those of all adapters in shared batches."""
    predictors = {
        label: Predictor.of(opened.model, opened.tokenizer, speaker.stack, speaker.head, speaker.template)
        for label, speaker in speakers.items()
        if speaker.head is not None
    }
    rows: dict[Key, RoutedRow] = {}
    found: dict[Key, ItemResult] = {}
    for label, predictor in predictors.items():
        account = Reasons()
        places = [place for owner, place in keys if owner == label]
        instances = [predictor.asked(items[place].messages, place) for place in places]
        for instance, encoded in predictor.rendering.rows(instances, account):
            rows[label, instance.row] = RoutedRow(encoded, predictor.stack)
        for place in places:
            if (label, place) not in rows:
                found[label, place] = ItemResult(items[place].hash, error=account.reasons.get(place, "no place for it"))
    words = {predictor.stack: predictor.words for predictor in predictors.values()}
    tables = class_log_probs(opened.model, list(rows.values()), limits.batch_tokens, words) if rows else []
    for (label, place), table in zip(rows, tables, strict=True):
        found[label, place] = _labelled(items[place], predictors[label], table[0])
    _store(files, found, tell)


def _labelled(item: Item, predictor: Predictor, table: torch.Tensor) -> ItemResult:
    """What a head says: its label; and log p of each candidate, where the item has some."""
    labels = predictor.head.labels
    best = labels[int(table.argmax())]
    if not item.candidates:
        return ItemResult(item.hash, predicted=best)
    values = tuple(float(table[labels.index(candidate)]) for candidate in item.candidates)
    sizes = tuple(len(text.encode("utf-8", "replace")) for text in item.candidates)
    return ItemResult(item.hash, log_probs=values, tokens=(1,) * len(values), sizes=sizes, predicted=best)


# --- by writing -------------------------------------------------------------------------------------------------


def _write(
    opened: Opened,
    task: EvalTask,
    items: Sequence[Item],
    speakers: Mapping[str, Speaker],
    files: Mapping[str, ResultFile],
    keys: Sequence[Key],
    limits: Limits,
    tell: Tell,
) -> None:
    """Greedy answers of all models from one engine, each stored when a batch of them is through."""
    keys_of = task.keys
    sampling = SamplingSettings(max_new_tokens=keys_of.max_tokens, stop=keys_of.stop)
    engine = Engine(opened.model, opened.tokenizer, max_batch_rows=limits.batch_rows, keep_answers=False)
    waiting = deque(sorted(keys, key=lambda key: -len(prompt_length_hint(items[key[1]]))))
    by_id = {f"{place}:{label}": (label, place) for label, place in keys}
    inside = 0
    found: dict[Key, ItemResult] = {}
    while waiting or engine.busy:
        while waiting and inside < AHEAD * limits.batch_rows:
            label, place = waiting.popleft()
            try:
                request = speakers[label].request(
                    items[place].messages, opened.tokenizer, sampling, f"{place}:{label}"
                )
                engine.submit(request)
                inside += 1
            except UserError as error:
                found[label, place] = ItemResult(items[place].hash, error=error.message)
        for event in engine.step():
            if event.completion is not None:
                inside -= 1
                label, place = by_id[str(event.request_id)]
                found[label, place] = _written(task, items[place], event.completion)
        if len(found) >= limits.batch_rows:
            _store(files, found, tell)
            found = {}
    if found:
        _store(files, found, tell)


def _written(task: EvalTask, item: Item, completion: Completion) -> ItemResult:
    if completion.error is not None:
        return ItemResult(item.hash, error=completion.error)
    text = (completion.text or "").strip()
    scores = score_answer(task.keys.all_scorers, text, item, task.folder)
    return ItemResult(item.hash, text=text, ended=completion.finish_reason == "stop", scores=scores)


def prompt_length_hint(item: Item) -> str:
    """All that is asked, to sort by its length."""
    return "".join(message.content for message in item.messages)


def batches_of(total: int, size: int) -> Iterator[range]:
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
