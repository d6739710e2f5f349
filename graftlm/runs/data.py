"""The data of a run: each data set read once, and rendered once for each thing that adapters predict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from graftlm.adapters.model import AdaptedModel
from graftlm.data.answers import ComparedAnswers, with_mismatched
from graftlm.data.heads import HeadSettings, with_labels
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import (
    Instances,
    PreparedData,
    RowCounts,
    check_variables,
    load_instances,
    prepare,
)
from graftlm.data.prompts import Prompts
from graftlm.data.splits import split_held_out
from graftlm.data.templates import ChatTemplate
from graftlm.data.trained_on import DataFile, describe_files
from graftlm.errors import UserError
from graftlm.recipe import AdapterRecipe, DataSet, Recipe


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
class ReadData:
    """The instances of one data set: to learn from, and held out where they have files of their own.

    ``files``: those that are learnt from, as they were when they were read.
    """

    train: Instances
    held_out: Instances | None
    files: tuple[DataFile, ...] = ()


@dataclass(frozen=True)
class RunData:
    """``splits`` by title, in order; ``parts`` by adapter and data set; ``heads``, with their labels, by adapter."""

    splits: dict[str, SplitData]
    parts: dict[str, dict[str, SplitData]]
    heads: dict[str, HeadSettings]


#: What rows are: answers to learn, answers to compare, single answers that were found good or bad, or prompts.
Form = Literal["answers", "compared", "judged", "prompts"]


def form_of(adapter: AdapterRecipe) -> Form:
    """What an adapter's objective makes of instances."""
    objective = adapter.training.objective
    if objective.online or objective.type == "value":
        return "prompts"
    if not objective.compares:
        return "answers"
    return "judged" if objective.type == "kto" else "compared"


def read_data(recipe: Recipe) -> dict[str, ReadData]:
    """Read every data set of a recipe. Where policies alone use one, prompts that nobody has answered are read too."""
    forms: dict[str, set[Form]] = {}
    for adapter in recipe.adapters.values():
        for name in adapter.data:
            forms.setdefault(name, set()).add(form_of(adapter))
    return {name: _read(name, each, forms.get(name) == {"prompts"}) for name, each in recipe.data.items()}


def render_data(
    recipe: Recipe,
    found: dict[str, ReadData],
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    templates: Mapping[str, ChatTemplate],
    beneath: Mapping[str, HeadSettings | None],
    say: Callable[[str], None],
) -> RunData:
    """Render, cut and split what adapters learn from, each in its own of ``templates``, or else in the run's.

    ``beneath``: what the adapters beneath each predict, for one that has no head of its own.

    ``say`` gets the account of each rendering.
    """
    made: dict[tuple[str, str, str, str], SplitData] = {}
    result = RunData({}, {}, {})

    def split(key: str, head: HeadSettings | None, owner: str, form: Form = "answers") -> SplitData:
        chosen = templates.get(owner, template)
        place = (key, "" if head is None else head.model_dump_json(), chosen.hash, form)
        if place not in made:
            usual = head is None and chosen.hash == template.hash and form == "answers"
            title = key if usual else f"{key} for {owner}"
            made[place] = result.splits[title] = _prepare(
                key, recipe.data[key], found[key], model, tokenizer, chosen, head, form
            )
            _tell(title, made[place], say)
        return made[place]

    for name, adapter in recipe.adapters.items():
        with part_of("adapter", name):
            head = _head(adapter, beneath.get(name), found, model)
        if head is not None:
            result.heads[name] = head
        result.parts[name] = {key: split(key, head, name, form_of(adapter)) for key in adapter.data}
    used = {key for key, *_ in made}
    for key in recipe.data:
        if key not in used and model.kind != "encoder":  # no adapter learns from it: its account is told all the same
            split(key, None, "")
    return result


def _head(
    adapter: AdapterRecipe, beneath: HeadSettings | None, found: dict[str, ReadData], model: AdaptedModel
) -> HeadSettings | None:
    """What an adapter predicts, with the labels of its data sets, or those of the head beneath it."""
    head = adapter.head or beneath
    objective = adapter.training.objective
    if objective.compares and objective.type != "reward" and (model.kind == "encoder" or head is not None):
        what = "stacked on one with a head" if model.kind != "encoder" else "on an encoder, which writes no answers"
        raise UserError(
            f"objective: {objective.type} is of the likelihood of answers, and this adapter is {what}",
            hint="An encoder can learn objective: reward. A head beneath is left out with its adapter.",
        )
    if head is None:
        return None
    if head.type == "verbalizer" and model.kind == "encoder" and not model.has_language_head:
        raise UserError(
            f"head: {model.name} has no language head that could fill in a word",
            hint="Use head: {type: classifier}, or a base with a masked language head.",
        )
    return with_labels(head, [item for key in adapter.data for item in found[key].train.items])


def _tell(title: str, split: SplitData, say: Callable[[str], None]) -> None:
    say(f"data {title}: {split.train.summary}; {account(split)}")
    if split.held_out is not None and split.held_out.counts is not split.train.counts:
        say(f"data {title}, held-out file: {split.held_out.summary}; {_losses(split.held_out.counts)}")


def _read(name: str, data_set: DataSet, prompts: bool) -> ReadData:
    keys = ("prompt", "answer", "system", "variables", "limit")
    reading = {key: value for key, value in data_set.reading().items() if key in keys}

    def read(paths: tuple[str, ...], split: str | None) -> Instances:
        for path in paths if split is not None else ():
            if Path(path).is_file():
                raise UserError(f"{path} is a file, and has no split '{split}'", hint="Name a set, or leave it out.")
        return load_instances(list(paths), split=split, prompts=prompts, **reading)

    with part_of("data set", name):
        held_out = None if data_set.held_out_from is None else read(*data_set.held_out_from)
        files = describe_files(data_set.path)
        train = read(data_set.path, data_set.split)
        seen = RowCounts()
        for part in (train, held_out):
            if part is not None:
                seen.add(part.counts)
        check_variables(data_set.variables, seen)
        return ReadData(train, held_out, files)


def _prepare(
    name: str,
    data_set: DataSet,
    found: ReadData,
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate,
    head: HeadSettings | None,
    form: Form = "answers",
) -> SplitData:
    """Render, cut and split one data set."""
    keys = ("max_dropped", "drop_duplicates", "preferences")
    settings = {key: value for key, value in data_set.reading().items() if key in keys}
    settings["max_length"] = _max_length(name, data_set, model)
    with part_of("data set", name):
        rendering = choose_rendering(
            model.kind,
            head,
            template,
            tokenizer,
            max_length=settings["max_length"],
            train_on=data_set.train_on if form == "answers" else "last",
            decoder_start=getattr(model.base.config, "decoder_start_token_id", None),
        )
        if form == "prompts":
            two = model.kind == "encoder-decoder"
            rendering = Prompts(template, tokenizer, settings["max_length"], reads_source=two)
            settings["preferences"] = "compare"
        elif form != "answers":
            criteria = head.criteria if head is not None and head.type == "reward" else ("",)
            rendering, settings["preferences"] = ComparedAnswers(rendering, criteria, form == "judged"), "compare"

        def rendered(instances: Instances) -> PreparedData:
            own = replace(instances, counts=copy.deepcopy(instances.counts))  # each rendering has its own account
            return prepare(own, template, tokenizer, rendering=rendering, **settings)

        rows = rendered(found.train)
        if found.held_out is not None:
            split = SplitData(rows, rendered(found.held_out))
        elif data_set.held_out_part:
            split = SplitData(*split_held_out(rows, data_set.held_out_part))
        else:
            split = SplitData(rows, None)
        if form == "judged":
            for part in (split.train, split.held_out):
                if part is not None:
                    part.rows[:] = with_mismatched(part.rows)
    if not split.train.rows:
        raise UserError(
            f"data set '{name}': all of its {len(rows.rows)} rows are held out, so none is left to learn from",
            hint="Hold out fewer: held_out: 0.1",
        )
    return split


@contextmanager
def part_of(kind: str, name: str) -> Iterator[None]:
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
