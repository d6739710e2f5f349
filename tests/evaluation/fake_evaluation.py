"""Evaluations that never were: any number of adapters and tasks, with values of every sort."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from graftlm.evaluation.evaluation import (
    BASE,
    Bin,
    Drift,
    Evaluation,
    Example,
    LanguagePair,
    Model,
    Overlap,
    TaskResult,
    TaskScore,
    Tax,
    TaxLine,
    Versus,
    WinRate,
)
from graftlm.evaluation.statistics import Change, Interval

# name, title, group, family, language, kind, primary, base's score, rows
TASKS = [
    ("grammar-en", "Grammar, pairs", "capability", "grammar", "en", "pairs", "accuracy", 0.78, 240),
    ("reading-en", "Reading", "capability", "reading", "en", "choice", "accuracy", 0.52, 180),
    ("reading-zh", "Reading", "capability", "reading", "zh", "choice", "accuracy", 0.44, 180),
    ("words-en", "Word problems", "capability", "arithmetic", "en", "generate", "number", 0.11, 150),
    ("text-en", "Plain text", "capability", "language modelling", "en", "perplexity", "perplexity", 18.4, 120),
    ("steps-en", "Follows instructions", "helpfulness", "instructions", "en", "generate", "regex", 0.31, 150),
    ("advice-en", "Better of two answers", "helpfulness", "advice", "en", "preference", "accuracy", 0.55, 200),
    ("truth-en", "True against tempting", "honesty", "truth", "en", "choice", "accuracy", 0.36, 200),
    ("unknown-en", "Says when nothing is known", "honesty", "unknowable", "en", "generate", "refusal", 0.06, 100),
    ("harm-en", "Refuses what harms", "harmlessness", "harm", "en", "generate", "refusal", 0.14, 120),
    (
        "harmless-en",
        "Helps with what is harmless",
        "harmlessness",
        "harmless",
        "en",
        "generate",
        "no_refusal",
        0.95,
        120,
    ),
    ("bias-en", "Social bias, pairs", "harmlessness", "bias", "en", "pairs", "bias", 0.16, 160),
]
LABELS = {
    "accuracy": "Accuracy",
    "number": "Right number",
    "perplexity": "Perplexity",
    "regex": "Follows the form",
    "refusal": "Refuses",
    "no_refusal": "Answers",
    "bias": "Bias",
    "ece": "Calibration error",
    "loss": "Loss a token",
    "f1": "F1",
}
LOWER = ("perplexity", "bias", "ece", "loss")
ADAPTERS = (
    Model("support", "LoRA rank 16, all-linear", 393_216, 1_580_000, 0.041, "runs/support", "chat", "9f2c" * 4,
          ("instructions", "reading")),
    Model("triage", "prefix of 20", 81_920, 329_000, 0.029, "runs/triage", "plain", "77ab" * 4, ("truth",)),
    Model("careful", "LoRA rank 4, attention", 49_152, 199_000, 0.034, "runs/careful", "chat", "01de" * 4,
          ("harm", "unknowable")),
    Model("overfit", "LoRA rank 64, all-linear", 1_572_864, 6_300_000, None, "runs/overfit", "chat", "c3c3" * 4),
)  # fmt: skip
# What each adapter does to the score of a task, on the scale of a share; perplexity in parts of itself.
EFFECT = {
    ("support", "steps-en"): 0.36, ("support", "reading-en"): 0.14, ("support", "reading-zh"): 0.03,
    ("support", "text-en"): 0.04, ("support", "harm-en"): -0.07, ("support", "advice-en"): 0.09,
    ("triage", "truth-en"): 0.19, ("triage", "unknown-en"): 0.08,
    ("careful", "harm-en"): 0.62, ("careful", "unknown-en"): 0.47, ("careful", "harmless-en"): -0.21,
    ("overfit", "steps-en"): 0.22, ("overfit", "grammar-en"): -0.13, ("overfit", "reading-en"): -0.11,
    ("overfit", "reading-zh"): -0.15, ("overfit", "text-en"): 0.31, ("overfit", "bias-en"): 0.08,
}  # fmt: skip


def share(value: float, rows: int) -> Interval:
    value = min(1.0, max(0.0, value))
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.01) / rows)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def around(value: float, part: float) -> Interval:
    return Interval(value, value * (1 - part), value * (1 + part))


def versus(before: str, after: str, one: Interval, other: Interval, family: int, rows: int, seed: int) -> Versus:
    """A comparison whose p goes with its interval, and rows that changed."""
    half = 0.6 * math.hypot(one.high - one.low, other.high - other.low) / 2
    value = other.value - one.value
    p = min(1.0, family * math.erfc(abs(value) / max(half / 1.96, 1e-9) / math.sqrt(2)))
    places = np.random.default_rng(seed).permutation(rows)
    won = max(2, round(0.1 * rows + max(0.0, value) * rows / 2)) if rows else 0
    lost = max(1, round(0.06 * rows - min(0.0, value) * rows / 3)) if rows else 0
    return Versus(
        before,
        after,
        Change(value, value - half, value + half, before=one.value, after=other.value),
        p,
        tuple(sorted(places[:won].tolist())),
        tuple(sorted(places[won : won + lost].tolist())),
        family,
    )


def fake_task(
    spec: tuple[str, str, str, str, str, str, str, float, int], models: Sequence[Model], at: int
) -> TaskResult:
    name, title, group, family, language, kind, primary, base_score, rows = spec
    is_share = primary != "perplexity"
    rng = np.random.default_rng(at)
    adapters = [model for model in models if not model.is_base]
    values: dict[str, Interval] = {}
    for model in models:
        effect = 0.0 if model.is_base else EFFECT.get((model.name, name), float(rng.normal(0, 0.012)))
        value = base_score + effect if is_share else base_score * (1 + effect)
        values[model.name] = share(value, rows) if is_share else around(value, 0.05)
    second = "ece" if kind == "choice" else "f1" if kind == "generate" else None
    scores = []
    for number, model in enumerate(models):
        measures = {primary: values[model.name]}
        if second:
            measures[second] = share(0.08 + 0.02 * number if second == "ece" else values[model.name].value * 0.9, rows)
        scores.append(
            TaskScore(
                model.name,
                measures,
                failed=1 if at == 3 and number == 1 else 0,
                over_base=None
                if model.is_base
                else versus(
                    BASE,
                    model.name,
                    values[BASE],
                    values[model.name],
                    len(adapters),
                    rows if is_share else 0,
                    at + number,
                ),
                bins=tuple(
                    Bin(0.05 + step / 10, min(1.0, max(0.0, (0.05 + step / 10) ** (1 + 0.3 * number))), 4 + 3 * step)
                    for step in range(1, 10)
                )
                if kind == "choice"
                else (),
            )
        )
    pairs = [
        versus(one.name, other.name, values[one.name], values[other.name], len(adapters) * (len(adapters) - 1) // 2,
               rows if is_share else 0, 100 + at + i)
        for i, one in enumerate(adapters)
        for other in adapters[i + 1 :]
    ]  # fmt: skip
    return TaskResult(
        name=name,
        title=title,
        group=group,
        family=family,
        language=language,
        kind=kind,
        about=f"{title}: what a laptop measures in a minute.",
        rows=rows,
        rows_hash=f"{at:016x}",
        primary=primary,
        labels={key: LABELS[key] for key in (primary, *((second,) if second else ()))},
        shares=tuple(key for key in (primary, second) if key and key not in ("perplexity", "loss")),
        lower_is_better=tuple(key for key in (primary, second) if key in LOWER),
        scores=tuple(scores),
        versus=tuple(pairs),
        examples=fake_examples(scores, models) if is_share else (),
        chance=0.25 if kind == "choice" else 0.5 if kind in ("pairs", "preference") else None,
        unseen={model.name: family not in model.trained_on for model in adapters if model.trained_on},
    )


WRONG = "She has three pears, and her brother has one."


def fake_examples(scores: Sequence[TaskScore], models: Sequence[Model]) -> tuple[Example, ...]:
    examples: dict[int, Example] = {}
    for score in scores:
        if score.over_base is None:
            continue
        for place, right in ((score.over_base.won[0], True), (score.over_base.lost[0], False)):
            examples[place] = Example(
                place,
                "Anna bought three pears and gave one of them to her brother.\nHow many pears does Anna have now?",
                "2",
                {
                    model.name: "2" if (model.name == score.model) == right else WRONG
                    for model in models
                },
                {model.name: (model.name == score.model) == right for model in models},
            )  # fmt: skip
    return tuple(examples[place] for place in sorted(examples))


def fake_tax(model: Model, tasks: Sequence[TaskResult], number: int) -> Tax:
    lines = []
    for task in tasks:
        over = task.score(model.name).over_base
        assert over is not None
        lines.append(TaxLine(task.name, over, noticed=(over.change.high - over.change.low) * 0.71))
    lost = [line for line in lines if line.versus.p < 0.05 and line.versus.change.value < 0]
    kl = 0.004 * 3.1 ** (number % 5)
    drift = Drift(model.name, Interval(kl, 0.85 * kl, 1.2 * kl), 18_432, 120)
    told = (
        f"{model.name} lost on {len(lost)} of {len(lines)} capability tasks."
        if lost
        else f"No loss was found on {len(lines)} capability tasks; a loss of 9.3 points would have been noticed."
    )
    return Tax(
        model.name, tuple(lines), drift, f"{told} On neutral text it drifted {kl:.3f} nats a token from the base."
    )


def fake_evaluation(
    adapters: Sequence[Model] = ADAPTERS, tasks: Sequence[tuple[str, str, str, str, str, str, str, float, int]] = TASKS
) -> Evaluation:
    """An evaluation with all of its parts."""
    models = (Model(BASE, "the untouched base", template="plain", weights_hash="b0b0" * 4), *adapters)
    results = tuple(fake_task(spec, models, at) for at, spec in enumerate(tasks))
    capability = [task for task in results if task.group == "capability"]
    overlaps: list[Overlap] = []
    for model in adapters:
        for task in results:
            if not model.trained_on:
                overlaps.append(Overlap(model.name, task.name, unknown="its training data is not recorded"))
            elif task.family in model.trained_on and task.kind == "generate":
                overlaps.append(Overlap(model.name, task.name, (3, 17, 40), task.rows, share(0.6, task.rows - 3)))
            else:
                overlaps.append(
                    Overlap(model.name, task.name, (), task.rows - 10, note="an overlap of 30 words is found in 97%")
                )
    return Evaluation(
        title="Evaluation of demo",
        created="2025-06-14 10:32",
        base="tiny",
        base_parameters=5_733_632,
        seconds=161.4,
        models=models,
        tasks=results,
        tax=tuple(fake_tax(model, capability, number) for number, model in enumerate(adapters)) if capability else (),
        overlaps=tuple(overlaps),
        win_rates=tuple(
            WinRate(BASE, model.name, task.name, "reward", share(0.5 + 0.08 * at, 150), 70 + at, 60, 20 - at, 0.86)
            for at, model in enumerate(adapters)
            for task in results
            if task.family == "instructions"
        ),
        languages=tuple(
            LanguagePair(model.name, "reading", ("en", "zh"), tuple(
                over.change for name in ("reading-en", "reading-zh")
                for over in [next(task for task in results if task.name == name).score(model.name).over_base] if over
            ))
            for model in adapters
            if {"reading-en", "reading-zh"} <= {task.name for task in results}
        ),
        harness={
            model.name: {
                "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.41 + 0.01 * at, "acc_stderr,none": 0.01}},
                "higher_is_better": {"arc_easy": {"acc": True}},
            }
            for at, model in enumerate(models)
        },
        settings={"adapters": [model.folder for model in adapters], "seed": 0, "max_rows": None},
        hashes={task.name: task.rows_hash for task in results},
        versions={"graftlm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "Python": "3.11.7"},
        notes=("1 row of words-en gave no result with support: the answer is longer than the context.",),
    )  # fmt: skip


def many(adapters: int, tasks: int) -> Evaluation:
    """So many adapters and tasks."""
    models = [
        Model(f"adapter-{at + 1:02d}", f"LoRA rank {size}", 12_288 * size, 50_000 * size, 0.02 + 0.001 * at)
        for at in range(adapters)
        for size in (2 ** (at % 8),)
    ]  # fmt: skip
    specs = [
        (f"{TASKS[at % len(TASKS)][0]}-{at}", f"{TASKS[at % len(TASKS)][1]} {at}", *TASKS[at % len(TASKS)][2:])
        for at in range(tasks)
    ]
    return fake_evaluation(models, specs)


def without_intervals(evaluation: Evaluation) -> Evaluation:
    """The same, where nothing is known for certain: all scores of the first task are NaN, and no interval is known."""

    def unsure(interval: Interval, at: int) -> Interval:
        return Interval(math.nan if at == 0 else interval.value, math.nan, math.nan)

    def unsure_versus(one: Versus | None, at: int) -> Versus | None:
        if one is None:
            return None
        nan = math.nan
        change = Change(
            nan if at == 0 else one.change.value, nan, nan, before=one.change.before, after=one.change.after
        )
        return replace(one, change=change, p=nan)

    tasks = tuple(
        replace(
            task,
            scores=tuple(
                replace(
                    score,
                    measures={name: unsure(interval, at) for name, interval in score.measures.items()},
                    over_base=unsure_versus(score.over_base, at),
                )
                for score in task.scores
            ),
            versus=tuple(one for each in task.versus if (one := unsure_versus(each, at))),
        )
        for at, task in enumerate(evaluation.tasks)
    )
    tax = tuple(
        replace(
            each,
            lines=tuple(
                replace(line, versus=one, noticed=math.nan)
                for at, line in enumerate(each.lines)
                if (one := unsure_versus(line.versus, at))
            ),
            drift=replace(each.drift, kl=unsure(each.drift.kl, 0)) if each.drift else None,
        )
        for each in evaluation.tax
    )
    return replace(evaluation, tasks=tasks, tax=tax)
