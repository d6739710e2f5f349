"""From paths to encoded rows, with an account of every row: kept, truncated or dropped, and why."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftlm.data.batches import EncodedRow
from graftlm.data.formats import NO_ANSWER, Format, RowProblem, check, fill, recognise
from graftlm.data.instances import Instance, Message
from graftlm.data.keys import group_key
from graftlm.data.p3 import origin_of
from graftlm.data.parallel import rare_collections
from graftlm.data.preferences import LEFT_OUT, chosen_answers, refuse_preferences
from graftlm.data.readers import find_sources, read_rows
from graftlm.data.rendering import PROMPT_FILLS, Conversations, Rendering
from graftlm.data.sets import default_split, is_set, read_set
from graftlm.data.task_fields import check_group, columns_of, group_of
from graftlm.data.templates import ChatTemplate
from graftlm.data.verdicts import settled
from graftlm.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 100  # rows that the format is recognised by
CHUNK = 2000  # conversations tokenised at once
EXAMPLES = 5  # places kept for each reason
UNGROUPED = "no value in the column of groups"
GROUPS = ("source", "task", "template", "language", "licence", "user")  # what rows of a set may be grouped by
Progress = Callable[[int], None]


@dataclass
class RowCounts:
    """An account of instances: ``read`` = ``kept`` + all ``dropped``. ``rows`` of the file may hold several.

    ``truncated`` and ``dropped`` count by reason, ``examples`` gives some places ("file:row") of each reason.
    ``duplicates`` are kept rows that are equal to an earlier one; ``unused`` are rows no demonstration was made of.
    ``unfilled`` and ``filled`` count the ``{{name}}`` placeholders without a value, and those with one.
    """

    rows: int = 0
    read: int = 0
    kept: int = 0
    duplicates: int = 0
    truncated: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unfilled: dict[str, int] = field(default_factory=dict)
    filled: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, source: str, row: int) -> None:
        self._count(self.dropped, reason, source, row)

    def truncate(self, reason: str, source: str, row: int) -> None:
        self._count(self.truncated, reason, source, row)

    def _count(self, table: dict[str, int], reason: str, source: str, row: int) -> None:
        table[reason] = table.get(reason, 0) + 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(f"{source}:{row}")

    def add(self, other: RowCounts) -> None:
        """Another account on top of this one."""
        for name in ("rows", "read", "kept", "duplicates"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("truncated", "dropped", "unfilled", "filled"):
            table = getattr(self, name)
            for reason, number in getattr(other, name).items():
                table[reason] = table.get(reason, 0) + number
        for reason, places in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *places][:EXAMPLES]

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values, stored with every run."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass
class RowFates(RowCounts):
    """An account that remembers of each row, by its number alone, why it was dropped, and which were cut."""

    reasons: dict[int, str] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)

    def drop(self, reason: str, source: str, row: int) -> None:
        self.reasons[row] = reason

    def truncate(self, reason: str, source: str, row: int) -> None:
        self.cut.add(row)


@dataclass
class Instances:
    """Instances that were read, how ("Alpaca"), their account so far, and the columns that were not used."""

    items: list[Instance]
    format: str
    counts: RowCounts
    ignored: tuple[str, ...] = ()


@dataclass
class PreparedData:
    """Encoded rows with the instance of each (``rows[i]`` is ``instances[i]``), and the account of all."""

    rows: list[EncodedRow]
    instances: list[Instance]
    counts: RowCounts
    format: str

    @property
    def summary(self) -> str:
        """One line: "read as Alpaca: 999 rows"."""
        several = f" ({self.counts.read:,} instances)" if self.counts.read != self.counts.rows else ""
        return f"read as {self.format}: {self.counts.rows:,} row{'s' * (self.counts.rows != 1)}{several}"


@rare_collections()
def load_instances(
    paths: str | Path | Sequence[str | Path],
    *,
    prompt: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    variables: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    prompts: bool = False,
) -> Instances:
    """Read instances from files, folders or Hub names; each file's format is recognised by itself.

    ``prompt``, ``answer`` and ``system`` are patterns with column names ("{question}"); ``variables`` replace
    ``{{name}}`` in the contents; ``limit`` is the most rows read of each file. ``prompts``: rows of a prompt that
    nobody has answered are read too.

    Raises:
        UserError: a file cannot be read or recognised.
    """
    counts = RowCounts()
    items: list[Instance] = []
    formats: list[str] = []
    ignored: list[str] = []
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    for source in chain.from_iterable(find_sources(path) for path in listed):
        reading = read_instances(
            source,
            counts,
            prompt=prompt,
            answer=answer,
            system=system,
            variables=variables,
            split=split,
            limit=limit,
            prompts=prompts,
        )
        formats.append(reading.format)
        ignored += reading.ignored
        items += reading.instances
    if counts.unfilled:
        names = ", ".join(f"{{{{{name}}}}} ({times})" for name, times in sorted(counts.unfilled.items()))
        warnings.warn(
            f"no value is given for {names}; they stay in the text as they are "
            "(give one with --set name=VALUE, or under variables: in a recipe)",
            UserWarning,
            stacklevel=2,
        )
    named = ", ".join(dict.fromkeys(formats))
    return Instances(items, named, counts, tuple(dict.fromkeys(ignored)))


def check_variables(variables: Mapping[str, str] | None, counts: RowCounts) -> None:
    """Raises UserError where a value is given for a ``{{name}}`` that no row has, with the names that there are."""
    known = sorted({*counts.filled, *counts.unfilled})
    for name in variables or {}:
        if name not in known:
            there = f"there are: {', '.join(known)}" if known else "they have no {{…}} at all"
            guess = nearest(name, known)
            raise UserError(
                f"a value is given for {{{{{name}}}}}, which no row has; {there}",
                hint=f"Did you mean '{guess}'?" if guess else "Leave it out: it fills in texts, and sets nothing else.",
            )


@dataclass(frozen=True)
class Reading:
    """Instances as they are read, how ("Alpaca"), and the columns that are not used."""

    instances: Iterator[Instance]
    format: str
    ignored: tuple[str, ...] = ()


def read_instances(
    source: str,
    counts: RowCounts,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    variables: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    group: str | None = None,
    prompts: bool = False,
) -> Reading:
    """The stream of instances of one of :func:`find_sources`; see :func:`load_instances`.

    ``group``: the column whose equal values belong together; of a set, a field of where its rows come from.

    Raises:
        UserError: the file cannot be read or recognised, or has no column ``group``.
    """
    given = variables or {}
    if is_set(Path(source)) and prompt is answer is system is None:
        rows_of_set: Iterator[Instance] = islice(read_set(source, split or default_split(source)), limit)
        if group is not None:
            check_group(group, GROUPS, source)
            rows_of_set = (grouped(instance, _group_in_set(instance, group), counts) for instance in rows_of_set)
        return Reading(
            chain.from_iterable(_of_set(instance, given, counts, prompts) for instance in rows_of_set), "a set"
        )
    rows = islice(read_rows(source, split=split), limit)
    sample = list(islice(rows, SAMPLE))
    form = recognise([row for _, row in sample], source, prompt=prompt, answer=answer, system=system, prompts=prompts)
    if group is not None:
        check_group(group, columns_of(row for _, row in sample), source)
    parts = (
        _instances(form, row, source, number, given, counts, group, prompts) for number, row in chain(sample, rows)
    )
    return Reading(chain.from_iterable(parts), form.name, form.ignored)


def _of_set(instance: Instance, variables: Mapping[str, str], counts: RowCounts, prompts: bool) -> Iterator[Instance]:
    counts.rows += 1
    yield from _checked(instance, variables, counts, prompts)


def _instances(
    form: Format,
    row: dict[str, Any],
    source: str,
    number: int,
    variables: Mapping[str, str],
    counts: RowCounts,
    group: str | None,
    prompts: bool,
) -> Iterator[Instance]:
    counts.rows += 1
    try:
        parts = form.expand(row)
    except RowProblem as problem:
        counts.read += 1
        counts.drop(problem.reason, source, number)
        return
    for part in parts:
        try:
            messages, verdicts = form.read(part)
        except RowProblem as problem:
            counts.read += 1
            counts.drop(problem.reason, source, number)
            continue
        instance = Instance(tuple(messages), source, number, origin_of(row), verdicts)
        found = _checked(instance, variables, counts, prompts)
        if group is not None:
            found = (grouped(instance, group_of(row, group), counts) for instance in found)
        yield from found


def grouped(instance: Instance, group: str, counts: RowCounts) -> Instance:
    """The instance with the key of its group; counted where it has none."""
    if not group:
        counts.truncate(UNGROUPED, instance.source, instance.row)
        return instance
    return replace(instance, provenance=replace(instance.provenance, group_key=group))


def _group_in_set(instance: Instance, column: str) -> str:
    value = instance.source if column == "source" else getattr(instance.provenance, column)
    return group_key(value) if value else ""


def _checked(instance: Instance, variables: Mapping[str, str], counts: RowCounts, prompts: bool) -> Iterator[Instance]:
    """The instance with its variables filled in, if its messages are a conversation."""
    counts.read += 1
    try:
        instance = settled(instance, lambda reason: counts.truncate(reason, instance.source, instance.row))
        messages, names = fill(check(instance.messages, prompts=prompts), variables)
    except RowProblem as problem:
        counts.drop(problem.reason, instance.source, instance.row)
        return
    for name in names:
        table = counts.filled if name in variables else counts.unfilled
        table[name] = table.get(name, 0) + 1
    yield replace(instance, messages=messages)


@rare_collections()
def prepare(
    data: str | Path | Sequence[str | Path] | Instances | Sequence[Instance],
    template: ChatTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    train_on: str | Sequence[str] = "assistant",
    max_dropped: float = 0.05,
    drop_duplicates: bool = False,
    prompt: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    variables: Mapping[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
    rendering: Rendering | None = None,
    preferences: Literal["refuse", "chosen", "compare"] = "refuse",
) -> PreparedData:
    """Read, render and account for every row.

    A row of more than ``max_length`` tokens is cut there if a learnt token is left before the cut, and
    dropped if not. ``progress`` is called with the number of instances done. ``rendering`` takes the place of
    conversations in ``template``, for other bases and for heads. ``preferences``: "chosen" learns the chosen answers of
    preference rows, without the rejected ones; "compare" gives them to ``rendering`` as they are.

    Raises:
        UserError: no row is left, or a larger share than ``max_dropped`` was dropped; it lists the reasons.
    """
    rendering = rendering or Conversations(template, tokenizer, train_on, max_length)
    loaded = _loaded(data, prompt, answer, system, variables, split, limit)
    counts = loaded.counts
    if preferences == "refuse":
        refuse_preferences(loaded.items)
    elif preferences == "chosen":
        loaded = replace(loaded, items=chosen_answers(loaded.items, counts))
    result = PreparedData([], [], counts, loaded.format)
    seen: set[tuple[Message, ...]] = set()
    done = 0
    for chunk in _chunks(loaded.items, CHUNK):
        for instance, row in rendering.rows(chunk, counts):
            repeated = instance.messages in seen
            seen.add(instance.messages)
            if repeated and drop_duplicates:
                counts.drop("exact duplicate", instance.source, instance.row)
                continue
            counts.duplicates += repeated
            counts.kept += 1
            result.rows.append(row)
            result.instances.append(instance)
        done += len(chunk)
        if progress is not None:
            progress(done)
    _check_counts(counts, max_dropped, max_length)
    return result


def _loaded(
    data: str | Path | Sequence[str | Path] | Instances | Sequence[Instance],
    prompt: str | None,
    answer: str | None,
    system: str | None,
    variables: Mapping[str, str] | None,
    split: str | None,
    limit: int | None,
) -> Instances:
    if isinstance(data, Instances):
        return data
    listed: list[Any] = [data] if isinstance(data, str | Path) else list(data)
    if listed and all(isinstance(item, Instance) for item in listed):
        counts = RowCounts(rows=len({(i.source, i.row) for i in listed}), read=len(listed))
        return Instances(listed, "instances", counts)
    return load_instances(
        listed, prompt=prompt, answer=answer, system=system, variables=variables, split=split, limit=limit
    )


def _check_counts(counts: RowCounts, max_dropped: float, max_length: int | None) -> None:
    dropped = sum(n for reason, n in counts.dropped.items() if reason not in ("exact duplicate", *LEFT_OUT))
    if counts.kept and dropped <= max_dropped * counts.read:
        return
    reasons = [
        f"  {number:,} × {reason}, for example {', '.join(counts.examples[reason][:3])}"
        for reason, number in sorted(counts.dropped.items(), key=lambda item: -item[1])
    ]
    advice = []
    if PROMPT_FILLS in counts.dropped:
        advice.append(f"Raise max_length (now {max_length}) as far as the base's context allows.")
    if NO_ANSWER in counts.dropped:
        advice.append("Prompts without answers are for policies alone (objective: grpo, rloo, reinforce, ppo).")
    if any("no place for tool" in reason for reason in counts.dropped):
        advice.append("Use a base whose chat template has a place for tools, or give one: --chat-template FILE.jinja.")
    if counts.kept:
        share = dropped / max(counts.read, 1)
        what = f"{dropped:,} of {counts.read:,} rows ({share:.1%}) were dropped; allowed are {max_dropped:.1%}"
        advice.append(f"Mend the rows, or allow more: max_dropped: {-(-share * 100 // 1) / 100:.2f}")
    else:
        what = f"no row is left of {counts.read:,}"
        advice.append("Mend the rows.")
    raise UserError("\n".join([f"{what}:", *reasons]), hint=" ".join(advice))


def _chunks(items: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
