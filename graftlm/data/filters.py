"""Filters of instances: each gives the reason why one is removed, or None, and all is counted and sampled.

Most judge an instance as it comes. Two have to see all first (contradictions and label balance): the stream then
waits on disk, sorted by a hash, and is judged when it comes back.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from graftlm.data.collecting.language import UNKNOWN, detect
from graftlm.data.hashes import Hashes
from graftlm.data.instances import Instance
from graftlm.data.mixing import Spool, row_key
from graftlm.data.sets import SetCard
from graftlm.data.texts import answer_of, hash_texts, prompt_of
from graftlm.errors import UserError

SAMPLES = 3  # removed instances kept for the report, for each reason
SHOWN = 200  # characters of them
Stream = Iterable[tuple[str, Instance]]  # the name of the task beside each instance
_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]|[^\W_]+")
_WORDS = bytes(sign if chr(sign).isalnum() and sign < 128 else 32 for sign in range(256))


@runtime_checkable
class Filter(Protocol):
    """Removes instances one by one."""

    def judge(self, task: str, instance: Instance) -> str | None: ...


@runtime_checkable
class LateFilter(Filter, Protocol):
    """Looks at all instances before it judges the first."""

    def look(self, task: str, instance: Instance) -> None: ...


def apply_filters(
    stream: Stream, filters: Sequence[Filter], card: SetCard, *, seed: int = 0
) -> Iterator[tuple[str, Instance]]:
    """The instances that every filter lets pass; the card counts the others by reason and shows a few.

    Without a late filter the order stays; with one it is drawn by the seed.
    """
    late = [each for each in filters if isinstance(each, LateFilter)]
    early = [each for each in filters if not isinstance(each, LateFilter)]
    kept: Iterator[tuple[str, Instance]] = (
        (task, instance) for task, instance in stream if _passes(task, instance, early, card)
    )
    if not late:
        yield from kept
        return
    for each in late:  # one after the other: what one removes, the next does not see
        kept = _judge_late(kept, each, card, seed)
    yield from kept


def _judge_late(stream: Stream, late: LateFilter, card: SetCard, seed: int) -> Iterator[tuple[str, Instance]]:
    with Spool() as spool:
        for task, instance in stream:
            late.look(task, instance)
            spool.add(row_key(instance, seed), task, instance)
        for _key, task, instance in spool.sorted():
            if _passes(task, instance, [late], card):
                yield task, instance


def _passes(task: str, instance: Instance, filters: Sequence[Filter], card: SetCard) -> bool:
    for each in filters:
        if (reason := each.judge(task, instance)) is not None:
            card.drop(reason, instance)
            samples: list[dict[str, Any]] = card.notes.setdefault("removed", {}).setdefault(reason, [])
            if len(samples) < SAMPLES:
                place = f"{instance.source}:{instance.row}"
                texts = {"prompt": _excerpt(prompt_of(instance)), "answer": _excerpt(answer_of(instance))}
                samples.append({"task": task, "place": place, **texts})
            return False
    return True


def _excerpt(text: str) -> str:
    """The beginning of a text; half surrogate pairs, which JSON can hold and no file of ours, become signs."""
    return text[:SHOWN].encode("utf-8", "replace").decode()


def units(text: str) -> list[str]:
    """Words in small letters; of scripts without spaces (Chinese, Japanese, and Korean syllables) every sign."""
    if text.isascii():  # five times as fast, and the same
        return text.encode().lower().translate(_WORDS).decode().split()
    return _UNIT.findall(text.lower())


class Length:
    """The least and the most words (signs of Chinese) of prompts and of answers."""

    def __init__(self, prompt: tuple[int, int | None] = (0, None), answer: tuple[int, int | None] = (0, None)) -> None:
        self.limits = {"prompt": prompt, "answer": answer}

    def judge(self, task: str, instance: Instance) -> str | None:
        for name, text in (("prompt", prompt_of(instance)), ("answer", answer_of(instance))):
            least, most = self.limits[name]
            if least or most is not None:
                number = len(units(text))
                if number < least:
                    return f"{name} shorter than {least} words"
                if most is not None and number > most:
                    return f"{name} longer than {most} words"
        return None


class Language:
    """The languages that are kept, as the instances say, or else as they are detected.

    An instance whose language neither tells stays, unless ``unknown`` is False.
    """

    def __init__(self, allowed: Sequence[str], *, unknown: bool = True) -> None:
        self.allowed = frozenset(allowed)
        self.unknown = unknown

    def judge(self, task: str, instance: Instance) -> str | None:
        language = language_of(instance)
        if not language:
            return None if self.unknown else "language not known"
        return None if language in self.allowed else f"language {language}"


def language_of(instance: Instance) -> str:
    """The language as the instance says, else as it is detected; empty where neither tells."""
    if instance.provenance.language:
        return instance.provenance.language
    found = detect(" ".join(message.content for message in instance.messages))
    return "" if found == UNKNOWN else found


class EmptyAnswer:
    """Answers that hold no letter, digit or symbol."""

    def judge(self, task: str, instance: Instance) -> str | None:
        answer = answer_of(instance)
        if answer[:1].isalnum():  # nearly all are told by their first sign
            return None
        return None if any(unicodedata.category(sign)[0] in "LNS" for sign in answer) else "empty answer"


class CopiedAnswer:
    """Answers that are the whole prompt or, from ``least`` words on, a whole paragraph of it."""

    def __init__(self, least: int = 5) -> None:
        self.least = least

    def judge(self, task: str, instance: Instance) -> str | None:
        answer, prompt = units(answer_of(instance)), prompt_of(instance)
        if not answer or not prompt:
            return None
        copied = answer == units(prompt)
        if not copied and len(answer) >= self.least:
            copied = any(answer == units(part) for part in re.split(r"\n\s*\n", prompt))
        return "answer copied from the input" if copied else None


class WordList:
    """Words and phrases of the user's own; one may not stand in any message. Whole words, in any case."""

    def __init__(self, words: Iterable[str]) -> None:
        listed = sorted({" ".join(word.split()) for word in words if word.strip()}, key=lambda w: (-len(w), w))
        if not listed:
            raise UserError("the word list is empty", hint="One word or phrase a line.")
        self.pattern = re.compile("|".join(map(_whole_word, listed)), re.IGNORECASE)

    @classmethod
    def read(cls, path: str | Path) -> WordList:
        """A list from a file, one word or phrase a line.

        Raises:
            UserError: the file cannot be read or is empty.
        """
        try:
            return cls(Path(path).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: the word list cannot be read: {error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error.message}", hint=error.hint) from error

    def judge(self, task: str, instance: Instance) -> str | None:
        hit = any(self.pattern.search(message.content) for message in instance.messages)
        return "word of the list" if hit else None


def _whole_word(word: str) -> str:
    """A pattern with word limits where the word has any: Chinese has none."""
    text = r"\s+".join(re.escape(part) for part in word.split())
    before, after = (bool(re.match(r"[^\W\u3040-\u9fff]", sign)) for sign in (word[0], word[-1]))
    return (r"(?<!\w)" if before else "") + text + (r"(?!\w)" if after else "")


class Duplicates:
    """Instances equal to an earlier one but for white space and case."""

    remembers = True

    def __init__(self) -> None:
        self.seen = Hashes()

    def judge(self, task: str, instance: Instance) -> str | None:
        texts = (text for message in instance.messages for text in (message.role, message.content))
        key = hash_texts(*texts, *map(str, instance.verdicts))  # what another annotator says is something else
        return None if self.seen.add(key) else "exact duplicate"


class NearDuplicates:
    """Instances whose sets of ``width`` words in a row are nearly those of an earlier one (MinHash of datasketch).

    ``threshold`` is the Jaccard similarity from which on two are alike. It is estimated, so pairs at the border may
    fall on either side; the same instances always give the same result.
    """

    remembers = True

    def __init__(self, threshold: float = 0.8, *, width: int = 3, permutations: int = 64) -> None:
        try:
            from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped, unused-ignore]
        except ImportError as error:
            raise UserError("near duplicates need datasketch", hint="pip install datasketch") from error
        self.empty = MinHash(num_perm=permutations, seed=1)
        self.index = MinHashLSH(threshold=threshold, num_perm=permutations)
        self.width = width
        self.number = 0

    def judge(self, task: str, instance: Instance) -> str | None:
        return None if self.first_like(instance) is None else "near duplicate"

    def first_like(self, instance: Instance) -> int | None:
        """The number of the earliest instance that this one is nearly equal to; None, and remembered, if it is new."""
        words = units(" ".join(message.content for message in instance.messages))
        shingles = {" ".join(words[i : i + self.width]) for i in range(max(len(words) - self.width + 1, 1))}
        sketch = self.empty.copy()
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
        number, self.number = self.number, self.number + 1
        found: list[int] = self.index.query(sketch)
        if found:
            return min(found)
        self.index.insert(number, sketch)
        return None


def near_groups(instances: Sequence[Instance], threshold: float = 0.8) -> list[list[Instance]]:
    """Instances that are nearly equal to the first of their group, the largest groups first; singles left out."""
    near = NearDuplicates(threshold)
    groups: dict[int, list[Instance]] = {}
    for instance in instances:
        first = near.first_like(instance)
        if first is not None:
            groups.setdefault(first, [instances[first]]).append(instance)
    return sorted(groups.values(), key=len, reverse=True)


class LabelBalance:
    """At most ``ratio`` times as many instances of an answer as of the rarest, in tasks of few answers.

    A task is left alone if it has more than ``most`` different answers. Which instances go is drawn by the seed.
    """

    def __init__(self, ratio: float = 1.0, *, most: int = 20) -> None:
        self.ratio, self.most = ratio, most
        self.counts: dict[str, Counter[str]] = {}
        self.kept: Counter[tuple[str, str]] = Counter()

    def look(self, task: str, instance: Instance) -> None:
        counts = self.counts.setdefault(task, Counter())
        label = answer_of(instance)
        if len(counts) <= self.most or label in counts:
            counts[label] += 1

    def judge(self, task: str, instance: Instance) -> str | None:
        counts, label = self.counts[task], answer_of(instance)
        if len(counts) > self.most:
            return None
        if self.kept[task, label] >= max(1, int(self.ratio * min(counts.values()))):
            return "over the balance of labels"
        self.kept[task, label] += 1
        return None


class SharedAnswers:
    """Instances whose answer is one of a named evaluation set, but for white space and case."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}

    def add(self, name: str, instances: Iterable[Instance]) -> None:
        """The answers of one evaluation set."""
        for instance in instances:
            self.names.setdefault(hash_texts(answer_of(instance)), name)

    def judge(self, task: str, instance: Instance) -> str | None:
        name = self.names.get(hash_texts(answer_of(instance)))
        return None if name is None else f"answer of {name}"


class Contamination:
    """Instances that share ``width`` words in a row (signs of Chinese) with a named evaluation set.

    A text of an evaluation set that is shorter counts as a whole from ``shortest`` words on; ``too_short`` counts
    those that are not looked for at all.
    """

    def __init__(self, *, width: int = 13, shortest: int = 8) -> None:
        self.width, self.shortest = width, shortest
        self.words: dict[str, int] = {}
        self.grams: dict[int, dict[int, str]] = {}  # by length: hash of the word numbers → name of the set
        self.too_short: Counter[str] = Counter()

    def add(self, name: str, texts: Iterable[str]) -> None:
        """The texts of one evaluation set."""
        for text in texts:
            words = units(text)
            width = min(self.width, len(words))
            if width < self.shortest:
                self.too_short[name] += 1
                continue
            numbers = [self.words.setdefault(word, len(self.words)) for word in words]
            grams = self.grams.setdefault(width, {})
            for i in range(len(numbers) - width + 1):
                grams.setdefault(hash(tuple(numbers[i : i + width])), name)

    def judge(self, task: str, instance: Instance) -> str | None:
        for message in instance.messages:
            if (name := self.find(message.content)) is not None:
                return f"overlaps with {name}"
        return None

    def find(self, text: str) -> str | None:
        """The evaluation set that a text overlaps with, if any."""
        for run in self._runs(text):
            for width, grams in self.grams.items():
                for i in range(len(run) - width + 1):
                    if (name := grams.get(hash(tuple(run[i : i + width])))) is not None:
                        return name
        return None

    def _runs(self, text: str) -> Iterator[list[int]]:
        """Stretches of words that all stand in some evaluation set: nothing else can overlap."""
        run: list[int] = []
        for word in units(text):
            number = self.words.get(word)
            if number is not None:
                run.append(number)
                continue
            yield run
            run = []
        yield run


def texts_of(row: Any) -> Iterator[str]:
    """All texts in a row, however deep."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, dict | list):
        for value in row.values() if isinstance(row, dict) else row:
            yield from texts_of(value)
