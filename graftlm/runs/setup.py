"""From a recipe to a model with fresh adapters and the task of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.files import read_notes
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import mix_seed
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance
from graftlm.data.templates import BARE, ChatTemplate, resolve_chat_template
from graftlm.errors import UserError
from graftlm.recipe import AdapterRecipe, Recipe
from graftlm.runs.data import SplitData, part_of, read_data, render_data
from graftlm.training.task import Task


@dataclass(frozen=True)
class PreparedRun:
    """All that training needs. ``held_out`` are each adapter's held-out instances, in the order of its task's rows;
    ``data`` the splits by title, ``parts`` by adapter and data set; ``heads`` what adapters predict instead of text.
    """

    recipe: Recipe
    model: AdaptedModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    data: dict[str, SplitData]
    tasks: tuple[Task, ...]
    held_out: dict[str, tuple[Instance, ...]]
    parts: dict[str, dict[str, SplitData]]
    heads: dict[str, HeadSettings]


def set_up(recipe: Recipe, say: Callable[[str], None] = lambda _line: None) -> PreparedRun:
    """Load the base, read and render the data, and add the adapters. ``say`` gets a line on each thing done.

    Raises:
        UserError: anything in base, data or adapters that the user can mend.
    """
    # Data first: a mistake in it is found in a moment, and a base may take minutes to load.
    found = read_data(recipe)
    model = AdaptedModel.from_pretrained(recipe.base, dtype=recipe.dtype, device=recipe.device, blocks=recipe.blocks)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    parameters = sum(parameter.numel() for parameter in model.base.parameters())
    say(
        f"base {model.name}: {parameters / 1e6:.1f}M parameters, {str(model.dtype).removeprefix('torch.')} on "
        f"{model.device}, context {model.context_length}, fingerprint {model.fingerprint[:12]}"
    )
    template = _template(recipe, model, tokenizer)
    say(f"chat template {template.name}" if model.kind == "decoder" else f"texts of an {model.kind}")
    data = render_data(recipe, found, model, tokenizer, template, say)
    tasks, held_out = [], {}
    for name, adapter in recipe.adapters.items():
        parts = list(data.parts[name].values())
        with part_of("adapter", name):
            tasks.append(_task(name, adapter, model, template, parts, data.heads.get(name)))
        held_out[name] = tuple(each for part in parts if part.held_out for each in part.held_out.instances)
        update = model.adapter(name)
        say(f"adapter {name}: {update.trained_parameters:,} parameters, {len(tasks[-1].steps)} steps")
    return PreparedRun(recipe, model, tokenizer, template, data.splits, tuple(tasks), held_out, data.parts, data.heads)


def _template(recipe: Recipe, model: AdaptedModel, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """How conversations are written; bases that are no decoders read texts as they are."""
    if model.kind == "decoder":
        return resolve_chat_template(recipe.chat_template, tokenizer)
    if recipe.chat_template != "auto":
        raise UserError(
            f"chat_template '{recipe.chat_template}': this base is an {model.kind}, which reads texts without roles",
            hint="Leave chat_template out.",
        )
    return BARE


def _task(
    name: str,
    adapter: AdapterRecipe,
    model: AdaptedModel,
    template: ChatTemplate,
    parts: Sequence[SplitData],
    head: HeadSettings | None,
) -> Task:
    under = tuple(_load_under(Path(folder), model, template) for folder in adapter.under)
    classes = len(head.labels) if head is not None and head.type != "verbalizer" else None
    model.add(name, adapter.method, seed=mix_seed(adapter.training.seed, "start"), classes=classes)
    rows = tuple(row for part in parts for row in part.train.rows)
    held_out = tuple(row for part in parts if part.held_out for row in part.held_out.rows)
    task = Task(name, rows, adapter.training, held_out, under=under)
    _check_lengths(model, task)
    return task


def _check_lengths(model: AdaptedModel, task: Task) -> None:
    """See that every row fits into the context beside what its adapters put before it."""
    virtual, prefix = model.virtual_length(task.stack), model.prefix_length(task.stack)
    if not virtual and not prefix:
        return
    rows = (*task.rows, *task.held_out)
    longest = max(max(len(row.source_ids), len(row.ids)) if row.source_ids else len(row.ids) for row in rows)
    room = model.context_length - virtual - prefix
    if longest > room:
        raise UserError(
            f"its {virtual} virtual tokens and prefix of {prefix} leave room for {max(0, room)} tokens of the context "
            f"of {model.context_length}, and the longest row has {longest}",
            hint=f"Set max_length: {room} on the data set." if room > 1 else "Use fewer.",
        )


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
        **({"head": run.heads[name].model_dump(mode="json")} if name in run.heads else {}),
        "data": {key: part.counts() for key, part in run.parts[name].items()},
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
