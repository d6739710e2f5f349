"""What preference rows hold, and how far the length of an answer alone would tell which is better."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from graftlm.data.criteria import WHOLE
from graftlm.data.instances import Instance, Verdict
from graftlm.data.preferences import form_of
from graftlm.data.verdicts import label_of, scores_of

SHOWN = 1_000  # characters of an answer


@dataclass
class Compared:
    """Comparisons by one criterion. ``longer``: the better answer has more characters; ``equal``: as many."""

    longer: int = 0
    shorter: int = 0
    equal: int = 0
    ties: int = 0
    better: list[int] = field(default_factory=list)
    worse: list[int] = field(default_factory=list)

    @property
    def comparisons(self) -> int:
        """Those with a better answer."""
        return self.longer + self.shorter + self.equal

    @property
    def longer_wins(self) -> float | None:
        """Accuracy of choosing the longer answer, of answers of one length by chance; None without comparisons."""
        return (self.longer + self.equal / 2) / self.comparisons if self.comparisons else None


@dataclass
class Single:
    """Answers on their own: lengths of the good and the bad ones, and ratings with the length of each."""

    good: list[int] = field(default_factory=list)
    bad: list[int] = field(default_factory=list)
    undecided: int = 0
    ratings: list[tuple[float, int]] = field(default_factory=list)

    @property
    def longer_is_good(self) -> float | None:
        """Of a good and a bad answer drawn at random, how often the good one is longer, as long counting half."""
        if not self.good or not self.bad:
            return None
        from scipy.stats import rankdata

        ranks = rankdata([*self.good, *self.bad])
        above = float(ranks[: len(self.good)].sum()) - len(self.good) * (len(self.good) + 1) / 2
        return above / (len(self.good) * len(self.bad))

    @property
    def correlation(self) -> float | None:
        """Spearman's correlation of ratings and lengths; None where one of them does not vary."""
        if len({rating for rating, _ in self.ratings}) < 2 or len({length for _, length in self.ratings}) < 2:
            return None
        from scipy.stats import spearmanr

        return float(spearmanr(*zip(*self.ratings, strict=True)).statistic)


@dataclass
class PreferenceFacts:
    """Preference rows by form and annotator, and comparisons and single answers by criterion ("" is as a whole)."""

    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    annotators: Counter[str] = field(default_factory=Counter)
    margins: int = 0
    compared: dict[str, Compared] = field(default_factory=dict)
    single: dict[str, Single] = field(default_factory=dict)

    def add(self, instance: Instance) -> None:
        """Count an instance, if it is a preference row."""
        if not instance.is_preference:
            return
        self.rows += 1
        self.forms[form_of(instance)] += 1
        for verdict in instance.verdicts:
            if verdict.annotator:
                self.annotators[verdict.annotator] += 1
            self.margins += verdict.margin > 0
        lengths = [len(answer.strip()) for answer in instance.answers]
        for criterion in dict.fromkeys(verdict.criterion for verdict in instance.verdicts) or ("",):
            scores = scores_of(instance, criterion)
            if scores is None:
                continue
            if len(lengths) > 1:
                self._compare(self.compared.setdefault(criterion, Compared()), scores, lengths)
            else:
                self._judge(self.single.setdefault(criterion, Single()), instance, criterion, scores[0], lengths[0])

    @property
    def criteria(self) -> list[str]:
        """The criteria that answers are judged by."""
        return sorted({*self.compared, *self.single})

    def _compare(self, found: Compared, scores: Sequence[float | None], lengths: Sequence[int]) -> None:
        for one, other in combinations(range(len(scores)), 2):
            first, second = scores[one], scores[other]
            if first is None or second is None:
                continue
            if first == second:
                found.ties += 1
                continue
            better, worse = (one, other) if first > second else (other, one)
            found.better.append(lengths[better])
            found.worse.append(lengths[worse])
            found.longer += lengths[better] > lengths[worse]
            found.shorter += lengths[better] < lengths[worse]
            found.equal += lengths[better] == lengths[worse]

    def _judge(self, found: Single, instance: Instance, criterion: str, score: float | None, length: int) -> None:
        label = label_of(instance, criterion)
        if label is not None:
            (found.good if label else found.bad).append(length)
        elif any(verdict.kind == "labels" and verdict.criterion == criterion for verdict in instance.verdicts):
            found.undecided += 1
        elif score is not None:
            found.ratings.append((score, length))


def facts_of(instances: Iterable[Instance]) -> PreferenceFacts:
    """What the preference rows among some instances hold."""
    found = PreferenceFacts()
    for instance in instances:
        found.add(instance)
    return found


def median(lengths: Sequence[int]) -> int:
    """The middle one, the lower of two; 0 of none."""
    return sorted(lengths)[(len(lengths) - 1) // 2] if lengths else 0


def describe(found: PreferenceFacts) -> list[str]:
    """The facts as lines for people."""
    ordered = sorted(found.forms.items(), key=lambda item: -item[1])
    forms = ", ".join(f"{number:,} {form if number > 1 else _one(form)}" for form, number in ordered)
    lines = [f"preference rows: {found.rows:,} ({forms})"]
    if found.annotators:
        lines.append(f"annotators: {len(found.annotators):,}; how far they agree: graftlm data agreement")
    if found.margins:
        lines.append(f"margins: {found.margins:,}")
    for criterion in found.criteria:
        name = criterion or WHOLE
        if compared := found.compared.get(criterion):
            lines.append(f"{name}: {compared.comparisons:,} comparisons, {compared.ties:,} ties")
            if compared.longer_wins is not None:
                lines.append(
                    f"  characters (median): better {median(compared.better):,}, worse {median(compared.worse):,};"
                    f" the longer one wins {compared.longer_wins:.1%}"
                )
        if single := found.single.get(criterion):
            lines += _describe_single(name, single)
    return lines


def _one(form: str) -> str:
    word, *rest = form.split(" ")
    return " ".join([word.removesuffix("s"), *rest]).removesuffix("s")


def _describe_single(name: str, single: Single) -> list[str]:
    lines = []
    if good_and_bad := len(single.good) + len(single.bad):
        undecided = f", {single.undecided:,} undecided" if single.undecided else ""
        share = max(len(single.good), len(single.bad)) / good_and_bad
        lines.append(
            f"{name}: {len(single.good):,} good, {len(single.bad):,} bad{undecided}; the majority is {share:.1%}"
        )
        if single.longer_is_good is not None:
            lines.append(
                f"  characters (median): good {median(single.good):,}, bad {median(single.bad):,};"
                f" of a good and a bad one, the good one is longer in {single.longer_is_good:.1%}"
            )
    if single.ratings:
        ratings = [rating for rating, _ in single.ratings]
        mean = math.fsum(ratings) / len(ratings)
        line = f"{name}: {len(ratings):,} ratings from {min(ratings):g} to {max(ratings):g}, mean {mean:.2f}"
        lines.append(
            line + ("" if single.correlation is None else f"; correlation with length {single.correlation:.2f}")
        )
    return lines


def describe_answers(instance: Instance) -> list[str]:
    """The answers of a row but the first, and what was said of each, for people."""
    lines = [f"{_name(instance, place)} {_cut(answer)}" for place, answer in enumerate(instance.answers) if place]
    return [*lines, *map(_said, instance.verdicts)]


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text) - SHOWN:,} more characters)"


def _name(instance: Instance, place: int) -> str:
    scores = scores_of(instance)
    if len(instance.answers) > 2:
        return f"answer {place + 1}:"
    tie = scores is not None and scores[0] == scores[1]
    return "as good (a tie):" if tie else "rejected:"


def _said(verdict: Verdict) -> str:
    values = ["–" if value is None else f"{value:g}" for value in verdict.values]
    if verdict.kind == "labels":
        values = ["–" if value is None else "good" if value else "bad" for value in verdict.values]
    who = f" ({verdict.annotator})" if verdict.annotator else ""
    margin = f", margin {verdict.margin:g}" if verdict.margin else ""
    return f"{verdict.kind}, {verdict.criterion or WHOLE}: {', '.join(values)}{margin}{who}"
