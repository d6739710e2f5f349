"""The project's own templates, all of them, on rows made by hand and on real files; and the errors of the schema."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from graftlm.data.formatting import FormatSettings, demonstration_pool, format_rows
from graftlm.data.prepare import RowCounts
from graftlm.data.readers import read_rows
from graftlm.data.task_fields import choose_columns, columns_of, expand_row, join_rows, rows_to_join
from graftlm.data.task_template import load_task_template, parse_task_template, shipped
from graftlm.errors import UserError

FAMILIES = {
    "sentiment", "topic", "question-type", "acceptability", "inference", "paraphrase", "reading-open", "reading-choice",
    "common-sense", "translation", "simplification", "summarising", "arithmetic", "extraction", "dialogue",
}  # fmt: skip
CHOICE = {"question": "Where do fish live?", "answer": "B", "options": ["on trees", "in water", "in books"]}
ROWS: dict[str, dict[str, Any]] = {
    "sentiment": {"text": "What a day!", "label": "1"},
    "topic": {"text": "The home side won by a goal.", "title": "Late win", "label": 1},
    "question-type": {"text": "Who built it?", "coarse": "HUM"},
    "acceptability": {"text": "Him sleep the.", "label": 0},
    "inference": {"premise": "A dog runs.", "hypothesis": "An animal moves.", "label": "entailment"},
    "inference-explained": {
        "premise": "A dog runs.", "hypothesis": "A cat sits.", "label": 2, "explanation": "A dog is no cat.",
    },
    "paraphrase": {"sentence1": "He left.", "sentence2": "He went away.", "label": True},
    "reading-comprehension": {"context": "Ann ate a pear.", "question": "What did she eat?", "answers": ["a pear"]},
    "reading-choice": {"context": "Fish swim in the sea.", **CHOICE},
    "common-sense": CHOICE,
    "translation-zh-en": {"translation": {"en": "Good morning.", "zh": "早上好。"}},
    "translation-en-zh": {"en": "Good morning.", "zh": "早上好。"},
    "simplification": {"source": "He endeavoured to depart.", "target": "He tried to go."},
    "summarising": {"document": "It rained. It rained again.", "summary": "It rained twice."},
    "arithmetic": {"question": "What is two and two?", "answer": "2+2=<<2+2=4>>4\n#### 4"},
    "extraction": {"text": "Ann met Bob in Rome.", "entities": ["Ann", "Bob", "Rome"]},
    "dialogue": {"dialog": ["Tea?", "Yes, please.", "With milk?"]},
    "question-answering": {"Question": "Is the earth flat?", "Best Answer": "No."},
}  # fmt: skip
ANSWERS = {
    ("sentiment", "en"): "positive",
    ("sentiment", "zh"): "正面",
    ("topic", "zh"): "体育",
    ("question-type", "en"): "person",
    ("acceptability", "zh"): "不通顺",
    ("inference", "en"): "yes",
    ("inference-explained", "en"): "It cannot be: A dog is no cat.",
    ("paraphrase", "en"): "yes",
    ("reading-comprehension", "zh"): "a pear",
    ("translation-zh-en", "zh"): "Good morning.",
    ("translation-en-zh", "en"): "早上好。",
    ("arithmetic", "en"): "2+2=4\nThe answer is 4.",
    ("arithmetic", "zh"): "2+2=4\n答案是4。",
    ("extraction", "en"): "Ann; Bob; Rome",
    ("dialogue", "zh"): "With milk?",
}


def test_there_are_the_families_with_descriptions_enough() -> None:
    templates = [load_task_template(name) for name in shipped()]
    assert {template.family for template in templates} >= FAMILIES
    for template in templates:
        assert template.name in ROWS
        assert len(set(template.descriptions["en"])) >= 5, template.name
        assert len(set(template.descriptions["zh"])) >= 3, template.name
        assert not template.inverted or len(set(template.inverted.descriptions["en"])) >= 5, template.name
        assert not template.inverted or len(set(template.inverted.descriptions["zh"])) >= 3, template.name


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_template_on_a_row(name: str, language: str, inverted: bool) -> None:
    template = load_task_template(name)
    if inverted and template.inverted is None:
        pytest.skip("has no inverted task")
    settings = FormatSettings(language=language, all_descriptions=True, inverted=inverted)
    counts = RowCounts()
    found = list(format_rows([(1, ROWS[name])], template, settings, 0, counts=counts))
    part = template.inverted if inverted and template.inverted else template
    assert len(found) == len(part.descriptions[language])
    assert not counts.dropped
    assert len({i.messages for i in found}) == len(found)
    for instance in found:
        assert not any(mark in m.content for m in instance.messages for mark in ("{{", "{%", "}}", "Undefined", "[]"))
        if not inverted:
            assert instance.messages[1].content == ANSWERS.get((name, language), instance.messages[1].content)


def test_a_choice_names_the_letter_of_the_right_alternative() -> None:
    template = load_task_template("common-sense")
    letters = set()
    for seed in range(20):
        (instance,) = format_rows([(1, CHOICE)], template, FormatSettings(), seed)
        letter = instance.messages[1].content
        assert f"{letter}. in water" in instance.messages[0].content
        letters.add(letter)
    assert letters == {"A", "B", "C"}


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        {"goal": "q", "sol1": "x", "sol2": "y", "label": 1},
        {"sentence": "q", "choices": ["x", "y"], "answer": "y"},
        {"ctx": "q", "endings": ["x", "y"], "label": "1"},
        {"question": "q", "choices": ["2", "1"], "answer": 1},
    ],
)
def test_ways_to_name_the_right_alternative(row: dict[str, Any]) -> None:
    (instance,) = format_rows([(1, row)], load_task_template("common-sense"), FormatSettings(), 0)
    right = "1" if row.get("answer") == 1 else "y"
    assert f"{instance.messages[1].content}. {right}" in instance.messages[0].content


@pytest.mark.parametrize("answer", [7, -1, "z", "9"])
def test_an_answer_that_is_no_alternative_is_counted(answer: Any) -> None:
    counts = RowCounts()
    row = {**CHOICE, "answer": answer}
    assert not list(format_rows([(1, row)], load_task_template("common-sense"), FormatSettings(), 0, counts=counts))
    assert counts.dropped == {"the answer is none of the alternatives": 1}


def test_questions_of_an_article() -> None:
    article = {"title": "T", "paragraphs": [{"context": "C", "qas": [{"question": "Q", "answers": [{"text": "A"}]}]}]}
    (instance,) = format_rows([(1, article)], load_task_template("reading-comprehension"), FormatSettings(), 0)
    assert instance.messages[0].content.endswith("C\n\nQuestion: Q")
    assert instance.messages[1].content == "A"


def test_joined_rows() -> None:
    rows = join_rows(
        [(1, {"id": 1, "parts": [0, 2]})],
        rows_to_join([(1, {"id": "1", "texts": ["a", "b", "c"]})], "id", "b"),
        "id",
        "a",
    )
    template = load_task_template("simplification")
    ((_, row),) = list(rows)
    columns = choose_columns(columns_of([row]), template, {"hard": "joined.texts[parts]", "easy": "id"})
    (instance,) = format_rows([(1, row)], template, FormatSettings(columns=columns), 0)
    assert instance.messages[0].content.endswith("a\n\nc")


REAL = [
    ("sst2/train.jsonl", "sentiment", "en", 6920, {}),
    ("chnsenticorp/all.jsonl.gz", "sentiment", "zh", 7765, {}),
    ("trec/train.jsonl", "question-type", "en", 5452, {}),
    ("cola/train.jsonl", "acceptability", "en", 8551, {}),
    ("esnli/dev.jsonl.gz", "inference", "en", 9842, {}),
    ("esnli/dev.jsonl.gz", "inference-explained", "zh", 9842, {}),
    ("gsm8k/train.jsonl", "arithmetic", "en", 7473, {}),
    ("xquad/xquad.en.json", "reading-comprehension", "en", 1190, {}),
    ("xquad/xquad.zh.json", "reading-comprehension", "zh", 1190, {}),
    ("zh_en/tatoeba.jsonl.gz", "translation-zh-en", "zh", None, {}),
    ("zh_en/tatoeba.jsonl.gz", "translation-en-zh", "en", None, {}),
    ("simplification.jsonl", "simplification", "en", 5994, {}),
    ("bbq/sample_5000.jsonl", "reading-choice", "en", 5000, {}),
    ("truthfulqa.csv", "question-answering", "en", 817, {}),
    ("fairytaleqa/qa.jsonl.gz", "reading-comprehension", "en", 10580, {"context": "joined.sections[sections]"}),
]


@pytest.mark.parametrize(("file", "name", "language", "number", "given"), REAL)
def test_real_files(
    real_data: Path, file: str, name: str, language: str, number: int | None, given: dict[str, str]
) -> None:
    path, template = real_data / "tasks" / file, load_task_template(name)

    def rows() -> Any:
        found = read_rows(path)
        stories = real_data / "pretraining" / "fairytaleqa_stories.jsonl.gz"
        return join_rows(found, rows_to_join(read_rows(stories), "story", "b"), "story", "a") if given else found

    sample = [part for _, row in islice(rows(), 20) for part in expand_row(row)]
    columns = choose_columns(columns_of(sample), template, given)
    settings = FormatSettings(language=language, demonstrations=(0, 2), few_shot_ratio=0.2, columns=columns)
    pool = demonstration_pool(rows(), template, settings, 0)
    counts = RowCounts()
    kept = sum(1 for _ in format_rows(rows(), template, settings, 0, pool=pool, counts=counts))
    assert counts.read == kept + sum(counts.dropped.values())
    assert sum(counts.dropped.values()) <= 0.01 * counts.read, counts.dropped
    assert number is None or counts.read == number


GOOD: dict[str, Any] = {
    "name": "good",
    "family": "f",
    "columns": {"text": ["text"], "label": ["label"]},
    "labels": {"a": [], "b": []},
    "words": {"en": {"a": "A", "b": "B"}},
    "descriptions": {"en": ["D"]},
    "input": "{{ text }}",
    "output": "{{ label }}",
}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"nmae": "x"}, r"nmae: unknown key; allowed: name, .* \(did you mean 'name'\?\)"),
    ({"name": "Has Space"}, r"name: string should match pattern .* not 'Has Space' \(small letters"),
    ({"columns": {"text": []}}, "columns.text: tuple should have at least 1 item"),
    ({"columns": {"text": ["text"], "choices": ["c"], "label": ["l"]}}, "columns.choices: a field is a word, and none"),
    ({"columns": {"text": ["text"]}}, "labels: the field 'label' is not in columns"),
    ({"optional": ["nothing"]}, "optional: 'nothing' is no field; the fields are: text, label"),
    ({"labels": {"a": ["x"], "b": ["X"]}}, "labels.b: 'x' is a spelling of 'a' too"),
    ({"words": {"en": {"a": "A"}}}, "words.en: one word for each of the labels is needed: a, b"),
    ({"words": {"en": {"a": "A", "b": "A"}}}, "words.en: two labels have the same word"),
    (
        {"descriptions": {"en": ["D"], "zh": ["描述"]}, "input": {"en": "x"}},
        "input: there is none for .* 'zh'",
    ),
    ({"input": "{{ txet }}"}, r"input.en: 'txet' is not known here \(did you mean 'text'\?\); known are: choices"),
    ({"input": "a\n{{ text"}, 'input.en: line 2 of "a⏎{{ text"'),
    ({"output": "{{ text.__class__ }}"}, "output.en: line 1 .*'__class__' reaches into"),
    ({"options": {"columns": ["x"], "answer": "text", "count_from": 2}}, "options.count_from: .* 0 or 1"),
    ({"options": {"columns": ["x"], "answr": "text"}}, "options.answr: unknown key; allowed: columns, answer"),
    ({"demonstration": {"zh": "{{ input }}"}}, "demonstration: there is none for the language 'en'"),
    ({"demonstration": "{{ text }}"}, "demonstration.en: 'text' is not known here"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_with_a_template_is_said(change: dict[str, Any], message: str) -> None:
    parse_task_template(GOOD, "good.yaml")
    with pytest.raises(UserError, match=message) as error:
        parse_task_template({**GOOD, **change}, "bad.yaml")
    assert error.value.message.startswith("task template bad.yaml:")


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        parse_task_template({"name": "x", "famly": "y"}, "bad.yaml")
    for key in ("famly: unknown", "family: this key is needed", "columns: this", "descriptions: this", "output: this"):
        assert key in error.value.message


def test_a_file_that_is_no_yaml_is_told_with_its_line(write: Callable[..., Path]) -> None:
    path = write("t.yaml", "name: x\ncolumns: [a\nfamily: y\n")
    with pytest.raises(UserError, match=r"t\.yaml, line 3"):
        load_task_template(path)
    with pytest.raises(UserError, match="unknown task template 'sentment'; there are: acceptability") as error:
        load_task_template("sentment")
    assert error.value.hint == "Did you mean 'sentiment'?"


def test_columns_that_are_unclear_are_shown() -> None:
    template = load_task_template("sentiment")
    assert choose_columns(["Review", "LABEL"], template).fields == {"text": "Review", "label": "LABEL"}
    with pytest.raises(UserError) as error:
        choose_columns(["sentence", "mood"], template, source="a.csv")
    assert error.value.message == (
        "a.csv: not every field of 'sentiment' has a column; its columns are: sentence, mood\n"
        "  text ← sentence\n"
        "  label ← ?  (looked for: label, sentiment, polarity, airline_sentiment)"
    )
    assert error.value.hint == "Say which column serves: --column label=mood"
    assert choose_columns(["sentence", "mood"], template, {"label": "mood"}).fields["label"] == "mood"
    with pytest.raises(UserError, match="has no column 'moood'"):
        choose_columns(["sentence", "mood"], template, {"label": "moood"})
    with pytest.raises(UserError, match="has no field 'lable'"):
        choose_columns(["sentence", "mood"], template, {"lable": "mood"})
