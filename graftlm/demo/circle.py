"""The demo's steps, as commands of graftlm, and the folder that they run in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from graftlm.base.files import disk_errors
from graftlm.errors import UserError

MARK = "set.yaml"  # what a folder of the demo holds
QUICK = 2  # steps of each adapter, and rows of each task
TASKS = ("language-modelling-en", "grammar-en", "reading-en", "helpfulness-en", "truth-en", "refusals-en", "bias-en")
WRITERS = ("tune/adapters/helper", "tune/adapters/stories", "preferences/adapters/dpo", "policies/adapters/ppo")


@dataclass(frozen=True)
class Step:
    """One command; ``{out}`` in its words is the demo's folder. ``page``: what it leaves to read, in that folder."""

    name: str
    title: str
    words: tuple[str, ...]
    page: str

    def arguments(self, out: Path, *, quick: bool = False) -> list[str]:
        """What stands behind ``graftlm``."""
        limit = ["--limit", str(QUICK)] if quick and self.name == "eval" else []
        return [word.replace("{out}", str(out)) for word in self.words] + limit


@dataclass(frozen=True)
class Done:
    """A step that ran, as a command to repeat, and how long it took."""

    step: Step
    command: str
    seconds: float


def _train(name: str, title: str) -> Step:
    words = ("train", f"{{out}}/{name}.yaml", "--out", f"{{out}}/{name}", "--overwrite")
    return Step(name, title, words, f"{name}/report.html")


STEPS = (
    Step(
        "set",
        "Labelled rows become instruction data",
        ("data", "build", "{out}/set.yaml", "--out", "{out}/set"),
        "set/card.md",
    ),
    _train("tune", "Five adapters are tuned side by side"),
    _train("preferences", "A reward adapter and DPO learn from preferences"),
    _train("policies", "PPO: policy, values, reward and reference on one base"),
    Step(
        "eval",
        "What was gained, what was lost",
        (
            "eval",
            *(f"{{out}}/{folder}" for folder in WRITERS),
            *("--out", "{out}/eval", "--task", "{out}/wishes.yaml"),
            *(word for task in TASKS for word in ("--task", task)),
        ),
        "eval/report.html",
    ),
)


def lay_out(out: Path, *, quick: bool = False) -> None:
    """Copy recipes and data into ``out``, in the place of an earlier demo's; ``quick`` leaves few steps.

    Raises:
        UserError: something else lies there, or it cannot be written.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file())):
        raise UserError(f"{out} is there and holds no demo", hint="Choose another folder: --out.")
    package = files("graftlm.demo")
    with disk_errors(out):
        (out / "data").mkdir(parents=True, exist_ok=True)
        for folder, place in (("files", out), ("data", out / "data"), ("data/alignment", out / "data")):
            for file in (package / folder).iterdir():
                if file.name.endswith((".yaml", ".py", ".jsonl")):
                    text = file.read_text(encoding="utf-8")
                    text = _shortened(text) if quick and file.name.endswith(".yaml") else text
                    (place / file.name).write_text(text, encoding="utf-8")


def _shortened(recipe: str) -> str:
    """A recipe with few steps of training."""
    without = re.sub(r"max_steps: \d+, ", "", recipe)
    return re.sub(r"^training: \{", f"training: {{max_steps: {QUICK}, ", without, flags=re.MULTILINE)
