"""From paths to encoded rows, with an account of every row: kept, truncated or dropped, and why."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftlm.data.batches import EncodedRow
from graftlm.data.formats import Format, RowProblem, check, fill, recognise
from graftlm.data.instances import Instance, Message
from graftlm.data.p3 import origin_of
from graftlm.data.parallel import rare_collections
from graftlm.data.preferences import refuse_preferences
from graftlm.data.readers import find_sources, read_rows
from graftlm.data.rendering import PROMPT_FILLS, Conversations, Rendering
from graftlm.data.sets import default_split, is_set, read_set
from graftlm.data.templates import ChatTemplate
from graftlm.errors import UserError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 100  # rows that the format is recognised by
CHUNK = 2000  # conversations tokenised at once
EXAMPLES = 5  # places kept for each reason
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
) -> Instances:
    """Read instances from files, folders or Hub names; each file's format is recognised by itself.

    ``prompt``, ``answer`` and ``system`` are patterns with column names ("{question}"); ``variables`` replace
    ``{{name}}`` in the contents; ``limit`` is the most rows read of each file.

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
            source, counts, prompt=prompt, answer=answer, system=system, variables=variables, split=split, limit=limit
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
) -> Reading:
    """The stream of instances of one of :func:`find_sources`; see :func:`load_instances`.

    Raises:
        UserError: the file cannot be read or recognised.
    """
    given = variables or {}
    if is_set(Path(source)) and prompt is answer is system is None:
        rows_of_set = islice(read_set(source, split or default_split(source)), limit)
        return Reading(chain.from_iterable(_of_set(instance, given, counts) for instance in rows_of_set), "a set")
    rows = islice(read_rows(source, split=split), limit)
    sample = list(islice(rows, SAMPLE))
    form = recognise([row for _, row in sample], source, prompt=prompt, answer=answer, system=system)
    parts = (_instances(form, row, source, number, given, counts) for number, row in chain(sample, rows))
    return Reading(chain.from_iterable(parts), form.name, form.ignored)


def _of_set(instance: Instance, variables: Mapping[str, str], counts: RowCounts) -> Iterator[Instance]:
    counts.rows += 1
    yield from _checked(instance, variables, counts)


def _instances(
    form: Format,
    row: dict[str, Any],
    source: str,
    number: int,
    variables: Mapping[str, str],
    counts: RowCounts,
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
            messages = form.convert(part)
        except RowProblem as problem:
            counts.read += 1
            counts.drop(problem.reason, source, number)
            continue
        yield from _checked(Instance(tuple(messages), source, number, origin_of(row)), variables, counts)


def _checked(instance: Instance, variables: Mapping[str, str], counts: RowCounts) -> Iterator[Instance]:
    """The instance with its variables filled in, if its messages are a conversation."""
    counts.read += 1
    try:
        messages, names = fill(check(instance.messages), variables)
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
    preferences: Literal["refuse", "chosen"] = "refuse",
) -> PreparedData:
    """Read, render and account for every row.

    A row of more than ``max_length`` tokens is cut there if a learnt token is left before the cut, and
    dropped if not. ``progress`` is called with the number of instances done. ``rendering`` takes the place of
    conversations in ``template``, for other bases and for heads. ``preferences``: "chosen" learns the chosen answers of
    preference rows, without the rejected ones.

    Raises:
        UserError: no row is left, or a larger share than ``max_dropped`` was dropped; it lists the reasons.
    """
    rendering = rendering or Conversations(template, tokenizer, train_on, max_length)
    loaded = _loaded(data, prompt, answer, system, variables, split, limit)
    counts = loaded.counts
    if preferences == "refuse":
        refuse_preferences(loaded.items)
    else:
        loaded = replace(loaded, items=[item.chosen for item in loaded.items])
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
    dropped = sum(n for reason, n in counts.dropped.items() if reason != "exact duplicate")
    if counts.kept and dropped <= max_dropped * counts.read:
        return
    reasons = [
        f"  {number:,} × {reason}, for example {', '.join(counts.examples[reason][:3])}"
        for reason, number in sorted(counts.dropped.items(), key=lambda item: -item[1])
    ]
    advice = []
    if PROMPT_FILLS in counts.dropped:
        advice.append(f"Raise max_length (now {max_length}) as far as the base's context allows.")
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


def split_held_out(data: PreparedData, held_out: float | int, seed: int = 0) -> tuple[PreparedData, PreparedData]:
    """Part into training and held-out rows, by a hash of ``seed`` and each row's prompt.

    Rows with the same prompt (all before the first answer) stay on one side. ``held_out`` is a share (a float
    below 1) or a number of rows; at least one row, and at least as many as asked where prompts repeat.
    The order of rows is kept, and the order of the files does not change the choice.

    Raises:
        UserError: that would leave no row to train on.
    """
    if held_out <= 0:
        return data, PreparedData([], [], data.counts, data.format)
    chosen = chosen_by_prompt(data.instances, held_out, seed)
    rest = [i for i in range(len(data.instances)) if i not in chosen]
    return _part(data, rest), _part(data, sorted(chosen))


def chosen_by_prompt(instances: Sequence[Instance], part: float | int, seed: int = 0) -> set[int]:
    """Which instances (indices) are set apart; see :func:`split_held_out`.

    Raises:
        UserError: that would leave none on one side.
    """
    groups: dict[bytes, list[int]] = {}
    for index, instance in enumerate(instances):
        groups.setdefault(_prompt_key(instance, seed), []).append(index)
    total = len(instances)
    target = part if isinstance(part, int) else max(1, round(part * total))
    chosen: set[int] = set()
    for key in sorted(groups):
        if len(chosen) >= target:
            break
        if len(chosen) + len(groups[key]) < total:
            chosen.update(groups[key])
    if len(chosen) < min(target, 1) or target >= total:
        raise UserError(
            f"{part} held-out rows cannot be taken of {total} rows with {len(groups)} different prompts",
            hint="Lower held_out, or give a file of its own for evaluation.",
        )
    return chosen


def _prompt_key(instance: Instance, seed: int) -> bytes:
    contents: list[str] = []
    for message in instance.messages:
        if message.role == "assistant" and contents:
            break
        contents.append(f"{message.role}\0{message.content.strip()}")
    return hashlib.sha256(f"{seed}\0{chr(1).join(contents)}".encode()).digest()


def _part(data: PreparedData, indices: Iterable[int]) -> PreparedData:
    chosen = list(indices)
    return PreparedData([data.rows[i] for i in chosen], [data.instances[i] for i in chosen], data.counts, data.format)


def _chunks(items: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
