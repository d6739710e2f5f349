"""The alignment tax: what an adapter lost of what the base can do, or how small a loss would have been noticed."""

from __future__ import annotations

import math
from collections.abc import Sequence

from graftlm.evaluation import wording
from graftlm.evaluation.eval_words import score_text
from graftlm.evaluation.evaluation import Drift, TaskResult, Tax, TaxLine, Versus
from graftlm.evaluation.power import ALPHA, noticed_change, noticed_share

GROUP = "capability"
NAMED = 3  # so many losses are named in the sentence; the table has all


def tax_of(model: str, tasks: Sequence[TaskResult], drift: Drift | None = None, *, group: str = GROUP) -> Tax:
    """What an adapter costs on the tasks of a group.

    Args:
        tasks: with p-values corrected over the evaluation; those of other groups or without the base are passed over.
    """
    pairs = [
        (task, score.over_base)
        for task in tasks
        for score in task.scores
        if task.group == group and score.model == model and score.over_base is not None
    ]
    lines = tuple(TaxLine(task.name, versus, noticed_loss(task, versus)) for task, versus in pairs)
    found = {task.name: task for task, _ in pairs}
    return Tax(model, lines, drift, " ".join([_sentence(lines, found, group), *_drift(drift)]))


def noticed_loss(task: TaskResult, versus: Versus) -> float:
    """The smallest loss of a task's primary score that would have been found with 80% power; NaN: none, or unknown."""
    if task.primary not in task.shares:
        return noticed_change(versus.error, versus.family)
    loss = noticed_share(task.rows, len(versus.won) + len(versus.lost), versus.family)
    return loss if loss <= max(versus.change.before, versus.change.after) else math.nan  # more than there is to lose


def is_loss(task: TaskResult, versus: Versus) -> bool:
    """Whether a change for the worse was found, after correction."""
    worse = versus.change.value > 0 if task.primary in task.lower_is_better else versus.change.value < 0
    return worse and versus.p < ALPHA


def _sentence(lines: Sequence[TaxLine], tasks: dict[str, TaskResult], group: str) -> str:
    if not lines:
        return f"No {group} task was scored for both the base and this adapter, so nothing is known of losses."
    lost = sorted((line for line in lines if is_loss(tasks[line.task], line.versus)), key=lambda line: line.versus.p)
    rest = [line for line in lines if line not in lost]
    total = wording.plural(len(lines), f"{group} task")
    if not lost:
        where = f"on {_title(lines[0], tasks)}, the only {group} task" if len(lines) == 1 else f"on {total}"
        return f"No loss was found {where}; {_noticed(rest, tasks)}."
    named = "; ".join(_loss(line, tasks[line.task]) for line in lost[:NAMED])
    more = f"; and {len(lost) - NAMED} more in the table" if len(lost) > NAMED else ""
    if len(lines) == 1:
        return f"Lost on the only {group} task: {named}."
    said = f"Lost on {len(lost)} of {total}: {named}{more}."
    if rest:
        other = f"the other {len(rest)}" if len(rest) > 1 else _title(rest[0], tasks)
        said += f" On {other} no loss was found; {_noticed(rest, tasks)}."
    return said


def _loss(line: TaxLine, task: TaskResult) -> str:
    change = line.versus.change
    ends = sorted((abs(change.low), abs(change.high)))
    spread = f"{_amount(ends[0], task, bare=True)} to {_amount(ends[1], task, bare=True)}"
    if not change.known:
        spread = "unknown"
    elif change.low <= 0 <= change.high:  # the interval is not corrected and may be of another method than p
        spread = f"{_amount(change.low, task, bare=True)} to {_amount(change.high, task, bare=True)} as a change"
    way = "rose" if change.value > 0 else "fell"
    family = f", corrected for {line.versus.family} comparisons" if line.versus.family > 1 else ""
    return (
        f"{task.labels[task.primary]} on {task.title} {way} by {_amount(abs(change.value), task)} "
        f"(95% interval {spread}; p {_p(line.versus.p)}{family})"
    )


def _noticed(lines: Sequence[TaxLine], tasks: dict[str, TaskResult]) -> str:
    """How small a loss would have been found: shares as a range, others by name."""
    known = [line for line in lines if math.isfinite(line.noticed)]
    shares = sorted((line for line in known if _is_share(line, tasks)), key=lambda line: line.noticed)
    others = [line for line in known if not _is_share(line, tasks)]
    parts: list[str] = []
    if shares:
        first, last = shares[0], shares[-1]
        low, high = _amount(first.noticed, tasks[first.task]), _amount(last.noticed, tasks[last.task])
        if len(lines) == 1:
            parts.append(low)
        elif len(shares) == 1 or low == high:
            parts.append(f"{low} ({', '.join(_title(line, tasks) for line in shares[:NAMED])})")
        else:
            parts.append(f"{low} ({_title(first, tasks)}) to {high} ({_title(last, tasks)})")
    for line in others[:NAMED]:
        task = tasks[line.task]
        amount = f"{_amount(line.noticed, task)} of {task.labels[task.primary]}"
        parts.append(amount if len(lines) == 1 else f"{amount} ({task.title})")
    if not parts:
        return "the rows are too few to notice any"
    said = f"a loss of {_listed(parts)} would have been noticed four times out of five"
    hidden = len(others) - len(others[:NAMED])
    unknown = len(lines) - len(known)
    if hidden:
        said += f", for {hidden} more see the table"
    if unknown:
        said += f"; on {unknown} of them the rows are too few to notice any"
    return said


def _drift(drift: Drift | None) -> list[str]:
    if drift is None or not math.isfinite(drift.kl.value):
        return []
    kl = drift.kl
    spread = f", 95% interval {wording.loss(kl.low, 3)} to {wording.loss(kl.high, 3)}" if kl.known else ""
    return [
        f"On neutral text it drifted {wording.loss(kl.value, 3)} nats a token from the base "
        f"(KL{spread}, {wording.plural(drift.tokens, 'token')})."
    ]


def _is_share(line: TaxLine, tasks: dict[str, TaskResult]) -> bool:
    task = tasks[line.task]
    return task.primary in task.shares


def _title(line: TaxLine, tasks: dict[str, TaskResult]) -> str:
    return tasks[line.task].title


def _amount(number: float, task: TaskResult, *, bare: bool = False) -> str:
    """Points of a share, or the number, as in the tables."""
    if task.primary not in task.shares:
        return score_text(number, share=False)
    text = f"{100 * number:.1f}".replace("-", wording.MINUS)
    return text if bare else f"{text} points"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} or {parts[-1]}"
