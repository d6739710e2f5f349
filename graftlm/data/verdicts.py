"""What rows say of their answers: ranks, ratings by criterion, labels, ties, margins, and who said it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from graftlm.data.criteria import CRITERIA_COLUMNS, criterion_name
from graftlm.data.instances import Instance, Kind, RowProblem, Verdict

Row = dict[str, Any]
Values = tuple[float | None, ...]

ANNOTATOR = ("annotator", "annotator_id", "worker", "worker_id", "labeler", "labeler_id", "labeller", "rater")
CRITERION = ("criterion", "aspect")
SEVERAL = ("verdicts", "judgements", "judgments", "annotations")  # lists of what each annotator said
SAID: dict[str, Kind] = {
    "ranks": "ranks",
    "rank": "ranks",
    "ratings": "ratings",
    "rating": "ratings",
    "labels": "labels",
    "label": "labels",
}
COLUMNS = (*ANNOTATOR, *CRITERION, *SEVERAL, *SAID, *CRITERIA_COLUMNS, "margin", "tie")
GOOD = ("true", "yes", "good", "desirable", "chosen", "accepted", "1")
BAD = ("false", "no", "bad", "undesirable", "rejected", "0")
UNKNOWN = ("", "n/a", "na", "none", "null", "nan")
SHOWN = 40  # characters of a value in a reason
EQUAL, EMPTY = "an answer of a list is equal to a better one", "an answer of a list is empty"


def has_verdict(row: Row) -> bool:
    """Whether a row says something of the one answer that it has: a label, a rating, or verdicts."""
    label = row.get("label")
    return (
        isinstance(label, bool)
        or (isinstance(label, str) and label.strip().lower() in (*GOOD, *BAD) and not label.strip().isdigit())
        or any(isinstance(row.get(key), dict | int | float) for key in ("rating", "ratings"))
        or any(_is_number(row.get(key)) for key in CRITERIA_COLUMNS)
        or any(isinstance(row.get(key), list) and row[key] for key in ("verdicts", "judgements", "judgments"))
    )


def verdicts_of(row: Row, count: int) -> tuple[Verdict, ...]:
    """What a row says of its ``count`` answers, in their order in the row.

    Raises:
        RowProblem: a value is none of its kind, or there is not one for each answer.
    """
    annotator, criterion = (_first_text(row, keys) for keys in (ANNOTATOR, CRITERION))
    margin = _number(row.get("margin"), "margin") or 0.0
    if margin < 0:
        raise RowProblem("a margin below 0")
    found: list[Verdict] = []
    for entry in _entries(row):
        own = {key: row[key] for key in (*ANNOTATOR, *CRITERION) if row.get(key) is not None} | entry
        if "kind" in entry:
            found.append(_stored(own, count))
        else:
            found += verdicts_of(own, count)
    for column, kind in SAID.items():
        value = row.get(column)
        if value is None or (count > 1 and not column.endswith("s")):
            continue
        for name, said in value.items() if isinstance(value, dict) else [(criterion, value)]:
            values = _values(said, count, column, kind)
            found.append(Verdict(kind, values, criterion_name(str(name)), annotator, margin))
    for column in CRITERIA_COLUMNS:
        if _is_number(row.get(column)) and count == 1:
            found.append(Verdict("ratings", (float(row[column]),), criterion_name(column), annotator))
    return tuple(verdict for verdict in found if any(value is not None for value in verdict.values))


def chosen_over(row: Row) -> tuple[Verdict, ...]:
    """What a row with a chosen and a rejected answer says of them, in this order."""
    found = verdicts_of(row, 2)
    scores = next((pair for pair in _SCORES if all(_is_number(row.get(key)) for key in pair)), None)
    if scores is not None:
        annotator, criterion = (_first_text(row, keys) for keys in (ANNOTATOR, CRITERION))
        values = (float(row[scores[0]]), float(row[scores[1]]))
        found += (Verdict("ratings", values, criterion_name(criterion), annotator),)
    return in_order(row, found, (0.0, 0.0 if row.get("tie") else 1.0))


def in_order(row: Row, found: tuple[Verdict, ...], ranks: Values) -> tuple[Verdict, ...]:
    """What was ``found`` of answers that stand in an order, with the ``ranks`` that the order tells."""
    if any(verdict.kind == "ranks" for verdict in found) or any("kind" in entry for entry in _entries(row)):
        return found  # ranks are given; and a row that graftlm wrote says all there is
    annotator, criterion = (_first_text(row, keys) for keys in (ANNOTATOR, CRITERION))
    margin = _number(row.get("margin"), "margin") or 0.0
    return (Verdict("ranks", ranks, criterion_name(criterion), annotator, margin), *found)


_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
)
SCORES = tuple(column for pair in _SCORES for column in pair)


def overall(verdicts: Sequence[Verdict], count: int) -> list[float] | None:
    """How good each of ``count`` answers is on the whole, the highest is the best; None where nothing was said.

    Ranks go before ratings, and ratings before labels; of one kind, what is said as a whole goes before criteria. What
    is left is averaged; an answer that was not judged has −∞.
    """
    for kind in ("ranks", "ratings", "labels"):
        of_kind = [verdict for verdict in verdicts if verdict.kind == kind]
        used = [verdict for verdict in of_kind if not verdict.criterion] or of_kind
        if used:
            each = zip(*(verdict.scores for verdict in used), strict=True)
            said = [[score for score in scores if score is not None] for scores in each]
            return [math.fsum(scores) / len(scores) if scores else -math.inf for scores in said[:count]]
    return None


def scores_of(instance: Instance, criterion: str | None = None) -> list[float | None] | None:
    """How good each answer of an instance is, the highest is the best: on the whole, or by one criterion.

    Several annotators are averaged. None stands for an answer that was not judged, and None alone where nothing was
    said by this criterion. Answers of which nothing is said at all stand best first.
    """
    count = len(instance.answers)
    if not instance.verdicts:
        return [-float(place) for place in range(count)] if count > 1 and not criterion else None
    used = [verdict for verdict in instance.verdicts if criterion in (None, verdict.criterion)]
    scores = overall(used, count)
    return None if scores is None else [None if score == -math.inf else score for score in scores]


def label_of(instance: Instance, criterion: str | None = None) -> bool | None:
    """Whether a single answer is good: what most annotators say, and None where as many say the other or none does."""
    said = [
        verdict.values[0]
        for verdict in instance.verdicts
        if verdict.kind == "labels" and criterion in (None, verdict.criterion) and len(verdict.values) == 1
    ]
    balance = sum(2 * value - 1 for value in said if value is not None)
    return None if balance == 0 else balance > 0


def margin_of(instance: Instance, criterion: str | None = None) -> float:
    """By how much the better answers are better: the mean of the margins that were given, else 0."""
    given = [v.margin for v in instance.verdicts if v.margin and criterion in (None, v.criterion)]
    return math.fsum(given) / len(given) if given else 0.0


def best_first(answers: Sequence[str], verdicts: Sequence[Verdict]) -> tuple[list[str], tuple[Verdict, ...]]:
    """Answers and verdicts in the order of :func:`overall`; equally good ones stay as they stand.

    A verdict that says no more than this order is left out.
    """
    scores = overall(verdicts, len(answers))
    order = list(range(len(answers)))
    if scores is not None:
        order.sort(key=lambda place: -scores[place])
    moved = tuple(replace(verdict, values=tuple(verdict.values[place] for place in order)) for verdict in verdicts)
    return [answers[place] for place in order], () if _obvious(moved) else moved


def settled(instance: Instance, note: Callable[[str], None] = lambda reason: None) -> Instance:
    """The instance without answers that are empty or equal to a better one of a list; ``note`` is told of each.

    Raises:
        RowProblem: two answers that are all there is are the same, one answer is left, or a verdict is of another
            number of answers.
    """
    if not instance.is_preference:
        return instance
    answers = instance.answers
    if any(len(verdict.values) != len(answers) for verdict in instance.verdicts):
        raise RowProblem("a verdict has not one value for each answer")
    texts = [answer.strip() for answer in answers]
    if len(answers) == 2 and texts[0] == texts[1]:
        raise RowProblem("the chosen and the rejected answer are the same")
    kept = list(range(len(answers)))
    if len(answers) > 2:
        kept = [place for place in kept if texts[place] and texts[place] not in texts[:place]]
        if len(kept) < 2:
            raise RowProblem("a ranked list of one answer")
        for place in sorted(set(range(len(answers))).difference(kept)):
            note(EQUAL if texts[place] else EMPTY)
    if len(kept) == len(answers):
        return instance
    first = instance.conversation
    messages = [*first[:-1], replace(first[-1], content=answers[kept[0]])]
    messages += [replace(instance.others[place - 1]) for place in kept[1:]]
    verdicts = tuple(replace(v, values=tuple(v.values[place] for place in kept)) for v in instance.verdicts)
    return replace(instance, messages=tuple(messages), verdicts=verdicts)


def judged_by(instance: Instance, criterion: str) -> Instance:
    """The instance with ``criterion`` for what its verdicts, or the order of its answers, say as a whole."""
    if not instance.is_preference or not criterion:
        return instance
    ordered = (Verdict("ranks", tuple(map(float, range(len(instance.answers))))),)
    verdicts = tuple(replace(v, criterion=v.criterion or criterion) for v in instance.verdicts or ordered)
    return replace(instance, verdicts=verdicts)


def of_answers(entries: Sequence[Row], count: int) -> Row:
    """Ratings, ranks and labels that stand beside each of ``count`` answers, as columns of the whole row."""
    columns: Row = {}
    for column in ("rank", "rating", "label"):
        if any(entry.get(column) is not None for entry in entries):
            columns[column + "s"] = [entry.get(column) for entry in entries]
    by_criterion: dict[str, list[Any]] = {}
    for place, entry in enumerate(entries):
        ratings = entry.get("ratings") or entry.get("annotations") or {}
        if not isinstance(ratings, dict):
            raise RowProblem("the ratings of an answer are no object")
        for name, said in ratings.items():
            value = said.get("Rating", said.get("rating")) if isinstance(said, dict) else said
            by_criterion.setdefault(str(name), [None] * count)[place] = value
    if by_criterion:
        columns["ratings"] = by_criterion
    return columns


def as_columns(instance: Instance) -> list[Row]:
    """The verdicts of an instance as rows hold them under ``verdicts``."""
    return [
        {"kind": v.kind, "values": list(v.values)}
        | {name: value for name in ("criterion", "annotator", "margin") if (value := getattr(v, name))}
        for v in instance.verdicts
    ]


def _entries(row: Row) -> Iterator[Row]:
    for column in SEVERAL:
        entries = row.get(column)
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise RowProblem(f"field '{column}' is not a list of objects")
        yield from entries


def _stored(entry: Row, count: int) -> Verdict:
    kind = entry["kind"]
    if kind not in ("ranks", "ratings", "labels"):
        raise RowProblem(f"unknown kind of verdict '{_short(kind)}'")
    values = _values(entry.get("values"), count, "values", kind)
    annotator, criterion = (_first_text(entry, keys) for keys in (ANNOTATOR, CRITERION))
    margin = _number(entry.get("margin"), "margin") or 0.0
    return Verdict(kind, values, criterion_name(criterion), annotator, margin)


def _values(said: Any, count: int, column: str, kind: Kind) -> Values:
    listed = said if isinstance(said, list) else [said]
    if len(listed) != count:
        raise RowProblem(f"field '{column}' has not one value for each answer")
    return tuple(_label(each) if kind == "labels" else _number(each, column) for each in listed)


def _label(value: Any) -> float | None:
    if value is None:
        return None
    word = str(int(value)) if isinstance(value, float) and value in (0, 1) else str(value).strip().lower()
    if word in GOOD or word in BAD:
        return float(word in GOOD)
    raise RowProblem(f"unknown label '{_short(value)}'")


def _number(value: Any, column: str) -> float | None:
    if value is None or (isinstance(value, str) and value.strip().lower() in UNKNOWN):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RowProblem(f"field '{column}' holds '{_short(value)}', which is no number") from error
    if not math.isfinite(number):
        raise RowProblem(f"field '{column}' holds '{_short(value)}', which is no number")
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _first_text(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    for column in columns:
        if isinstance(row.get(column), str | int):
            return str(row[column]).strip()
    return ""


def _short(value: Any) -> str:
    return " ".join(str(value).split())[:SHOWN]


def _obvious(verdicts: Sequence[Verdict]) -> bool:
    """Whether all that is said is that the answers stand best first."""
    if len(verdicts) != 1 or verdicts[0].kind != "ranks" or None in verdicts[0].values:
        return False
    one = verdicts[0]
    rising = all(a < b for a, b in zip(one.values, one.values[1:], strict=False))  # type: ignore[operator]
    return rising and not (one.criterion or one.annotator or one.margin)
