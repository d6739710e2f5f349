"""Keys and values of prompts that were read before, for later prompts that begin alike."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from graftlm.base.memory import is_out_of_memory
from graftlm.generation.cache import Piece

BLOCK = 16  # tokens: what two prompts share is found in whole blocks


def chain(key: Hashable, tokens: Sequence[int]) -> list[int]:
    """A hash for each whole block of ``tokens``, of the key and all tokens up to there."""
    found, so_far = [], hash(key)
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        so_far = hash((so_far, tuple(tokens[start : start + BLOCK])))
        found.append(so_far)
    return found


@dataclass(frozen=True)
class _Entry:
    key: Hashable
    tokens: tuple[int, ...]
    piece: Piece
    chain: tuple[int, ...]


class PrefixStore:
    """Pieces of earlier prompts, the least recently used first to go beyond ``limit`` bytes.

    A ``key`` names what besides the tokens decides about keys and values: the adapters, and their versions.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by the last hash of the chain
        self._by_block: dict[int, int] = {}  # hash of a block → that of an entry that holds it

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: Hashable, tokens: Sequence[int], blocks: Sequence[int]) -> Piece | None:
        """The keys and values of as many of the first tokens as any entry has; ``blocks`` is their chain."""
        for number in range(len(blocks), 0, -1):
            entry = self._entries.get(self._by_block.get(blocks[number - 1], 0))
            length = number * BLOCK
            if entry is not None and entry.key == key and entry.tokens[:length] == tuple(tokens[:length]):
                self._entries.move_to_end(entry.chain[-1])
                self._by_block |= dict.fromkeys(entry.chain, entry.chain[-1])  # it stays longer than others now
                return entry.piece.cut(length)
        return None

    def add(self, key: Hashable, tokens: Sequence[int], blocks: Sequence[int], piece: Piece) -> None:
        """Keep a copy of a piece, unless it is less than a block, is there, or there is no memory for it."""
        if not blocks or blocks[-1] in self._by_block:
            return
        length = len(blocks) * BLOCK
        part = piece.cut(length)
        if part.bytes > self.limit:
            return
        try:
            kept = part.copied()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return
        for block in reversed(blocks[:-1]):  # an entry that this one goes on from is needed no longer
            if block in self._entries:
                self._drop(block)
        self._entries[blocks[-1]] = _Entry(key, tuple(tokens[:length]), kept, tuple(blocks))
        self._by_block |= dict.fromkeys(blocks, blocks[-1])
        self.bytes += kept.bytes
        while self.bytes > self.limit:
            self._drop(next(iter(self._entries)))

    def forget(self, which: Callable[[Hashable], bool]) -> None:
        """Drop the entries of some keys."""
        for last, entry in list(self._entries.items()):
            if which(entry.key):
                self._drop(last)

    def _drop(self, last: int) -> None:
        entry = self._entries.pop(last)
        self.bytes -= entry.piece.bytes
        for block in entry.chain:
            if self._by_block.get(block) == last:
                del self._by_block[block]
