"""From a recipe to a model with fresh adapters and the task of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.files import start_from
from graftlm.adapters.model import AdaptedModel
from graftlm.adapters.routing import mix_seed
from graftlm.data.heads import HeadSettings
from graftlm.data.instances import Instance
from graftlm.data.prompt_template import PromptTemplate, is_prompt_template, prompt_template, template_from_dict
from graftlm.data.templates import ChatTemplate, resolve_chat_template
from graftlm.data.trained_on import DataFile
from graftlm.errors import UserError
from graftlm.evaluation.labels import stored_head
from graftlm.recipe import AdapterRecipe, Recipe
from graftlm.runs.data import SplitData, account, part_of, read_data, render_data
from graftlm.runs.online import policy_task, value_task
from graftlm.runs.pretraining import Texts, pretraining_texts
from graftlm.training.forward import RoutedRow
from graftlm.training.objectives import build_objective
from graftlm.training.task import Task
from graftlm.training.virtual_rows import with_virtual_tokens


@dataclass(frozen=True)
class PreparedRun:
    """All that training needs. ``held_out`` are each adapter's held-out instances, in the order of its task's rows;
    ``data`` the splits by title, ``parts`` by adapter and data set; ``heads`` what adapters predict instead of text;
    ``templates`` the template of each adapter's rows: the run's, unless it has one of its own; ``files`` what was read
    to learn from, by data set; ``texts`` those of pretraining mixes, by adapter.
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
    templates: dict[str, ChatTemplate]
    files: dict[str, tuple[DataFile, ...]]
    texts: dict[str, Texts]


def set_up(
    recipe: Recipe,
    say: Callable[[str], None] = lambda _line: None,
    *,
    model: AdaptedModel | None = None,
    kept: Path | None = None,
) -> PreparedRun:
    """Load the base, read and render the data, and add the adapters. ``say`` gets a line on each thing done.

    ``model``: the recipe's base, where it is loaded already. ``kept``: where what endpoints say of answers is kept.

    Raises:
        UserError: anything in base, data or adapters that the user can mend.
    """
    # Data first: a mistake in it is found in a moment, and a base may take minutes to load.
    found = read_data(recipe)
    model = model or AdaptedModel.from_pretrained(
        recipe.base, dtype=recipe.dtype, device=recipe.device, blocks=recipe.blocks
    )
    tokenizer = model.tokenizer
    assert tokenizer is not None
    parameters = sum(parameter.numel() for parameter in model.base.parameters())
    say(
        f"base {model.name}: {parameters / 1e6:.1f}M parameters, {str(model.dtype).removeprefix('torch.')} on "
        f"{model.device}, context {model.context_length}, fingerprint {model.fingerprint[:12]}"
    )
    template = resolve_chat_template(recipe.chat_template, tokenizer, model.kind)
    say(f"chat template {template.name}" if model.kind == "decoder" else f"texts of an {model.kind}")
    under: dict[str, tuple[str, ...]] = {}
    templates: dict[str, ChatTemplate] = {}
    beneath: dict[str, HeadSettings | None] = {}
    for name, adapter in recipe.adapters.items():
        with part_of("adapter", name):
            under[name] = tuple(_load_under(Path(folder), model) for folder in adapter.under)
            beneath[name] = _head_beneath(adapter, under[name], model)
            templates[name] = _template_of(adapter, under[name], model, tokenizer, template)
        if templates[name] is not template:
            say(f"adapter {name}: template {templates[name].name}")
    data = render_data(recipe, found, model, tokenizer, template, templates, beneath, say)
    tasks: dict[str, Task] = {}
    held_out = {}
    texts: dict[str, Texts] = {}
    for name in _values_last(recipe):
        adapter, parts = recipe.adapters[name], list(data.parts[name].values())
        with part_of("adapter", name):
            tasks[name] = _task(name, adapter, model, under[name], parts, data.heads.get(name))
            if adapter.training.objective.online:
                prompts = [each for part in parts for each in part.train.instances]
                load = partial(_load_under, model=model)
                critic = adapter.training.objective.value
                value = None if critic is None else (*under[critic], critic)
                stack = under[name]
                mixed = pretraining_texts(adapter, model, (*stack, name), templates[name])
                if mixed is not None:
                    texts[name] = mixed
                    data.splits[f"pretraining of {name}"] = split = SplitData(mixed.data, None)
                    say(f"pretraining of {name}: {mixed.data.summary}; {account(split)}")
                tasks[name] = policy_task(
                    name,
                    adapter,
                    model,
                    stack,
                    templates[name],
                    prompts,
                    kept,
                    load,
                    value,
                    () if mixed is None else mixed.rows,
                    [each for part in parts if part.held_out for each in part.held_out.instances],
                )
            elif adapter.training.objective.type == "value":
                policy = next(key for key, each in recipe.adapters.items() if each.training.objective.value == name)
                tasks[name] = value_task(name, adapter, model, under[name], tasks[policy])
            _check_virtual(model, tasks[name], templates[name])
        held_out[name] = tuple(each for part in parts if part.held_out for each in part.held_out.instances)
        update = model.adapter(name)
        say(f"adapter {name}: {update.trained_parameters:,} parameters, {tasks[name].total} steps")
    return PreparedRun(
        recipe,
        model,
        tokenizer,
        template,
        data.splits,
        tuple(tasks[name] for name in recipe.adapters),
        held_out,
        data.parts,
        data.heads,
        templates,
        {key: read.files for key, read in found.items()},
        texts,
    )


def _values_last(recipe: Recipe) -> list[str]:
    """The adapters in their order, but value adapters behind their policies."""
    return sorted(recipe.adapters, key=lambda name: recipe.adapters[name].training.objective.type == "value")


def _template_of(
    adapter: AdapterRecipe,
    under: Sequence[str],
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
) -> ChatTemplate:
    """The template of an adapter's rows: its own, or that of one beneath it, or the run's.

    Raises:
        UserError: an adapter beneath was trained with another one.
    """
    text, place = adapter.method.own_template, model.places.embedding
    stored = [(name, model.notes.get(name, {})) for name in under]
    inherited = [notes["template"] for _, notes in stored if is_prompt_template(notes.get("template"))]
    if text is not None and place is not None:
        beneath = model.virtual_length(tuple(under))
        chosen: ChatTemplate = prompt_template(
            text, tokenizer, place.vocabulary, beneath, framed=model.kind == "decoder"
        )
    else:
        chosen = template_from_dict(inherited[0]) if inherited else template
    for folder, (_, notes) in zip(adapter.under, stored, strict=True):
        theirs = notes.get("template_hash")
        if theirs is not None and theirs != chosen.hash:
            raise UserError(
                f"under: {folder} was trained with another chat template ({theirs[:12]}) than this run's "
                f"'{chosen.name}' ({chosen.hash[:12]})",
                hint="Set chat_template to the one that it was trained with.",
            )
    return chosen


def _head_beneath(adapter: AdapterRecipe, under: tuple[str, ...], model: AdaptedModel) -> HeadSettings | None:
    """What an adapter without a head of its own predicts all the same: with the head that it is stacked on.

    Raises:
        UserError: the labels of that head are not known.
    """
    head = None if adapter.head is not None else stored_head(model, under)
    if head is not None and not head.labels:
        raise UserError(
            f"under: {adapter.under[-1]} has a head, and its graftlm.json does not name the labels",
            hint="Give the adapter a head of its own: head: {type: classifier}.",
        )
    return head


def _check_virtual(model: AdaptedModel, task: Task, template: ChatTemplate) -> None:
    """See that a template with virtual tokens has those of all adapters of the stack."""
    if isinstance(template, PromptTemplate) and template.virtual != model.virtual_length(task.stack):
        raise UserError(
            f"template '{template.name}' has the places of {template.virtual} virtual tokens, and the adapters "
            f"have {model.virtual_length(task.stack)} together",
            hint="Stack it on adapters without virtual tokens behind a template of their own.",
        )


def _task(
    name: str,
    adapter: AdapterRecipe,
    model: AdaptedModel,
    under: tuple[str, ...],
    parts: Sequence[SplitData],
    head: HeadSettings | None,
) -> Task:
    own = head if adapter.head is not None else None
    criteria = () if own is None else own.criteria
    objective = adapter.training.objective
    _add(name, adapter, model, own)
    if objective.online or objective.type == "value":
        return Task(name, (), adapter.training, under=under)  # its rows are made as training goes on
    rows = tuple(row for part in parts for row in part.train.rows)
    held_out = tuple(row for part in parts if part.held_out for row in part.held_out.rows)
    task = Task(
        name,
        rows,
        adapter.training,
        held_out,
        build_objective(objective, criteria),
        under,
        continues=adapter.init_from is not None,
    )
    _check_lengths(model, task)
    return task


def _add(name: str, adapter: AdapterRecipe, model: AdaptedModel, head: HeadSettings | None = None) -> None:
    """Add the adapter as it starts, with its own head if it has one."""
    model.add(
        name,
        adapter.method,
        seed=mix_seed(adapter.training.seed, "start"),
        classes=None if head is None else head.classes,
        criteria=(len(head.criteria) or None) if head is not None else None,
    )
    if adapter.init_from is not None:
        start_from(model, name, Path(adapter.init_from))


def _check_lengths(model: AdaptedModel, task: Task) -> None:
    """See that every row fits into the context beside what its adapters put before it."""
    virtual, prefix = model.virtual_length(task.stack), model.prefix_length(task.stack)
    if not virtual and not prefix:
        return
    rows = [RoutedRow(row, task.stack) for leader in (*task.rows, *task.held_out) for row in leader.group]
    whole = [each.row for each in with_virtual_tokens(model, rows)]
    longest = max(max(len(row.source_ids or ()), len(row.ids)) for row in whole) - virtual
    room = model.context_length - virtual - prefix
    if longest > room:
        raise UserError(
            f"its {virtual} virtual tokens and prefix of {prefix} leave room for {max(0, room)} tokens of the context "
            f"of {model.context_length}, and the longest row has {longest}",
            hint=f"Set max_length: {room} on the data set." if room > 1 else "Use fewer.",
        )


def _load_under(folder: Path, model: AdaptedModel) -> str:
    """Load a trained adapter to stack on, once."""
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
        "template": run.templates[name].to_dict(),
        "template_hash": run.templates[name].hash,
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
