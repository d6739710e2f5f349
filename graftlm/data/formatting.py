"""Instructions from labelled rows: a description drawn, demonstrations, label words shuffled, inverted tasks.

What a row becomes depends on the seed and on what is in the row, never on its place: the same in any order of rows.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from heapq import heappush, heappushpop
from itertools import chain, islice
from typing import Any

from graftlm.data.formats import RowProblem
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.keys import answer_key, input_key, question_key
from graftlm.data.prepare import UNGROUPED, RowCounts
from graftlm.data.task_fields import (
    Columns,
    FieldReader,
    Fields,
    Row,
    choose_columns,
    columns_of,
    expand_row,
    group_of,
    is_training,
)
from graftlm.data.task_pattern import CannotFill
from graftlm.data.task_template import LETTERS, Inverted, TaskTemplate, pattern
from graftlm.errors import UserError

MOST_DEMONSTRATIONS = 8
SAMPLE = 20  # rows that show a file's columns
POOL = 2000  # rows of a label kept to draw demonstrations from
_SHARED = frozenset(("choices", "language"))  # names of patterns that do not depend on the row
FEWER = "fewer demonstrations than drawn"


@dataclass(frozen=True)
class FormatSettings:
    """How rows are formatted.

    ``demonstrations``: the fewest and the most of a row. ``few_shot_ratio``: the share of rows that has some; None
    leaves it to the number drawn. ``descriptions``: the numbers of those to use, from 1; none are all.
    ``spellings``: further spellings of labels. ``split``: the only one to format. ``source`` names the file in
    instances and errors. ``group``: the column whose equal values belong together; without ``keys`` instances say
    nothing of that, nor of which have the same input.
    """

    language: str = "en"
    demonstrations: tuple[int, int] = (0, 0)
    few_shot_ratio: float | None = None
    all_descriptions: bool = False
    descriptions: tuple[int, ...] = ()
    inverted: bool = False
    columns: Columns | None = None
    spellings: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    licence: str = ""
    source: str = "rows"
    group: str = ""
    keys: bool = True

    def check(self, template: TaskTemplate) -> None:
        """Raises UserError for settings that the template or the rules do not allow."""
        low, high = self.demonstrations
        if not 0 <= low <= high <= MOST_DEMONSTRATIONS:
            raise UserError(f"demonstrations: {low}-{high}; allowed are 0 to {MOST_DEMONSTRATIONS}, the smaller first")
        if self.few_shot_ratio is not None and not 0 <= self.few_shot_ratio <= 1:
            raise UserError(f"few-shot ratio: {self.few_shot_ratio}; allowed is a share from 0 to 1")
        if self.few_shot_ratio and not high:
            raise UserError("a few-shot ratio needs demonstrations", hint="For example --demonstrations 1-4.")
        part = template.inverted if self.inverted else template
        if part is None:
            raise UserError(f"'{template.name}' has no inverted task", hint="Leave --inverted out.")
        if self.language not in part.descriptions:
            there = ", ".join(part.descriptions)
            raise UserError(f"'{template.name}' has no descriptions in '{self.language}'; there are: {there}")
        number = len(part.descriptions[self.language])
        for wanted in self.descriptions:
            if not 1 <= wanted <= number:
                raise UserError(
                    f"descriptions: '{template.name}' has no description {wanted} in '{self.language}'; there are "
                    f"1 to {number}"
                )


@dataclass
class Demonstrations:
    """Rows to draw demonstrations from, by label (one list under None where there are no labels)."""

    by_label: dict[str | None, list[Fields]]

    def draw(self, count: int, row: Fields, rng: random.Random) -> list[Fields]:
        """``count`` different rows with labels as even as can be; never ``row`` or one that asks the same."""
        labels = [label for label, rows in self.by_label.items() if rows]
        rng.shuffle(labels)
        used = {row.identity, *row.keys}
        drawn: list[Fields] = []
        while labels and len(drawn) < count:
            for label in list(labels):
                if len(drawn) == count:
                    break
                found = _draw_one(self.by_label[label], used, rng)
                if found is None:
                    labels.remove(label)
                else:
                    drawn.append(found)
                    used.update((found.identity, *found.keys))
        rng.shuffle(drawn)
        return drawn


def _draw_one(rows: Sequence[Fields], used: set[bytes], rng: random.Random) -> Fields | None:
    """A row that is not used: by chance, or the next one that is free where chance finds none."""
    start = 0
    for _ in range(8):
        start = rng.randrange(len(rows))
        if used.isdisjoint((rows[start].identity, *rows[start].keys)):
            return rows[start]
    for offset in range(len(rows)):
        row = rows[(start + offset) % len(rows)]
        if used.isdisjoint((row.identity, *row.keys)):
            return row
    return None


def demonstration_pool(
    rows: Iterable[tuple[int, Row]],
    template: TaskTemplate,
    settings: FormatSettings,
    seed: int,
    *,
    most: int = POOL,
    held_out: Collection[bytes] = (),
    counts: RowCounts | None = None,
) -> Demonstrations:
    """The training rows to draw from: at most ``most`` of a label, chosen by hash and so whatever their order.

    Rows whose column ``split`` says otherwise than "train" are left out, and so is a training row that asks the same
    as one of them, or what is in ``held_out`` (of :func:`asked`). Rows that cannot be read are left out too, and
    counted by reason.
    """
    counts = counts if counts is not None else RowCounts()
    barred = set(held_out)
    heaps: dict[str | None, list[tuple[int, bytes, Fields]]] = {}
    kept: set[bytes] = set()
    reader, rows = _reader(rows, template, settings)
    for number, row in ((number, part) for number, whole in rows for part in expand_row(whole)):
        if not is_training(row):
            barred.update(reader.keys(row))
            continue
        counts.read += 1
        try:
            fields = reader.read(row)
        except RowProblem as problem:
            counts.drop(problem.reason, settings.source, number)
            continue
        counts.kept += 1
        if fields.identity in kept:
            continue
        entry = (-int.from_bytes(_hash(seed, "pool", fields.identity), "big"), fields.identity, fields)
        heap = heaps.setdefault(fields.label, [])
        kept.add(fields.identity)
        if len(heap) < most:
            heappush(heap, entry)
        else:
            kept.discard(heappushpop(heap, entry)[1])
    by_label = {
        label: [fields for _, _, fields in sorted(heaps[label], key=lambda entry: entry[:2])]
        for label in sorted(heaps, key=str)
    }
    free = {label: [f for f in listed if barred.isdisjoint(f.keys)] for label, listed in by_label.items()}
    return Demonstrations(free)


def asked(rows: Iterable[tuple[int, Row]], template: TaskTemplate, settings: FormatSettings) -> set[bytes]:
    """What rows ask, as keys: what must not come up in a demonstration if they are held out."""
    reader, rows = _reader(rows, template, settings)
    return {key for _, whole in rows for row in expand_row(whole) for key in reader.keys(row)}


def format_rows(
    rows: Iterable[tuple[int, Row]],
    template: TaskTemplate,
    settings: FormatSettings,
    seed: int,
    *,
    pool: Demonstrations | None = None,
    counts: RowCounts | None = None,
) -> Iterator[Instance]:
    """Instances of labelled rows (numbered, as ``read_rows`` gives them); dropped rows are in ``counts`` by reason.

    Raises:
        UserError: the settings do not go with the template, a field has no column, demonstrations are asked for and
            there is no ``pool``, or a pattern of the template was stopped.
    """
    settings.check(template)
    if settings.demonstrations[1] and pool is None:
        raise UserError("demonstrations come from training rows, and none are given")
    counts = counts if counts is not None else RowCounts()
    reader, rows = _reader(rows, template, settings)
    if pool is None:
        reader.kinds = int(settings.keys)
    writer = _Writer(template, settings, seed, pool, counts)
    for number, whole in rows:
        counts.rows += 1
        for row in expand_row(whole):
            try:
                if settings.split is not None and str(row.get("split", settings.split)) != settings.split:
                    raise RowProblem(f"of another split than '{settings.split}'")
                fields = reader.read(row)
            except RowProblem as problem:
                counts.read += 1
                counts.drop(problem.reason, settings.source, number)
                continue
            group = group_of(row, settings.group) if settings.group else ""
            for which in writer.descriptions(fields):
                counts.read += 1
                try:
                    instance = writer.write(fields, which, number, group)
                except (RowProblem, CannotFill) as problem:
                    counts.drop(problem.reason, settings.source, number)
                else:
                    counts.kept += 1
                    if settings.group and not group:
                        counts.truncate(UNGROUPED, settings.source, number)
                    yield instance


def _reader(
    rows: Iterable[tuple[int, Row]], template: TaskTemplate, settings: FormatSettings
) -> tuple[FieldReader, Iterator[tuple[int, Row]]]:
    """What reads the rows, and all of the rows: the columns are those of the first ones, if they are not given."""
    known, whole = with_columns(rows, template, settings)
    return FieldReader(template, known.columns or Columns({}), settings.spellings), whole


def with_columns(
    rows: Iterable[tuple[int, Row]], template: TaskTemplate, settings: FormatSettings
) -> tuple[FormatSettings, Iterator[tuple[int, Row]]]:
    """The settings with the columns that the first rows have, if they name none; and all of the rows."""
    rest = iter(rows)
    if settings.columns is not None:
        return settings, rest
    first = list(islice(rest, SAMPLE))
    present = columns_of(part for _, row in first for part in expand_row(row))
    columns = choose_columns(present, template, source=settings.source) if first else Columns({})
    return replace(settings, columns=columns), chain(first, rest)


class _Writer:
    """Writes a row's fields as an instance; what is the same for all rows is looked up once."""

    def __init__(
        self,
        template: TaskTemplate,
        settings: FormatSettings,
        seed: int,
        pool: Demonstrations | None,
        counts: RowCounts,
    ) -> None:
        self.template, self.settings, self.seed, self.pool, self.counts = template, settings, seed, pool, counts
        part: TaskTemplate | Inverted = template
        if settings.inverted and template.inverted is not None:
            part = template.inverted
        language = settings.language
        self.texts = [pattern(text) for text in part.descriptions[language]]
        self.usable = [number - 1 for number in sorted(set(settings.descriptions))] or list(range(len(self.texts)))
        self.input, self.output = pattern(part.input[language]), pattern(part.output[language])
        self.demonstration = pattern(template.demonstration.get(language, template.demonstration.get("en", "")))
        self.words = template.words.get(language, {})
        self._described = lru_cache(maxsize=4096)(self._describe)
        self._prefix = lru_cache(self._key_of)
        way = "-inverted" if settings.inverted else ""
        self.origin = [
            (template.family, f"{template.name}{way}/{place}", language, settings.licence, "")
            for place in range(1, len(self.texts) + 1)
        ]
        # Words of labels and alternatives are compared in whatever language they are written.
        closed = template.labels is not None or template.options is not None
        self.question = question_key(template.name, "" if closed else language)
        self._answer = lru_cache(maxsize=4096)(answer_key)

    def descriptions(self, row: Fields) -> Iterable[int]:
        """The descriptions of a row (from 0): all that may be used, or the one drawn for it."""
        if self.settings.all_descriptions:
            return self.usable
        return (self.usable[self._number(row, "description") % len(self.usable)],)

    def _number(self, row: Fields, what: str) -> int:
        """A number of 64 bits that looks drawn, and is always the same for a row and a purpose."""
        return int.from_bytes(_digest(self._prefix(what) + row.identity), "big")

    def _key_of(self, what: str) -> bytes:
        return _key(self.seed, f"{self.template.name}/{self.settings.language}/{self.settings.inverted}/{what}")

    def write(self, row: Fields, which: int, number: int, group: str = "") -> Instance:
        rng = random.Random(self._number(row, str(which)))
        shared: dict[str, Any] = {"language": self.settings.language}
        if self.words:
            shared["choices"] = rng.sample(list(self.words.values()), len(self.words))
        values = self._values(row, shared, rng)
        drawn = self._drawn(row, rng, number)
        question, answer = self.input.fill(values), self.output.fill(values)
        if not answer:
            raise RowProblem("empty answer")
        text = self.texts[which]
        if text.names <= _SHARED:
            parts = [self._described(which, tuple(shared.get("choices", ())))]
        else:
            parts = [text.fill(values)]
        for other in drawn:
            theirs = self._values(other, shared, rng)
            parts.append(self._shown(self.input.fill(theirs), self.output.fill(theirs)))
        parts.append(self._shown(question, "") if drawn else question)
        prompt = "\n\n".join(part for part in parts if part)
        messages = (Message("user", prompt), Message("assistant", answer))
        keys = self._keys(row, answer) if self.settings.keys else ("", "")
        return Instance(messages, self.settings.source, number, Provenance(*self.origin[which], *keys, group))

    def _keys(self, row: Fields, answer: str) -> tuple[str, str]:
        """The keys of the input and of the answer. Many outputs of an inverted task are right, so none is compared."""
        if not row.input:
            return "", ""
        if self.settings.inverted:
            return input_key(row.input), ""
        right = row.options[row.right] if row.options else answer
        return input_key(row.input), self._answer(self.question, right if row.label is None else row.label)

    def _describe(self, which: int, choices: tuple[str, ...]) -> str:
        """A description that shows nothing of the row but the words of labels in their order."""
        return self.texts[which].fill(
            {"language": self.settings.language, **({"choices": [*choices]} if choices else {})}
        )

    def _shown(self, question: str, answer: str) -> str:
        return self.demonstration.fill({"input": question, "output": answer})

    def _values(self, row: Fields, shared: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
        values = {**row.values, **shared}
        if row.label is not None:
            values["label"] = self.words[row.label]
        if row.options and self.template.options:
            order = rng.sample(range(len(row.options)), len(row.options))
            values["options"] = [row.options[place] for place in order]
            values["letter"] = LETTERS[order.index(row.right)]
            values[self.template.options.answer] = row.options[row.right]
        return values

    def _drawn(self, row: Fields, rng: random.Random, number: int) -> list[Fields]:
        low, high = self.settings.demonstrations
        ratio = self.settings.few_shot_ratio
        if not high or self.pool is None or (ratio is not None and rng.random() >= ratio):
            return []
        count = rng.randint(low if ratio is None else max(1, low), high)
        drawn = self.pool.draw(count, row, rng)
        if len(drawn) < count:
            self.counts.truncate(FEWER, self.settings.source, number)
        return drawn


def _hash(seed: int, what: str, identity: bytes) -> bytes:
    return _digest(_key(seed, what) + identity)


def _key(seed: int, what: str) -> bytes:
    return f"{seed}/{what}/".encode()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()
