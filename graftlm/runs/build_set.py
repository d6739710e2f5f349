"""Build a set from its recipe: read, filter, split, mix, write; as a stream, so that memory stays small.

The same recipe and files give the same bytes. Sources are read in the order of their names, and which rows are
taken and where they stand follows from the seed and each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import pyarrow

import graftlm
from graftlm.data import filters as rules
from graftlm.data.contradictions import Answers, Contradictions
from graftlm.data.filters import Contamination, Filter, SharedAnswers, apply_filters
from graftlm.data.instances import Instance
from graftlm.data.mixing import Mixture, Sampler, Spool, row_key
from graftlm.data.prepare import RowCounts, read_instances
from graftlm.data.readers import read_rows
from graftlm.data.sets import EXAMPLES, RECIPE, SetCard, check_replaceable, is_set, read_set, write_set
from graftlm.data.splits import share_of
from graftlm.errors import unknown_name
from graftlm.recipe.set_recipe import UNSEEN, FilterKeys, MixtureKeys, SetRecipe
from graftlm.runs.set_sources import files_of, list_sources, read_sources, shown

Progress = Callable[[int], None]
EVERY = 1_000  # instances between two calls of progress


def build_set(
    recipe: SetRecipe,
    out: Path,
    *,
    folder: Path,
    text: str = "",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SetCard:
    """Write the set of a recipe to ``out``; ``folder`` is what its paths are relative to, ``text`` is kept beside.

    ``overwrite`` replaces a set that is there. ``progress`` is called with the number of instances read so far.

    Raises:
        UserError: a source cannot be read or is not what the recipe says, nothing is left, or ``out`` may not be
            replaced.
    """
    check_replaceable(out, overwrite=overwrite)  # before hours of reading
    card = SetCard(sources=list_sources(recipe, folder))
    read: dict[str, RowCounts] = {name: RowCounts() for name in sorted(recipe.sources)}
    stream = _with_progress(read_sources(recipe, folder, read), progress)
    filters = _filters(recipe.filters, folder, card)
    kept = apply_filters(stream, filters, card, seed=recipe.seed)
    remover = next((each for each in filters if isinstance(each, Contradictions)), None)
    answers = Answers(prompts=False)  # of labelled rows, if nothing compares them already
    unseen = frozenset(recipe.mixture.held_out)
    families: set[str] = set()

    def split_of(instance: Instance) -> str:
        return UNSEEN if instance.provenance.task in unseen else _split(instance, recipe)

    with Sampler(_mixture(recipe.mixture), seed=recipe.seed, size=_size(recipe.mixture)) as sampler, Spool() as others:
        for name, instance in kept:
            families.add(instance.provenance.task)
            if remover is None:
                answers.add(instance)
            if instance.provenance.task in unseen:
                others.add(row_key(instance, recipe.seed), name, instance)
            else:
                sampler.add(_task(recipe.mixture, name, instance), instance)
        for family in sorted(unseen - families):
            raise unknown_name("task family", family, sorted(families - {""}))
        found = remover.found if remover is not None else answers.note()
        if found.get("rows"):
            card.notes["contradictions" if remover is None else "contradictions removed"] = found
        _account(card, recipe, read, sampler, folder)
        taken = _once(sampler.take(), split_of, card) if recipe.mixture.repeat else sampler.take()
        instances = chain(taken, (instance for _, _, instance in others.sorted()))
        files = {RECIPE: text} if text else {}
        rows = recipe.rows_per_shard
        return write_set(out, instances, card, rows_per_shard=rows, split=split_of, files=files, overwrite=overwrite)


def _once(instances: Iterator[Instance], split_of: Callable[[Instance], str], card: SetCard) -> Iterator[Instance]:
    """Instances that may be repeated, but each once where it is not trained on."""
    seen: set[int] = set()
    for instance in instances:
        if split_of(instance) != "train":
            if (key := row_key(instance, 0)) in seen:
                card.drop("repeated, but not for training", instance)
                continue
            seen.add(key)
        yield instance


def _with_progress(stream: Iterator[tuple[str, Instance]], progress: Progress | None) -> Iterator[tuple[str, Instance]]:
    number = 0
    for number, entry in enumerate(stream, 1):
        if progress is not None and number % EVERY == 0:
            progress(number)
        yield entry
    if progress is not None:
        progress(number)


def _filters(keys: FilterKeys, folder: Path, card: SetCard) -> list[Filter]:
    """The filters that are asked for, those that cost little first."""
    chosen: list[Filter] = []
    if keys.empty_answers:
        chosen.append(rules.EmptyAnswer())
    if keys.min_prompt or keys.min_answer or keys.max_prompt is not None or keys.max_answer is not None:
        chosen.append(rules.Length((keys.min_prompt, keys.max_prompt), (keys.min_answer, keys.max_answer)))
    if keys.languages or not keys.unknown_language:
        chosen.append(rules.Language(keys.languages, unknown=keys.unknown_language))
    if keys.words is not None:
        chosen.append(rules.WordList.read(folder / Path(keys.words).expanduser()))
    if keys.copied_answers:
        chosen.append(rules.CopiedAnswer())
    if keys.duplicates:
        chosen.append(rules.Duplicates())
    if keys.overlap:
        chosen.append(_contamination(keys, folder, card))
    if keys.shared_answers:
        chosen.append(_shared_answers(keys, folder))
    if keys.near_duplicates is not None:
        chosen.append(rules.NearDuplicates(keys.near_duplicates))
    if keys.contradictions:
        chosen.append(Contradictions())
    if keys.balance is not None:
        chosen.append(rules.LabelBalance(keys.balance))
    return chosen


def _contamination(keys: FilterKeys, folder: Path, card: SetCard) -> Contamination:
    """Looks for the texts of evaluation sets, whatever the columns of their files."""
    found = Contamination(width=keys.overlap_words, shortest=min(8, keys.overlap_words))
    for name, paths in keys.overlap.items():
        for path in paths:
            for file in files_of(path, folder, name):
                for _, row in read_rows(file):
                    found.add(name, rules.texts_of(row))
    if found.too_short:
        card.notes["evaluation texts too short to look for"] = dict(found.too_short)
    return found


def _shared_answers(keys: FilterKeys, folder: Path) -> SharedAnswers:
    """Looks for the answers of evaluation sets: all splits of a set, and files of a known form."""
    found = SharedAnswers()
    for name, paths in keys.shared_answers.items():
        for path in paths:
            for file in files_of(path, folder, name):
                instances = read_set(file) if is_set(Path(file)) else read_instances(file, RowCounts()).instances
                found.add(name, instances)
    return found


def _split(instance: Instance, recipe: SetRecipe) -> str:
    place = share_of(instance, recipe.seed)
    for name, share in sorted(recipe.splits.items()):
        if place < share:
            return name
        place -= share
    return "train"


def _mixture(keys: MixtureKeys) -> Mixture:
    return Mixture(keys.method, keys.cap, keys.temperature, keys.shares, keys.total, keys.repeat)


def _task(keys: MixtureKeys, name: str, instance: Instance) -> str:
    return name if keys.by == "source" else getattr(instance.provenance, keys.by) or "(not stated)"


def _size(keys: MixtureKeys) -> Callable[[Instance], int] | None:
    """What an instance counts for: one row (None), or the tokens of its messages."""
    if keys.unit == "rows":
        return None
    from graftlm.base.loading import load_tokenizer

    tokenizer = load_tokenizer(keys.tokenizer)
    return lambda instance: sum(
        len(tokenizer.encode(message.content, add_special_tokens=False)) for message in instance.messages
    )


def _account(card: SetCard, recipe: SetRecipe, read: dict[str, RowCounts], sampler: Sampler, folder: Path) -> None:
    """Add to what the filters removed what the readers dropped and what the mixture leaves."""
    card.notes["read"] = {name: {"rows": counts.rows, "instances": counts.read} for name, counts in read.items()}
    if recipe.criteria:
        card.notes["criteria"] = recipe.criteria
    if unused := {name: counts.unused for name, counts in read.items() if counts.unused}:
        card.notes["no demonstration of"] = unused
    if faults := {name: counts.truncated for name, counts in read.items() if counts.truncated}:
        card.notes["kept, but"] = faults
    for counts in read.values():
        for reason, number in counts.dropped.items():
            card.dropped[reason] = card.dropped.get(reason, 0) + number
            places = [_shown_place(place, folder) for place in counts.examples[reason]]
            card.examples[reason] = [*card.examples.get(reason, []), *places][:EXAMPLES]
    plan = sampler.plan()
    card.notes["versions"] = {"graftlm": graftlm.__version__, "pyarrow": pyarrow.__version__}
    card.notes["mixture"] = {task: asdict(taken) for task, taken in plan.items()}
    if left := sum(max(sampler.rows(task) - taken.rows, 0) for task, taken in plan.items()):
        card.dropped["not drawn for the mixture"] = left


def _shown_place(place: str, folder: Path) -> str:
    file, _, row = place.rpartition(":")
    return f"{shown(file, folder)}:{row}"
