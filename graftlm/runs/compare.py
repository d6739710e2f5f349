"""Adapters scored together on the same held-out rows, part by part, and what each costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graftlm.evaluation.choices import score_together
from graftlm.evaluation.comparison import Comparison, Contender, Cost, best_rate, stand
from graftlm.evaluation.metrics import Integers, Metric, Outcomes, joined
from graftlm.runs.entrants import Entrant, Say, free_name, groups, kept_by_tuning_rows, tuning_rows
from graftlm.runs.parts import Part, Rules, find_parts
from graftlm.training.cost import measure_step

BASE = ""  # no adapter can be called so
STEP_ROWS = 16  # of a measured step


#: Said of each comparison where there are several.
SEVERAL = "Other tables here are on other held-out rows: scores compare within a table, not between tables."


def compare(entrants: Sequence[Entrant], rules: Rules, say: Say = lambda _line: None) -> list[Comparison]:
    """Score all adapters, those on the same held-out rows beside each other.

    With ``rules.by`` there are comparisons of each part of the rows, after one of all parts that share a metric.

    Raises:
        UserError: the metric or the choices do not fit the data.
    """
    fields: dict[tuple[Any, ...], list[Entrant]] = {}
    for entrant in entrants:
        fields.setdefault(tuple(instance.messages for instance in entrant.instances), []).append(entrant)
    found = []
    for members in fields.values():
        several = rules.by is not None and len(fields) > 1
        data = ", ".join(dict.fromkeys(", ".join(each.recipe.data) for each in members)) + ": " if several else ""
        found += [replace(each, data=data + each.data) for each in _Field(members, rules, say).compare()]
    return found if len(fields) == 1 else [replace(each, notes=(*each.notes, SEVERAL)) for each in found]


@dataclass(frozen=True)
class _Scored:
    """What was made of the scored rows of one part, or of several."""

    name: str
    metric: Metric
    outcomes: Mapping[str, Outcomes]
    majority: Outcomes
    majority_of: str
    choices: tuple[str, ...] = ()
    part_of: str = ""


class _Field:
    """Adapters that share their held-out rows."""

    def __init__(self, entrants: list[Entrant], rules: Rules, say: Say) -> None:
        self.entrants, self.rules, self.say = entrants, rules, say
        self.model, self.instances = entrants[0].run.model, entrants[0].instances
        self.parts = find_parts(entrants, rules)

    def compare(self) -> list[Comparison]:
        """Choose learning rates where there is a choice, score, and measure."""
        contenders_of = groups(self.entrants)
        swept = {name: rates for name, rates in contenders_of.items() if len(rates) > 1}
        clean = all(kept_by_tuning_rows(entrant) for entrant in self.entrants)
        tuning = np.array(tuning_rows(self.instances) if swept or clean else [], dtype=np.int64)
        chosen: dict[str, tuple[list[Entrant], dict[float, float]]] = {
            name: (next(iter(rates.values())), {}) for name, rates in contenders_of.items()
        }
        chosen |= self._choose(swept, tuning)
        finalists = [each for members, _ in chosen.values() for each in members]
        scored = self._scored(finalists, np.setdiff1d(np.arange(len(self.instances)), tuning))
        self.say("measuring a step of each adapter alone")
        costs = {name: self._cost(members[0]) for name, (members, _) in chosen.items()}
        notes = _notes(bool(swept), clean, len(tuning), BASE not in scored[0].outcomes)
        found: list[Comparison] = []
        for each in scored:
            contenders = [
                self._contender(name, members, tried, [each.outcomes[one.name] for one in members], costs[name])
                for name, (members, tried) in chosen.items()
            ]
            base, standings = stand(contenders, each.outcomes.get(BASE), each.majority, each.metric)
            found.append(
                Comparison(
                    data=each.name,
                    metric=each.metric,
                    choices=each.choices,
                    normalise=self.rules.normalise,
                    rows=len(each.majority.truth),
                    tuning_rows=len(tuning),
                    base=base,
                    majority=each.metric.of(each.majority),
                    standings=tuple(standings),
                    majority_of=each.majority_of,
                    part_of=each.part_of,
                    notes=() if found else tuple(notes),
                )
            )
        return found

    def _choose(
        self, swept: Mapping[str, Mapping[float, list[Entrant]]], tuning: Integers
    ) -> dict[str, tuple[list[Entrant], dict[float, float]]]:
        """The adapters with the best learning rate of each group, by their mean score over the parts."""
        if not swept:
            return {}
        candidates = [each for rates in swept.values() for members in rates.values() for each in members]
        self.say(f"choosing learning rates on {len(tuning)} tuning rows: {len(candidates)} adapters in one pass")
        parts = [part for part in self.parts if len(np.intersect1d(part.rows, tuning))]
        on_tuning = self._outcomes(parts, candidates, tuning)
        chosen = {}
        for name, rates in swept.items():
            scores = {
                rate: [
                    float(np.mean([part.metric.of(on_tuning[at][each.name]) for at, part in enumerate(parts)]))
                    for each in members
                ]
                for rate, members in rates.items()
            }
            rate, tried = best_rate(scores, self.parts[0].metric)
            chosen[name] = (rates[rate], tried)
        return chosen

    def _scored(self, finalists: Sequence[Entrant], rows: Integers) -> list[_Scored]:
        """The scored rows: all parts of one metric together, where there are several, then each part."""
        beside = "" if self._base_asked_like(self.parts[0]) is None else " and the base"
        adapters = f"{len(finalists)} adapter{'s' * (len(finalists) > 1)}"
        self.say(f"scoring {len(rows)} held-out rows: {adapters}{beside} in one pass")
        parts = [part for part in self.parts if len(np.intersect1d(part.rows, rows))]
        outcomes = self._outcomes(parts, finalists, rows, with_base=True)
        by = self.rules.by if len(parts) > 1 else None
        found = [
            _Scored(
                part.name,
                part.metric,
                own,
                part.majority(np.intersect1d(part.rows, rows)),
                part.majority_of,
                part.choices if part.by_choice else (),
                by or "",
            )
            for part, own in zip(parts, outcomes, strict=True)
        ]
        alike: dict[str, list[_Scored]] = {}
        for each in found:
            if each.metric.is_share or not each.metric.needs_classes:  # else classes of parts would be mixed up
                alike.setdefault(each.metric.name, []).append(each)
        return [*(_joined(several) for several in alike.values() if by and len(several) > 1), *found]

    def _outcomes(
        self, parts: Sequence[Part], entrants: Sequence[Entrant], rows: Integers, with_base: bool = False
    ) -> list[dict[str, Outcomes]]:
        """What each adapter makes of some rows of each part, and the bare base (as ``BASE``), in one pass."""
        asked = []
        for part in parts:
            own = np.intersect1d(part.rows, rows)
            who = {entrant.name: (entrant, entrant.task.stack) for entrant in entrants}
            like = self._base_asked_like(part) if with_base else None
            if like is not None:
                who[BASE] = (like, ())
            asked += [(part, own, name, each, part.asked(each, stack, own)) for name, (each, stack) in who.items()]
        questions = [one for *_, each in asked for one in each]
        scores = iter(score_together(self.model, questions, entrants[0].run.recipe.training.micro_batch_tokens))
        found: dict[int, dict[str, Outcomes]] = {id(part): {} for part in parts}
        for part, own, name, entrant, each in asked:
            found[id(part)][name] = part.outcome(entrant, [next(scores) for _ in each], own)
        return list(found.values())

    def _base_asked_like(self, part: Part) -> Entrant | None:
        """An adapter whose rows the bare base can be asked too, if there is one."""
        if not self.model.has_language_head:
            return None
        plain = [
            each
            for each in self.entrants
            if self.model.head_of(each.task.stack) is None and each.template.hash == each.run.template.hash
        ]
        if not plain and part.by_choice and self.model.kind != "encoder":
            first = self.entrants[0]  # the base chooses by likelihood, in the run's template, whatever its adapters do
            return replace(first, head=None, template=first.run.template)
        return plain[0] if plain else None

    def _contender(
        self,
        name: str,
        members: list[Entrant],
        tried: Mapping[float, float],
        outcomes: list[Outcomes],
        cost: tuple[int, Cost],
    ) -> Contender:
        first = members[0]
        return Contender(
            name=name,
            method=first.recipe.method.describe(),
            members=tuple(each.name for each in members),
            outcomes=tuple(outcomes),
            learning_rate=first.recipe.training.learning_rate,
            trained_parameters=cost[0],
            cost=cost[1],
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


def _joined(several: Sequence[_Scored]) -> _Scored:
    """The rows of several parts as one; each keeps its own choices."""
    known = set.intersection(*(set(each.outcomes) for each in several))
    return _Scored(
        f"all {len(several)} parts",
        several[0].metric,
        {name: joined([each.outcomes[name] for each in several]) for name in several[0].outcomes if name in known},
        joined([each.majority for each in several]),
        "each part",
    )


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
