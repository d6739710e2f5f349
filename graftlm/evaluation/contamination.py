"""Whether rows of an evaluation were among what an adapter was trained on, as far as its record tells.

A row overlaps if one of its texts shares 13 words in a row (signs of Chinese) with the training texts; a text of 8 to
12 words counts as a whole, and a shorter one is not looked for, as in :class:`graftlm.data.filters.Contamination`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graftlm.adapters.files import TRAINED_ON, is_adapter_folder, read_notes
from graftlm.data.filters import texts_of, units
from graftlm.data.grams import Grams, Hasher, Hashes
from graftlm.data.trained_on import BrokenRecord, TrainedOn
from graftlm.errors import UserError
from graftlm.evaluation.evaluation import Overlap
from graftlm.evaluation.statistics import Interval
from graftlm.evaluation.tasks.items import Item

PASSAGE, SHORT = 30, 10  # words of the passage and the short text that a note gives the chance of finding of
NO_RECORD = "it has no record of what it was trained on"


@dataclass(frozen=True)
class Trained:
    """What is known of an adapter's training data; ``unknown``: why nothing is. ``record.gaps``: what is missing."""

    name: str
    record: TrainedOn
    unknown: str = ""

    @property
    def families(self) -> tuple[str, ...]:
        """The families of tasks that the data names, the most frequent first."""
        return tuple(sorted(self.record.tasks, key=lambda name: (-self.record.tasks[name], name)))

    def unseen(self, family: str) -> bool | None:
        """Whether no row was of this family; None where that is not known."""
        if family in self.record.tasks:
            return False
        told = sum(self.record.tasks.values()) == self.record.rows > 0  # every row names its family
        return True if family and told and not self.record.gaps else None


def read_trained(folder: Path, *, stacked: bool = True) -> Trained:
    """The record of an adapter folder; with those of the adapters that it was trained on top of, if ``stacked``.

    A missing or changed record is no error: :attr:`Trained.unknown` says what is the matter.
    """
    name = folder.resolve().name
    try:
        notes = read_notes(folder)
        record = _read(folder, notes)
        unknown = ""
    except (BrokenRecord, UserError) as error:
        notes, unknown = {}, error.message if isinstance(error, UserError) else str(error)
        record = TrainedOn(gaps=(f"{name}: {unknown}",))
    for beneath in (notes.get("under") or []) if stacked else []:
        record = record.joined(read_trained(Path(beneath)).record)
    return Trained(name, record, unknown)


def _read(folder: Path, notes: Mapping[str, object]) -> TrainedOn:
    if not is_adapter_folder(folder):
        raise BrokenRecord(f"there is no adapter in {folder}")
    if "trained_on" not in notes:
        raise BrokenRecord(NO_RECORD)
    try:
        content = (folder / TRAINED_ON).read_bytes()
    except OSError as error:
        raise BrokenRecord(f"its {TRAINED_ON} cannot be read: {error.strerror}") from error
    return TrainedOn.from_files(notes["trained_on"], content)


def overlaps(
    trained: Trained,
    items: Sequence[Item],
    *,
    task: str,
    without: Callable[[Sequence[int]], Interval] | None = None,
) -> Overlap:
    """The items of a task that share a run of words with what an adapter was trained on.

    ``without``: the primary score on some of the items (places from 0); it is asked for the others where some overlap.
    """
    if trained.unknown:
        return Overlap(trained.name, task, unknown=trained.unknown)
    hasher = Hasher()
    found, checked = [], 0
    for place, item in enumerate(items):
        shared = [_shares(trained.record, hasher.words_array(text)) for text in texts_of_item(item)]
        checked += any(each is not None for each in shared)
        if any(shared):
            found.append(place)
    result = Overlap(trained.name, task, tuple(found), checked, note=_note(trained.record))
    rest = sorted(set(range(len(items))) - set(found))
    if without is not None and found and rest:
        return replace(result, without=without(rest))
    return result


def _shares(record: TrainedOn, words: Hashes) -> bool | None:
    """Whether a text overlaps; None where it is too short to tell."""
    long, short = record.grams
    if len(words) < short.width:
        return None
    if len(words) >= long.width:
        return bool(long.holds(long.of_words(words)).any())
    looked_at = short.looked_at(short.of_words(words))
    return bool(len(looked_at) and short.holds(looked_at).all())


def texts_of_item(item: Item) -> list[str]:
    """The texts that are a row's own, in order, each once.

    Those are the columns that are shown to a model or are an answer, so that what a task's pattern puts around them in
    every row is no overlap; where no column is shown as it is, all that is shown.
    """
    shown = [*(message.content for message in item.messages), *item.candidates, *item.references]
    whole = [_folded(text) for text in shown]
    columns = {text: _folded(text) for text in texts_of(dict(item.values))}
    own = [text for text, folded in columns.items() if folded.strip() and any(folded in each for each in whole)]
    return own or list(dict.fromkeys(shown))


def _folded(text: str) -> str:
    return f" {' '.join(units(text))} "


def _note(record: TrainedOn) -> str:
    notes = list(record.gaps)
    long, short = record.grams
    if long.one_in > 1 or short.one_in > 1:
        notes.insert(
            0,
            f"of much training text a part is recorded: a passage of {PASSAGE} words is found with "
            f"{_chance(long, PASSAGE):.0%}, a text of {SHORT} words with {_chance(short, SHORT):.0%}",
        )
    return "; ".join(notes)


def _chance(grams: Grams, words: int) -> float:
    """Of a text of so many words: that one of its runs is of those that are kept."""
    return 1 - (1 - 1 / grams.one_in) ** (words - grams.width + 1)
