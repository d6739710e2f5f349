"""Write the recipes of adapters that learn from 1, 2, 4 and 6 families of P3's tasks, and of their run.

    python benchmarks/instruction_data/families.py write FOLDER    # FOLDER/families/*.yaml and FOLDER/families-run.yaml
    python benchmarks/instruction_data/families.py check FOLDER    # what training rows and unseen tasks have in common
    python benchmarks/instruction_data/families.py plot FOLDER PICTURE

Every adapter learns from as many rows, and every family serves equally often at each number of families, so that
nothing but that number differs. ``check`` ends with 1 where a template, a data set or an answer is on both sides.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAMILIES = ("closed-book", "common-sense", "reading-choice", "reading-open", "structure-to-text", "summarising")
PAIRS = (FAMILIES[0:2], FAMILIES[2:4], FAMILIES[4:6])
CHOICES: dict[int, list[tuple[str, ...]]] = {
    1: [(family,) for family in FAMILIES],
    2: list(PAIRS),
    4: [tuple(family for family in FAMILIES if family not in pair) for pair in PAIRS],
    6: [FAMILIES] * 3,
}
ROWS = 640
SET = """\
# {number} of P3's families, {rows} rows in equal parts; nothing with an answer or 13 words in a row of an unseen task.
seed: {seed}
sources:
  p3: {{path: sets/p3}}
filters:
  max_prompt: 100
  max_answer: 60
  shared_answers: {{unseen: sets/p3-unseen}}
  overlap: {{unseen: sets/p3-unseen}}
mixture: {{method: fixed, by: task, shares: {{{shares}}}, total: {rows}}}
"""
RUN = """\
# Adapters that learn from 1, 2, 4 and 6 families of tasks, all scored on the tasks of three others.
base: tiny
data:
{data}
adapters:
{adapters}
training: {{epochs: 2, batch_rows: 8, learning_rate: 2.0e-3, eval_every: 80}}
"""


def names() -> dict[str, tuple[int, int, tuple[str, ...]]]:
    """Name → number of families, seed, families."""
    return {
        f"{number}-{'abcdef'[seed]}": (number, seed, chosen)
        for number, choices in CHOICES.items()
        for seed, chosen in enumerate(choices)
    }


def write(folder: Path) -> None:
    (folder / "families").mkdir(parents=True, exist_ok=True)
    data, adapters = [], []
    for name, (number, seed, chosen) in names().items():
        shares = ", ".join(f"{family}: 1" for family in chosen)
        text = SET.format(number=number, rows=ROWS, seed=seed, shares=shares)
        (folder / "families" / f"{name}.yaml").write_text(text, encoding="utf-8")
        held_out = "held_out_path: sets/p3-exam, max_length: 320"
        data.append(f"  f{name}: {{path: sets/families/{name}, {held_out}}}")
        adapters.append(f"  f{name}: {{method: lora, rank: 16, data: f{name}, seed: {seed}, group: {number}-families}}")
    text = RUN.format(data="\n".join(data), adapters="\n".join(adapters))
    (folder / "families-run.yaml").write_text(text, encoding="utf-8")


def check(folder: Path) -> bool:
    """Print what is on both sides; whether that is nothing."""
    from graftlm.data.filters import Contamination
    from graftlm.data.instances import Instance
    from graftlm.data.p3 import data_set_of
    from graftlm.data.sets import read_set
    from graftlm.data.texts import answer_of, prompt_of

    unseen = list(read_set(folder / "sets" / "p3-unseen"))
    learnt = [row for name in names() for row in read_set(folder / "sets" / "families" / name)]
    kinds: dict[str, Callable[[Instance], str]] = {
        "families": lambda row: row.provenance.task,
        "data sets": lambda row: data_set_of(row.provenance.template),
        "templates": lambda row: row.provenance.template,
        "answers": lambda row: " ".join(answer_of(row).casefold().split()),
        "prompts": lambda row: " ".join(prompt_of(row).casefold().split()),
    }
    print(f"{'':<28}{'learnt':>9}{'unseen':>9}{'in both':>9}")
    print(f"{'rows':<28}{len(learnt):>9,}{len(unseen):>9,}")
    clean = True
    for kind, of in kinds.items():
        ours, theirs = {of(row) for row in learnt}, {of(row) for row in unseen}
        print(f"{'different ' + kind:<28}{len(ours):>9,}{len(theirs):>9,}{len(ours & theirs):>9,}")
        clean &= not ours & theirs
    runs = Contamination()
    runs.add("unseen", (message.content for row in unseen for message in row.messages))
    hits = sum(runs.judge("", row) is not None for row in learnt)
    print(f"{'rows with 13 words in a row':<28}{'':>18}{hits:>9,}")
    return clean and not hits


def plot(folder: Path, picture: Path) -> None:
    """Score on the unseen tasks against the number of families: every adapter, and the mean with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("accuracy among the template's answers, %", 100, _comparison(folder / "runs" / "families-run", "accuracy")),
        (
            "loss a token of the right answer (lower is better)",
            1,
            _comparison(folder / "runs" / "families-loss", "loss"),
        ),
    ]
    figure = Figure(figsize=(9.2, 4.3), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    for at, (label, scale, found) in enumerate(panels):
        axes = figure.add_subplot(1, 2, at + 1)
        base = found["base"]
        axes.axhspan(scale * base["low"], scale * base["high"], color="#b0572c", alpha=0.12, linewidth=0)
        axes.axhline(scale * base["value"], color="#b0572c", linestyle="--", linewidth=1, label="untouched base")
        if found["majority"] is not None:
            axes.axhline(
                scale * found["majority"], color="#59626c", linestyle=":", linewidth=1, label="commonest answer"
            )
        for line in sorted(found["contenders"], key=lambda each: int(each["name"].split("-")[0])):
            number, score = int(line["name"].split("-")[0]), line["score"]
            each = [scale * value for value in line["adapters"].values()]
            axes.plot([number] * len(each), each, "_", color="#2b6cb0", ms=9, mew=1.3, alpha=0.6)
            axes.plot([number] * 2, [scale * score["low"], scale * score["high"]], color="#2b6cb0", alpha=0.4, lw=3)
            axes.plot([number], [scale * score["value"]], "o", color="#2b6cb0", ms=6)
        axes.set_xticks(list(CHOICES))
        axes.set_xlabel("families of tasks in training (the same number of rows)", fontsize=9.5)
        axes.set_title(label, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8.5, frameon=False, loc="center right", bbox_to_anchor=(1, 0.72))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, facecolor="white")


def _comparison(run: Path, metric: str) -> dict[str, Any]:
    """The comparison of all parts that have this metric."""
    found = json.loads((run / "compare.json").read_text(encoding="utf-8"))["comparisons"]
    return next(each for each in found if each["metric"] == metric and each["part_of"] is None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("write", "check", "plot"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path, nargs="?", default=Path("families.png"))
    options = parser.parse_args()
    if options.what == "write":
        write(options.folder)
    elif options.what == "plot":
        plot(options.folder, options.picture)
    elif not check(options.folder):
        sys.exit(1)


if __name__ == "__main__":
    main()
