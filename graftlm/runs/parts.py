"""Held-out rows that are scored alike: all of an adapter's, or those of one task, source or template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graftlm.adapters.routing import Stack
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import RowCounts
from graftlm.errors import UserError
from graftlm.evaluation.choices import Normalise, Question, read_choices
from graftlm.evaluation.metrics import METRICS, Integers, Metric, Outcomes, metric_named
from graftlm.runs.entrants import Entrant
from graftlm.training.forward import RoutedRow, RowScore

By = Literal["task", "source", "template", "language"]


@dataclass(frozen=True)
class Rules:
    """How adapters are scored. ``metric`` None: accuracy where there are choices, else exact answers.

    ``by``: what tells parts of the held-out rows apart, each of which has choices and a score of its own.
    """

    metric: str | None = None
    choices: str = "auto"
    normalise: Normalise = "sum"
    by: By | None = None

    def __post_init__(self) -> None:
        if self.metric is not None:
            metric_named(self.metric)


def part_name(by: By) -> Callable[[Instance], str]:
    """What part an instance belongs to."""
    if by == "source":
        return lambda instance: instance.source
    return lambda instance: getattr(instance.provenance, by) or "(not stated)"


def find_parts(entrants: Sequence[Entrant], rules: Rules) -> list[Part]:
    """The parts of the held-out rows that these adapters share, by name.

    Raises:
        UserError: the metric or the choices do not fit a part.
    """
    first = entrants[0]
    data = ", ".join(dict.fromkeys(", ".join(entrant.recipe.data) for entrant in entrants))
    learnt = [each for part in first.parts.values() for each in part.train.instances]
    everything = np.arange(len(first.instances))
    if rules.by is None:
        return [Part(data, everything, entrants, learnt, rules)]
    name = part_name(rules.by)
    rows: dict[str, list[int]] = {}
    known: dict[str, list[Instance]] = {}
    for row, instance in enumerate(first.instances):
        rows.setdefault(name(instance), []).append(row)
    for instance in learnt:
        known.setdefault(name(instance), []).append(instance)
    return [Part(part, np.array(rows[part]), entrants, known.get(part, []), rules) for part in sorted(rows)]


class Part:
    """Held-out rows (indices into ``instances`` of the adapters), with the choices and the metric of their answers.

    ``learnt``: the training rows of the same part. ``majority_of``: whose commonest answer :meth:`majority` gives.
    """

    def __init__(
        self, name: str, rows: Integers, entrants: Sequence[Entrant], learnt: Sequence[Instance], rules: Rules
    ) -> None:
        first = entrants[0]
        self.name, self.rows, self.normalise = name, rows, rules.normalise
        self.model, self.instances = first.run.model, first.instances
        self.answers = {int(row): answer_of(self.instances[row]) for row in rows}
        own = [answer_of(each) for each in learnt]
        texts = [*own, *self.answers.values()]
        self.known = own or texts
        self.majority_of = "the training rows" if learnt else "these rows"
        written = [text for text in texts if text is not None]
        single = len(written) == len(texts) and not any(each.tags_words for each in entrants)
        self.choices = read_choices(rules.choices, written) if single else ()
        self.metric = self._metric(rules.metric, entrants)
        self._asked: dict[str, dict[int, Question]] = {}

    @property
    def by_choice(self) -> bool:
        """Whether answers are chosen among classes."""
        return bool(self.choices) and self.metric.needs_classes

    def _metric(self, name: str | None, entrants: Sequence[Entrant]) -> Metric:
        metric = METRICS["accuracy" if self.choices else "exact"] if name is None else metric_named(name)
        if metric.needs_classes and not self.choices:
            raise UserError(
                f"data '{self.name}': {metric.label} needs answers that are a few classes, and there are "
                f"{len(set(self.answers.values())):,} different ones in {len(self.rows):,} held-out rows",
                hint="Use --metric exact or perplexity, or name the classes: --choices 'positive, negative'",
            )
        heads = [each.name for each in entrants if self.model.head_of(each.task.stack) is not None]
        if heads and metric.name in ("perplexity", "loss"):
            raise UserError(
                f"{metric.name} is of tokens, and '{heads[0]}' predicts classes with a head of its own",
                hint="Use --metric accuracy or matthews.",
            )
        return metric

    def asked(self, entrant: Entrant, stack: Stack, rows: Integers) -> list[list[RoutedRow]]:
        """What is to be scored of some rows of this part: each as it is, or once with each choice."""
        if self.by_choice and not entrant.labels:
            questions = self._questions(entrant)
            return [questions[int(row)].routed(stack) for row in rows]
        return [[RoutedRow(entrant.task.held_out[row], stack)] for row in rows]

    def outcome(self, entrant: Entrant, scores: Sequence[Sequence[RowScore]], rows: Integers) -> Outcomes:
        """What the scores of :meth:`asked` say of the same rows."""
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
        values = [questions[int(row)].log_probs(each, self.normalise) for row, each in zip(rows, scores, strict=True)]
        table = np.array(values).reshape(len(rows), len(self.choices))
        right = table[np.arange(len(rows)), truth]
        return Outcomes(truth, table.argmax(axis=1), len(self.choices), -right, ones)

    def _truth(self, rows: Integers) -> Integers:
        return np.array([self.choices.index(str(self.answers[int(row)])) for row in rows], dtype=np.int64)

    def majority(self, rows: Integers) -> Outcomes:
        """Every row answered with the commonest answer of ``majority_of``."""
        ((common, _),) = Counter(self.known).most_common(1)
        losses, ones = np.full(len(rows), np.nan), np.ones(len(rows))
        if self.by_choice:
            truth = self._truth(rows)
            always = np.full_like(truth, self.choices.index(str(common)))
            return Outcomes(truth, always, len(self.choices), losses, ones)
        hits = np.array([self.answers[int(row)] == common and common is not None for row in rows], dtype=np.int64)
        return Outcomes(np.ones_like(hits), hits, 2, losses, ones)

    def _questions(self, entrant: Entrant) -> dict[int, Question]:
        """Every row with each of the choices in the place of its answer, rendered as the adapter reads it."""
        key = json.dumps([entrant.head and entrant.head.model_dump(), entrant.template.hash])
        if key not in self._asked:
            found: dict[int, Question] = {}
            start = 0
            for data, part in entrant.parts.items():
                instances = () if part.held_out is None else part.held_out.instances
                rows = [int(row) for row in self.rows if start <= row < start + len(instances)]
                asked = self._ask(entrant, data, [instances[row - start] for row in rows])
                found |= dict(zip(rows, asked, strict=True))
                start += len(instances)
            self._asked[key] = found
        return self._asked[key]

    def _ask(self, entrant: Entrant, data: str, instances: Sequence[Instance]) -> list[Question]:
        number = len(self.choices)
        written = {str(answer): self.instances[row].messages[-1].content for row, answer in self.answers.items()}
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


def answer_of(instance: Instance) -> str | None:
    """The last answer of a conversation; None where there is none."""
    last = instance.messages[-1]
    return last.content.strip() if last.role == "assistant" and len(instance.messages) > 1 else None
