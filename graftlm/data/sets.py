"""A set: a folder of Parquet shards with a card that says what is in it and where it comes from.

Instances are written and read as a stream. Equal instances give equal bytes (with the same pyarrow), and nothing
in the folder holds a time or the name of a machine.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import count, islice
from operator import attrgetter
from pathlib import Path
from typing import Any

from graftlm.base.files import write_folder, write_json
from graftlm.data.criteria import WHOLE, definitions
from graftlm.data.instances import ORIGINS, Instance
from graftlm.data.preferences import form_of
from graftlm.data.set_rows import as_instance, as_stored, row_schema
from graftlm.errors import UserError

CARD, CARD_TEXT, RECIPE = "card.json", "card.md", "recipe.yaml"
ROWS_PER_SHARD = 100_000
GROUP = 2_000  # rows in memory at once
EXAMPLES = 5  # places kept for each reason
NAMED = 5  # files that an error names
COUNTED = ("split", "task", "template", "language", "licence")
_origin = attrgetter(*ORIGINS)


@dataclass(frozen=True)
class Source:
    """A file or set that a set was built from; ``path`` as the recipe names it."""

    path: str
    sha256: str
    licence: str = ""


@dataclass(frozen=True)
class Shard:
    """A Parquet file of a set, with its number of rows."""

    file: str
    rows: int
    sha256: str


@dataclass
class SetCard:
    """What a set holds. Its maker gives the first fields, and :func:`write_set` counts the rest.

    ``dropped`` counts what was left out by reason, and ``examples`` names some places ("file:row") of each reason;
    both may be filled while the instances are written, and so may ``notes``, for whatever else is worth telling.
    ``rows`` is what the set holds, ``splits`` to ``licences`` are rows by value, ``sha256`` is the hash of all shards.
    Of preference rows, ``answers`` counts them by what they hold, and ``criteria`` the verdicts by criterion.
    """

    sources: list[Source] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    rows: int = 0
    splits: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, int] = field(default_factory=dict)
    templates: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    licences: dict[str, int] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    criteria: dict[str, int] = field(default_factory=dict)
    shards: list[Shard] = field(default_factory=list)
    sha256: str = ""

    def drop(self, reason: str, instance: Instance) -> None:
        """Count an instance that is left out."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        places = self.examples.setdefault(reason, [])
        if len(places) < EXAMPLES:
            places.append(f"{instance.source}:{instance.row}")

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"version": 1, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SetCard:
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        card = cls(**known)
        card.sources = [Source(**source) for source in values["sources"]]
        card.shards = [Shard(**shard) for shard in values["shards"]]
        return card


def describe_source(path: str | Path, *, name: str | None = None, licence: str = "") -> Source:
    """The source of a file, with its hash; ``name`` is what it is called in the card."""
    return Source(name or str(path), hash_file(Path(path)), licence)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error.strerror}") from error


def is_set(path: Path) -> bool:
    """Whether a folder is a set."""
    return (path / CARD).is_file() and any(path.glob("shard-*.parquet"))


def refuse_to_replace(out: Path, sources: Iterable[str | Path]) -> None:
    """Raises UserError where one of the ``sources`` is the output, or lies in it: writing would destroy it."""
    place = out.expanduser().resolve()
    for source in sources:
        found = Path(source).expanduser().resolve()
        if place in (found, *found.parents):
            raise UserError(f"--out {out}: {source} is read, and would be replaced", hint="Choose another name.")


def check_replaceable(folder: str | Path, *, overwrite: bool = False, own: Iterable[str] = ()) -> None:
    """Raises UserError where writing a set to ``folder`` would destroy something.

    That is a folder which is no set, files in a set's folder that are not the set's own (``own`` names further ones
    that are), and a set itself unless ``overwrite``.
    """
    place = Path(folder).expanduser()
    if not place.is_dir() or not any(place.iterdir()):
        return
    if not is_set(place):
        raise UserError(f"{place} is a folder that is no set, and is not replaced", hint="Choose another folder.")
    known = {CARD, CARD_TEXT, RECIPE, *own, *(shard.file for shard in read_card(place).shards)}
    if foreign := sorted(path.name for path in place.iterdir() if path.name not in known):
        more = f" and {len(foreign) - NAMED:,} more" if len(foreign) > NAMED else ""
        raise UserError(
            f"{place} is not replaced: besides the set it holds {', '.join(foreign[:NAMED])}{more}",
            hint="Move that elsewhere, or choose another folder.",
        )
    if not overwrite:
        raise UserError(f"{place} is a set already", hint="Choose another folder, or give overwrite=True.")


def write_set(
    folder: str | Path,
    instances: Iterable[Instance],
    card: SetCard,
    *,
    rows_per_shard: int = ROWS_PER_SHARD,
    split: Callable[[Instance], str] = lambda _: "train",
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> SetCard:
    """Write instances as they come, and the card with what they are; the folder appears whole or not at all.

    ``split`` names the split of an instance; ``files`` are texts to put beside, by name, such as the recipe;
    ``overwrite`` replaces a set that is there.

    Raises:
        UserError: there is no instance, or the folder may not be replaced (see :func:`check_replaceable`).
    """
    place = Path(folder).expanduser()
    check_replaceable(place, overwrite=overwrite, own=files or ())
    written: list[SetCard] = []

    def fill(fresh: Path) -> None:
        valid = (instance for instance in instances if _is_valid(instance, card))
        whole = _write_shards(fresh, valid, card, rows_per_shard, split)
        if not whole.rows:
            reasons = "; ".join(f"{number:,} {reason}" for reason, number in card.dropped.items())
            raise UserError(f"{place}: no instance is left to write" + (f": {reasons}" if reasons else ""))
        write_json(fresh / CARD, whole.to_dict())
        for name, text in {CARD_TEXT: describe_card(whole), **(files or {})}.items():
            (fresh / name).write_text(text, encoding="utf-8")
        written.append(whole)

    write_folder(place, fill)
    return written[0]


def read_card(folder: str | Path) -> SetCard:
    """The card of a set.

    Raises:
        UserError: the folder is no set, or its card cannot be read.
    """
    path = Path(folder).expanduser() / CARD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != 1:
            raise UserError(f"{path}: this set is of version {values['version']}; this graftlm reads version 1")
        return SetCard.from_dict(values)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no set: it has no {CARD}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the card of a set: {error}") from error


def read_set(folder: str | Path, split: str | None = None) -> Iterator[Instance]:
    """The instances of a set in order, all or those of one split.

    Raises:
        UserError: the folder is no set, has no such split, or a shard is missing or was changed.
    """
    for row in read_set_rows(folder, split):
        yield as_instance(row)


def read_set_rows(folder: str | Path, split: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a set as they are stored; see :func:`read_set`."""
    card = read_card(folder)
    if split is not None and split not in card.splits:
        raise UserError(f"{folder}: the set has no split '{split}'; there are: {', '.join(card.splits)}")
    for shard in card.shards:
        for row in _read_shard(Path(folder).expanduser() / shard.file, shard.rows):
            if split in (None, row["split"]):
                yield row


def default_split(folder: str | Path) -> str:
    """The split to learn from: train, or the only one.

    Raises:
        UserError: there are several, and none is train.
    """
    names = list(read_card(folder).splits)
    if "train" in names or len(names) == 1:
        return "train" if "train" in names else names[0]
    raise UserError(f"{folder}: the set has several splits and none is 'train'; there are: {', '.join(names)}")


def check_shards(folder: str | Path) -> None:
    """Compare every shard with the hash in the card.

    Raises:
        UserError: a shard is missing or was changed.
    """
    for shard in read_card(folder).shards:
        path = Path(folder).expanduser() / shard.file
        if hash_file(path) != shard.sha256:
            raise _changed(path)


def describe_card(card: SetCard) -> str:
    """The card for people, as Markdown."""
    lines = [
        "# Instruction data",
        "",
        f"{card.rows:,} instance{'s' * (card.rows != 1)} in {len(card.shards)} shard{'s' * (len(card.shards) != 1)}, "
        f"sha256 {card.sha256}",
        "",
    ]
    tables = {"Splits": card.splits, "Tasks": card.tasks, "Templates": card.templates, "Languages": card.languages}
    for title, table in {**tables, "Licences": card.licences}.items():
        lines += [f"## {title}", "", "| | rows | share |", "|---|---:|---:|"]
        for name, number in sorted(table.items(), key=lambda item: (-item[1], item[0])):
            lines.append(f"| {_cell(name) or '(not stated)'} | {number:,} | {number / card.rows:.1%} |")
        lines.append("")
    if card.answers:
        lines += ["## Preferences", "", "| | rows |", "|---|---:|"]
        lines += [f"| {name} | {number:,} |" for name, number in card.answers.items()]
        known = definitions(card.notes.get("criteria", {}))
        lines += ["", "| criterion | verdicts | definition |", "|---|---:|---|"] if card.criteria else []
        for name, number in card.criteria.items():
            meaning = known.get(name, "(not written)") if name else ""
            lines.append(f"| {_cell(name) or WHOLE} | {number:,} | {_cell(meaning)} |")
        lines.append("")
    lines += ["## Left out", ""]
    if card.dropped:
        lines += ["| reason | rows | for example |", "|---|---:|---|"]
        for reason, number in sorted(card.dropped.items(), key=lambda item: (-item[1], item[0])):
            places = ", ".join(card.examples.get(reason, [])[:3])
            lines.append(f"| {_cell(reason)} | {number:,} | {_cell(places)} |")
    else:
        lines.append("Nothing.")
    if kept := kept_but(card):
        lines += ["", "## Kept, but look at them", "", *(f"- {_cell(line)}" for line in kept)]
    lines += ["", "## Sources", "", "| file | licence | sha256 |", "|---|---|---|"]
    lines += [f"| {_cell(s.path)} | {_cell(s.licence) or '(not stated)'} | {s.sha256} |" for s in card.sources]
    return "\n".join(lines) + "\n"


def kept_but(card: SetCard) -> list[str]:
    """What the notes say of rows that are in a set and may be wrong, a line each."""
    lines: list[str] = []
    if found := card.notes.get("contradictions"):
        tasks = ", ".join(f"{name or 'no task'} {number:,}" for name, number in found["tasks"].items())
        places = "; ".join(found["examples"])
        lines.append(f"{found['rows']:,} with the same input and another answer ({tasks}): {places}")
    for name, faults in card.notes.get("kept, but", {}).items():
        lines += [f"{number:,} of {name}: {reason}" for reason, number in faults.items()]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _write_shards(
    folder: Path, instances: Iterator[Instance], card: SetCard, rows_per_shard: int, split: Callable[[Instance], str]
) -> SetCard:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = row_schema()
    shards: list[Shard] = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*COUNTED, "answers", "criteria")}
    first = next(instances, None)
    for number in count():
        if first is None:
            break
        path = folder / f"shard-{number:05d}.parquet"
        rows = 0
        # Every option that the bytes depend on is given, so that a new default of pyarrow changes nothing.
        with pq.ParquetWriter(
            path, schema, version="2.6", compression="zstd", compression_level=3, data_page_version="1.0"
        ) as writer:
            while first is not None and rows < rows_per_shard:
                group = [first, *islice(instances, min(GROUP, rows_per_shard - rows) - 1)]
                table = [as_stored(instance, split(instance)) for instance in group]
                for name in COUNTED:
                    counts[name].update(row[name] for row in table)
                judged = [instance for instance in group if instance.is_preference]
                counts["answers"].update(map(form_of, judged))
                counts["criteria"].update(verdict.criterion for each in judged for verdict in each.verdicts)
                writer.write_table(pa.Table.from_pylist(table, schema))
                rows += len(group)
                first = next(instances, None)
        shards.append(Shard(path.name, rows, hash_file(path)))
    tables = {name: dict(sorted(counter.items())) for name, counter in counts.items()}
    return replace(
        card,
        rows=sum(shard.rows for shard in shards),
        splits=tables["split"],
        tasks=tables["task"],
        templates=tables["template"],
        languages=tables["language"],
        licences=tables["licence"],
        answers=tables["answers"],
        criteria=tables["criteria"],
        shards=shards,
        sha256=hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
    )


def _is_valid(instance: Instance, card: SetCard) -> bool:
    """JSON can hold half of a surrogate pair, which no file of texts can: such an instance is left out, and counted."""
    try:
        said = (text for verdict in instance.verdicts for text in (verdict.criterion, verdict.annotator))
        for text in (*(message.content for message in instance.messages), *said, *_origin(instance.provenance)):
            text.encode()
    except UnicodeEncodeError:
        card.drop("a text is not valid Unicode", instance)
        return False
    return True


def _read_shard(path: Path, rows: int) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != rows:
                raise _changed(path)
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except FileNotFoundError as error:
        raise UserError(f"{path}: this shard of the set is missing", hint="Build the set again.") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable shard of a set: {error}", hint="Build the set again.") from error


def _changed(path: Path) -> UserError:
    return UserError(f"{path}: this shard is not what the card of the set describes", hint="Build the set again.")
