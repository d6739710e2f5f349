"""Sets built from recipes: the same bytes again, every row accounted for, nothing of one split in another."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graftlm.data.instances import Instance
from graftlm.data.sets import read_card, read_set
from graftlm.errors import UserError
from graftlm.recipe.set_recipe import parse_set_recipe
from graftlm.runs.build_set import build_set
from graftlm.runs.set_sources import changed_sources, list_sources


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three sources: sums, capitals with mistakes in them, and reviews with labels."""
    place = tmp_path / "here"
    place.mkdir()
    write(place / "sums.jsonl", [{"prompt": f"What is {n} + 1?", "completion": str(n + 1)} for n in range(300)])
    capitals = [{"instruction": f"Name the capital of land {n}.", "output": f"City {n}"} for n in range(100)]
    capitals += [{"instruction": "Name the capital of land 5.", "output": "City 5"}]  # an exact duplicate
    capitals += [{"instruction": "Name the capital of land 6.", "output": "Another"}]  # a contradiction
    capitals += [{"instruction": "Name a capital.", "output": "?"}, {"instruction": "Name none.", "output": ""}]
    write(place / "capitals.jsonl", capitals)
    reviews = [{"text": f"I saw film {n}, and it was good.", "label": "positive"} for n in range(30)]
    reviews += [{"text": f"I saw film {n}, and it was bad.", "label": "negative"} for n in range(30, 40)]
    write(place / "reviews.jsonl", reviews)
    return place


SOURCES = """\
sources:
  sums: {path: sums.jsonl, task: arithmetic, language: en, licence: CC BY}
  capitals: {path: capitals.jsonl, task: facts, language: en}
"""


def build(text: str, folder: Path, out: Path):
    return build_set(parse_set_recipe(text, folder=folder), out, folder=folder, text=text, overwrite=True)


def test_a_set_is_not_replaced_unasked(folder, tmp_path):
    recipe = parse_set_recipe(SOURCES, folder=folder)
    build_set(recipe, tmp_path / "set", folder=folder)
    with pytest.raises(UserError, match="is a set already"):
        build_set(recipe, tmp_path / "set", folder=folder)


def test_the_same_bytes_again(folder, tmp_path):
    text = SOURCES + "mixture: {cap: 80}\nsplits: {test: 0.2}\nfilters: {contradictions: true}\nrows_per_shard: 50\n"
    build(text, folder, tmp_path / "one")
    there = tmp_path / "there"  # another folder, and the sources in another order
    shutil.copytree(folder, there)
    lines = text.splitlines()
    turned = "\n".join([lines[0], lines[2], lines[1], *lines[3:]])
    build(turned, there, tmp_path / "two")
    files = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert (tmp_path / "two" / "recipe.yaml").read_text() == turned
    assert len(files) == 7  # four shards, the card twice, the recipe
    assert all((tmp_path / "two" / name).read_bytes() == content for name, content in files.items() if "shard" in name)
    assert read_card(tmp_path / "one") == read_card(tmp_path / "two")
    build(text.replace("sources", "seed: 1\nsources"), folder, tmp_path / "three")
    assert list(read_set(tmp_path / "three")) != list(read_set(tmp_path / "one"))


def test_every_row_is_accounted_for(folder, tmp_path):
    card = build(SOURCES + "mixture: {cap: 80}\nfilters: {contradictions: true}\n", folder, tmp_path / "set")
    assert card.dropped == {
        "empty answer": 2,
        "exact duplicate": 1,
        "same input, other answer": 2,
        "not drawn for the mixture": 220 + 19,
    }
    assert card.rows + sum(card.dropped.values()) == 300 + 104
    assert card.notes["read"]["capitals"] == {"rows": 104, "instances": 104}
    assert card.notes["mixture"]["sums"] == {"available": 300, "quota": 80, "rows": 80}
    assert card.tasks == {"arithmetic": 80, "facts": 80}
    assert card.licences == {"": 80, "CC BY": 80}
    assert card.examples["exact duplicate"] == ["capitals.jsonl:101"]
    assert {i.source for i in read_set(tmp_path / "set")} == {"sums.jsonl", "capitals.jsonl"}


def test_splits_and_families_held_out(folder, tmp_path):
    text = SOURCES + "mixture: {held_out: facts}\nsplits: {test: 0.2, validation: 0.1}\n"
    card = build(text, folder, tmp_path / "set")
    parts = {name: list(read_set(tmp_path / "set", name)) for name in card.splits}
    assert {i.provenance.task for i in parts["unseen"]} == {"facts"}
    assert len(parts["unseen"]) == card.splits["unseen"] == 101
    assert {i.provenance.task for name in ("train", "test", "validation") for i in parts[name]} == {"arithmetic"}
    assert 35 < card.splits["test"] < 85
    assert 10 < card.splits["validation"] < 50
    prompts = [{i.messages[0].content for i in part} for part in parts.values()]
    assert sum(map(len, prompts)) == len(set().union(*prompts))
    with pytest.raises(UserError, match=r"unknown task family 'fact'; there are: arithmetic, facts\n.*'facts'"):
        build(text.replace("held_out: facts", "held_out: fact"), folder, tmp_path / "set")


def test_repeated_rows_are_for_training_only(folder, tmp_path):
    text = "sources: {sums: {path: sums.jsonl, max_rows: 50}}\nmixture: {total: 120, repeat: true}\n"
    text += "splits: {test: 0.3}\n"
    card = build(text, folder, tmp_path / "set")
    assert set(Counter(i.row for i in read_set(tmp_path / "set", "test")).values()) == {1}
    assert set(Counter(i.row for i in read_set(tmp_path / "set", "train")).values()) == {2, 3}
    assert card.rows + card.dropped["repeated, but not for training"] == 120


def test_labelled_rows_and_their_balance(folder, tmp_path):
    text = "sources: {films: {path: reviews.jsonl, template: sentiment, language: en}}\nfilters: {balance: 2}\n"
    card = build(text, folder, tmp_path / "set")
    answers = Counter(i.messages[-1].content for i in read_set(tmp_path / "set"))
    assert sorted(answers.values()) == [10, 20]
    assert card.tasks == {"sentiment": 30}
    assert card.dropped == {"over the balance of labels": 10}


def test_overlap_and_words(folder, tmp_path):
    exam = [{"question": "Name the capital of land 7.", "answer": "City 7"}, {"question": "Who?"}]
    write(folder / "exam.jsonl", exam)
    (folder / "bad.txt").write_text("land 9\n")
    text = SOURCES + "filters: {overlap: {exam: exam.jsonl}, overlap_words: 6, words: bad.txt}\n"
    card = build(text, folder, tmp_path / "set")
    assert card.dropped["overlaps with exam"] == 1
    assert card.dropped["word of the list"] == 1  # land 9, and not land 90
    assert card.examples["overlaps with exam"] == ["capitals.jsonl:8"]
    assert card.notes["evaluation texts too short to look for"] == {"exam": 2}
    assert [source.path for source in card.sources] == ["capitals.jsonl", "sums.jsonl", "bad.txt", "exam.jsonl"]


def test_sets_are_sources_and_templates_name_families(folder, tmp_path):
    build(SOURCES, folder, folder / "first")
    rows = [{"prompt": f"q {n}", "completion": "a", "template": ("odd_x", "other_y")[n % 2]} for n in range(10)]
    write(folder / "p3.jsonl", rows)
    text = """\
sources:
  first: {path: first}
  p3: {path: p3.jsonl, families: {paraphrase: 'odd*'}, task: ''}
mixture: {by: task}
"""
    card = build(text, folder, tmp_path / "second")
    assert card.tasks == {"": 5, "arithmetic": 300, "facts": 101, "paraphrase": 5}
    assert card.notes["mixture"]["(not stated)"]["rows"] == 5
    assert card.licences["CC BY"] == 300  # what the first set knows stays
    (folder / "first" / "shard-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="this shard is not what the card"):
        build(text, folder, tmp_path / "second")


def test_changed_sources_are_noticed(folder, tmp_path):
    card = build(SOURCES, folder, tmp_path / "set")
    recipe = parse_set_recipe(SOURCES, folder=folder)
    assert changed_sources(card, list_sources(recipe, folder)) == []
    with (folder / "sums.jsonl").open("a") as file:
        file.write('{"prompt": "And now?", "completion": "7"}\n')
    assert changed_sources(card, list_sources(recipe, folder)) == ["sums.jsonl"]
    pinned = SOURCES.replace("sums.jsonl,", f"sums.jsonl, sha256: '{card.sources[1].sha256}',")
    with pytest.raises(UserError, match=r"source 'sums': sums\.jsonl is not what the recipe says"):
        build(pinned, folder, tmp_path / "set")


def test_totals_in_tokens(folder, tmp_path):
    card = build(SOURCES + "mixture: {total: 400, unit: tokens}\n", folder, tmp_path / "set")
    plan = card.notes["mixture"]
    assert sum(each["quota"] for each in plan.values()) == 400
    assert 20 < card.rows < 60


def test_templates_of_promptsource(folder, tmp_path):
    template = {"dataset": "films", "name": "mood", "jinja": "{{text}} Mood? ||| {{answer_choices[label]}}"}
    write(folder / "templates.jsonl", [{**template, "answer_choices": "sad ||| glad"}])
    text = """\
sources:
  films:
    path: reviews.jsonl
    template: promptsource:templates.jsonl#films/mood
    classes: {label: [negative, positive]}
    licence: MIT
"""
    card = build(text, folder, tmp_path / "set")
    assert Counter(i.messages[-1].content for i in read_set(tmp_path / "set")) == {"glad": 30, "sad": 10}
    assert card.templates == {"films/mood": 40}
    assert card.licences == {"MIT": 40}
    assert [source.path for source in card.sources] == ["reviews.jsonl", "templates.jsonl"]
    missing = text.replace("classes: {label: [negative, positive]}", "columns: {text: body}")
    (folder / "reviews.jsonl").write_text('{"body": "Fine.", "label": null}\n')
    with pytest.raises(UserError, match="source 'films': none of its 1 rows gives an instance: 1 "):
        build(missing, folder, tmp_path / "set")


def test_answers_of_named_sets_are_removed(folder, tmp_path):
    """A set counts with all of its splits; the files are among the sources, so that a change is noticed."""
    build("sources: {sums: {path: sums.jsonl, max_rows: 9}}\nsplits: {test: 0.4}\n", folder, folder / "exam")
    write(folder / "more.jsonl", [{"prompt": "Which city?", "completion": "CITY 3"}])
    text = SOURCES + "filters: {shared_answers: {exam: exam, more: more.jsonl}}\n"
    card = build(text, folder, tmp_path / "set")
    left = [one.messages[-1].content for one in read_set(tmp_path / "set")]
    assert (card.dropped["answer of exam"], card.dropped["answer of more"]) == (9, 1)
    assert not {"City 3", *(str(n + 1) for n in range(9))} & set(left)
    assert "10" in left
    assert {source.path for source in card.sources} == {"sums.jsonl", "capitals.jsonl", "exam", "more.jsonl"}


def test_descriptions_may_be_chosen(folder, tmp_path):
    text = "sources: {films: {path: reviews.jsonl, template: sentiment, descriptions: [2, 5]%s}}\n"
    card = build(text % "", folder, tmp_path / "one")
    assert card.templates.keys() == {"sentiment/2", "sentiment/5"}
    assert card.rows == 40
    assert build(text % ", all_descriptions: true", folder, tmp_path / "two").rows == 80
    with pytest.raises(UserError, match=r"no description 8 in 'zh'|no description 5 in 'xx'|1 to 5"):
        build(text.replace("5]", "8], language: zh") % "", folder, tmp_path / "three")


def test_a_source_may_lose_no_more_than_it_says(folder, tmp_path):
    write(folder / "moods.jsonl", [{"text": f"t {n}", "label": "pos" if n else "odd"} for n in range(10)])
    text = "sources: {moods: {path: moods.jsonl, template: sentiment, max_dropped: %s}}\n"
    with pytest.raises(UserError, match=r"'moods': 1 of 10 rows \(10.0%\) cannot be used; allowed are 5.0%") as caught:
        build(text % 0.05, folder, tmp_path / "set")
    assert "1 × label 'odd' is not in the template's list, for example" in caught.value.message
    assert not (tmp_path / "set").exists()
    assert build(text % 0.1, folder, tmp_path / "set").rows == 9


def test_rows_that_are_no_demonstrations_are_in_the_card(folder, tmp_path):
    write(folder / "train.jsonl", [{"text": f"t {n}", "label": "pos" if n else "odd"} for n in range(10)])
    text = "sources: {films: {path: reviews.jsonl, template: sentiment, demonstrations: [1, 2], %s}}\n"
    card = build(text % "demonstrations_from: train.jsonl", folder, tmp_path / "set")
    assert card.notes["no demonstration of"] == {"films": {"label 'odd' is not in the template's list": 1}}
    write(folder / "more.jsonl", [{"review": "t", "label": "pos"}])
    with pytest.raises(UserError, match="different columns for 'sentiment': text ← text and review"):
        build(text % "demonstrations_from: [train.jsonl, more.jsonl]", folder, tmp_path / "other")


def sides_of(place: Path) -> list[tuple[str, Instance]]:
    return [(split, one) for split in read_card(place).splits for one in read_set(place, split)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdef"), st.booleans()), min_size=4, max_size=60),
    seed=st.integers(0, 5),
    template=st.sampled_from(["template: sentiment", "prompt: '{text}', answer: '{label}'"]),
)
def test_a_group_is_never_on_two_sides(folder, tmp_path, rows, seed, template):
    write(
        folder / "grouped.jsonl",
        [{"text": f"text {t}", "label": ("pos", "neg")[good], "film": f"Film {g}"} for g, t, good in rows],
    )
    text = f"seed: {seed}\nsources: {{films: {{path: grouped.jsonl, group: film, {template}}}}}\n"
    build(text + "filters: {duplicates: false}\nsplits: {test: 0.3, dev: 0.2}\n", folder, tmp_path / "set")
    found = sides_of(tmp_path / "set")
    assert len(found) == len(rows)
    where: dict[int, set[str]] = {}
    for split, one in found:
        where.setdefault(rows[one.row - 1][0], set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=4, max_size=60),
    more=st.sampled_from(["", ", all_descriptions: true", ", language: zh", ", inverted: true"]),
)
def test_a_text_is_never_on_two_sides(folder, tmp_path, rows, more):
    """Whatever description was drawn for it, and whichever source it is in."""
    listed = [{"text": ("text {}", "TEXT  {}")[good].format(n), "label": ("pos", "neg")[good]} for n, good in rows]
    write(folder / "one.jsonl", listed)
    write(folder / "two.jsonl", [{"sentence": row["text"], "topic": "sports"} for row in listed])
    text = f"sources:\n  one: {{path: one.jsonl, template: sentiment{more}}}\n"
    text += "  two: {path: two.jsonl, template: topic}\nsplits: {test: 0.4}\nfilters: {duplicates: false}\n"
    build(text, folder, tmp_path / "set")
    where: dict[int, set[str]] = {}
    for split, one in sides_of(tmp_path / "set"):
        where.setdefault(rows[one.row - 1][0], set()).add(split)
    assert all(len(splits) == 1 for splits in where.values())


def test_groups_of_sets_chats_and_missing_values(folder, tmp_path):
    chats = [
        {"prompt": f"q {n}", "completion": "a", "film": n % 7 or None, "template": "t/1", "user": f"u{n % 5}"}
        for n in range(70)
    ]
    write(folder / "chats.jsonl", chats)
    text = "sources: {chats: {path: chats.jsonl, group: film}}\nsplits: {test: 0.4}\n"
    card = build(text, folder, folder / "first")
    assert card.notes["kept, but"] == {"chats": {"no value in the column of groups": 10}}
    assert "10 of chats: no value in the column of groups" in (folder / "first" / "card.md").read_text()
    again = "sources: {first: {path: first, group: user}}\nsplits: {test: 0.4}\n"
    build(again, folder, tmp_path / "second")
    where = {}
    for split, one in sides_of(tmp_path / "second"):
        where.setdefault(one.provenance.user, set()).add(split)
    assert where.keys() <= {f"u{n}" for n in range(5)}
    assert all(len(splits) == 1 for splits in where.values())
    for wrong, message in [
        (
            "sources: {chats: {path: chats.jsonl, group: flim}}",
            "source 'chats': group: .* has no column 'flim'; its columns are: prompt",
        ),
        (
            "sources: {first: {path: first, group: film}}",
            "has no column 'film'; its columns are: source, task, template",
        ),
        (
            "sources: {films: {path: reviews.jsonl, template: sentiment, group: film}}",
            "has no column 'film'; its columns are: text, label",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            build(wrong, folder, tmp_path / "third")


def test_joined_files_of_a_source(folder, tmp_path):
    write(folder / "qa.jsonl", [{"story": n % 3, "question": f"Who {n}?", "answer": "Ann"} for n in range(30)])
    write(folder / "tales.jsonl", [{"story": n, "text": f"Ann came {n} times."} for n in range(3)])
    text = """\
sources:
  tales:
    {path: qa.jsonl, template: reading-comprehension, join: tales.jsonl, join_on: story, group: story,
     columns: {context: joined.text}}
splits: {test: 0.5}
"""
    card = build(text, folder, tmp_path / "set")
    assert card.rows == 30
    assert [source.path for source in card.sources] == ["qa.jsonl", "tales.jsonl"]
    assert all(f"Ann came {(one.row - 1) % 3} times." in one.messages[0].content for one in read_set(tmp_path / "set"))
    with pytest.raises(UserError, match=r"tales\.jsonl has no column 'tale' to join on; its columns are: story, text"):
        build(text.replace("join_on: story", "join_on: tale"), folder, tmp_path / "set")
    with pytest.raises(UserError, match="join: needs a task template"):
        build("sources: {sums: {path: sums.jsonl, join: tales.jsonl}}", folder, tmp_path / "set")
    with pytest.raises(UserError, match=r"sources\.tales\.join: .*no such file|none\.jsonl"):
        build(text.replace("join: tales.jsonl", "join: none.jsonl"), folder, tmp_path / "set")


def test_rows_that_disagree_are_told_or_removed(folder, tmp_path):
    rows = [{"text": f"film {n}", "label": ("pos", "neg")[n % 2]} for n in range(40)]
    write(folder / "moods.jsonl", [*rows, {"text": "FILM 7", "label": "pos"}])
    text = "sources: {moods: {path: moods.jsonl, template: sentiment, demonstrations: [0, 2]}}\n"
    card = build(text, folder, tmp_path / "set")
    assert card.rows == 41
    assert card.notes["contradictions"] == {
        "rows": 2,
        "tasks": {"sentiment": 2},
        "examples": ["moods.jsonl:8 'negative' and moods.jsonl:41 'positive'"],
    }
    card = build(text + "filters: {contradictions: true}\n", folder, tmp_path / "set")
    assert (card.rows, card.dropped) == (39, {"same input, other answer": 2})
    assert card.examples["same input, other answer"] in (
        ["moods.jsonl:8", "moods.jsonl:41"],
        ["moods.jsonl:41", "moods.jsonl:8"],
    )
    assert "contradictions" not in card.notes
    assert card.notes["contradictions removed"]["rows"] == 2


def test_preference_rows_with_criteria_of_their_own(tmp_path):
    pair = {"prompt": "Where is the cat?", "chosen": "On the mat.", "rejected": "No."}
    write(
        tmp_path / "pairs.jsonl", [pair, {**pair, "criterion": "helpful", "annotator": "7"}, {**pair, "rejected": " "}]
    )
    write(tmp_path / "lists.jsonl", [{"prompt": "Why?", "ranked": ["Because.", "So.", "So."]}])
    text = """\
sources:
  pairs: {path: pairs.jsonl, criterion: Harmlessness}
  lists: {path: lists.jsonl, criterion: polite}
criteria: {Polite: Blames nobody.}
"""
    build(text, tmp_path, tmp_path / "set")
    said = [
        (each.answers, [(v.criterion, v.values, v.annotator) for v in each.verdicts])
        for each in read_set(tmp_path / "set")
    ]
    assert sorted(said) == [
        (("Because.", "So."), [("polite", (0.0, 1.0), "")]),
        (("On the mat.", "No."), [("harmless", (0.0, 1.0), "")]),
        (("On the mat.", "No."), [("helpful", (0.0, 1.0), "7")]),
    ]
    card = read_card(tmp_path / "set")
    assert (card.criteria, card.answers) == ({"harmless": 1, "helpful": 1, "polite": 1}, {"pairs": 3})
    assert card.dropped == {"empty rejected answer": 1}
    assert card.notes["kept, but"] == {"lists": {"an answer of a list is equal to a better one": 1}}
    described = (tmp_path / "set" / "card.md").read_text("utf-8")
    assert "| polite | 1 | Blames nobody. |" in described
    assert "insults nobody" in described
    with pytest.raises(UserError, match="a written definition is needed"):
        build(text.replace("Blames nobody.", '" "'), tmp_path, tmp_path / "set")


def test_labelled_answers_are_joined(tmp_path):
    rows = [{"prompt": "Is it?", "completion": f"a{n}", "label": n == 2} for n in range(4)]
    write(tmp_path / "labels.jsonl", rows)
    build("sources: {truth: {path: labels.jsonl, join_answers: true, criterion: truthful}}", tmp_path, tmp_path / "set")
    [instance] = read_set(tmp_path / "set")
    assert instance.answers[0] == "a2"
    assert [(v.criterion, v.values) for v in instance.verdicts] == [("truthful", (1.0, 0.0, 0.0, 0.0))]
    notes = read_card(tmp_path / "set").notes
    assert notes["kept, but"] == {"truth": {"joined with an earlier row of the same prompt": 3}}
