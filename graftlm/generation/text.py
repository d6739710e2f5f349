"""Text from tokens as they come: whole characters only, and stop texts found across token boundaries."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what decoders write for bytes that are not, or not yet, a character
_WINDOW, _CONTEXT = 16, 4  # tokens decoded together at most, and kept as context when the window moves on


class TextStream:
    """Turns one request's tokens into text. ``text`` is what was given out so far."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = ()) -> None:
        self.text = ""
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._window: list[int] = []
        self._read = 0  # characters of the window's text that were taken
        self._held = ""  # taken, but perhaps the beginning of a stop text

    def push(self, token: int) -> str:
        """Add a token; gives the text that is certain now. ``stopped`` is set once a stop text is complete."""
        self._window.append(token)
        window = self._decode(self._window)
        certain = window.rstrip(_BROKEN)
        given = self._give(certain[self._read :], last=False)
        self._read = max(self._read, len(certain))
        if len(self._window) >= _WINDOW and certain == window:
            self._window = self._window[-_CONTEXT:]
            self._read = len(self._decode(self._window))
        return given

    def finish(self) -> str:
        """No more tokens come: gives what was held back."""
        rest = self._decode(self._window)[self._read :]
        self._read += len(rest)
        return self._give(rest, last=True)

    def _give(self, new: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        waiting = self._held + new
        found = [place for stop in self._stop if (place := waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            given, self._held = waiting[: min(found)], ""
        else:
            keep = 0 if last else max((_overlap(waiting, stop) for stop in self._stop), default=0)
            given, self._held = waiting[: len(waiting) - keep], waiting[len(waiting) - keep :]
        self.text += given
        return given

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
