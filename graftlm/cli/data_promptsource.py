"""``graftlm data format --template promptsource:FILE#dataset/name``: other people's templates, as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from graftlm.cli.console import console
from graftlm.errors import UserError, nearest

if TYPE_CHECKING:
    from graftlm.data.instances import Instance
    from graftlm.data.prepare import RowCounts
    from graftlm.data.promptsource import PromptTemplate

SHOWN = 20  # rows whose columns are looked at before all are formatted


def format_promptsource(
    file: str,
    reference: str,
    *,
    columns: dict[str, str],
    labels: dict[str, str],
    every_template: bool,
    split: str | None,
    licence: str,
    seed: int,
    group: str | None = None,
) -> Callable[[RowCounts], Iterator[Instance]]:
    """What gives the instances of a file's rows by one PromptSource template, or by those of a data set.

    ``labels`` gives the number that a word stands for, with its field or without: "coarse:NUM": "5", "positive": "1".

    Raises:
        UserError: a template, a column or a number does not exist or does not fit.
    """
    from graftlm.data.promptsource import find_templates, format_with, promptsource_formatter
    from graftlm.data.readers import read_rows
    from graftlm.data.task_fields import check_group, columns_of, expand_row

    templates = find_templates(reference)
    sample = [part for _, row in islice(read_rows(file, split=split), SHOWN) for part in expand_row(row)]
    present = list(dict.fromkeys(name for row in sample for name in row))
    used = _choose_columns(present, templates, columns, file)
    console.print(f"{file} by {_named(templates)}: {', '.join(used)}", markup=False, soft_wrap=True)
    formatters = [
        promptsource_formatter(
            chosen, columns=columns, classes=_classes(labels), source=file, licence=licence, seed=seed
        )
        for chosen in ([[template] for template in templates] if every_template else [templates])
    ]
    if group is not None:
        check_group(group, columns_of(sample), file)
    wanted = split or ("train" if "split" in present else None)
    return lambda counts: format_with(formatters, read_rows(file, split=split), counts, file, wanted, group)


def _choose_columns(
    present: list[str], templates: list[PromptTemplate], given: dict[str, str], source: str
) -> list[str]:
    """What serves each field, as "sentence ← text"; a template's own test of a field may do without it.

    Raises:
        UserError: no template finds a column for any of its fields, or a given field or column does not exist.
    """
    fields = sorted({name for template in templates for name in template.fields()})
    for field, column in given.items():
        if field not in fields:
            guess = nearest(field, fields)
            raise UserError(
                f"--column {field}={column}: no field '{field}' in {_named(templates)}; there are: {', '.join(fields)}",
                hint=f"Did you mean '{guess}'?" if guess else None,
            )
        if column not in present:
            raise UserError(
                f"--column {field}={column}: {source} has no column '{column}'; its columns are: {', '.join(present)}"
            )
    found = {field: given.get(field, field) for field in fields}
    missing = [field for field, column in found.items() if column not in present]
    if fields and all(_lacks(template, missing) for template in templates):
        free = [name for name in present if name not in found.values()]
        asked = [f"--column {field}={nearest(field, free) or 'COLUMN'}" for field in missing]
        raise UserError(
            f"{source}: {_named(templates)} asks for {', '.join(missing)}; its columns are: {', '.join(present)}",
            hint=f"Say which column serves: {' '.join(asked)}",
        )
    return [f"{field} ← {column if column in present else 'nothing'}" for field, column in found.items()]


def _lacks(template: PromptTemplate, missing: list[str]) -> bool:
    """Whether a template uses one of the fields that have no column."""
    return not template.fields().isdisjoint(missing)


def _named(templates: list[PromptTemplate]) -> str:
    one = templates[0]
    return f"'{one.key}'" if len(templates) == 1 else f"the {len(templates)} templates of {one.task}"


def _classes(labels: dict[str, str]) -> dict[str, dict[str, int]]:
    """By field, the number of each word: {"label": {"positive": 1}} of {"positive": "1"}."""
    classes: dict[str, dict[str, int]] = {}
    for spelled, number in labels.items():
        field, colon, word = spelled.partition(":")
        if not number.lstrip("-").isdigit():
            raise UserError(
                f"--label {spelled}={number}: a PromptSource template knows labels by number, and '{number}' is none",
                hint="For example --label negative=0 --label positive=1, or --label coarse_label:NUM=5.",
            )
        name, value = (field, word) if colon else ("label", spelled)
        classes.setdefault(name, {})[value] = int(number)
    return classes
