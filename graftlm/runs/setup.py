"""From a recipe to a model with fresh adapters and the task of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.files import read_notes
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import mix_seed
from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance
from graftlm.data.prepare import Instances, PreparedData, RowCounts, load_instances, prepare, split_held_out
from graftlm.data.templates import ChatTemplate, resolve_chat_template
from graftlm.errors import UserError
from graftlm.recipe import AdapterRecipe, DataSet, Recipe
from graftlm.training.task import Task


@dataclass(frozen=True)
class SplitData:
    """One data set: rows to learn from, rows held out, and the account of both."""

    train: PreparedData
    held_out: PreparedData | None

    def counts(self) -> dict[str, Any]:
        """The account of every row, as JSON; that of a held-out file of its own apart."""
        counts = self.train.counts.to_dict()
        if self.held_out is not None and self.held_out.counts is not self.train.counts:
            return {**counts, "held_out": self.held_out.counts.to_dict()}
        return counts


@dataclass(frozen=True)
class PreparedRun:
    """All that training needs. ``held_out`` are each adapter's held-out instances, in the order of its task's rows."""

    recipe: Recipe
    model: AdaptedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    data: dict[str, SplitData]
    tasks: tuple[Task, ...]
    held_out: dict[str, tuple[Instance, ...]]


def set_up(recipe: Recipe, say: Callable[[str], None] = lambda _line: None) -> PreparedRun:
    """Load the base, read and render the data, and add the adapters. ``say`` gets a line on each thing done.

    Raises:
        UserError: anything in base, data or adapters that the user can mend.
    """
    # Data first: a mistake in it is found in a moment, and a base may take minutes to load.
    found = {name: _read(name, data_set) for name, data_set in recipe.data.items()}
    model = AdaptedModel.from_pretrained(recipe.base, dtype=recipe.dtype, device=recipe.device, blocks=recipe.blocks)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    parameters = sum(parameter.numel() for parameter in model.base.parameters())
    say(
        f"base {model.name}: {parameters / 1e6:.1f}M parameters, {str(model.dtype).removeprefix('torch.')} on "
        f"{model.device}, context {model.context_length}, fingerprint {model.fingerprint[:12]}"
    )
    template = resolve_chat_template(recipe.chat_template, tokenizer)
    say(f"chat template {template.name}")
    data = {
        name: _prepare(name, data_set, *found[name], model, tokenizer, template)
        for name, data_set in recipe.data.items()
    }
    for name, split in data.items():
        say(f"data {name}: {split.train.summary}; {account(split)}")
        if split.held_out is not None and split.held_out.counts is not split.train.counts:
            say(f"data {name}, held-out file: {split.held_out.summary}; {_losses(split.held_out.counts)}")
    tasks, held_out = [], {}
    for name, adapter in recipe.adapters.items():
        with _part_of("adapter", name):
            tasks.append(_task(name, adapter, model, template, data))
        held_out[name] = tuple(
            instance for key in adapter.data if (part := data[key].held_out) for instance in part.instances
        )
        update = model.adapter(name)
        say(f"adapter {name}: {update.trained_parameters:,} parameters, {len(tasks[-1].steps)} steps")
    return PreparedRun(recipe, model, tokenizer, template, data, tuple(tasks), held_out)


def _read(name: str, data_set: DataSet) -> tuple[Instances, Instances | None]:
    """The instances of one data set: to learn from, and held out where they have files of their own."""
    keys = ("prompt", "answer", "system", "variables", "split", "limit")
    reading = {key: value for key, value in data_set.reading().items() if key in keys}
    with _part_of("data set", name):
        held_out = load_instances(list(data_set.held_out_path), **reading) if data_set.held_out_path else None
        return load_instances(list(data_set.path), **reading), held_out


def _prepare(
    name: str,
    data_set: DataSet,
    instances: Instances,
    held_out: Instances | None,
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
) -> SplitData:
    """Render, cut and split one data set."""
    keys = ("train_on", "max_dropped", "drop_duplicates")
    settings = {key: value for key, value in data_set.reading().items() if key in keys}
    settings["max_length"] = _max_length(name, data_set, model)
    with _part_of("data set", name):
        rows = prepare(instances, template, tokenizer, **settings)
        if held_out is not None:
            split = SplitData(rows, prepare(held_out, template, tokenizer, **settings))
        elif data_set.held_out_part:
            split = SplitData(*split_held_out(rows, data_set.held_out_part))
        else:
            split = SplitData(rows, None)
    if not split.train.rows:
        raise UserError(
            f"data set '{name}': all of its {len(rows.rows)} rows are held out, so none is left to learn from",
            hint="Hold out fewer: held_out: 0.1",
        )
    return split


@contextmanager
def _part_of(kind: str, name: str) -> Iterator[None]:
    """Errors from inside say which part of the recipe they are about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{kind} '{name}': {error.message}", hint=error.hint) from error


def account(split: SplitData) -> str:
    """One line: how many rows are learnt, held out, truncated and dropped, with reasons."""
    counts = split.train.counts
    parts = [f"{len(split.train.rows):,} to learn from"]
    if split.held_out is not None:
        parts.append(f"{len(split.held_out.rows):,} held out")
    return ", ".join([*parts, _losses(counts)])


def _losses(counts: RowCounts) -> str:
    """How many rows were truncated and dropped, with reasons."""
    parts = []
    for word, table in (("truncated", counts.truncated), ("dropped", counts.dropped)):
        several = len(table) > 1
        reasons = "; ".join(f"{number:,} {reason}" if several else reason for reason, number in table.items())
        parts.append(f"{sum(table.values()):,} {word}" + (f" ({reasons})" if reasons else ""))
    return ", ".join(parts)


def _max_length(name: str, data_set: DataSet, model: AdaptedModel) -> int:
    if data_set.max_length is not None and data_set.max_length > model.context_length:
        raise UserError(
            f"data set '{name}': max_length is {data_set.max_length}, but the base's context is {model.context_length}",
            hint=f"Give at most {model.context_length}, or leave it out.",
        )
    return data_set.max_length or model.context_length


def _task(
    name: str, adapter: AdapterRecipe, model: AdaptedModel, template: ChatTemplate, data: dict[str, SplitData]
) -> Task:
    under = tuple(_load_under(Path(folder), model, template) for folder in adapter.under)
    model.add(name, adapter.method, seed=mix_seed(adapter.training.seed, "start"))
    rows: list[EncodedRow] = [row for key in adapter.data for row in data[key].train.rows]
    held: list[EncodedRow] = [row for key in adapter.data if (part := data[key].held_out) for row in part.rows]
    return Task(name, tuple(rows), adapter.training, tuple(held), under=under)


def _load_under(folder: Path, model: AdaptedModel, template: ChatTemplate) -> str:
    """Load a trained adapter to stack on, once; its chat template must be the run's."""
    stored = read_notes(folder).get("template_hash")
    if stored is not None and stored != template.hash:
        raise UserError(
            f"under: {folder} was trained with another chat template ({stored[:12]}) than this run's "
            f"'{template.name}' ({template.hash[:12]})",
            hint="Set chat_template to the one that it was trained with.",
        )
    name = f"under {folder.resolve().name} {mix_seed(str(folder.resolve())) % 10**6}"
    if name not in model.adapters:
        model.load(folder, name=name)
        for parameter in model.adapter(name).parameters():
            parameter.requires_grad_(False)
    return name


def adapter_notes(run: PreparedRun, name: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """What graftlm.json says beside method and base. The same run gives the same notes: no clock times."""
    adapter = run.recipe.adapters[name]
    return {
        "template": run.template.to_dict(),
        "template_hash": run.template.hash,
        "recipe": {"base": run.recipe.base, "adapter": adapter.to_dict()},
        "under": list(adapter.under),
        "data": {key: run.data[key].counts() for key in adapter.data},
        "metrics": metrics,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import torch
    import transformers

    import graftlm

    return {
        "graftlm": graftlm.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
