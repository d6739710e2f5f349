"""A reward that can be computed: does a story tell what its prompt asks for, and end as the prompt asks?

A prompt names a character, a thing and an ending:

    Write a story about a boy named Max and a blue boat. At the end, Max goes to sleep.

Its words alone do not tell whether a story fulfils it. That depends on their order (what is told last), on who does
it, and on the prompt. Pure functions of texts; nothing here reads a model or a file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from graftlm.errors import UserError

_GIRLS = """
    Lily Mia Anna Sara Amy Sally Molly Jill Emily Jenny Bella Lisa Mary Kate
    Rosie Lola Ella Sarah Lucy Jane Emma Alice Sue Grace
"""
_BOYS = """
    Tim Tom Max Sam Bob John Joe Tommy Jimmy Mark Leo Jim Alex Timmy
    Bobby George Pete Jake Ben Jack Billy Peter Fred Andy
"""
GIRLS, BOYS = tuple(_GIRLS.split()), tuple(_BOYS.split())
NAMES = (*GIRLS, *BOYS)
"""Names that count as another character's."""

ENDINGS = {
    "goes to sleep": ("went to sleep", "fell asleep"),
    "goes home": ("went home", "walked home"),
    "eats a cake": ("ate a cake", "ate some cake"),
    "sings a song": ("sang a song",),
    "paints a picture": ("painted a picture",),
    "takes a bath": ("took a bath",),
}
"""What a prompt may ask for, and how a story tells that it happened."""

FORM = "Write a story about a {kind} named {name} and a {thing}. At the end, {name} {ending}."
_PROMPT = re.compile(
    r"Write a story about a (?P<kind>boy|girl) named (?P<name>[A-Z]\w*) and an? (?P<thing>[a-z][a-z ]*)\. "
    r"At the end, (?P=name) (?P<ending>[^.]+)\."
)
_SENTENCE = re.compile(r'[^.!?]+[.!?]+["”]?')


@dataclass(frozen=True, slots=True)
class Wish:
    """What a prompt asks for."""

    name: str
    thing: str
    ending: str
    kind: str = "boy"

    @property
    def prompt(self) -> str:
        """The prompt that asks for it."""
        return FORM.format(kind=self.kind, name=self.name, thing=self.thing, ending=self.ending)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The three parts of the criterion; a story fulfils it if all hold."""

    name: bool  #: begins and ends with the character, and nobody else is named more often
    thing: bool  #: the thing is in the story
    ending: bool  #: the last sentence, a whole one, is the ending asked for, done by the character alone

    def __bool__(self) -> bool:
        return self.name and self.thing and self.ending


def wish_of(prompt: str) -> Wish:
    """What a prompt asks for, wherever in the text it does.

    Raises:
        UserError: it is not of the form of :data:`FORM`, or names an ending that is not in :data:`ENDINGS`.
    """
    found = _PROMPT.search(prompt)
    if found is None:
        raise UserError(
            f"no prompt of the criterion: {prompt[:80]!r}",
            hint=f"It must read: {Wish('Max', 'blue boat', 'goes to sleep').prompt}",
        )
    if found["ending"] not in ENDINGS:
        raise UserError(f"unknown ending '{found['ending']}'; there are: {', '.join(ENDINGS)}")
    return Wish(found["name"], found["thing"], found["ending"], found["kind"])


def sentences(text: str) -> list[str]:
    """The sentences of a text; a rest without an end is the last one."""
    found = [match.group().strip() for match in _SENTENCE.finditer(text)]
    rest = _SENTENCE.sub("", text).strip()
    return [*found, rest] if rest else found


def judge(prompt: str, story: str) -> Verdict:
    """How a story meets each part of what its prompt asks for; an empty story meets none.

    Raises:
        UserError: see :func:`wish_of`.
    """
    wish, told = wish_of(prompt), sentences(story)
    if not told:
        return Verdict(name=False, thing=False, ending=False)
    first, last = told[0], told[-1]
    count = {name: len(_words(name, story)) for name in {*NAMES, wish.name}}
    return Verdict(
        name=bool(_words(wish.name, first) and _words(wish.name, last)) and count[wish.name] == max(count.values()),
        thing=bool(_words(wish.thing, story)),
        ending=_ends(wish, last),
    )


def fulfils(prompt: str, story: str) -> bool:
    """Whether a story does all that its prompt asks for: the verifiable reward.

    Raises:
        UserError: see :func:`wish_of`.
    """
    return bool(judge(prompt, story))


def reward(messages: Sequence[Mapping[str, str]], answer: str) -> float:
    """:func:`fulfils` of the last message as a number, 1 or 0: a reward as recipes take it.

    Raises:
        UserError: see :func:`wish_of`.
    """
    return float(fulfils(messages[-1]["content"], answer))


def _ends(wish: Wish, last: str) -> bool:
    """``Max [one word] went to sleep``, told of nobody else, and no other ending beside it."""
    others = [form for ending, forms in ENDINGS.items() if ending != wish.ending for form in forms]
    if not last.endswith((".", "!", '"', "”")) or any(_words(form, last) for form in others):
        return False
    if any(_words(name, last) for name in NAMES if name != wish.name):
        return False
    forms = "|".join(map(re.escape, ENDINGS[wish.ending]))
    return re.search(rf"\b{wish.name} (?:(?!not\b|never\b|almost\b)\w+ )?(?:{forms})\b", last) is not None


def _words(words: str, text: str) -> list[str]:
    """Where they stand in a text, as whole words."""
    return re.findall(rf"\b{re.escape(words)}\b", text)
