"""A look at prepared data: rows as the model will see them, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graftlm.data.batches import EncodedRow
from graftlm.data.prepare import PreparedData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INVISIBLE = {" ": "·", "\t": "→", "\r": "␍", "\u00a0": "⍽", "\u200b": "⟨200b⟩", "\ufeff": "⟨feff⟩"}
SUPERSCRIPTS = "⁰¹²³⁴"
MOST_BYTES = 4  # tokens that one character may take


@dataclass(frozen=True, slots=True)
class TokenText:
    """Visible text of one token, or of the ``count`` tokens that make one character ("识³")."""

    text: str
    supervised: bool
    special: bool
    count: int = 1


def sequences(row: EncodedRow) -> list[EncodedRow]:
    """What is read and learnt, sequence by sequence: two of an encoder-decoder, and elsewhere one.

    Where a head predicts something, the token that it reads counts as learnt.
    """
    source = row.source_ids or ()
    learnt = row.supervised if row.targets is None else [target >= 0 for target in row.targets]
    first = [replace(row, ids=source, supervised=[False] * len(source), source_ids=None)] if source else []
    return [*first, replace(row, supervised=learnt, targets=None, source_ids=None)]


def learnt_tokens(row: EncodedRow) -> int:
    """How many tokens of a row are learnt, or read by a head."""
    return sum(sum(part.supervised) for part in sequences(row))


def token_texts(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> list[TokenText]:
    """The tokens of a row as text, in order; bytes of one character are put together."""
    from graftlm.data.pieces import special_ids

    specials = special_ids(tokenizer)
    result: list[TokenText] = []
    place = 0
    while place < len(row.ids):
        text, count = _next_text(row, place, tokenizer)
        special = row.ids[place] in specials
        result.append(
            TokenText(
                visible(text) + ("" if count == 1 else SUPERSCRIPTS[count]),
                row.supervised[place],
                special,
                count,
            )
        )
        place += count
    return result


def _next_text(row: EncodedRow, place: int, tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """The text at ``place`` and its number of tokens: more than one where none alone is a character."""
    for count in range(1, MOST_BYTES + 1):
        end = place + count
        if end > len(row.ids) or row.supervised[end - 1] != row.supervised[place]:
            break
        text = _decode(row.ids[place:end], tokenizer)
        if "\ufffd" not in text:
            return text, count
    return _decode(row.ids[place : place + 1], tokenizer), 1


def _decode(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with spaces, tabs and other invisible characters drawn; a newline is drawn and kept."""
    drawn = "".join(INVISIBLE.get(c, c) for c in text)
    return drawn.replace("\n", "⏎\n")


def runs(tokens: Sequence[TokenText]) -> Iterator[tuple[bool, list[TokenText]]]:
    """Consecutive tokens that are alike supervised or not."""
    begin = 0
    for place in range(1, len(tokens) + 1):
        if place == len(tokens) or tokens[place].supervised != tokens[begin].supervised:
            yield tokens[begin].supervised, list(tokens[begin:place])
            begin = place


def as_text(tokens: Sequence[TokenText], separator: str = "|") -> str:
    """Tokens as plain text: a bar between them, and ⟦…⟧ around what is learnt."""
    parts = []
    for supervised, run in runs(tokens):
        text = separator.join(token.text for token in run)
        parts.append(f"⟦{text}⟧" if supervised else text)
    return separator.join(parts)


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows of ``low`` to ``high`` tokens."""

    low: int
    high: int
    rows: int


def histogram(lengths: Sequence[int], bars: int = 10) -> list[Bar]:
    """Row lengths in tokens, in at most ``bars`` parts of equal round width."""
    if not lengths:
        return []
    low, high = min(lengths), max(lengths)
    width = _round_width((high - low + 1) / bars)
    first = low // width * width
    counts = [0] * ((high - first) // width + 1)
    for length in lengths:
        counts[(length - first) // width] += 1
    return [Bar(first + i * width, first + (i + 1) * width - 1, n) for i, n in enumerate(counts)]


def _round_width(least: float) -> int:
    """The least of 1, 2, 5, 10, 20, 50 … that is at least ``least``."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= least:
                return step * scale
        scale *= 10


def draw(bars: Sequence[Bar], width: int = 40) -> list[str]:
    """Lines of text with a bar each, the longest ``width`` characters."""
    most = max((bar.rows for bar in bars), default=0)
    digits = len(str(bars[-1].high)) if bars else 1
    lines = []
    for bar in bars:
        eighths = round(bar.rows / most * width * 8)
        drawn = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        drawn = drawn or ("▏" if bar.rows else "")
        lines.append(f"{bar.low:>{digits}} to {bar.high:>{digits}}  {drawn} {bar.rows:,}")
    return lines


@dataclass(frozen=True, slots=True)
class Totals:
    """Tokens of all kept rows, and how many of them are learnt."""

    tokens: int
    supervised: int
    shortest: int
    median: int
    longest: int


def totals(data: PreparedData) -> Totals:
    lengths = sorted(row.tokens for row in data.rows)
    learnt = sum(learnt_tokens(row) for row in data.rows)
    if not lengths:
        return Totals(0, 0, 0, 0, 0)
    return Totals(sum(lengths), learnt, lengths[0], lengths[len(lengths) // 2], lengths[-1])
