"""From the text of a recipe to its values, or to one error that lists every mistake."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from graftlm.data.heads import HeadSettings
from graftlm.data.readers import find_sources
from graftlm.errors import UserError, nearest
from graftlm.recipe.locate import adapter_folder, base_folder, chat_template, data_path, name_from, python_file
from graftlm.recipe.places import Place, read_yaml
from graftlm.recipe.problems import (
    KeyPath,
    Problem,
    RecipeError,
    missing,
    show,
    translate,
    unknown_key,
    unknown_name,
)
from graftlm.recipe.schema import (
    AdapterKeys,
    AdapterRecipe,
    DataSet,
    Recipe,
    RunKeys,
    folder_name,
    known_methods,
)
from graftlm.training.objective_settings import SHIPPED, ObjectiveSettings, PretrainingSettings, RewardSettings
from graftlm.training.settings import AdapterTraining, RunSettings

Model = TypeVar("Model", bound=BaseModel)
SECTIONS = {
    "data": "{reviews: {path: reviews.csv}}",
    "adapters": "{lora-8: {method: lora, rank: 8}}",
}
TINY_LEARNING_RATE = 2e-3  # small models want large rates; 2e-4 is for bases of a billion parameters
SWEPT = {"learning_rate": "lr", "seed": "s"}  # may be lists in an adapter: one adapter for each value
BATCH = ("batch_rows", "batch_tokens")  # the size of a step is given in one or the other


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe file. Its paths are relative to its folder, become absolute, and must exist.

    Raises:
        UserError: the file cannot be read.
        RecipeError: all of its mistakes, each with its line.
    """
    file = Path(path).expanduser()
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = nearest(file.name, [p.name for p in file.parent.iterdir()]) if file.parent.is_dir() else None
        hint = (
            f"Did you mean {file.parent / near}?" if near else "`graftlm recipe --out FILE` writes one to start from."
        )
        raise UserError(f"there is no recipe {path}", hint=hint) from None
    except OSError as error:
        raise UserError(f"the recipe {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: not UTF-8", hint="Save the file as UTF-8.") from error
    return parse_recipe(text, source=str(path), folder=file.resolve().parent)


def parse_recipe(text: str, source: str = "recipe.yaml", *, folder: Path | None = None) -> Recipe:
    """Read the text of a recipe. ``source`` names it in errors, and names the run if the recipe does not.

    ``folder``: what paths are relative to; without it they stay as they are written and are not looked for.

    Raises:
        RecipeError: all of its mistakes, each with its line.
    """
    value, place, problems = read_yaml(text, source)
    return _Parser(source, folder, place, problems).recipe(value)


def recipe_from_dict(values: Mapping[str, Any], source: str = "recipe", *, folder: Path | None = None) -> Recipe:
    """A recipe from plain values, as checked as one from a file."""
    return _Parser(source, folder, None, []).recipe(json.loads(json.dumps(values, default=str)))


def recipe_for_data_files(paths: str | Path | Sequence[str | Path], *, method: str = "lora", **settings: Any) -> Recipe:
    """One adapter, named after the first file, that learns from all ``paths`` (relative to the working folder).

    ``settings`` are keys of any part of a recipe, which find their place by their name (``base="tiny"``,
    ``epochs=2``, ``rank=16``, ``held_out=50``, ``micro_batch_tokens=8192``); None means left out. On the embedded
    base the learning rate is 2e-3 unless another is given.

    Raises:
        UserError: a path does not exist.
        RecipeError: all settings that are wrong or unknown.
    """
    files = [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise UserError("no data file is given", hint="For example: graftlm train --data reviews.csv")
    for file in files:
        find_sources(file)
    name = name_from(files[0])
    homes: dict[str, type[BaseModel]] = {"run": RunKeys, "data": DataSet, "training": RunSettings}
    parts: dict[str, dict[str, Any]] = {
        "run": {},
        "data": {"path": files},
        "training": {},
        "adapter": {"method": method},
    }
    for key, value in settings.items():
        if value is None:
            continue
        part = next((part for part, model in homes.items() if key in model.model_fields), "adapter")
        parts[part][key] = value
    if parts["run"].get("base", "tiny") == "tiny":
        parts["adapter"].setdefault("learning_rate", TINY_LEARNING_RATE)
    values = {
        "base": "tiny",
        "name": name,
        **parts["run"],
        "data": {name: parts["data"]},
        "adapters": {name: {**parts["adapter"], "data": name}},
        "training": parts["training"],
    }
    return recipe_from_dict(values, f"the recipe for {files[0]}", folder=Path.cwd())


class _Parser:
    """Goes through all parts of a recipe and collects what is wrong."""

    def __init__(self, source: str, folder: Path | None, place: Place | None, problems: list[Problem]) -> None:
        self.source = source
        self.folder = folder
        self.place = place
        self.problems = problems
        self.written: dict[str, str] = {}  # the name of an adapter → the one in the file that it was made of

    def recipe(self, values: Any) -> Recipe:
        if not isinstance(values, dict):
            self.add((), f"a recipe must be a mapping (base: tiny …), is {show(values)}")
            raise RecipeError(self.source, self.problems)
        self.finite(values, ())
        methods = known_methods()
        self.unknown((), values, [*RunKeys.model_fields, *SECTIONS, "training"], _homes(methods, "top"))
        keys = {key: values[key] for key in RunKeys.model_fields if key in values}
        run = self.model(RunKeys, {"name": name_from(self.source), **keys}, ())
        data = {name: self.data_set(name, entry) for name, entry in self.section("data", values).items()}
        training, defaults = self.training(values.get("training", {}), methods)
        names = list(data) or None  # None: nothing to compare with
        entries = self.sweeps(self.section("adapters", values))
        adapters = {name: self.adapter(name, entry, methods, defaults, names) for name, entry in entries.items()}
        self.names_apart(entries)
        self.values(adapters)
        self.locate_parts(data, adapters)
        run = run and self.locate_run(run)
        if self.problems or run is None or training is None:
            raise RecipeError(self.source, self.problems)
        return Recipe(**dict(run), data=data, adapters=adapters, training=training)

    def add(self, path: KeyPath, message: str) -> None:
        problem = Problem(message, path)
        if self.place is not None:
            place = self.place.at(path)
            problem = Problem(message, path, place.line, place.column)
        if problem not in self.problems:  # the adapters of a sweep share their mistakes
            self.problems.append(problem)

    def model(self, model: type[Model], given: dict[str, Any], path: KeyPath) -> Model | None:
        """Values of one group, or None with the problems noted. Text is no number, and the other way round."""
        try:
            return model.model_validate_json(json.dumps(given), strict=True)
        except ValidationError as error:
            for inner, message in translate(error, model, given):
                self.add((*path, *inner), message)
            return None

    def finite(self, value: Any, path: KeyPath) -> None:
        if isinstance(value, float) and not math.isfinite(value):
            self.add(path, "must be a finite number")
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, child in inside:
            self.finite(child, (*path, key))

    def unknown(self, path: KeyPath, given: Mapping[str, Any], known: Iterable[str], homes: Mapping[str, str]) -> None:
        allowed = list(known)
        for key in given:
            if key not in allowed:
                self.add((*path, key), unknown_key(key, allowed, homes))

    def section(self, key: str, values: dict[str, Any]) -> dict[str, Any]:
        entries = values.get(key)
        example = SECTIONS[key]
        if key not in values:
            self.add((key,), missing(key, {"examples": [example]}))
        elif not isinstance(entries, dict):
            self.add((key,), f"must be a mapping with a name for each, such as {example}, is {show(entries)}")
        elif not entries:
            self.add((key,), f"must hold at least one, such as {example}")
        return entries if isinstance(entries, dict) else {}

    def data_set(self, name: str, entry: Any) -> DataSet | None:
        path = ("data", name)
        if not name:
            self.add(path, "a data set needs a name")
        if not isinstance(entry, dict):
            self.add(path, f"must be a mapping such as {{path: reviews.csv}}, is {show(entry)}")
            return None
        self.unknown(path, entry, DataSet.model_fields, _homes(known_methods(), "data"))
        return self.model(DataSet, {k: v for k, v in entry.items() if k in DataSet.model_fields}, path)

    def training(
        self, entry: Any, methods: Mapping[str, type[BaseModel]]
    ) -> tuple[RunSettings | None, dict[str, Any] | None]:
        """Settings of the run, and raw defaults for all adapters (None if something is wrong with them)."""
        path = ("training",)
        if not isinstance(entry, dict):
            self.add(path, f"must be a mapping such as {{epochs: 1}}, is {show(entry)}")
            return None, None
        known = [*AdapterTraining.model_fields, *RunSettings.model_fields]
        self.unknown(path, entry, known, _homes(methods, "training"))
        run = self.model(RunSettings, {k: v for k, v in entry.items() if k in RunSettings.model_fields}, path)
        defaults = self.training_keys(entry, path)
        return run, defaults if self.model(AdapterTraining, defaults, path) is not None else None

    def training_keys(self, entry: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        """The settings of an adapter's training; unknown keys of its objective are noted and left out."""
        own = {k: v for k, v in entry.items() if k in AdapterTraining.model_fields}
        if isinstance(own.get("objective"), dict):
            self.unknown((*path, "objective"), own["objective"], ObjectiveSettings.model_fields, {})
            own["objective"] = {k: v for k, v in own["objective"].items() if k in ObjectiveSettings.model_fields}
            self.rewards((*path, "objective", "rewards"), own["objective"])
            self.pretraining((*path, "objective", "pretraining"), own["objective"])
        return own

    def rewards(self, path: KeyPath, objective: dict[str, Any]) -> None:
        """Note unknown keys of the rewards, and leave them out; paths become absolute, in place."""
        entries = objective.get("rewards")
        if not isinstance(entries, dict):
            return
        objective["rewards"] = made = dict(entries)
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                continue
            self.unknown((*path, name), entry, RewardSettings.model_fields, {})
            made[name] = {k: v for k, v in entry.items() if k in RewardSettings.model_fields}
            for key, locate in (("python", python_file), ("adapter", adapter_folder)):
                if self.folder is not None and isinstance(entry.get(key), str):
                    made[name][key] = self.each((*path, name, key), (entry[key],), locate)[0]

    def pretraining(self, path: KeyPath, objective: dict[str, Any]) -> None:
        """Note unknown keys of the pretraining mix, and leave them out; its path becomes absolute, in place."""
        entry = objective.get("pretraining")
        if not isinstance(entry, dict):
            return
        self.unknown(path, entry, PretrainingSettings.model_fields, {})
        objective["pretraining"] = made = {k: v for k, v in entry.items() if k in PretrainingSettings.model_fields}
        named = made.get("data")
        if self.folder is not None and isinstance(named, str) and named != SHIPPED:
            made["data"] = self.each((*path, "data"), (named,), data_path)[0]

    def sweeps(self, entries: dict[str, Any]) -> dict[str, Any]:
        """The adapters, with one for each value where a learning rate or seed is a list: NAME-lr1e-3-s0."""
        made: dict[str, Any] = {}
        for name, entry in entries.items():
            for variant, values in self.variants(name, entry).items():
                if variant in made:
                    self.add(("adapters", name), f"makes an adapter '{variant}', and there is one of that name already")
                made[variant] = values
                self.written[variant] = name
        return made

    def variants(self, name: str, entry: Any) -> dict[str, Any]:
        lists = {key: entry[key] for key in SWEPT if isinstance(entry, dict) and isinstance(entry.get(key), list)}
        if not lists:
            return {name: entry}
        known = len(self.problems)
        for key, values in lists.items():
            path = ("adapters", name, key)
            numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
            if not values:
                self.add(path, "must not be empty")
            elif len(numbers) < len(values):
                odd = next(value for value in values if value not in numbers or isinstance(value, bool))
                self.add(path, f"must be a number or a list of numbers, holds {show(odd)}")
            elif len(set(values)) < len(values):
                repeated = next(value for value in values if values.count(value) > 1)
                self.add(path, f"names {show(repeated)} more than once")
        if len(self.problems) > known:
            return {name: {k: v for k, v in entry.items() if k not in lists}}  # the rest may be wrong too
        return {
            "-".join([name, *map(_mark, lists, chosen)]): {
                "group": name,
                **entry,
                **dict(zip(lists, chosen, strict=True)),
            }
            for chosen in itertools.product(*lists.values())
        }

    def adapter(
        self,
        name: str,
        entry: Any,
        methods: Mapping[str, type[BaseModel]],
        defaults: dict[str, Any] | None,
        data: list[str] | None,
    ) -> AdapterRecipe | None:
        path = ("adapters", self.written[name])
        try:
            folder_name(name)
        except ValueError as error:
            made = "" if name == self.written[name] else f" '{name}', which its lists make,"
            self.add(path, f"the name{made} {error}")
        if not isinstance(entry, dict):
            self.add(path, f"must be a mapping such as {{method: lora, rank: 8}}, is {show(entry)}")
            return None
        method = self.method(path, entry, methods)
        own = self.training_keys(entry, path)
        given = {k: v for k, v in entry.items() if k in AdapterKeys.model_fields}
        if isinstance(given.get("head"), dict):
            self.unknown((*path, "head"), given["head"], HeadSettings.model_fields, {})
            given["head"] = {k: v for k, v in given["head"].items() if k in HeadSettings.model_fields}
        keys = self.model(AdapterKeys, given, path)
        training = self.model(AdapterTraining, own, path)
        if training is not None and defaults is not None:
            training = self.model(AdapterTraining, _with_defaults(own, defaults), path)
        if keys is not None:
            keys = self.references(path, keys, data, "data" in entry)
        if keys is not None and training is not None:
            keys = self.head(path, keys, training)
        if method is None or keys is None or training is None:
            return None
        return AdapterRecipe(**dict(keys), method=method, training=training)

    def method(self, path: KeyPath, entry: dict[str, Any], methods: Mapping[str, type[BaseModel]]) -> Any:
        shared = [*AdapterKeys.model_fields, "method"]
        name = entry.get("method")
        config = methods.get(name) if isinstance(name, str) else None
        listed = ", ".join(methods)
        if config is not None:
            known = [*shared, *config.model_fields, *AdapterTraining.model_fields]
            self.unknown(path, entry, dict.fromkeys(known), _homes(methods, "adapter"))
            return self.model(config, {k: v for k, v in entry.items() if k in config.model_fields}, path)
        if "method" not in entry:
            self.add((*path, "method"), f"this key is missing; there are: {listed}")
        elif isinstance(name, str):
            self.add((*path, "method"), unknown_name("method", name, methods))
        else:
            self.add((*path, "method"), f"must be the name of a method ({listed}), is {show(name)}")
        settings = [key for config in methods.values() for key in config.model_fields]
        known = [*shared, *AdapterTraining.model_fields, *settings]
        self.unknown(path, entry, dict.fromkeys(known), _homes(methods, "adapter"))
        return None

    def head(self, path: KeyPath, keys: AdapterKeys, training: AdapterTraining) -> AdapterKeys:
        """The keys with the head that a reward objective has, where none is given."""
        wanted, head = training.objective.type, keys.head
        if wanted == "reward" and head is None:
            return keys.model_copy(update={"head": HeadSettings(type="reward", labels=("reward",))})
        if wanted == "value" and head is None:
            return keys.model_copy(update={"head": HeadSettings(type="reward", labels=("value",))})
        if head is not None and wanted == "value" and (head.type != "reward" or len(head.labels) > 1):
            self.add((*path, "head"), "must be {type: reward} with one label for the objective value, or left out")
        elif head is not None and wanted == "reward" and head.type != "reward":
            self.add((*path, "head"), f"must be {{type: reward}} for the objective reward, is a {head.type}")
        elif head is not None and head.type == "reward" and wanted not in ("reward", "value"):
            self.add((*path, "head"), f"a reward head is trained by objective: reward, and this one's is {wanted}")
        elif head is not None and wanted not in ("sft", "reward", "value"):
            self.add((*path, "head"), f"the objective {wanted} is of texts, and takes no head")
        return keys

    def references(self, path: KeyPath, keys: AdapterKeys, data: list[str] | None, given: bool) -> AdapterKeys | None:
        if data is None:
            return keys
        if not keys.data and len(data) == 1 and not given:
            return keys.model_copy(update={"data": (data[0],)})
        if not keys.data:
            self.add((*path, "data"), f"must name a data set; there are: {', '.join(data)}")
        for name in dict.fromkeys(keys.data):
            if name not in data:
                self.add((*path, "data"), unknown_name("data set", name, data))
            elif keys.data.count(name) > 1:
                self.add((*path, "data"), f"names '{name}' more than once")
        return keys

    def values(self, adapters: Mapping[str, AdapterRecipe | None]) -> None:
        """Every ppo adapter has a value adapter of its own."""
        whole = {name: adapter for name, adapter in adapters.items() if adapter is not None}
        critics = [name for name, adapter in whole.items() if adapter.training.objective.type == "value"]
        named: dict[str, str] = {}
        for name, adapter in whole.items():
            value = adapter.training.objective.value
            path = ("adapters", self.written[name], "objective")
            if value is None:
                continue
            if value not in critics:
                self.add((*path, "value"), unknown_name("adapter with objective: value", value, critics))
            elif value in named:
                self.add((*path, "value"), f"'{value}' is that of '{named[value]}' already")
            named.setdefault(value, name)
        for name in critics:
            if name not in named:
                self.add(("adapters", self.written[name], "objective"), f"no ppo adapter says value: {name}")

    def names_apart(self, names: Iterable[str]) -> None:
        """Some systems know no difference between the folders A and a."""
        seen: dict[str, str] = {}
        for name in names:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                self.add(
                    ("adapters", self.written[name]),
                    f"differs from '{other}' in upper and lower case only; use another name",
                )

    def locate_run(self, run: RunKeys) -> RunKeys:
        """Base and chat template with absolute paths."""
        (template,) = self.each(("chat_template",), (run.chat_template,), chat_template)
        if self.folder is None:
            return run
        (base,) = self.each(("base",), (run.base,), base_folder)
        return run.model_copy(update={"chat_template": template, "base": base})

    def locate_parts(self, data: dict[str, DataSet | None], adapters: dict[str, AdapterRecipe | None]) -> None:
        """Make the paths of data sets and adapters absolute, in place."""
        if self.folder is None:
            return
        for name, data_set in data.items():
            if data_set is not None:
                given = {"path": data_set.path, "held_out_path": data_set.held_out_path}
                found = {key: self.each(("data", name, key), paths, data_path) for key, paths in given.items()}
                data[name] = data_set.model_copy(update=found)
        for name, adapter in adapters.items():
            if adapter is not None:
                path = ("adapters", self.written[name])
                under = self.each((*path, "under"), adapter.under, adapter_folder)
                started = () if adapter.init_from is None else (adapter.init_from,)
                start = next(iter(self.each((*path, "init_from"), started, adapter_folder)), None)
                adapters[name] = adapter.model_copy(update={"under": under, "init_from": start})

    def each(self, path: KeyPath, names: tuple[str, ...], locate: Callable[[str, Any], str]) -> tuple[str, ...]:
        found: list[str] = []
        for name in names:
            try:
                found.append(locate(name, self.folder))
            except UserError as error:
                self.add(path, error.message + (f" ({error.hint})" if error.hint else ""))
                found.append(name)
        return tuple(found)


def _mark(key: str, value: float) -> str:
    """What a value of a sweep adds to a name: lr1e-3, s0."""
    if key != "learning_rate":
        return f"{SWEPT[key]}{value}"
    digits, exponent = f"{value:.6e}".split("e") if math.isfinite(value) else (str(value), "0")
    return f"{SWEPT[key]}{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def _with_defaults(own: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """An adapter's own settings before those for all; its own size of a step displaces the other kind."""
    sized = any(own.get(key) is not None for key in BATCH)
    return {k: v for k, v in defaults.items() if not (sized and k in BATCH)} | own


def _homes(methods: Mapping[str, type[BaseModel]], here: str) -> dict[str, str]:
    """Where keys that do not belong ``here`` do belong."""
    groups: list[tuple[str, Iterable[str], str]] = [
        ("top", [*RunKeys.model_fields, *SECTIONS, "training"], "at the top of the recipe"),
        ("data", DataSet.model_fields, "to a data set"),
        ("training", RunSettings.model_fields, "under training"),
        ("settings", AdapterTraining.model_fields, "to an adapter or, for all of them, under training"),
        ("adapter", AdapterKeys.model_fields, "to an adapter"),
        *(("method", config.model_fields, f"to an adapter of the method {name}") for name, config in methods.items()),
    ]
    homes: dict[str, str] = {}
    for group, keys, where in groups:
        if group != here:
            homes |= {key: where for key in keys if key not in homes}
    return homes
