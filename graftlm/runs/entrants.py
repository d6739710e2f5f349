"""The adapters of finished runs in one model, each with the held-out rows that its recipe names."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftlm.adapters.files import read_notes
from graftlm.adapters.model import AdaptedModel
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance
from graftlm.data.splits import chosen_to_hold_out
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError
from graftlm.objectives.sft import SFT
from graftlm.recipe import AdapterRecipe, Recipe, load_recipe
from graftlm.runs.data import SplitData
from graftlm.runs.folder import RunFolder
from graftlm.runs.setup import PreparedRun, set_up
from graftlm.training.task import Task

TUNING_SHARE = 1 / 3  # of the held-out rows: learning rates and steps are chosen on them, and nothing is reported
TUNING_SEED = 1  # not that of held_out, whose order the rows have already been chosen by
Say = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    """A trained adapter in the model, with its task there, its settings, its run and the folder that it came from."""

    task: Task
    recipe: AdapterRecipe
    run: PreparedRun
    name: str
    folder: Path
    head: HeadSettings | None
    template: ChatTemplate

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a head of its own; none where answers are tokens."""
        return self.head.labels if self.head is not None and self.head.type == "classifier" else ()

    @property
    def tags_words(self) -> bool:
        """Whether it predicts a label for each word."""
        return self.head is not None and self.head.type == "tagger"

    @property
    def parts(self) -> dict[str, SplitData]:
        """Its data sets, as it reads them."""
        return self.run.parts[self.folder.name]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Its held-out instances, in the order of ``task.held_out``."""
        return self.run.held_out[self.folder.name]

    @property
    def settings(self) -> str:
        """All that tells it from others but its seed, as text."""
        return _settings(self.recipe) + self.template.hash


def tuning_rows(instances: Sequence[Instance]) -> list[int]:
    """The held-out rows (indices) that settings are chosen on; the score is reported on the others.

    Raises:
        UserError: there are too few rows for two parts.
    """
    if len({instance.messages[:-1] for instance in instances}) < 4:
        raise UserError(
            f"{len(instances)} held-out rows are too few: some choose learning rate and step, others give the score",
            hint="Hold out more in the recipe: held_out: 0.2, or held_out_path.",
        )
    return sorted(chosen_to_hold_out(instances, TUNING_SHARE, TUNING_SEED))


def for_comparison(run: PreparedRun) -> PreparedRun:
    """The run with only the tuning rows held out, so that no reported row has a say in which step is kept.

    Raises:
        UserError: an adapter has no held-out rows, or too few.
    """
    check_groups(run.recipe)
    tasks, held_out = [], {}
    for task in run.tasks:
        instances = run.held_out[task.adapter]
        _check_held_out(task.adapter, instances)
        chosen = tuning_rows(instances)
        held_out[task.adapter] = tuple(instances[index] for index in chosen)
        tasks.append(replace(task, held_out=tuple(task.held_out[index] for index in chosen)))
    return replace(run, tasks=tuple(tasks), held_out=held_out)


def check_runs(folders: Sequence[RunFolder]) -> None:
    """See, before a base is loaded, that the runs are finished and of one base.

    Raises:
        UserError: one is not.
    """
    bases: dict[str, Path] = {}
    for folder in folders:
        if not folder.begun:
            raise UserError(f"there is no run in {folder.path}", hint="Name the folder of a run: runs/NAME")
        if not folder.finished:
            raise UserError(
                f"the run in {folder.path} is not finished",
                hint=f"graftlm train {folder.recipe} --resume --out {folder.path}",
            )
        base = json.loads(folder.summary.read_text(encoding="utf-8"))["base"]
        bases.setdefault(base["fingerprint"], folder.path)
    if len(bases) > 1:
        listed = "; ".join(f"{path} ({print_[:12]})" for print_, path in bases.items())
        raise UserError(
            f"these runs are of different bases, by the fingerprint of their weights: {listed}",
            hint="Compare runs of one base at a time.",
        )


def enter_runs(folders: Sequence[RunFolder], say: Say = lambda _line: None) -> list[Entrant]:
    """Load the adapters of finished runs into one model, with the rows that their recipes hold out.

    Raises:
        UserError: a run is not finished or of another base, its data is gone, or nothing was held out.
    """
    check_runs(folders)
    entrants: list[Entrant] = []
    model: AdaptedModel | None = None
    for folder in folders:
        recipe = load_recipe(folder.recipe)
        check_groups(recipe)
        run = set_up(recipe, say if model is None else lambda _line: None, model=model)
        model = run.model
        for task in run.tasks:
            _check_objective(task)
            _check_held_out(task.adapter, run.held_out[task.adapter])
            model.remove(task.adapter)
        for task in run.tasks:
            place = folder.adapters / task.adapter
            name = task.adapter if len(folders) == 1 else f"{folder.path.resolve().name}-{task.adapter}"
            name = free_name(name, model)
            model.load(place, name=name)
            own, head = run.recipe.adapters[task.adapter], run.heads.get(task.adapter)
            template = run.templates[task.adapter]
            entrants.append(Entrant(replace(task, adapter=name), own, run, name, place, head, template))
    return entrants


def _check_objective(task: Task) -> None:
    """Refuse adapters that learnt preferences: their held-out rows are groups of answers, and not one right answer."""
    if not isinstance(task.objective, SFT):
        raise UserError(
            f"'{task.adapter}' was trained by the objective {task.objective.name}, whose rows have no one right answer",
            hint="Its accuracy on held-out preferences is in run.json and in the report of its run.",
        )


def groups(entrants: Sequence[Entrant]) -> dict[str, dict[float, list[Entrant]]]:
    """Contender → learning rate → adapters that differ by seed only, or by what they learn from in a group."""
    found: dict[tuple[str, str], list[Entrant]] = {}
    for each in entrants:
        run = each.folder.parent.parent.resolve()
        key = ("", each.settings) if each.recipe.group is None else (str(run), each.recipe.group)
        found.setdefault(key, []).append(each)
    contenders: dict[str, dict[float, list[Entrant]]] = {}
    for (place, group), members in found.items():
        name = group if place else _common_name(members)
        if name in contenders:
            name = f"{Path(place).name}-{group}" if place else members[0].name
        rates: dict[float, list[Entrant]] = {}
        for each in members:
            rates.setdefault(each.recipe.training.learning_rate, []).append(each)
        contenders[name] = rates
    return contenders


def check_groups(recipe: Recipe) -> None:
    """See that the adapters of each group are candidates for one place.

    Raises:
        UserError: two of them differ in more than learning rate, seed and training data.
    """
    firsts: dict[str, str] = {}
    for name, adapter in recipe.adapters.items():
        if adapter.group is None:
            continue
        first = firsts.setdefault(adapter.group, name)
        if _settings(adapter, "learning_rate", "data") != _settings(recipe.adapters[first], "learning_rate", "data"):
            raise UserError(
                f"adapters '{first}' and '{name}' of the group '{adapter.group}' differ in more than learning rate, "
                "seed and data",
                hint="Give them groups of their own, or none.",
            )


def _settings(recipe: AdapterRecipe, *but: str) -> str:
    left_out = ("seed", "group", *but)
    return json.dumps({key: value for key, value in recipe.to_dict().items() if key not in left_out}, sort_keys=True)


def _common_name(members: Sequence[Entrant]) -> str:
    """What the names of adapters that differ by seed begin with: lora of lora-s0 and lora-s1."""
    if len(members) == 1:
        return members[0].name
    columns = zip(*(each.name for each in members), strict=False)
    common = "".join(signs[0] for signs in itertools.takewhile(lambda signs: len(set(signs)) == 1, columns))
    for end in ("seed", "s"):
        common = common.rstrip("-_.+").removesuffix(f"-{end}").removesuffix(f"_{end}")
    return common.rstrip("-_.+") or members[0].name


def kept_by_tuning_rows(entrant: Entrant) -> bool:
    """Whether the step that was kept was chosen on tuning rows alone, as :func:`for_comparison` has it."""
    seen = read_notes(entrant.folder).get("metrics", {}).get("held_out_rows")
    return isinstance(seen, int) and seen < len(entrant.instances)


def free_name(name: str, model: AdaptedModel) -> str:
    """The name itself, with a number behind it if an adapter of the model is called so."""
    unique, number = name, 2
    while unique in model.adapters:
        unique, number = f"{name}-{number}", number + 1
    return unique


def _check_held_out(name: str, instances: Sequence[Instance]) -> None:
    if not instances:
        raise UserError(
            f"adapter '{name}' has no held-out rows to be compared on",
            hint="Hold some out in the recipe's data set: held_out: 0.1, or held_out_path.",
        )
