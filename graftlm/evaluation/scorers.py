"""How a written answer is scored, from 0 (wrong) to 1 (right).

Of several references the one that fits best counts. Words are told apart by white space, and characters of Chinese and
Japanese stand alone, so that f1 and ROUGE-L mean the same in both kinds of languages.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from graftlm.errors import UserError, nearest
from graftlm.evaluation.numbers import same_number
from graftlm.evaluation.python_file import load_function
from graftlm.evaluation.refusals import is_refusal
from graftlm.evaluation.tasks.items import Item
from graftlm.evaluation.tasks.task import EvalTask, Scorer

_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_TOKEN = re.compile(rf"[{_CHARACTER}]|[^\W{_CHARACTER}]+")
_ARTICLES = ("a", "an", "the")


def score_answer(scorers: Sequence[Scorer], answer: str, item: Item, folder: Path) -> dict[str, float]:
    """The score of an answer by each scorer, by its name. ``folder``: where the files of Python scorers lie.

    Raises:
        UserError: there is no such scorer, or one of the task's own fails; file, function and row are named.
    """
    return {scorer.name: _score(scorer, answer, item, folder) for scorer in scorers}


def check_scorers(task: EvalTask) -> None:
    """Find out before anything is generated whether all scorers of a task exist.

    Raises:
        UserError: a name is unknown or there twice, an expression cannot be read, a file or function is missing.
    """
    names = [scorer.name for scorer in task.keys.all_scorers]
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"the scorer '{twice[0]}' is there twice", hint="Give each a name of its own.")
    for scorer in task.keys.all_scorers:
        if scorer.python is not None:
            load_function("scorer", scorer.python, task.folder)
        elif scorer.regex is not None:
            _expression(scorer)
        else:
            _named(scorer)


def is_graded(scorer: Scorer) -> bool:
    """Whether an answer can be right in part."""
    return scorer.python is not None or (scorer.regex is None and scorer.name in ("f1", "rouge_l", "chrf"))


def normalised(text: str) -> str:
    """In small letters, without punctuation, one blank between words; the point and the sign of a number stay."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    kept = re.sub(r"(?<=\d),(?=\d{3})", "", folded)
    letters = [
        letter if not unicodedata.category(letter).startswith("P") or _of_number(kept, at) else ""
        for at, letter in enumerate(kept)
    ]
    return " ".join("".join(letters).split())


def tokens(text: str) -> list[str]:
    """Words in small letters; characters of Chinese and Japanese alone."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def exact(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is a reference but for case, white space and punctuation."""
    own = normalised(answer)
    # A reference that is punctuation alone is compared as it is.
    return float(any(own == same if (same := normalised(each)) else answer.strip() == each for each in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """F1 of the words that answer and reference share, as SQuAD does it: without punctuation and articles."""
    return max(_overlap(_squad(answer), _squad(reference)) for reference in references)


def rouge_l(answer: str, references: Sequence[str]) -> float:
    """F1 of the longest common sequence of words (Lin 2004), by the library rouge-score."""
    result = _rouge().score_multi(list(references), answer)
    return float(result["rougeL"].fmeasure)


def chrf(answer: str, references: Sequence[str]) -> float:
    """chrF of character n-grams (Popović 2015), by the library sacrebleu."""
    return float(_chrf().sentence_score(answer, list(references)).score) / 100


def number(answer: str, references: Sequence[str]) -> float:
    """1 where the answer's last number is a reference's."""
    return float(any(same_number(answer, reference) for reference in references))


def refusal(answer: str, references: Sequence[str]) -> float:
    """1 where the answer begins by refusing."""
    return float(is_refusal(answer))


def no_refusal(answer: str, references: Sequence[str]) -> float:
    """1 where there is an answer that does not begin by refusing; an empty one helps no one."""
    return float(bool(answer.strip()) and not is_refusal(answer))


#: Scorers by name: (answer, references) → 0 to 1.
SCORERS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "exact": exact,
    "f1": token_f1,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "number": number,
    "refusal": refusal,
    "no_refusal": no_refusal,
}


def _score(scorer: Scorer, answer: str, item: Item, folder: Path) -> float:
    if scorer.python is not None:
        return _own(scorer.python, answer, item, folder)
    if scorer.regex is not None:
        return _matched(_expression(scorer), answer, item.references)
    return _named(scorer)(answer, item.references)


def _named(scorer: Scorer) -> Callable[[str, Sequence[str]], float]:
    if scorer.name not in SCORERS:
        guess = nearest(scorer.name, list(SCORERS))
        raise UserError(
            f"unknown scorer '{scorer.name}'; there are: {', '.join(SCORERS)}",
            hint=f"Did you mean '{guess}'?" if guess else "One of your own needs regex or python beside its name.",
        )
    return SCORERS[scorer.name]


def _matched(expression: re.Pattern[str], answer: str, references: Sequence[str]) -> float:
    found = expression.search(answer)
    if found is None or not expression.groups:
        return float(found is not None)
    return exact(found[1], references) if found[1] is not None else 0.0


@cache
def _expression(scorer: Scorer) -> re.Pattern[str]:
    try:
        return re.compile(scorer.regex or "")
    except re.error as error:
        raise UserError(f"scorer {scorer.name}: the expression {scorer.regex!r} cannot be read: {error}") from error


def _own(place: str, answer: str, item: Item, folder: Path) -> float:
    function = load_function("scorer", place, folder)
    where = f"the scorer {place} ({item.source}, row {item.row})"
    try:
        value = function(answer, item.references, item.values)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{where} raises {type(error).__name__}: {error}", hint=f"The answer was {answer[:80]!r}."
        ) from error
    if not isinstance(value, int | float | np.number | np.bool_) or not math.isfinite(value) or not 0 <= value <= 1:
        raise UserError(f"{where} gives {value!r:.60}; a score is a number from 0 (wrong) to 1 (right)")
    return float(value)


def _of_number(text: str, at: int) -> bool:
    """Whether a sign belongs to a number: a point or colon between digits, a minus before one."""
    after = text[at + 1 : at + 2].isdigit()
    before = text[at - 1 : at]
    if text[at] in ".:/":
        return after and before.isdigit()
    return text[at] == "-" and after and not before.isalnum()


def _squad(text: str) -> list[str]:
    words = [_TOKEN.findall(word) if _has_characters(word) else [word] for word in normalised(text).split()]
    return [token for word in words for token in word if token not in _ARTICLES]


def _has_characters(word: str) -> bool:
    return re.search(f"[{_CHARACTER}]", word) is not None


def _overlap(own: list[str], other: list[str]) -> float:
    if not own or not other:
        return float(own == other)
    shared = (Counter(own) & Counter(other)).total()
    return 2 * shared / (len(own) + len(other))


class _Tokenizer:
    """What rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # here: it takes a second to import

    return RougeScorer(["rougeL"], tokenizer=_Tokenizer())


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF  # here: it takes a while to import

    return CHRF()
