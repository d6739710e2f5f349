"""Run lm-evaluation-harness's tasks for the base and all adapters, in one pass over the base, without the network."""

from __future__ import annotations

import importlib.util
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.errors import UserError, nearest

if TYPE_CHECKING:
    from graftlm.evaluation.speakers import Opened, Speaker

SEED, NUMPY_SEED = 0, 1234  # the harness's own: of random, and of numpy and demonstrations
LOCAL = "The network is not used: its data must be local files, or in the cache of datasets already."
REPORTED = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")


@dataclass(frozen=True)
class HarnessSettings:
    """What is run, and how.

    ``tasks``: names, patterns such as ``mmlu_*``, or YAML files. ``path``: a folder of YAML tasks of one's own, which
    go before the harness's. ``shots``: demonstrations, None for what the task says. ``limit``: rows of each task at
    most, or a share of them. ``chat``: questions are conversations, rendered with each model's own template; otherwise
    they are plain text, as the harness has them. ``base``: whether the bare base is evaluated too. ``bootstrap``: draws
    for errors that have no formula.
    """

    tasks: tuple[str, ...]
    path: Path | None = None
    shots: int | None = None
    limit: float | None = None
    chat: bool = False
    base: bool = True
    seed: int = SEED
    max_tokens: int = 4096
    bootstrap: int = 1000


@dataclass(frozen=True)
class HarnessLine:
    """One measure of one task: the value of each model, with its standard error where there is one."""

    task: str
    measure: str
    higher_is_better: bool | None
    values: Mapping[str, float]
    errors: Mapping[str, float]


def require_lm_eval() -> None:
    """Raises:
    UserError: lm-evaluation-harness is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "--lm-eval needs lm-evaluation-harness, which is not installed",
            hint="pip install 'graftlm[lm-eval]'",
        )


def run_harness(
    opened: Opened,
    settings: HarnessSettings,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> dict[str, dict[str, Any]]:
    """What the harness reports of the bare base and of each adapter, by their labels; the base comes first.

    ``folder``: answers are kept there while they are computed; a run that was killed goes on from them.

    Raises:
        UserError: the harness is not installed, a task is unknown, cannot be loaded without the network or fails, or
            an adapter predicts labels.
    """
    require_lm_eval()
    speakers = [*([opened.base] if settings.base else []), *opened.adapters]
    for speaker in speakers:
        if speaker.head is not None:
            raise UserError(
                f"{speaker.label} predicts labels, and lm-evaluation-harness asks for texts",
                hint="Leave it out of --lm-eval.",
            )
    if not opened.model.has_language_head or opened.model.kind == "encoder":
        raise UserError(f"{opened.model.name} is an encoder, and lm-evaluation-harness asks for texts")
    with ExitStack() as stack:
        stack.enter_context(offline())
        stack.enter_context(_quiet())
        say("loading lm-evaluation-harness's tasks")
        _set_seeds()
        tasks = _load(settings)
        return _evaluate(opened, speakers, tasks, settings, folder, say)


def _evaluate(
    opened: Opened,
    speakers: Sequence[Speaker],
    tasks: Mapping[str, Any],
    settings: HarnessSettings,
    folder: Path | None,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    from lm_eval.evaluator import evaluate

    from graftlm.evaluation.harness.answers import Answers
    from graftlm.evaluation.harness.model import OneOfMany

    answers = Answers(
        opened,
        speakers,
        chat=settings.chat,
        seed=settings.seed,
        max_tokens=settings.max_tokens,
        folder=folder,
        hashes={speaker.label: _hash(opened, speaker) for speaker in speakers} if folder is not None else None,
        say=say,
    )
    turns = all(speaker.template.turns is None for speaker in speakers)
    found = {}
    for speaker in speakers:
        _set_seeds()
        for task in tasks["tasks"].values():
            task.set_fewshot_seed(seed=NUMPY_SEED)
        model = OneOfMany(answers, speaker.label)
        try:
            reported = evaluate(
                lm=model,
                task_dict=dict(tasks),
                limit=settings.limit,
                bootstrap_iters=settings.bootstrap,
                log_samples=False,
                apply_chat_template=settings.chat,
                fewshot_as_multiturn=settings.chat and turns,
            )
        except Exception as error:
            if model.failed is not None:
                raise
            names = list(tasks["tasks"])
            shown = ", ".join(names[:3]) + (" …" if len(names) > 3 else "")
            raise _failed(shown, "fails", error) from error
        found[speaker.label] = {key: _plain(reported[key]) for key in REPORTED if reported and key in reported}
    return found


def _hash(opened: Opened, speaker: Speaker) -> str:
    from graftlm.base.fingerprint import exact_digest

    return " ".join(exact_digest(opened.model.adapter(name)) for name in speaker.stack)


def _load(settings: HarnessSettings) -> dict[str, Any]:
    """The tasks by name, as the harness evaluates them."""
    manager, names = _find(settings)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        try:
            loaded = manager.load(name)
        except Exception as error:
            raise _failed(name, "cannot be loaded", error, LOCAL) from error
        for part, entries in found.items():
            entries.update(loaded.get(part) or {})
    for task in found["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=settings.shots or 0)
        elif settings.shots is not None and task.get_config("num_fewshot") != 0:  # 0 is what the task insists on
            task.set_config(key="num_fewshot", value=settings.shots)
    return found


def _find(settings: HarnessSettings) -> tuple[Any, list[str]]:
    """A manager that knows the tasks, and their names. The harness's own are looked through only where they must be."""
    from lm_eval.tasks import TaskManager

    path = settings.path
    if path is not None and not path.is_dir():
        raise UserError(f"--lm-eval-path: there is no folder {path}")
    if path is not None:
        manager = TaskManager(include_path=str(path), include_defaults=False)
        names = [_matches(manager, name) for name in settings.tasks]
        if all(names):
            return manager, list(dict.fromkeys(each for some in names for each in some))
    manager = TaskManager(include_path=str(path) if path is not None else None)
    found: list[str] = []
    for name in settings.tasks:
        some = _matches(manager, name)
        if not some:
            guess = nearest(name, manager.all_tasks)
            raise UserError(
                f"lm-evaluation-harness has no task '{name}'",
                hint=f"Did you mean '{guess}'?" if guess else "Tasks of your own: --lm-eval-path FOLDER.",
            )
        found += some
    return manager, list(dict.fromkeys(found))


def _matches(manager: Any, name: str) -> list[str]:
    if name.endswith((".yaml", ".yml")) and Path(name).is_file():
        return [name]
    return list(manager.match_tasks([name]))


def _failed(task: str, what: str, error: Exception, hint: str | None = None) -> UserError:
    first = next(iter(str(error).strip().splitlines()), "")
    return UserError(f"lm-evaluation-harness: {task} {what}: {type(error).__name__}: {first[:300]}", hint=hint)


def _set_seeds() -> None:
    """Tasks draw from these two, as where the harness runs by itself."""
    import numpy as np

    random.seed(SEED)
    np.random.seed(NUMPY_SEED)


@contextmanager
def offline() -> Iterator[None]:
    """The hub's libraries read their settings when they are imported; this turns them off for a while afterwards."""
    import datasets.config
    import huggingface_hub.constants

    places: list[tuple[Any, str]] = [
        (huggingface_hub.constants, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_HUB_OFFLINE"),
        (datasets.config, "HF_DATASETS_OFFLINE"),
    ]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and notes of the harness for each model: they are for its own runs."""
    import datasets.utils
    import lm_eval.api.task

    module: Any = lm_eval.api.task
    bars = datasets.utils.are_progress_bars_disabled()
    datasets.utils.disable_progress_bars()
    logger, bar = logging.getLogger("lm_eval"), module.tqdm
    level = logger.level
    logger.setLevel(logging.ERROR)
    module.tqdm = lambda rows, **_settings: rows
    try:
        yield
    finally:
        module.tqdm = bar
        if not bars:
            datasets.utils.enable_progress_bars()
        logger.setLevel(level)


def _plain(value: Any) -> Any:
    """As JSON: numpy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.item() if hasattr(value, "item") else value


def harness_lines(reported: Mapping[str, Mapping[str, Any]]) -> list[HarnessLine]:
    """What :func:`run_harness` gave, measure by measure: ``acc,none`` of a task is its measure ``acc``."""
    found: dict[tuple[str, str], tuple[dict[str, float], dict[str, float]]] = {}
    better: dict[str, Mapping[str, Any]] = {}
    for model, report in reported.items():
        better |= report.get("higher_is_better", {})
        for task, measures in {**report.get("groups", {}), **report["results"]}.items():
            for key, value in measures.items():
                name, _, filtered = key.partition(",")
                if not filtered or isinstance(value, str):
                    continue
                plain = name.removesuffix("_stderr")
                shown = plain if filtered == "none" else f"{plain} ({filtered})"
                values, errors = found.setdefault((task, shown), ({}, {}))
                (values if plain == name else errors)[model] = float(value)
    return [
        HarnessLine(task, measure, better.get(task, {}).get(measure.partition(" (")[0]), values, errors)
        for (task, measure), (values, errors) in found.items()
    ]
