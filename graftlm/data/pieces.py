"""Pieces of a rendered conversation, tokenised one by one, so that each token's origin is known."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WRITTEN = ("template", "calls")  # origins of texts that the template writes, with special tokens in them
BATCH = 100  # texts that the backend gets at once: what it makes of them stays in the cache
# One fast tokenizer serves several threads in serving, and split_special_tokens is a setting of its backend.
_TOKENIZER_LOCK = threading.Lock()


@dataclass(frozen=True)
class Rendered:
    """A conversation as tokens: lists of equal length.

    ``supervised`` says which tokens are learnt; ``origin`` where each came from: "template", "system",
    "user", "assistant", "text" or "virtual". ``runs`` are the origins in turn, each with its number of tokens.
    """

    ids: list[int]
    supervised: list[bool]
    runs: list[tuple[str, int]]

    @property
    def origin(self) -> list[str]:
        return [origin for origin, count in self.runs for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that is tokenised on its own.

    Special tokens are parsed in template text only, and in the tool calls that a template writes (``calls``).
    ``learn`` is "all", "no", or "stop": through the first special token; where there is none and the piece is the last,
    an end-of-sequence token is added.
    ``ids``: tokens that have no text (virtual ones).
    """

    text: str
    origin: str
    learn: Literal["no", "all", "stop"] = "no"
    ids: tuple[int, ...] = ()


def move_spaces(pieces: Sequence[Piece]) -> list[Piece]:
    """Spaces that template text puts before a content are tokenised with the content.

    Tokenizers write a word and the space before it as one token, so a base has hardly seen a lone space
    followed by a word; and a prompt does not end with one.
    """
    pieces = [p for p in pieces if p.text or p.origin != "template" or p.learn != "no"]
    moved: list[Piece] = []
    for index, piece in enumerate(pieces):
        text = piece.text
        if piece.origin == "template" and (index + 1 == len(pieces) or pieces[index + 1].origin != "template"):
            last = index + 1 == len(pieces) and piece.learn != "no"
            text = text if last else text.rstrip(" ")
        elif piece.origin != "template" and index and pieces[index - 1].origin == "template":
            before = pieces[index - 1].text
            text = before[len(before.rstrip(" ")) :] + text
        moved.append(piece if text == piece.text else replace(piece, text=text))
    return moved


def encode_pieces(rows: Sequence[Sequence[Piece]], tokenizer: PreTrainedTokenizerBase) -> list[Rendered]:
    """Tokenise the pieces of many conversations at once."""
    pieces = [piece for row in rows for piece in row]
    fixed = sorted({p.text for p in pieces if p.origin in WRITTEN and p.text})
    contents = list(dict.fromkeys(p.text for p in pieces if p.origin not in WRITTEN and p.text))
    fixed_ids = dict(zip(fixed, tokenize(fixed, tokenizer, special=True), strict=True))
    content_ids = dict(zip(contents, tokenize(contents, tokenizer, special=False), strict=True))
    stops = special_ids(tokenizer) if any(p.learn == "stop" for p in pieces) else frozenset()
    eos = tokenizer.eos_token_id
    return [_join(row, fixed_ids, content_ids, stops, eos) for row in rows]


def _join(
    row: Sequence[Piece],
    fixed_ids: Mapping[str, list[int]],
    content_ids: Mapping[str, list[int]],
    stops: frozenset[int],
    eos: Any,
) -> Rendered:
    ids: list[int] = []
    supervised: list[bool] = []
    runs: list[tuple[str, int]] = []
    for place, piece in enumerate(row):
        table = fixed_ids if piece.origin in WRITTEN else content_ids
        new = table[piece.text] if piece.text else list(piece.ids)
        if piece.learn == "stop":
            through = next((i + 1 for i, token in enumerate(new) if token in stops), None)
            if through is None:
                through = 0
                if place == len(row) - 1 and isinstance(eos, int):
                    new, through = [eos], 1
            supervised += [True] * through + [False] * (len(new) - through)
        else:
            supervised += [piece.learn == "all"] * len(new)
        ids += new
        runs.append((piece.origin, len(new)))
    return Rendered(ids, supervised, runs)


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special: bool) -> list[list[int]]:
    """The ids of each text on its own; special tokens in it are parsed only if ``special``."""
    if not texts:
        return []
    lead = _lead(tokenizer)
    found = _call(tokenizer, [lead + text for text in texts], special)
    if not lead:
        return found
    lead_ids = _call(tokenizer, [lead], special)[0]
    result: list[list[int]] = []
    for text, ids in zip(texts, found, strict=True):
        whole = ids[: len(lead_ids)] == lead_ids
        result.append(ids[len(lead_ids) :] if whole else _call(tokenizer, [text], special)[0])
    return result


def tokenize_alone(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of texts that begin a sequence, as their tokenizer begins one; special tokens in them are just text."""
    return _call(tokenizer, list(texts), False) if texts else []


def _call(tokenizer: PreTrainedTokenizerBase, texts: list[str], special: bool) -> list[list[int]]:
    with _TOKENIZER_LOCK:
        if _is_plain(tokenizer):
            return _encode(tokenizer.backend_tokenizer, texts, special)
        encoded = tokenizer(
            texts,
            add_special_tokens=False,
            split_special_tokens=not special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a call of the tokenizer is nothing but one of its backend."""
    from transformers import TokenizersBackend

    kind = type(tokenizer)
    own = any(
        getattr(kind, name, None) is not getattr(TokenizersBackend, name) for name in ("__call__", "_encode_plus")
    )
    return isinstance(tokenizer, TokenizersBackend) and not own


def _encode(backend: Any, texts: list[str], special: bool) -> list[list[int]]:
    """What a call gives, without the offsets and words that nobody asks for; smaller batches stay in the cache."""
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    backend.encode_special_tokens = not special
    return [
        encoding.ids
        for begin in range(0, len(texts), BATCH)
        for encoding in backend.encode_batch_fast(texts[begin : begin + BATCH], add_special_tokens=False)
    ]


def _lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """A newline for tokenizers that put a space before every text (older SentencePiece ones), else nothing.

    It is tokenised in front of the piece and its tokens are taken away again, and the space with them.
    """
    first = tokenizer.convert_ids_to_tokens(_call(tokenizer, ["a"], False)[0])[:1]
    return "\n" if first and str(first[0])[0] in "▁Ġ" else ""


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids of all special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}


def special_texts(tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """The texts of all special tokens."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(tokenizer.all_special_tokens) | {str(token) for token in added.values() if token.special}
