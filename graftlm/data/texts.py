"""The texts of an instance, and what makes two of them equal."""

from __future__ import annotations

import hashlib

from graftlm.data.instances import Instance


def prompt_of(instance: Instance) -> str:
    """All that stands before the last answer; nothing in a plain text."""
    return "\n\n".join(message.content for message in instance.asked)


def answer_of(instance: Instance) -> str:
    """The last answer, or the plain text; of a preference row, the chosen answer; empty where nothing is answered."""
    return "" if instance.asked == instance.conversation else instance.conversation[-1].content


def hash_texts(*texts: str) -> int:
    """64 bits of texts but for white space and case."""
    folded = "\0".join(" ".join(text.casefold().split()) for text in texts)
    return int.from_bytes(hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
