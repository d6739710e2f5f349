"""Write the data of the alignment demo: stories that start a policy, and preferences between stories sampled from it.

    python scripts/make_alignment_data.py stories                      # wishes.train.jsonl, wishes.held_out.jsonl
    graftlm train benchmarks/alignment/start.yaml --out runs/start
    python scripts/make_alignment_data.py prompts --out runs/start     # prompts of the preferences, both parts
    graftlm generate runs/start/prompts.jsonl --adapter runs/start --n 8 --temperature 1 \
        --max-new-tokens 120 --out runs/start/answers.jsonl
    python scripts/make_alignment_data.py preferences --answers runs/start/answers.jsonl

Source: no text is copied from a corpus. The middle of each story is sampled from the embedded base ``tiny``, which
learnt mostly from TinyStories (roneneldan/TinyStories, CDLA-Sharing-1.0); openings and events stand below. Preferences
are labelled by graftlm.demo.criterion; their training and held-out prompts share no name and no thing. The seed fixes
all, on one machine with one number of threads.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from graftlm.demo.criterion import ENDINGS, NAMES, Wish, fulfils, judge, sentences, wish_of

SEED = 7
FOLDER = Path(__file__).resolve().parent.parent / "graftlm" / "demo" / "data" / "alignment"
PARTS = ("train", "held_out")
ROWS = {"train": 2000, "held_out": 100}
PROMPTS = {"train": 700, "held_out": 200}
PAIRS_A_PROMPT = 2

NAMES_OF = {
    "train": {
        "boy": ["Tim", "Tom", "Max", "Sam", "Bob", "Joe", "Leo", "Jim"],
        "girl": ["Lily", "Mia", "Anna", "Sara", "Amy", "Sally", "Molly", "Kate"],
    },
    "held_out": {"boy": ["Ben", "Jack", "Billy", "Mark"], "girl": ["Lucy", "Jane", "Emma", "Sue"]},
}
LOOKS = ("red", "blue", "green", "yellow")
THINGS = {
    "train": ["ball", "boat", "kite", "car", "hat", "drum", "doll", "train", "box", "cup", "bike", "balloon"],
    "held_out": ["truck", "bag", "star", "bell"],
}

OPENINGS = (
    "Once upon a time, there was a little {kind} named {name}. {He} had a {thing}.",
    "One day, a {kind} named {name} found a {thing}.",
    "Once there was a {kind} named {name}. {name} liked to play with a {thing}.",
)
FRIENDS = (
    "{He} had a friend named {friend}.",
    "{name} saw {his} friend {friend}.",
    "{friend} came to play with {name}.",
)
NEXT = ("Then {}", "Later, {}", "{}")
LAST = ("Then {}", "At last, {}", "{}")

#: What the stories do, as shares: the policy starts from there. ``asked``, ``other``: an event done by the character;
#: ``friend asked``, ``friend other``: by the friend.
PLOTS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.32, ("other", "asked")),
    (0.08, ("friend other", "asked")),
    (0.36, ("asked", "other")),
    (0.08, ("asked", "friend other")),
    (0.08, ("other", "friend asked")),
    (0.08, ("other", "other")),
)
Row = dict[str, Any]


def draw_wish(rng: random.Random, part: str) -> Wish:
    """A wish with a name and a thing of a part."""
    kind = rng.choice(("boy", "girl"))
    thing = f"{rng.choice(LOOKS)} {rng.choice(THINGS[part])}"
    return Wish(rng.choice(NAMES_OF[part][kind]), thing, rng.choice(list(ENDINGS)), kind)


def distinct_wishes(part: str, number: int, seed: int) -> list[Wish]:
    """So many different wishes of a part."""
    rng, found = random.Random(f"{seed} {part}"), dict[Wish, None]()
    while len(found) < number:
        found[draw_wish(rng, part)] = None
    return list(found)


# ------------------------------------------------------------------------------------------------- stories


def opening(rng: random.Random, wish: Wish) -> str:
    he, his = ("He", "his") if wish.kind == "boy" else ("She", "her")
    return rng.choice(OPENINGS).format(kind=wish.kind, name=wish.name, thing=wish.thing, He=he, his=his)


def sample_middles(openings: Sequence[str]) -> list[str]:
    """What the bare base writes after each opening."""
    from graftlm import AdaptedModel
    from graftlm.base.loading import load_tokenizer
    from graftlm.generation import Engine, Request, SamplingSettings

    tokenizer = load_tokenizer("tiny")
    engine = Engine(AdaptedModel.from_pretrained("tiny", dtype="float32", device="cpu"), tokenizer, max_batch_rows=64)
    requests = [
        Request(
            (tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]),
            sampling=SamplingSettings(max_new_tokens=18, temperature=0.8, top_p=0.9, seed=SEED + number),
        )
        for number, text in enumerate(openings)
    ]
    return [done.text or "" for done in engine.run(requests)]


def middle(text: str, wish: Wish) -> str | None:
    """The first sentence, if it is short, tells of nobody else and holds none of the endings."""
    kept = next(iter(sentences(text.replace("\n", " "))), "")
    others = {"Mom", "Mommy", "Dad", *NAMES} - {wish.name}
    events = {form for forms in ENDINGS.values() for form in forms}
    if (
        not kept.endswith(".")
        or not 4 <= len(kept.split()) <= 12
        or '"' in kept
        or any(event in kept for event in events)
    ):
        return None
    return None if set(re.findall(r"[A-Z]\w+", kept)) & others else kept


def events(rng: random.Random, wish: Wish, friend: str, plot: Sequence[str]) -> list[str]:
    """A sentence for each step of a plot; other endings do not repeat."""
    others = iter(rng.sample([ending for ending in ENDINGS if ending != wish.ending], len(plot)))
    told = []
    for place, step in enumerate(plot):
        done = rng.choice(ENDINGS[wish.ending if step.endswith("asked") else next(others)])
        who = friend if step.startswith("friend") else wish.name
        told.append(rng.choice(LAST if place == len(plot) - 1 else NEXT).format(f"{who} {done}."))
    return told


def story(rng: random.Random, wish: Wish, begun: str, middle: str) -> str:
    """Opening, perhaps a friend, the middle, and the events of a plot."""
    plot = rng.choices([plot for _, plot in PLOTS], [share for share, _ in PLOTS])[0]
    friend = rng.choice([name for part in PARTS for name in NAMES_OF[part][wish.kind] if name != wish.name])
    parts = [begun, middle]
    if any(step.startswith("friend") for step in plot) or rng.random() < 0.15:
        he, his = ("He", "his") if wish.kind == "boy" else ("She", "her")
        parts.append(rng.choice(FRIENDS).format(name=wish.name, friend=friend, He=he, his=his))
    return " ".join([*parts, *events(rng, wish, friend, plot)])


def make_stories(folder: Path) -> None:
    for part, number in ROWS.items():
        rng = random.Random(f"{SEED} stories {part}")
        # Of both parts: the policy may know the names and things that the preferences hold out.
        wishes = [draw_wish(rng, rng.choices(PARTS, (2, 1))[0]) for _ in range(number * 8 // 5)]
        begun = [opening(rng, wish) for wish in wishes]
        rows = []
        for wish, first, text in zip(wishes, begun, sample_middles(begun), strict=True):
            told = middle(text, wish)
            if told is not None and len(rows) < number:
                rows.append({"instruction": wish.prompt, "output": story(rng, wish, first, told)})
        write(folder / f"wishes.{part}.jsonl", rows)
        share = sum(fulfils(row["instruction"], row["output"]) for row in rows) / len(rows)
        print(f"{part}: {len(rows):,} stories, {share:.1%} fulfil their prompt")


# -------------------------------------------------------------------------------------------- preferences


def make_prompts(folder: Path) -> None:
    wishes = [wish for part, number in PROMPTS.items() for wish in distinct_wishes(part, number, SEED + 1)]
    write(folder / "prompts.jsonl", [{"prompt": wish.prompt} for wish in wishes])


def part_of(prompt: str) -> str:
    wish = wish_of(prompt)
    return "held_out" if wish.name in NAMES_OF["held_out"][wish.kind] else "train"


def pairs_of(prompt: str, answers: Sequence[str], rng: random.Random) -> list[Row]:
    """Pairs of a story that fulfils the prompt and one that does not, each story in one pair at most."""
    good = [answer for answer in dict.fromkeys(answers) if fulfils(prompt, answer)]
    bad = [answer for answer in dict.fromkeys(answers) if not fulfils(prompt, answer)]
    rng.shuffle(good)
    rng.shuffle(bad)
    return [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        for chosen, rejected in list(zip(good, bad, strict=False))[:PAIRS_A_PROMPT]
    ]


def balanced(pairs: Sequence[Row], rng: random.Random) -> list[Row]:
    """As many pairs whose chosen story is the longer as the other way round; pairs of equal length all stay."""
    groups = defaultdict[int, list[Row]](list)
    for pair in pairs:
        difference = len(pair["chosen"].split()) - len(pair["rejected"].split())
        groups[difference].append(pair)
    kept = groups[0]
    for difference in sorted(key for key in groups if key > 0):
        longer, shorter = groups[difference], groups.get(-difference, [])
        kept += [pair for some in (longer, shorter) for pair in some[: min(len(longer), len(shorter))]]
    return rng.sample(kept, len(kept))


def make_preferences(answers: Path, folder: Path) -> None:
    told = defaultdict[str, list[str]](list)
    for line in answers.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        told[row["prompt"]].append(row["answer"].strip())
    for part in PARTS:
        rng = random.Random(f"{SEED} pairs {part}")
        some = {prompt: stories for prompt, stories in told.items() if part_of(prompt) == part}
        every = [(prompt, answer) for prompt, stories in some.items() for answer in stories]
        pairs = [pair for prompt, stories in some.items() for pair in pairs_of(prompt, stories, rng)]
        kept = balanced(pairs, rng)
        write(folder / f"preferences.{part}.jsonl", kept)
        verdicts = [judge(*pair) for pair in every]
        print(f"{part}: {sum(map(bool, verdicts)) / len(every):.1%} of {len(every):,} stories fulfil their prompt")
        for name in ("name", "thing", "ending"):
            print(f"  {name}: {sum(getattr(verdict, name) for verdict in verdicts) / len(every):.1%}")
        print(f"  {len(pairs):,} pairs, {len(kept):,} kept of {len({pair['prompt'] for pair in kept}):,} prompts")


def write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=("stories", "prompts", "preferences"))
    parser.add_argument("--out", type=Path, default=FOLDER, help="where files go; default: graftlm/demo/data/alignment")
    parser.add_argument("--answers", type=Path, help="preferences: what graftlm generate wrote")
    given = parser.parse_args()
    if given.step == "stories":
        make_stories(given.out)
    elif given.step == "prompts":
        make_prompts(given.out)
    elif given.answers is None:
        parser.error("preferences need --answers FILE")
    else:
        make_preferences(given.answers, given.out)


if __name__ == "__main__":
    main()
