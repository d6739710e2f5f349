"""Adapters scored together on the same held-out rows, and what each costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graftlm.adapters.routing import Stack
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import RowCounts
from graftlm.errors import UserError
from graftlm.evaluation.choices import Normalise, Question, read_choices, score_together
from graftlm.evaluation.comparison import Comparison, Contender, Cost, best_rate, stand
from graftlm.evaluation.metrics import METRICS, Integers, Metric, Outcomes, metric_named
from graftlm.runs.entrants import Entrant, Say, free_name, groups, kept_by_tuning_rows, tuning_rows
from graftlm.training.cost import measure_step
from graftlm.training.forward import RoutedRow, RowScore

BASE = ""  # no adapter can be called so
STEP_ROWS = 16  # of a measured step


@dataclass(frozen=True)
class Rules:
    """How adapters are scored. ``metric`` None: accuracy where there are choices, else exact answers."""

    metric: str | None = None
    choices: str = "auto"
    normalise: Normalise = "sum"

    def __post_init__(self) -> None:
        if self.metric is not None:
            metric_named(self.metric)


def compare(entrants: Sequence[Entrant], rules: Rules, say: Say = lambda _line: None) -> list[Comparison]:
    """Score all adapters, those on the same held-out rows beside each other.

    Raises:
        UserError: the metric or the choices do not fit the data.
    """
    fields: dict[tuple[Any, ...], list[Entrant]] = {}
    for entrant in entrants:
        fields.setdefault(tuple(instance.messages for instance in entrant.instances), []).append(entrant)
    return [_Field(members, rules, say).compare() for members in fields.values()]


class _Field:
    """Adapters that share their held-out rows."""

    def __init__(self, entrants: list[Entrant], rules: Rules, say: Say) -> None:
        first = entrants[0]
        self.entrants, self.say = entrants, say
        self.model, self.instances = first.run.model, first.instances
        self.data = ", ".join(dict.fromkeys(", ".join(entrant.recipe.data) for entrant in entrants))
        learnt = [each for part in first.parts.values() for each in part.train.instances]
        self.learnt = [_answer(each) for each in learnt]
        self.held_out = [_answer(each) for each in self.instances]
        texts = [text for text in (*self.learnt, *self.held_out) if text is not None]
        single = len(texts) == len(self.learnt) + len(self.held_out) and not any(each.tags_words for each in entrants)
        self.choices = read_choices(rules.choices, texts) if single else ()
        self.normalise = rules.normalise
        self.metric = self._metric(rules.metric)
        self._asked: dict[str, list[Question]] = {}

    @property
    def by_choice(self) -> bool:
        """Whether answers are chosen among classes."""
        return bool(self.choices) and self.metric.needs_classes

    def _metric(self, name: str | None) -> Metric:
        metric = METRICS["accuracy" if self.choices else "exact"] if name is None else metric_named(name)
        if metric.needs_classes and not self.choices:
            raise UserError(
                f"data '{self.data}': {metric.label} needs answers that are a few classes, and there are "
                f"{len(set(self.held_out)):,} different ones in {len(self.held_out):,} held-out rows",
                hint="Use --metric exact or perplexity, or name the classes: --choices 'positive, negative'",
            )
        heads = [each.name for each in self.entrants if self.model.head_of(each.task.stack) is not None]
        if heads and metric.name == "perplexity":
            raise UserError(
                f"perplexity is of tokens, and '{heads[0]}' predicts classes with a head of its own",
                hint="Use --metric accuracy or matthews.",
            )
        return metric

    def compare(self) -> Comparison:
        """Choose learning rates where there is a choice, score, and measure."""
        contenders_of = groups(self.entrants)
        sweeps = {name: rates for name, rates in contenders_of.items() if len(rates) > 1}
        clean = all(kept_by_tuning_rows(entrant) for entrant in self.entrants)
        tuning = tuning_rows(self.instances) if sweeps or clean else []
        scored = np.setdiff1d(np.arange(len(self.instances)), np.array(tuning, dtype=np.int64))
        chosen: dict[str, tuple[list[Entrant], dict[float, float]]] = {
            name: (next(iter(rates.values())), {}) for name, rates in contenders_of.items()
        }
        if sweeps:
            candidates = [each for rates in sweeps.values() for members in rates.values() for each in members]
            self.say(f"choosing learning rates on {len(tuning)} tuning rows: {len(candidates)} adapters in one pass")
            on_tuning = self._outcomes(candidates, np.array(tuning))
            for name, rates in sweeps.items():
                scores = {r: [self.metric.of(on_tuning[e.name]) for e in members] for r, members in rates.items()}
                rate, tried = best_rate(scores, self.metric)
                chosen[name] = (rates[rate], tried)
        finalists = [each for members, _ in chosen.values() for each in members]
        beside = "" if self._base_asked_like() is None else " and the base"
        adapters = f"{len(finalists)} adapter{'s' * (len(finalists) > 1)}"
        self.say(f"scoring {len(scored)} held-out rows: {adapters}{beside} in one pass")
        outcomes = self._outcomes(finalists, scored, with_base=True)
        self.say("measuring a step of each adapter alone")
        contenders = [
            self._contender(name, members, tried, [outcomes[each.name] for each in members])
            for name, (members, tried) in chosen.items()
        ]
        majority = self._majority(scored)
        base, standings = stand(contenders, outcomes.get(BASE), majority, self.metric)
        return Comparison(
            data=self.data,
            metric=self.metric,
            choices=self.choices if self.by_choice else (),
            normalise=self.normalise,
            rows=len(scored),
            tuning_rows=len(tuning),
            base=base,
            majority=self.metric.of(majority),
            standings=tuple(standings),
            notes=tuple(_notes(bool(sweeps), clean, len(tuning), base is None)),
        )

    def _outcomes(self, entrants: Sequence[Entrant], rows: Integers, with_base: bool = False) -> dict[str, Outcomes]:
        """What each adapter makes of some rows, and the bare base (as ``BASE``), in one pass."""
        asked = {entrant.name: (entrant, self._rows(entrant, entrant.task.stack, rows)) for entrant in entrants}
        like = self._base_asked_like() if with_base else None
        if like is not None:
            asked[BASE] = (like, self._rows(like, (), rows))
        parts = [part for _, each in asked.values() for part in each]
        scores = iter(score_together(self.model, parts, entrants[0].run.recipe.training.micro_batch_tokens))
        return {
            name: self._outcome(entrant, [next(scores) for _ in each], rows) for name, (entrant, each) in asked.items()
        }

    def _base_asked_like(self) -> Entrant | None:
        """An adapter whose rows the bare base can be asked too, if there is one."""
        if not self.model.has_language_head:
            return None
        plain = [
            each
            for each in self.entrants
            if self.model.head_of(each.task.stack) is None and each.template.hash == each.run.template.hash
        ]
        if not plain and self.by_choice and self.model.kind != "encoder":
            first = self.entrants[0]  # the base chooses by likelihood, in the run's template, whatever its adapters do
            return replace(first, head=None, template=first.run.template)
        return plain[0] if plain else None

    def _rows(self, entrant: Entrant, stack: Stack, rows: Integers) -> list[list[RoutedRow]]:
        if self.by_choice and not entrant.labels:
            return [self._questions(entrant)[row].routed(stack) for row in rows]
        return [[RoutedRow(entrant.task.held_out[row], stack)] for row in rows]

    def _outcome(self, entrant: Entrant, scores: list[list[RowScore]], rows: Integers) -> Outcomes:
        if not self.by_choice:
            single = [each[0] for each in scores]
            hits = np.array([score.exact for score in single], dtype=np.int64)
            losses = np.array([-score.log_prob for score in single])
            return Outcomes(np.ones_like(hits), hits, 2, losses, np.array([float(s.tokens) for s in single]))
        truth, ones = self._truth(rows), np.ones(len(rows))
        if entrant.labels:
            single = [each[0] for each in scores]
            said = [entrant.labels[score.predicted[0]] for score in single]
            other = (truth + 1) % len(self.choices)  # a label that is no choice is wrong, whichever it is
            found = [self.choices.index(s) if s in self.choices else int(o) for s, o in zip(said, other, strict=True)]
            return Outcomes(truth, np.array(found), len(self.choices), np.array([-s.log_prob for s in single]), ones)
        questions = self._questions(entrant)
        values = [questions[row].log_probs(each, self.normalise) for row, each in zip(rows, scores, strict=True)]
        table = np.array(values)
        right = table[np.arange(len(rows)), truth]
        return Outcomes(truth, table.argmax(axis=1), len(self.choices), -right, ones)

    def _truth(self, rows: Integers) -> Integers:
        return np.array([self.choices.index(str(self.held_out[row])) for row in rows], dtype=np.int64)

    def _majority(self, rows: Integers) -> Outcomes:
        """Every row answered with the commonest answer of the training rows."""
        ((common, _),) = Counter(self.learnt).most_common(1)
        losses, ones = np.full(len(rows), np.nan), np.ones(len(rows))
        if self.by_choice:
            truth = self._truth(rows)
            always = np.full_like(truth, self.choices.index(str(common)))
            return Outcomes(truth, always, len(self.choices), losses, ones)
        hits = np.array([self.held_out[row] == common and common is not None for row in rows], dtype=np.int64)
        return Outcomes(np.ones_like(hits), hits, 2, losses, ones)

    def _questions(self, entrant: Entrant) -> list[Question]:
        """Every held-out row with each of the choices in the place of its answer, rendered as the adapter reads it."""
        key = json.dumps([entrant.head and entrant.head.model_dump(), entrant.template.hash])
        if key not in self._asked:
            self._asked[key] = [
                question
                for name, part in entrant.parts.items()
                if part.held_out is not None
                for question in self._ask(entrant, name, part.held_out.instances)
            ]
        return self._asked[key]

    def _ask(self, entrant: Entrant, data: str, instances: Sequence[Instance]) -> list[Question]:
        number = len(self.choices)
        written = {str(_answer(each)): each.messages[-1].content for each in self.instances}
        asked = [
            Instance(
                (*each.messages[:-1], Message("assistant", written.get(choice, choice))), data, at * number + place
            )
            for at, each in enumerate(instances)
            for place, choice in enumerate(self.choices)
        ]
        rendering = choose_rendering(
            self.model.kind,
            entrant.head,
            entrant.template,
            entrant.run.tokenizer,
            max_length=entrant.run.recipe.data[data].max_length or self.model.context_length,
            train_on="last",
            decoder_start=getattr(self.model.base.config, "decoder_start_token_id", None),
        )
        found = {row.row: row for _, row in rendering.rows(asked, RowCounts())}
        sizes = tuple(len(choice.encode()) for choice in self.choices)
        return [
            Question(tuple(found.get(start + place) for place in range(number)), sizes)
            for start in range(0, len(asked), number)
        ]

    def _contender(
        self, name: str, members: list[Entrant], tried: Mapping[float, float], outcomes: list[Outcomes]
    ) -> Contender:
        first = members[0]
        parameters, cost = self._cost(first)
        return Contender(
            name=name,
            method=first.recipe.method.describe(),
            members=tuple(each.name for each in members),
            outcomes=tuple(outcomes),
            learning_rate=first.recipe.training.learning_rate,
            trained_parameters=parameters,
            cost=cost,
            tried=tried,
        )

    def _cost(self, entrant: Entrant) -> tuple[int, Cost]:
        """What an adapter takes as training begins, on a fresh one: what only serves training is gone from a folder."""
        name = free_name("measured", self.model)
        head = entrant.head
        classes = head.classes if head is not None and entrant.recipe.head is not None else None
        adapter = self.model.add(name, entrant.recipe.method, classes=classes)
        task = replace(entrant.task, adapter=name)
        rows = task.rows[:: max(1, len(task.rows) // STEP_ROWS)][:STEP_ROWS]
        try:
            cost = measure_step(self.model, task, rows, entrant.run.recipe.training.micro_batch_tokens)
        finally:
            self.model.remove(name)
        size = sum(path.stat().st_size for path in entrant.folder.rglob("*") if path.is_file())
        return adapter.trained_parameters, Cost(cost.adapter_bytes, cost.optimizer_bytes, size, cost.step_seconds)


def _notes(swept: bool, clean: bool, tuning: int, no_base: bool) -> list[str]:
    """What a reader must know to judge the scores."""
    notes = []
    if tuning:
        what = "The step that is kept was"
        if swept:
            what = "Learning rates and the step that is kept were" if clean else "Learning rates were"
        notes.append(f"{what} chosen on {tuning} other held-out rows, the tuning rows; none of them is scored here.")
    if not clean:
        notes.append(
            "The step that was kept in training was chosen by the loss on all held-out rows, those scored here "
            "among them, which flatters every adapter a little. In a run that graftlm compare RECIPE trains it is not."
        )
    if no_base:
        notes.append("The base has no score: it has no head for this task.")
    return notes


def _answer(instance: Instance) -> str | None:
    last = instance.messages[-1]
    return last.content.strip() if last.role == "assistant" and len(instance.messages) > 1 else None
