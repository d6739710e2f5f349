"""What a set is, on one page that needs nothing else to be shown: counts, lengths, words, rows as the model sees them.

The whole set is counted as a stream. Rows, token lengths and near duplicates are looked at in a sample that the
seed draws, and the page says how large that is.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftlm.base.files import write_text
from graftlm.data.criteria import WHOLE
from graftlm.data.filters import Contamination, language_of, near_groups, units
from graftlm.data.instances import Instance
from graftlm.data.mixing import row_key
from graftlm.data.preference_facts import PreferenceFacts
from graftlm.data.prepare import RowCounts
from graftlm.data.preview import Bar, TokenText, histogram, learnt_tokens, sequences, token_texts
from graftlm.data.rendering import Rendering
from graftlm.data.sets import SetCard, kept_but
from graftlm.data.texts import answer_of, prompt_of
from graftlm.errors import UserError
from graftlm.evaluation import wording
from graftlm.evaluation.report import page_environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 20_000  # instances that near duplicates are looked for among
TOKENISED = 2_000  # of them, whose lengths are measured in tokens
MOST_NAMES = 20  # lines of a table
MOST_GROUPS = 10
MOST_TOKENS = 600  # shown of a row
SHOWN = 300  # characters shown of a text
ORIGINS = {"task": "Tasks", "template": "Templates", "language": "Languages", "licence": "Licences"}


@dataclass
class Look:
    """What a pass over all instances finds; ``sample`` is in the order of a hash, ``overlaps`` by evaluation set."""

    rows: int = 0
    origins: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in ORIGINS})
    first_words: Counter[str] = field(default_factory=Counter)
    prompt_words: list[int] = field(default_factory=list)
    answer_words: list[int] = field(default_factory=list)
    overlaps: dict[str, list[Instance]] = field(default_factory=dict)
    overlapping: Counter[str] = field(default_factory=Counter)
    sample: list[Instance] = field(default_factory=list)
    preferences: PreferenceFacts = field(default_factory=PreferenceFacts)


@dataclass(frozen=True)
class ShownRow:
    """A row as tokens; ``more`` are not shown."""

    title: str
    tokens: Sequence[TokenText]
    more: int


@dataclass(frozen=True)
class Lines:
    """A table with a bar in each line: name, rows, share of all in percent, and of the longest bar."""

    title: str
    entries: Sequence[tuple[str, int, float, float]]
    note: str = ""


def look(instances: Iterable[Instance], *, seed: int = 0, against: Contamination | None = None) -> Look:
    """Count all instances, draw a sample, and look for overlaps with evaluation sets."""
    found = Look()
    heap: list[tuple[int, int, Instance]] = []
    for instance in instances:
        found.rows += 1
        found.preferences.add(instance)
        for name, counter in found.origins.items():
            counter[getattr(instance.provenance, name) or (_guess(instance) if name == "language" else "")] += 1
        prompt, answer = units(prompt_of(instance)), units(answer_of(instance))
        found.prompt_words.append(len(prompt))
        found.answer_words.append(len(answer))
        found.first_words[" ".join((prompt or answer)[:2])] += 1
        overlap = against.judge("", instance) if against is not None else None
        if overlap is not None:
            found.overlapping[overlap] += 1
            if len(hits := found.overlaps.setdefault(overlap, [])) < MOST_GROUPS:
                hits.append(instance)
        entry = (-row_key(instance, seed), -found.rows, instance)
        if len(heap) < SAMPLE:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)
    found.sample = [instance for _, _, instance in sorted(heap, key=lambda entry: entry[:2], reverse=True)]
    return found


def _guess(instance: Instance) -> str:
    language = language_of(instance)
    return f"{language} (detected)" if language else ""


def write_set_report(
    path: Path,
    title: str,
    found: Look,
    rendering: Rendering,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rows: int = 12,
    card: SetCard | None = None,
    against: Contamination | None = None,
) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        UserError: there is no instance, or the place may not be written.
    """
    if not found.rows:
        raise UserError(f"{title}: there is no instance to show")
    counts = RowCounts()
    sample = found.sample[:TOKENISED]
    plain = [each.chosen for each in sample]
    whole = {id(one): each for one, each in zip(plain, sample, strict=True)}
    encoded = list(rendering.rows(plain, counts))
    answers = [one for instance, _ in encoded[:rows] for one in _answers(whole[id(instance)])]
    titles = {id(instance): title for title, instance in answers}
    shown = [
        ShownRow(titles[id(instance)], token_texts(part, tokenizer)[:MOST_TOKENS], max(len(part.ids) - MOST_TOKENS, 0))
        for instance, row in rendering.rows([instance for _, instance in answers], RowCounts())
        for part in sequences(row)
    ]
    tokens = [row.tokens for _, row in encoded]
    page = (
        page_environment()
        .get_template("set.html.j2")
        .render(
            title=title,
            facts=_facts(found, tokens, sum(learnt_tokens(row) for _, row in encoded), card),
            tables=[*_origins(found, card), *_preferences(found.preferences), _first_words(found)],
            lengths=[
                _bars("Words of a prompt", found.prompt_words),
                _bars("Words of an answer", found.answer_words),
                *_preference_lengths(found.preferences),
                _bars("Tokens of a row", tokens, f"{len(tokens):,} rows that the seed drew"),
            ],
            rows=shown,
            unfit=counts.dropped,
            groups=_groups(found.sample),
            sampled=len(found.sample),
            total=found.rows,
            against=against,
            overlaps=[
                (name, number, [_excerpt(i) for i in found.overlaps[name]])
                for name, number in found.overlapping.items()
            ],
            card=card,
            removed=_removed(card),
            kept_but=[] if card is None else kept_but(card),
            w=wording,
        )
    )
    write_text(path, page.encode("utf-8", "replace").decode())  # data may hold half of a surrogate pair


def _row_title(instance: Instance) -> str:
    origin = instance.provenance
    known = [f"{instance.source}, row {instance.row}", origin.task, origin.template, origin.language, origin.licence]
    return " · ".join(text for text in known if text)


def _answers(instance: Instance) -> list[tuple[str, Instance]]:
    """Every answer of a row as a row of its own, and what was said of it."""
    title, count = _row_title(instance), len(instance.answers)
    if not instance.is_preference:
        return [(title, instance)]
    said = [f"{title} · answer {place + 1} of {count}" if count > 1 else title for place in range(count)]
    for verdict in instance.verdicts:
        for place, value in enumerate(verdict.values):
            said[place] += "" if value is None else f" · {verdict.kind}, {verdict.criterion or WHOLE}: {value:g}"
    return [(text, instance.with_answer(place)) for place, text in enumerate(said)]


def _preferences(found: PreferenceFacts) -> list[Lines]:
    """Preference rows by form, and by criterion how long the better answers are beside the worse."""
    tables = [_lines("Preference rows", found.forms)] if found.rows else []
    for criterion, compared in sorted(found.compared.items()):
        lengths = {"longer": compared.longer, "shorter": compared.shorter, "as long": compared.equal}
        note = (
            "" if compared.longer_wins is None else f"Choosing the longer one is right in {compared.longer_wins:.1%}."
        )
        counts = {**lengths, "(a tie)": compared.ties}
        tables.append(_lines(f"The better answer is, {criterion or WHOLE}", counts, note))
    for criterion, single in sorted(found.single.items()):
        ratings = Counter(f"rated {value:g}" for value, _ in single.ratings)
        labels = Counter({"good": len(single.good), "bad": len(single.bad), "undecided": single.undecided})
        longer = single.longer_is_good
        note = "" if longer is None else f"Of a good and a bad answer, the good one is longer in {longer:.1%}."
        tables.append(_lines(f"Single answers, {criterion or WHOLE}", +(ratings + labels), note))
    return tables


def _preference_lengths(found: PreferenceFacts) -> list[Lines]:
    """Lengths of better and worse answers in characters."""
    better, worse = ([n for c in found.compared.values() for n in getattr(c, side)] for side in ("better", "worse"))
    good, bad = ([n for s in found.single.values() for n in getattr(s, side)] for side in ("good", "bad"))
    named = {"a better": better, "a worse": worse, "a good": good, "a bad": bad}
    return [_bars(f"Characters of {name} answer", lengths) for name, lengths in named.items() if lengths]


def _facts(found: Look, tokens: Sequence[int], learnt: int, card: SetCard | None) -> list[tuple[str, str, str]]:
    middle = sorted(tokens)[len(tokens) // 2] if tokens else 0
    facts = [
        ("Instances", wording.count(found.rows), ""),
        ("Tasks", wording.count(len([name for name in found.origins["task"] if name])), "families"),
        ("Templates", wording.count(len([name for name in found.origins["template"] if name])), ""),
        ("Tokens of a row", wording.count(middle), "median of the sample"),
        ("Learnt", f"{learnt / max(sum(tokens), 1):.1%}", "of the tokens"),
    ]
    if card is not None:
        facts.append(("Left out", wording.count(sum(card.dropped.values())), "by the recipe of the set"))
        facts.append(("SHA-256", card.sha256[:12], "of all shards"))
    return facts


def _origins(found: Look, card: SetCard | None) -> list[Lines]:
    tables = [_lines(title, found.origins[name]) for name, title in ORIGINS.items()]
    return [_lines("Splits", card.splits), *tables] if card is not None else tables


def _first_words(found: Look) -> Lines:
    different = len(found.first_words)
    return _lines("First two words of a prompt", found.first_words, f"{different:,} different beginnings")


def _lines(title: str, counts: Mapping[str, int], note: str = "") -> Lines:
    whole = max(sum(counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    most = ordered[0][1] if ordered else 1
    entries = [
        (name or "(not stated)", rows, 100 * rows / whole, 100 * rows / most) for name, rows in ordered[:MOST_NAMES]
    ]
    if len(ordered) > MOST_NAMES:
        rest = sum(rows for _, rows in ordered[MOST_NAMES:])
        entries.append((f"{len(ordered) - MOST_NAMES:,} others", rest, 100 * rest / whole, min(100 * rest / most, 100)))
    return Lines(title, entries, note)


def _bars(title: str, lengths: Sequence[int], note: str = "") -> Lines:
    """A histogram; what is longer than nearly all (99%) is one bar of its own, so that the others are seen."""
    ordered = sorted(lengths)
    limit = ordered[int(0.99 * (len(ordered) - 1))] if ordered else 0
    bars = histogram([length for length in ordered if length <= limit], 14)
    if beyond := sum(length > limit for length in ordered):
        bars[-1] = replace(bars[-1], high=limit)
        bars.append(Bar(limit + 1, ordered[-1], beyond))
    most = max((bar.rows for bar in bars), default=1)
    entries = [
        (f"{bar.low:,} to {bar.high:,}", bar.rows, 100 * bar.rows / len(ordered), 100 * bar.rows / most) for bar in bars
    ]
    return Lines(title, entries, note)


def _groups(sample: Sequence[Instance]) -> tuple[str, list[tuple[int, list[dict[str, str]]]]]:
    """How many near duplicates there are, in words, and the largest groups."""
    try:
        groups = near_groups(sample)
    except UserError as error:  # datasketch is not there
        return error.message, []
    repeated = sum(len(group) - 1 for group in groups)
    words = f"{repeated:,} of {len(sample):,} instances are nearly equal to an earlier one, in {len(groups):,} groups."
    return words, [(len(group), [_excerpt(i) for i in group[:3]]) for group in groups[:MOST_GROUPS]]


def _excerpt(instance: Instance) -> dict[str, str]:
    place = f"{instance.source}, row {instance.row}"
    return {"place": place, "prompt": _cut(prompt_of(instance)), "answer": _cut(answer_of(instance))}


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _removed(card: SetCard | None) -> list[tuple[str, int, str, list[dict[str, Any]]]]:
    """What the recipe left out: reason, rows, places, samples."""
    if card is None:
        return []
    samples = card.notes.get("removed", {})
    ordered = sorted(card.dropped.items(), key=lambda item: (-item[1], item[0]))
    return [(why, rows, ", ".join(card.examples.get(why, [])[:3]), samples.get(why, [])) for why, rows in ordered]
