"""What training did for one adapter, as one sentence that claims no more than the held-out rows show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from graftlm.evaluation import wording
from graftlm.evaluation.statistics import (
    Change,
    Interval,
    Score,
    accuracy_change,
    loss_change,
    loss_interval,
    wilson_interval,
)

Kind = Literal["better", "mixed", "no gain found", "worse", "diverged", "not measured"]
FEW_ROWS = 20  # below, intervals are too rough to build on, and the sentence says so


@dataclass(frozen=True)
class Verdict:
    """The judgement on one adapter. ``accuracy`` and ``loss`` are None without held-out rows."""

    kind: Kind
    sentence: str
    accuracy: Change | None = None
    loss: Change | None = None
    accuracy_before: Interval | None = None
    accuracy_after: Interval | None = None
    loss_before: Interval | None = None
    loss_after: Interval | None = None
    rows: int = 0


def judge(
    before: Sequence[Score],
    after: Sequence[Score],
    *,
    ended: tuple[str, str] = ("finished", ""),
    train_loss: Sequence[tuple[int, float]] = (),
    best_step: int = 0,
    right: str = "exact answers",
) -> Verdict:
    """Compare the scores of the same held-out rows before and after training.

    Args:
        ended: why training stopped ("finished", "early stop", "diverged") and a detail.
        train_loss: (step, loss) of the training steps, told where there are no held-out rows.
        best_step: the step whose parameters were kept.
        right: what a row is that is right.
    Raises:
        ValueError: the two lists do not score the same rows.
    """
    diverged = ended[0] == "diverged"
    if not after or not before:
        told = _training_only(train_loss)
        if diverged:
            return Verdict("diverged", f"{_divergence(ended[1])}. No held-out rows to judge what was kept")
        return Verdict("not measured", f"no held-out rows, so no gain is claimed{told}")
    loss, accuracy = loss_change(before, after), accuracy_change(before, after)
    broken = diverged or not math.isfinite(loss.after)
    kind: Kind = "diverged" if broken else _kind(accuracy, loss)
    sentence = _comparison(accuracy, loss, right)
    if broken:
        kept = f"The state of step {best_step:,} was kept; {sentence}"
        if not math.isfinite(loss.after):
            kept = "Its held-out loss is not a finite number, so nothing can be said for it"
        sentence = f"{_divergence(ended[1])}. {kept}"
    if len(after) < FEW_ROWS:
        sentence += f" (only {wording.plural(len(after), 'held-out row')}: a rough measure)"
    return Verdict(
        kind,
        sentence,
        accuracy,
        loss,
        _exact_interval(before),
        _exact_interval(after),
        loss_interval(before),
        loss_interval(after),
        len(after),
    )


def _kind(accuracy: Change, loss: Change) -> Kind:
    gains = [accuracy.low > 0, loss.high < 0]
    harms = [accuracy.high < 0, loss.low > 0]
    if any(gains):
        return "mixed" if any(harms) else "better"
    return "worse" if any(harms) else "no gain found"


def _comparison(accuracy: Change, loss: Change, right: str) -> str:
    decimals = wording.loss_decimals(loss)
    points, nats = wording.share_pair(accuracy), wording.loss_pair(loss, decimals)
    exact = f"{right} {wording.share(accuracy.before)} → {wording.share(accuracy.after)}"
    if abs(loss.value) >= 0.05:  # a sentence reads better with two decimals, where they tell before from after
        decimals = min(decimals, 2)
    losses = f"loss {wording.loss(loss.before, decimals)} → {wording.loss(loss.after, decimals)}"
    if not (accuracy.significant or loss.significant):
        return f"no gain found: {exact} ({points}), {losses} ({nats})"
    exact += f" ({points}{_caveat(accuracy, bad=accuracy.high < 0)})"
    if loss.high < 0:  # the plain case stays short
        return f"{exact}, {losses}"
    return f"{exact}, {losses} ({nats}{_caveat(loss, bad=loss.low > 0)})"


def _caveat(change: Change, *, bad: bool) -> str:
    if not change.known:
        return ""
    if change.significant:
        return ": worse" if bad else ""
    return ": no gain found"


def _divergence(detail: str) -> str:
    return f"diverged ({detail})" if detail else "diverged"


def _training_only(train_loss: Sequence[tuple[int, float]]) -> str:
    losses = [loss for _, loss in train_loss if math.isfinite(loss)]
    if len(losses) < 2:
        return ""
    tenth = max(1, len(losses) // 10)
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    return f"; training loss {wording.loss(first)} → {wording.loss(last)}"


def _exact_interval(scores: Sequence[Score]) -> Interval:
    return wilson_interval(sum(score.exact for score in scores), len(scores))
