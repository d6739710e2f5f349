"""The sources of a set: which files a recipe names, what is in them by hash, and the instances they give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain, islice
from pathlib import Path
from typing import Any

from graftlm.data.criteria import criterion_name
from graftlm.data.instances import Instance, Provenance
from graftlm.data.joined import JOINED, joined_answers
from graftlm.data.prepare import RowCounts, check_variables, read_instances
from graftlm.data.readers import find_sources, read_rows
from graftlm.data.sets import SetCard, Source, check_shards, describe_source, is_set, read_card
from graftlm.data.verdicts import judged_by
from graftlm.errors import UserError
from graftlm.recipe.set_recipe import PROMPTSOURCE, FilterKeys, SetRecipe, SourceKeys


def list_sources(recipe: SetRecipe, folder: Path) -> list[Source]:
    """All files that a set depends on with their hashes, under the names that the recipe gives them.

    Raises:
        UserError: a file is not what the recipe says, or is not here.
    """
    listed: dict[str, Source] = {}
    for name, source in sorted(recipe.sources.items()):
        for place, path in enumerate(source.path):
            found = [describe(file, folder, source.licence) for file in files_of(path, folder, name)]
            if source.sha256 and [each.sha256 for each in found] != [source.sha256[place]]:
                raise UserError(
                    f"source '{name}': {path} is not what the recipe says: its sha256 is {found[0].sha256}",
                    hint="Get the file of then, or change sha256 in the recipe.",
                )
            listed |= {each.path: each for each in found}
        template = (source.template or "").removeprefix(PROMPTSOURCE).partition("#")[0]
        further = [*source.demonstrations_from, *([source.join] if source.join is not None else [])]
        others = [file for path in further for file in files_of(path, folder, name)]
        if template and (folder / template).is_file():
            others.append(str(folder / template))
        listed |= {each.path: each for each in (describe(file, folder) for file in others)}
    for file in _filter_files(recipe.filters, folder):
        listed.setdefault(shown(file, folder), describe(file, folder))
    return list(listed.values())


def _filter_files(filters: FilterKeys, folder: Path) -> Iterator[str]:
    """The word list and the evaluation sets."""
    if filters.words is not None:
        yield str(folder / filters.words)
    for sets in (filters.overlap, filters.shared_answers):
        for name, paths in sorted(sets.items()):
            for path in paths:
                yield from files_of(path, folder, name)


def changed_sources(before: SetCard, now: list[Source]) -> list[str]:
    """The files whose content differs from what a set was built of, by name."""
    known = {source.path: source.sha256 for source in before.sources}
    return [source.path for source in now if known.get(source.path, source.sha256) != source.sha256]


def files_of(path: str, folder: Path, name: str) -> list[str]:
    """The files and sets of a path of the source ``name``.

    Raises:
        UserError: it is not here, or of a kind whose content cannot be told by a hash.
    """
    place = folder / Path(path).expanduser()
    if not place.exists():
        raise UserError(f"source '{name}': {place} is not here; a set is built of files, so that it can be built again")
    files = find_sources(place)
    if any(Path(file).is_dir() and not is_set(Path(file)) for file in files):
        raise UserError(f"source '{name}': {place} is a `datasets` folder", hint="Save it as Parquet or JSON lines.")
    return files


def describe(file: str | Path, folder: Path, licence: str = "") -> Source:
    """A file or set as the card names it."""
    if is_set(Path(file)):
        check_shards(file)
        return Source(shown(file, folder), read_card(file).sha256, licence)
    return describe_source(file, name=shown(file, folder), licence=licence)


def shown(file: str | Path, folder: Path) -> str:
    """A path as seen from the recipe's folder, so that the set does not depend on where that is."""
    path = Path(file)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def read_sources(recipe: SetRecipe, folder: Path, read: dict[str, RowCounts]) -> Iterator[tuple[str, Instance]]:
    """The instances of all sources, in the order of the sources' names; ``read`` gets the account of each.

    Raises:
        UserError: a source cannot be read.
    """
    for name in sorted(recipe.sources):
        source = recipe.sources[name]
        files = [file for path in source.path for file in files_of(path, folder, name)]
        empty = True
        for file in files:
            try:
                found = _read(source, file, folder, recipe.seed, files, read[name])
                for instance in _joined(found, read[name]) if source.join_answers else found:
                    empty = False
                    origin = _origin(instance.provenance, source)
                    known = instance if origin is instance.provenance else replace(instance, provenance=origin)
                    yield name, judged_by(known, criterion_name(source.criterion))
            except UserError as error:
                raise UserError(f"source '{name}': {error.message}", hint=error.hint) from error
        try:
            check_variables(source.variables, read[name])
        except UserError as error:
            raise UserError(f"source '{name}': {error.message}", hint=error.hint) from error
        _check_dropped(name, source, read[name])
        if empty:
            reasons = "; ".join(f"{number:,} {reason}" for reason, number in read[name].dropped.items())
            raise UserError(f"source '{name}': none of its {read[name].rows:,} rows gives an instance: {reasons}")


def _joined(instances: Iterator[Instance], counts: RowCounts) -> list[Instance]:
    return joined_answers(instances, lambda one: counts.truncate(JOINED, one.source, one.row))


def _check_dropped(name: str, source: SourceKeys, counts: RowCounts) -> None:
    """Raises UserError if more of a source is dropped than it may; rows of other splits are not meant."""
    lost = {reason: number for reason, number in counts.dropped.items() if not reason.startswith("of another split")}
    total = counts.read - (sum(counts.dropped.values()) - sum(lost.values()))
    if source.max_dropped is None or sum(lost.values()) <= source.max_dropped * total:
        return
    reasons = [
        f"  {number:,} × {reason}, for example {', '.join(counts.examples[reason][:3])}"
        for reason, number in sorted(lost.items(), key=lambda item: -item[1])
    ]
    share = sum(lost.values()) / max(total, 1)
    what = f"source '{name}': {sum(lost.values()):,} of {total:,} rows ({share:.1%}) cannot be used; allowed are"
    raise UserError(
        "\n".join([f"{what} {source.max_dropped:.1%}:", *reasons]), hint="Mend the rows, or allow more: max_dropped."
    )


def _origin(own: Provenance, source: SourceKeys) -> Provenance:
    """What an instance says of itself, and what the recipe says where it does not."""
    task = own.task or source.task
    for family, patterns in source.families.items():
        if any(fnmatchcase(own.template, pattern) for pattern in patterns):
            task = family
            break
    language, licence = own.language or source.language, own.licence or source.licence
    if (task, language, licence) == (own.task, own.language, own.licence):
        return own
    return replace(own, task=task, language=language, licence=licence)


def _read(
    source: SourceKeys, file: str, folder: Path, seed: int, files: list[str], counts: RowCounts
) -> Iterator[Instance]:
    if source.template is not None and source.template.startswith(PROMPTSOURCE):
        yield from _prompted(source, file, folder, seed, counts)
        return
    if source.template is not None:
        yield from _formatted(source, file, folder, seed, files, counts)
        return
    if source.split is not None and not is_set(Path(file)):
        raise UserError(f"{shown(file, folder)} is no set, and has no splits", hint="Leave split out.")
    reading = read_instances(
        file,
        counts,
        prompt=source.prompt,
        answer=source.answer,
        system=source.system,
        variables=source.variables,
        split=source.split,
        limit=source.max_rows,
        group=source.group,
    )
    if is_set(Path(file)):
        yield from reading.instances
        return
    name = shown(file, folder)
    for instance in reading.instances:
        yield replace(instance, source=name)


def _prompted(source: SourceKeys, file: str, folder: Path, seed: int, counts: RowCounts) -> Iterator[Instance]:
    """Labelled rows as templates of PromptSource word them."""
    from graftlm.data.formatting import SAMPLE
    from graftlm.data.promptsource import format_with, promptsource_formatter
    from graftlm.data.task_fields import check_group, columns_of, expand_row

    name = shown(file, folder)
    path, mark, key = (source.template or "").removeprefix(PROMPTSOURCE).partition("#")
    write = promptsource_formatter(
        f"{folder / path}{mark}{key}",
        columns=source.columns,
        classes=source.classes,
        source=name,
        licence=source.licence,
        seed=seed,
    )
    rows = islice(read_rows(file), source.max_rows)
    if source.group is not None:
        first = [part for _, row in islice(read_rows(file), SAMPLE) for part in expand_row(row)]
        check_group(source.group, columns_of(first), name)
    yield from format_with([write], rows, counts, name, source.split or "train", source.group)


def _formatted(
    source: SourceKeys, file: str, folder: Path, seed: int, files: list[str], counts: RowCounts
) -> Iterator[Instance]:
    """Labelled rows as the template words them."""
    from graftlm.data.formatting import SAMPLE, FormatSettings, demonstration_pool, format_rows
    from graftlm.data.task_fields import (
        Columns,
        check_group,
        choose_columns,
        columns_of,
        expand_row,
        join_rows,
        rows_to_join,
        same_columns,
    )
    from graftlm.data.task_template import load_task_template

    assert source.template is not None
    own = folder / source.template
    template = load_task_template(own if own.is_file() else source.template)

    added = source.join is not None and rows_to_join(
        (row for path in files_of(source.join, folder, source.join) for row in read_rows(path)),
        source.join_on,
        source.join,
    )

    def rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
        found = islice(read_rows(path), source.max_rows)
        return join_rows(found, added, source.join_on, shown(path, folder)) if added is not False else found

    def first_rows(path: str) -> list[dict[str, Any]]:
        return [part for _, row in islice(rows(path), SAMPLE) for part in expand_row(row)]

    def columns_in(path: str) -> Columns:
        return choose_columns(columns_of(first_rows(path)), template, source.columns, source=shown(path, folder))

    sample = first_rows(file)
    settings = FormatSettings(
        language=source.language or "en",
        demonstrations=source.demonstrations,
        few_shot_ratio=source.few_shot_ratio,
        all_descriptions=source.all_descriptions,
        descriptions=source.descriptions,
        inverted=source.inverted,
        columns=columns_in(file),
        spellings=source.labels,
        split=source.split or ("train" if any("split" in part for part in sample) else None),
        licence=source.licence,
        source=shown(file, folder),
        group=source.group or "",
    )
    if source.group is not None:
        check_group(source.group, columns_of(sample), shown(file, folder))
    pool = None
    if source.demonstrations[1]:
        training = [f for path in source.demonstrations_from for f in files_of(path, folder, path)] or files
        columns = same_columns({shown(path, folder): columns_in(path) for path in training}, template)
        theirs = replace(settings, columns=columns, source=" and ".join(shown(path, folder) for path in training))
        known = chain.from_iterable(map(rows, training))
        unread = RowCounts()
        pool = demonstration_pool(known, template, theirs, seed, counts=unread)
        if source.demonstrations_from:  # rows of the source itself are in its own account
            counts.unused = unread.dropped
    yield from format_rows(rows(file), template, settings, seed, pool=pool, counts=counts)
