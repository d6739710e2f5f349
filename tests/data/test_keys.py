"""Keys tell which rows have one input, whatever words are around it, and which answer it the same."""

from __future__ import annotations

import pytest

from graftlm.data.formatting import FormatSettings, demonstration_pool, format_rows
from graftlm.data.prepare import RowCounts
from graftlm.data.prompt_sides import sides
from graftlm.data.promptsource import PromptTemplate, format_with, promptsource_formatter, to_instance
from graftlm.data.splits import share_of
from graftlm.data.task_template import load_task_template


def keys(rows, template="sentiment", pool=False, **settings):
    """The keys of the instances of rows."""
    task = load_task_template(template)
    known = FormatSettings(**settings)
    numbered = list(enumerate(rows, 1))
    drawn = demonstration_pool(numbered, task, known, 0) if pool else None
    return [i.provenance for i in format_rows(numbered, task, known, 0, pool=drawn)]


def test_words_around_an_input_change_no_key():
    rows = [{"text": f"film {n}", "label": ("pos", "neg")[n % 2]} for n in range(30)]
    plain = keys(rows)
    assert len({origin.input_key for origin in plain}) == 30
    assert len({origin.answer_key for origin in plain}) == 2
    assert all(len(origin.input_key) == len(origin.answer_key) == 16 for origin in plain)

    def pairs(origins):
        return [(origin.input_key, origin.answer_key) for origin in origins]

    assert pairs(keys(rows, language="zh")) == pairs(plain)
    assert pairs(keys(rows, pool=True, demonstrations=(1, 4))) == pairs(plain)
    assert pairs(keys(rows, all_descriptions=True))[::7] == pairs(plain)
    assert pairs(keys([{"text": " FILM  0\n", "label": "positive", "id": 9}])) == pairs(plain)[:1]


def test_one_text_has_one_key_in_every_task():
    (mood,) = keys([{"text": "The match was great", "label": "pos"}])
    (topic,) = keys([{"text": "The match was great", "label": "sports"}], "topic")
    assert mood.input_key == topic.input_key
    assert mood.answer_key[:8] != topic.answer_key[:8]  # what is asked is not the same


def test_alternatives_count_in_any_order():
    rows = [
        {"question": "Which?", "options": ["a", "b", "c"], "answer": 1, "context": "x"},
        {"question": "Which?", "options": ["c", "b", "a"], "answer": 1, "context": "x"},
        {"question": "Which?", "options": ["c", "b", "a"], "answer": 2, "context": "x"},
        {"question": "Which?", "options": ["c", "b", "d"], "answer": 1, "context": "x"},
    ]
    one, same, other, apart = keys(rows, "reading-choice")
    assert (one.input_key, one.answer_key) == (same.input_key, same.answer_key)
    assert one.input_key == other.input_key != apart.input_key
    assert one.answer_key != other.answer_key


def test_many_outputs_of_an_inverted_task_are_right():
    one, other = keys([{"text": "great", "label": "pos"}, {"text": "superb", "label": "pos"}], inverted=True)
    assert one.answer_key == other.answer_key == ""
    assert one.input_key == keys([{"text": "great", "label": "neg"}])[0].input_key != other.input_key


SIDES = [
    ("{{premise}} so {{hypothesis}}? ||| {{answer_choices[label]}}", {"premise", "hypothesis"}, {"label"}),
    ("{% if label != -1 %}{{text}} ||| {{answer_choices[label]}}{% endif %}", {"text"}, {"label"}),
    ("{% if label %}Yes {{a}} ||| 1{% else %}No {{a}} ||| 0{% endif %}", {"a", "label"}, {"label"}),
    ("{% if title %}{{title}}: {% endif %}{{text}} ||| {{label}}", {"title", "text"}, {"label"}),
    ("{% set x = text.split('.') %}{{x[0]}} ||| {{x[1]}} {{label}}", {"text"}, {"text", "label"}),
    ("{% set w = [] %}{% for t in tags %}{{w.append(t) or ''}}{% endfor %}Q ||| {{w}}", None, {"tags"}),
    ("{{text}} {{['a', 'b'] | choice}} ||| {% if label == 1 %}yes{% else %}no{% endif %}", {"text"}, {"label"}),
    (
        "{% set n = namespace(v='') %}{% if label %}{% set n.v = word %}{% endif %}{{text}} ||| {{n.v}}",
        {"text"},
        {"label", "word"},
    ),
]


@pytest.mark.parametrize(("source", "shown", "target"), SIDES)
def test_the_sides_of_a_pattern(source, shown, target):
    found = sides(source)
    assert shown is None or found.input == shown
    assert found.target == target


def test_answer_choices_of_the_row_count_where_they_are_written():
    found = sides("{{q}} {{answer_choices | join(', ')}} ||| {{answer_choices[label]}}", "{{options | join('|||')}}")
    assert (found.input, found.target) == ({"q", "options"}, {"label", "options"})


def template(name, jinja, choices="bad ||| good"):
    return PromptTemplate("films", "", name, jinja, choices)


def test_keys_of_promptsource():
    one = template("one", "{{text}} Good or bad? ||| {{answer_choices[label]}}")
    two = template("two", "Is it good? {{text}} ||| {{answer_choices[label]}}", "no ||| yes")
    turned = template("turned", "Write a review that is {{answer_choices[label]}}. ||| {{text}}")
    row = {"text": "Nice", "label": 1}
    origin = to_instance(one, row).provenance
    assert origin.input_key == keys([{"text": "nice", "label": "pos"}])[0].input_key
    assert to_instance(two, row).provenance.input_key == origin.input_key
    assert to_instance(two, row).provenance.answer_key != origin.answer_key
    assert to_instance(turned, row).provenance.input_key == ""  # its input shows no text of the row
    # Drawn from several templates, rows are compared by the values that targets show.
    write = promptsource_formatter([one, two])
    rows = [{"text": f"t {n // 2}", "label": n // 2 % 2} for n in range(40)]
    found = list(format_with([write], enumerate(rows), RowCounts()))
    assert len({i.provenance.template for i in found}) == 2
    assert len({i.provenance.input_key for i in found}) == 20
    assert len({i.provenance.answer_key for i in found}) == 2


def test_what_is_alike_falls_on_one_side():
    rows = [{"text": "film", "label": "pos"}, {"text": "FILM ", "label": "neg"}, {"text": "book", "label": "neg"}]
    task = load_task_template("sentiment")
    found = list(format_rows(list(enumerate(rows)), task, FormatSettings(all_descriptions=True), 0))
    shares = [share_of(instance, 3) for instance in found]
    assert len(set(shares)) == 2
    assert len({instance.messages[0].content for instance in found}) > 7
    assert len({share_of(instance, 4) for instance in found} | set(shares)) == 4
