"""What a speaker is asked for an item: its candidates as rows, rendered as the speaker was trained to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from graftlm.adapters.model import AdaptedModel
from graftlm.base.memory import available_memory
from graftlm.data.batches import EncodedRow
from graftlm.data.instances import Instance, Message
from graftlm.data.labelled import choose_rendering
from graftlm.data.prepare import RowCounts
from graftlm.data.prompt_template import PromptTemplate
from graftlm.data.rendering import Rendering
from graftlm.evaluation.speakers import Opened, Speaker
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask
from graftlm.generation.cache import token_bytes
from graftlm.training.forward import RoutedRow

WHOLE_TEXTS = ("perplexity", "pairs")


@dataclass(frozen=True)
class Asked:
    """The rows of one item under one speaker.

    ``rows``: for each candidate the rows that its log p is the sum of (several where a long text is read in windows);
    none where there is no room for it, or ``problem`` says why it cannot be asked at all.
    """

    rows: tuple[tuple[RoutedRow, ...], ...]
    problem: str | None = None

    @property
    def flat(self) -> list[RoutedRow]:
        return [row for rows in self.rows for row in rows]


def why_not(opened: Opened, speaker: Speaker, task: EvalTask, items: Sequence[Item]) -> str | None:
    """Why a speaker cannot be asked a task at all; None if it can."""
    kind, model, head = task.keys.kind, opened.model, speaker.head
    if kind == "classify":
        if head is None or head.type == "tagger":
            return "it predicts no labels with a head"
        return _strange_label({each for item in items for each in item.references}, head.labels)
    if head is not None:
        if kind != "choice" or head.type == "tagger":
            return "it predicts labels, and writes no text"
        return _strange_label({each for item in items for each in item.candidates}, head.labels)
    if model.kind == "encoder":
        return "the base is an encoder, which writes no text"
    if kind in WHOLE_TEXTS and model.kind != "decoder":
        return "the base reads two texts, and gives no likelihood of one alone"
    return None


def _strange_label(wanted: set[str], labels: Sequence[str]) -> str | None:
    strange = sorted(wanted - set(labels))
    return f"'{strange[0][:40]}' is none of its labels: {', '.join(labels)}" if strange else None


def ask(opened: Opened, speaker: Speaker, task: EvalTask, items: Sequence[Item]) -> list[Asked]:
    """The rows of each item, in order."""
    whole = task.keys.kind in WHOLE_TEXTS
    # A template with virtual tokens has no place for a text without a question; they then come before the text.
    template = opened.base.template if whole and isinstance(speaker.template, PromptTemplate) else speaker.template
    model = opened.model
    rendering = choose_rendering(
        model.kind,
        None,
        template,
        opened.tokenizer,
        train_on="last",
        decoder_start=getattr(model.base.config, "decoder_start_token_id", None),
    )
    instances: list[Instance] = []
    owners: list[int] = []
    for number, item in enumerate(items):
        for candidate in item.candidates:
            last = Message("text", candidate) if whole else Message("assistant", candidate)
            instances.append(Instance((*item.messages, last), task.name, len(owners)))
            owners.append(number)
    rows, reasons = _rendered(rendering, instances)
    room = model.room(speaker.stack)
    if isinstance(template, PromptTemplate):
        room += model.virtual_length(speaker.stack)  # they are in the row
    found: list[list[tuple[RoutedRow, ...]]] = [[] for _ in items]
    problems: list[str | None] = [None] * len(items)
    for place, number in enumerate(owners):
        row = rows.get(place)
        if row is None:
            problems[number] = problems[number] or reasons.get(place, "it cannot be rendered")
            found[number].append(())
            continue
        found[number].append(tuple(RoutedRow(part, speaker.stack) for part in _fit(row, room, whole)))
    return [
        Asked(tuple(parts), problem or _no_room(item, parts, room))
        for item, parts, problem in zip(items, found, problems, strict=True)
    ]


def _fit(row: EncodedRow, room: int, whole: bool) -> list[EncodedRow]:
    """The row, where it fits; of a text that does not, windows that share a token; of an answer, nothing."""
    if len(row.ids) <= room and len(row.source_ids or ()) <= room:
        return [row]
    if not whole or room < 2:
        return []
    windows = []
    for start in range(0, len(row.ids) - 1, room - 1):
        end = min(start + room, len(row.ids))
        part = replace(row, ids=row.ids[start:end], supervised=row.supervised[start:end])
        if part.n_supervised:
            windows.append(part)
    return windows


def _no_room(item: Item, parts: Sequence[tuple[RoutedRow, ...]], room: int) -> str | None:
    """A right answer that has no room makes the item useless; a wrong one only cannot be chosen."""
    if all(parts[place] for place in item.right) and any(parts):
        return None
    return f"the right answer and what is asked are longer than the context of {room:,} tokens"


@dataclass
class Reasons(RowCounts):
    """An account that remembers of each row why it was dropped."""

    reasons: dict[int, str] = field(default_factory=dict)

    def drop(self, reason: str, source: str, row: int) -> None:
        self.reasons[row] = reason


def _rendered(rendering: Rendering, instances: Sequence[Instance]) -> tuple[dict[int, EncodedRow], dict[int, str]]:
    account = Reasons()
    rows = {instance.row: row for instance, row in rendering.rows(instances, account)}
    return rows, account.reasons


def largest(model: AdaptedModel) -> int:
    """Tokens that run together, where nothing else is said: their keys and values take a quarter of the free memory."""
    most = 8192 if model.device.type == "cpu" else 65_536
    if model.kind != "decoder":
        return most
    return max(256, min(most, available_memory(model.device) // (4 * token_bytes(model))))
