"""Make a log of user queries in five languages, with personal data and duplicates planted, and the truth beside it.

    python scripts/make_query_log.py LOG.jsonl [--truth TRUTH.jsonl] [--rows 20000] [--seed 0]

Nothing of graftlm is imported, and no pattern or list of its detectors is used, so that the log can measure them
(scripts/check_query_log.py does). All people, numbers and addresses are made up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from query_log_personal import KINDS, Planted, plant
from ruamel.yaml import YAML

LANGUAGES = ("en", "zh", "de", "fr", "es")
PERSONAL = 0.4  # share of queries with personal data
NEGATIVE = 0.3  # share with numbers and names that are nobody's
HEAVY = 3  # users with more than the limit of prompts


@dataclass
class Query:
    """A query and what is true of it.

    ``group``: queries that duplicate each other, and ``how``; ``problem``: why it may not stay.
    """

    text: str
    language: str
    use_case: str
    user: str | None = None
    consent: Any = True
    personal: list[Planted] = field(default_factory=list)
    group: int | None = None
    how: str = ""
    problem: str = ""


@cache
def words() -> dict[str, Any]:
    text = (Path(__file__).parent / "query_log_words.yaml").read_text(encoding="utf-8")
    return dict(YAML(typ="safe").load(text))


def sentence(random: Random, language: str) -> str:
    lists = words()[language]
    return lists["glue"].join(random.choice(lists[part]) for part in lists["order"]) + lists["stop"]


def query(random: Random, language: str, *, plain: bool = False) -> Query:
    """A query of a random use case; ``plain`` ones have no personal data."""
    lists = words()[language]
    use_case = random.choice(list(lists["use_cases"]))
    pattern = random.choice(lists["use_cases"][use_case])
    passage = lists["glue"].join(sentence(random, language) for _ in range(random.randrange(2, 6)))
    fills = {name: random.choice(lists[name]) for name in ("topic", "audience", "tone")}
    parts = [pattern.format(passage=passage, **fills)]
    if "{passage}" not in pattern:  # what a question is about: without it thousands would be alike
        parts += [sentence(random, language) for _ in range(random.randrange(1, 3))]
    if random.random() < NEGATIVE:
        parts.append(random.choice(lists["negatives"]))
    personal = []
    if not plain and random.random() < PERSONAL:
        for kind in random.sample(KINDS, random.choice((1, 1, 1, 2))):
            personal.append(plant(random, language, kind))
        # A signature ends a letter; anything else may stand anywhere behind the question.
        personal.sort(key=lambda one: one.kind == "name" and one.sentence.endswith(one.value))
        parts += [one.sentence for one in personal]
    return Query(lists["glue"].join(parts), language, use_case, personal=personal)


def twins(random: Random, language: str, how: str, group: int) -> list[Query]:
    """A query and its duplicate: the same, dressed otherwise, with a slip, or with other personal data."""
    first = query(random, language, plain=True)
    while how == "near" and len(first.text) < (60 if language == "zh" else 160):
        first = query(random, language, plain=True)
    second = Query(first.text, language, first.use_case)
    if how == "dressed":
        second.text = _dressed(random, first.text)
    elif how == "near":
        second.text = _slipped(random, first.text, language)
    elif how == "personal":
        kind = random.choice(("email", "phone", "card", "ip"))
        one, other = plant(random, language, kind), plant(random, language, kind)
        other = Planted(kind, other.value, one.sentence.replace(one.value, other.value))
        glue = words()[language]["glue"]
        first.text, first.personal = first.text + glue + one.sentence, [one]
        second.text, second.personal = second.text + glue + other.sentence, [other]
    for one_query in (first, second):
        one_query.group, one_query.how = group, how
    return [first, second]


def _dressed(random: Random, text: str) -> str:
    change = random.randrange(4)
    if change == 0:
        return text.upper() if text.isascii() else text.lower()
    if change == 1:
        return "  " + text.replace(" ", "  ") + "\n"
    if change == 2:
        return text.rstrip(".。?？") + random.choice(("!!", " ...", "！"))
    return text.replace(", ", " ").replace("，", "、")


def _slipped(random: Random, text: str, language: str) -> str:
    change = random.randrange(3)
    if change == 0:
        return random.choice(words()[language]["polite"]) + text
    place = random.randrange(len(text) // 3, 2 * len(text) // 3)
    while not text[place : place + 2].isalpha():  # a slip in a number would ask for something else
        place = random.randrange(len(text) // 3, 2 * len(text) // 3)
    if change == 1:  # two letters change places, or a sign is missing
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text[:place] + text[place + 1 :]


def family(random: Random, language: str, group: int) -> list[Query]:
    """Queries with one long beginning, as a form or a program sends them, and ends of their own."""
    lists = words()[language]
    begin = lists["glue"].join(sentence(random, language) for _ in range(5 if language == "zh" else 3))
    members = []
    for _ in range(random.randrange(2, 12)):
        end = query(random, language, plain=True)
        members.append(Query(begin + lists["glue"] + end.text, language, end.use_case, group=group, how="prefix"))
    return members


def make(rows: int, seed: int) -> list[Query]:
    """``rows`` queries in random order: 8.5 % pairs of duplicates, about 2 % in families, 3 % that may not be used."""
    random = Random(seed)
    made: list[Query] = []
    group = 0
    for how, share in (("exact", 0.025), ("dressed", 0.015), ("near", 0.035), ("personal", 0.01)):
        for _ in range(round(rows * share)):
            made += twins(random, random.choice(LANGUAGES), how, group)
            group += 1
    for _ in range(max(2, rows // 300)):
        made += family(random, random.choice(LANGUAGES), group)
        group += 1
    users = [f"u{random.randrange(10**8):08d}" for _ in range(max(20, rows // 12))]
    for one in made:
        one.user = random.choice(users)
    for problem, share in (
        ("no consent mark", 0.01),
        ("consent not given", 0.01),
        ("no user id", 0.007),
        ("empty prompt", 0.003),
    ):
        for _ in range(round(rows * share)):
            bad = query(random, random.choice(LANGUAGES))
            bad.problem, bad.user = problem, random.choice(users)
            if problem == "no consent mark":
                bad.consent = random.choice((None, ""))
            elif problem == "consent not given":
                bad.consent = random.choice((False, "no", 0))
            elif problem == "no user id":
                bad.user = random.choice((None, " "))
            else:
                bad.text, bad.personal = " \n", []
            made.append(bad)
    heavy = [f"heavy{number}" for number in range(HEAVY)]
    for place in range(rows - len(made)):
        one = query(random, random.choice(LANGUAGES))
        one.user = heavy[place % HEAVY] if place < HEAVY * min(260, rows // 20) else random.choice(users)
        made.append(one)
    random.shuffle(made)
    return made[:rows]


def lines(made: list[Query]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each query as a row of the log and as the truth of it, rows counted from 1."""
    for number, one in enumerate(made, 1):
        row: dict[str, Any] = {"time": 1_700_000_000 + 37 * number, "query": one.text}
        if one.user is not None:
            row["user_id"] = one.user
        if one.consent is not None:
            row["consent"] = one.consent
        truth = {"row": number, **asdict(one)}
        del truth["consent"]
        yield row, truth


def write(log: Path, truth: Path, rows: int, seed: int) -> None:
    with log.open("w", encoding="utf-8") as log_file, truth.open("w", encoding="utf-8") as truth_file:
        for row, true in lines(make(rows, seed)):
            log_file.write(json.dumps(row, ensure_ascii=False) + "\n")
            truth_file.write(json.dumps(true, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--truth", type=Path, help="default: the log's name with .truth")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    truth = options.truth or options.log.with_suffix(".truth.jsonl")
    write(options.log, truth, options.rows, options.seed)
    print(f"{options.rows:,} queries in {options.log}, the truth in {truth}")


if __name__ == "__main__":
    main()
