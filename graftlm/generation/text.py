"""Text from tokens as they come: whole characters only, and stop texts found across token boundaries."""

from __future__ import annotations

from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what decoders write for bytes that are not, or not yet, a character
_WINDOW, _CONTEXT = 16, 4  # tokens decoded together, and kept as context at least when the window moves on
_LONGEST = 64  # tokens of a window that ends in broken bytes: no character takes that many, and waiting is given up
_PENDING = 3  # bytes that a character may have before its last


class TextStream:
    """Turns one request's tokens into text. ``text`` is what was given out so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._search = StopSearch(stop)
        self._window: list[int] = []
        self._read = 0  # characters of the window's text that were taken

    @property
    def stopped(self) -> bool:
        """Whether a stop text is complete. Nothing is given from there on."""
        return self._search.found

    def push(self, token: int) -> str:
        """Add a token; gives the text that is certain now."""
        self._window.append(token)
        text = self._decode(self._window)
        certain = len(text.rstrip(_BROKEN))
        if len(self._window) > _LONGEST:
            certain = max(certain, len(text) - _PENDING)
        given = self._search.push(text[self._read : certain])
        self._read = max(self._read, certain)
        if len(self._window) >= _WINDOW and certain >= len(text) - _PENDING:
            self._move_on(text)
        self.text += given
        return given

    def finish(self) -> str:
        """No more tokens come: gives what was held back."""
        rest = self._decode(self._window)[self._read :]
        self._read += len(rest)
        given = self._search.push(rest) + self._search.finish()
        self.text += given
        return given

    def _move_on(self, text: str) -> None:
        """Forget all but the last tokens of the window, whose text is ``text``.

        What is kept must say by itself what it said in the window: it must not begin in the middle of a character,
        because some decoders (byte fallback) then call all of the bytes that follow broken.
        """
        rest = len(text) - self._read
        for size in range(_CONTEXT, min(_CONTEXT + _PENDING + 1, len(self._window))):
            kept = self._decode(self._window[-size:])
            if len(kept) > rest and text.endswith(kept):
                self._window, self._read = self._window[-size:], len(kept) - rest
                return

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopSearch:
    """Cuts a text that comes in pieces off at the first stop text to be complete, wherever the pieces end.

    Of several that are complete at the same character, the longest is cut off. What may be the beginning of a stop
    text is held back.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.found = False
        self._words = _Words.of(stops)
        self._state = 0
        self._held = ""

    def push(self, new: str) -> str:
        """Add a piece; gives the text that is certain now."""
        if self.found or not self._words.after:
            return "" if self.found else new
        waiting, words = self._held + new, self._words
        for place, character in enumerate(new, start=len(self._held) + 1):
            self._state = words.step(self._state, character)
            if words.ended[self._state]:
                self.found, self._held = True, ""
                return waiting[: place - words.ended[self._state]]
        certain = len(waiting) - words.depth[self._state]
        self._held = waiting[certain:]
        return waiting[:certain]

    def finish(self) -> str:
        """No more text comes: gives what was held back."""
        rest, self._held = self._held, ""
        return rest


class _Words:
    """All stop texts as one automaton, so that many cost no more than one (Aho and Corasick 1975).

    A state is the longest end of the text read so far that begins some word. ``depth`` is its length, ``ended`` the
    length of the longest word that ends with it (0: none does), ``after`` leads on from (state, character).
    """

    def __init__(self, words: tuple[str, ...]) -> None:
        self.after: dict[tuple[int, str], int] = {}
        self.depth, self.ended, self._shorter = [0], [0], [0]
        for word in words:
            state = 0
            for character in word:
                state = self._grow(state, character)
            self.ended[state] = len(word)
        # Shorter states first: each leans on them.
        for (state, character), longer in sorted(self.after.items(), key=lambda item: self.depth[item[1]]):
            if state:
                self._shorter[longer] = self.step(self._shorter[state], character)
            self.ended[longer] = self.ended[longer] or self.ended[self._shorter[longer]]

    @staticmethod
    @lru_cache(maxsize=8)
    def of(words: tuple[str, ...]) -> _Words:
        """Made once for the samples and requests that share stop texts."""
        return _Words(words)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (longer := self.after.get((state, character))) is None:
            if state == 0:
                return 0
            state = self._shorter[state]
        return longer

    def _grow(self, state: int, character: str) -> int:
        if (state, character) not in self.after:
            self.after[state, character] = len(self.depth)
            self.depth.append(self.depth[state] + 1)
            self.ended.append(0)
            self._shorter.append(0)
        return self.after[state, character]
