"""PromptSource templates: rendered as upstream renders them, and kept from everything else."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import jinja2
import pytest

from graftlm.data import counted_jinja as sandbox
from graftlm.data.formats import RowProblem
from graftlm.data.prepare import RowCounts
from graftlm.data.promptsource import (
    PromptTemplate,
    compile_template,
    find_templates,
    format_with,
    load_promptsource,
    promptsource_formatter,
    to_instance,
)
from graftlm.data.readers import read_rows
from graftlm.errors import UserError
from tests.data.promptsource_rows import search

ROW = {"text": "good film", "label": 1, "words": ["a", "b", "b"], "answers": {"text": ["x", "y"]}, "none": None}
TRY = "Is it good? {{text}} ||| {{ answer_choices[label] }}"


def write(jinja: str, row: dict[str, Any] = ROW, choices: str = "", number: int = 1, seed: int = 0) -> tuple[str, str]:
    template = PromptTemplate("reviews", "", "try", jinja, choices)
    user, answer = to_instance(template, row, number=number, seed=seed).messages
    assert (user.role, answer.role) == ("user", "assistant")
    return user.content, answer.content


@pytest.mark.parametrize(
    ("jinja", "choices", "expected"),
    [
        (TRY, "no ||| yes", ("Is it good? good film", "yes")),
        ("\n{{text}}\n\n|||\n {{words|join(' ')}}\n", "", ("good film", "a b b")),
        ("{{', '.join(answer_choices)}}?|||{{answers.text[0]}}", "{{words|join('|||')}}", ("a, b, b?", "x")),
        ("{% if label == 1 %}{{text}} ||| one{% else %}{{text}} ||| other{% endif %}", "", ("good film", "one")),
        ("{{words|most_frequent|choice}}|||{{text|tojson}}", "", ("b", '"good film"')),
        (
            "{% for a, b in zip(words, answers['text']) %}{{a ~ b}}{% endfor %}|||{{loop is defined}}",
            "",
            ("axby", "False"),
        ),
        (
            "{% for i, w in enumerate(words) %}{{i}}{{w}}{{loop.last}} {% endfor %}|||.",
            "",
            ("0aFalse 1bFalse 2bTrue", "."),
        ),
        (
            "{% set n = namespace(v=[]) %}{% set _ = n.v.append(text) %}{{n.v[0]}}|||{{n.v|length}}",
            "",
            ("good film", "1"),
        ),
        ("{{text.split()[-1].upper()}}{{ 'x' if label == 0 }}|||{{ label * 2 + 1 }}", "", ("FILM", "3")),
        ("{{nothing|default('d')}}|||{{words|reject('equalto', 'b')|list}}", "", ("d", "['a']")),
    ],
)
def test_rendering(jinja, choices, expected):
    assert write(jinja, choices=choices) == expected


def test_a_rows_own_separator_stays_text():
    row = {"text": "a ||| b", "words": ["c|||d"]}
    assert write("{{text}}|||{{words[0]}}", row) == ("a ||| b", "c|||d")
    assert write("{{answer_choices[0]}}|||{{text}}", row, "{{words|join('|||')}} ||| e") == ("c|||d", "a ||| b")


def test_a_template_does_not_change_the_row():
    row = {"words": ["a"]}
    write("{{ words.append('b') or words|join }}|||x", row)
    assert row == {"words": ["a"]}


def test_choice_follows_seed_and_row_alone():
    def draw(label: int, seed: int, number: int) -> str:
        return write("{{range(1000)|choice}} {{range(1000)|choice}}|||x", {"label": label}, number=number, seed=seed)[0]

    draws = [draw(label, seed, number=1) for seed in (0, 1) for label in range(30)]
    assert draws == [draw(label, seed, number=2) for seed in (0, 1) for label in range(30)]
    assert len(set(draws)) > 50
    assert sum(len(set(drawn.split())) for drawn in draws) > 110


def test_choice_of_constants_is_made_for_each_row():
    assert {write("{{['a', 'b']|choice}}|||x", {"label": n})[0] for n in range(30)} == {"a", "b"}


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        ("{% if label == 0 %}{{text}}|||x{% endif %}", "template skips the row"),
        ("{{text}}", "template writes no '|||'"),
        ("{{text}}|||a|||b", "template writes 2 times '|||'"),
        ("{{text}}||| ", "empty answer"),
        (" |||{{text}}", "empty prompt"),
        ("{{sentence}}|||x", "missing field 'sentence'"),
        ("{{none}}|||x", "a null is written"),
        ("{{answers.start}}|||x", "template finds no value ('dict object' has no attribute 'start')"),
        ("{{words[7]}}|||x", "template finds no value (list object)"),
        ("{{[1, nothing]}}|||x", "missing field 'nothing'"),
        (
            "{{['a'][text]}}|||x",
            "a label is text where its number is due (say the numbers with --label, or with classes in a recipe)",
        ),
        ("{{['a', 'b'][label - 2]}}|||x", "a label is negative: the row is not labelled"),
        ("{{label + text}}|||x", "template fails on the row (TypeError)"),
        ("{{text.upper}}|||x", "a method or a namespace is used as a value"),
        ("{{namespace(a=1)}}|||x", "a method or a namespace is used as a value"),
        ("{{words.index(text)}}|||x", "template fails on the row (ValueError)"),
    ],
)
def test_rows_that_do_not_fit_say_why(jinja, reason):
    with pytest.raises(RowProblem) as problem:
        write(jinja)
    assert problem.value.reason == reason


@pytest.mark.parametrize(
    "jinja",
    [
        "{{ text.__class__ }}",
        "{{ text['__class__'] }}",
        "{{ text['__cl' ~ 'ass__'] }}",
        "{{ text|attr('__class__') }}",
        "{{ [text]|map(attribute='__class__')|join }}",
        "{{ [text]|map(attribute='format')|first }}",
        "{{ '{0.__class__}'.format(text) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%s'.format_map({}) }}",
        "{{ words.append.__self__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ range.__init__.__globals__ }}",
        "{{ namespace.mro() }}",
        "{{ label.real }}",
        "{{ words.sort() }}",
        "{{ namespace(a=1).__dict__ }}",
        "{% import 'os' as os %}",
        "{% include 'x' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for w in words recursive %}{{ loop(words) }}{% endfor %}",
        "{{ 'a'|center(1000000000) }}",
    ],
)
def test_what_is_not_allowed_is_an_error(jinja):
    with pytest.raises(UserError, match="template 'try' of reviews"):
        write(jinja + "|||x")


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(1000000000) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if i < 0 %}{% endfor %}{% for i in range(99999) %}{% endfor %}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d'|format(999999999, 1) }}",
        "{{ 1|round(999999999) }}",
        "{{ range(99999)|join(range(99999)|join(',')) }}",
        "{{ ('a' * 10000).replace('', 'b' * 10000) }}",
        "{{ ('a' * 10000)|replace('', 'b' * 10000) }}",
        "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=7) %}{% for i in range(99) %}{% set n.s = n.s * n.s %}{% endfor %}",
        "{% set n = namespace(s=range(9)) %}{% for i in range(99999) %}{% set n.s = n.s|map('string') %}{% endfor %}",
        "{% set a = [] %}{% set _ = a.append(a) %}{{ a }}",
        "{{ zip(range(99999))|join('a' * 10000000) }}",
        "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}{% if s[1:] %}{% endif %}{% endfor %}",
        "{% set s = 'a' * 10000000 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
        "{{ ('%(a)s' * 1000) % {'a': 'b' * 10000000} }}",
        "{{ ('%(a)s' * 1000)|format(a='b' * 10000000) }}",
        "{% set n = namespace(d={'a': [1]}) %}{% for i in range(60) %}"
        "{% set n.d = {'a': n.d.values()|list * 2} %}{% endfor %}"
        "{{ n.d.values() }}",
        "{% set a = [] %}{% set b = [] %}{% set _ = a.append(a) %}{% set _ = b.append(b) %}{{ a == b }}",
        "{% set a %}"
        + "x" * 1000
        + "{% endset %}{% for i in range(9999) %}{{ a }}{% for j in range(99) %}{{ a }}{% endfor %}{% endfor %}",
    ],
)
def test_endless_and_huge_templates_stop(jinja):
    with pytest.raises((RowProblem, UserError), match=r"too many steps|too large"):
        write(jinja + "|||x")


def test_a_stop_does_not_depend_on_the_clock():
    counts = set()
    for _ in range(3):
        compiled = sandbox.compile_pattern("{% for i in range(99) %}{{ x }}{% endfor %}")
        work = next(w for w in range(0, 20000, 50) if not _stops(compiled, w))
        counts.add(work)
    assert len(counts) == 1


def _stops(compiled: jinja2.Template, work: int) -> bool:
    try:
        sandbox.render(compiled, {"x": "abc"}, "", work=work)
    except sandbox.OverBudget:
        return True
    return False


@pytest.fixture
def file(tmp_path):
    rows = [
        {"dataset": "glue", "subset": "sst2", "name": "review", "jinja": "{{sentence}}?|||{{answer_choices[label]}}"}
        | {"answer_choices": "bad ||| good", "languages": ["en"]},
        {"dataset": "glue", "subset": "sst2", "name": "said/heard", "jinja": "They said: {{sentence}}|||{{label}}"},
        {"dataset": "trec", "name": "broken", "jinja": "a\n{% if x %}\n{{ y"},
    ]
    path = tmp_path / "templates.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_load(file):
    templates = load_promptsource(file)
    assert list(templates) == ["glue/sst2/review", "glue/sst2/said/heard", "trec/broken"]
    assert templates["glue/sst2/review"].fields() == {"sentence", "label"}
    instance = to_instance(templates["glue/sst2/review"], {"sentence": "fine", "label": 1}, source="f", number=3)
    assert (instance.source, instance.row) == ("f", 3)
    provenance = instance.provenance
    assert (provenance.task, provenance.template, provenance.language) == ("sentiment", "glue/sst2/review", "en")


def test_a_syntax_error_names_file_template_and_line(file):
    with pytest.raises(UserError, match=r"templates.jsonl: line 3: template 'broken' of trec, line 3: "):
        compile_template(load_promptsource(file)["trec/broken"])


@pytest.mark.parametrize(
    "jinja", ["{% for w in words %}" * 40 + "{% endfor %}" * 40, "{{ " + "(" * 9000 + "1" + ")" * 9000 + " }}"]
)
def test_a_template_that_is_nested_too_deep_is_an_error(jinja):
    with pytest.raises(UserError, match="nested too deep"):
        write(f"{jinja}|||x")


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ([{"dataset": "a", "name": "b", "jinja": "c"}] * 2, "line 2: template 'a/b' stands in line 1 already"),
        ([{"dataset": "a", "name": "b"}], "line 1 is no PromptSource template: its field 'jinja'"),
        ([{"dataset": "a", "name": "b", "jinja": "c", "subset": 3}], "field 'subset' is missing or not text"),
    ],
)
def test_bad_files(tmp_path, lines, match):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(UserError, match=match):
        load_promptsource(path)


def test_formatter(file):
    formatter = promptsource_formatter(
        f"promptsource:{file}#glue/sst2/review",
        columns={"sentence": "text"},
        classes={"label": ["negative", "positive"]},
    )
    instance = formatter({"text": "fine", "label": "positive"}, 1)
    assert [m.content for m in instance.messages] == ["fine?", "good"]
    with pytest.raises(RowProblem, match="field 'label' is none of its classes"):
        formatter({"text": "fine", "label": "mixed"}, 2)
    with pytest.raises(RowProblem, match="missing field 'sentence'"):
        formatter({"label": "positive"}, 3)
    numbers = promptsource_formatter(f"{file}#glue/sst2/review", classes={"label": {"-1": 0, "+1": 1}}, licence="CC0")
    instance = numbers({"sentence": "fine", "label": "+1"}, 1)
    assert (instance.messages[1].content, instance.provenance.licence) == ("good", "CC0")


def test_every_row_is_kept_or_counted(file):
    formatters = [promptsource_formatter([template], source="f") for template in find_templates(f"{file}#glue/sst2")]
    rows = [(1, {"sentence": "fine", "label": 1}), (2, {"label": 1}), (3, {"sentence": "bad", "label": -1})]
    counts = RowCounts()
    instances = list(format_with(formatters, rows, counts, "f"))
    assert [(i.row, i.messages[1].content) for i in instances] == [(1, "good"), (1, "1"), (3, "-1")]
    assert (counts.rows, counts.read, counts.kept) == (3, 6, 3)
    assert counts.dropped == {"missing field 'sentence'": 2, "a label is negative: the row is not labelled": 1}
    assert counts.examples["missing field 'sentence'"] == ["f:2", "f:2"]


def test_a_data_sets_templates_are_drawn_by_row(file):
    formatter = promptsource_formatter(f"{file}#glue/sst2")
    rows = [{"sentence": f"fine {n}", "label": 0} for n in range(200)]
    drawn = [formatter(row, n).provenance.template for n, row in enumerate(rows)]
    assert drawn == [formatter(row, 1).provenance.template for row in rows]
    assert len(set(drawn)) == 2
    assert min(Counter(drawn).values()) > 60


def test_questions_of_articles():
    question = {"question": "Who?", "answers": [{"text": "Ada", "answer_start": 0}]}
    article = {"title": "Mills", "paragraphs": [{"context": "Ada came.", "qas": [question, question]}]}
    template = PromptTemplate("squad", "", "ask", "{{title}}: {{context}} {{question}}|||{{answers.text[0]}}")
    counts = RowCounts()
    instances = list(format_with([promptsource_formatter([template])], [(1, article)], counts))
    assert [m.content for m in instances[1].messages] == ["Mills: Ada came. Who?", "Ada"]
    assert (counts.rows, counts.kept) == (1, 2)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("", "names no template"),
        ("#glue/sst2/revue", "unknown template 'glue/sst2/revue'"),
        ("#glu/x", "unknown data set of templates 'glu'"),
        ("#trec/broken", "template 'broken' of trec, line 3"),
    ],
)
def test_bad_references(file, name, match):
    with pytest.raises(UserError, match=match):
        promptsource_formatter(f"{file}{name}")


def _first(values):
    first, *_ = values
    return first


@pytest.fixture(scope="module")
def real(real_data):
    return load_promptsource(real_data / "instructions" / "promptsource_templates.jsonl.gz")


def test_all_real_templates_compile(real):
    assert len(real) == 2085
    for template in real.values():
        compile_template(template)


@pytest.mark.slow
def test_real_templates_write_what_plain_jinja_writes(real, monkeypatch):
    """On rows made of the fields' names; choices are made the first in both, as the draws themselves differ."""
    draws = dict.fromkeys(("choice", "random"), _first)
    for name, draw in draws.items():
        monkeypatch.setitem(sandbox._sandbox().filters, name, draw)
    compile_template.cache_clear()
    plain = jinja2.Environment()
    plain.globals.update(zip=zip, enumerate=enumerate)
    plain.filters.update(draws, most_frequent=sandbox._most_frequent)
    rendered = 0
    for template in real.values():
        found = search(template)
        assert not isinstance(found, str), f"{template.key}: {found}"
        row, instance = found
        values = sandbox.plain(row)
        if template.answer_choices:
            choices = plain.from_string(template.answer_choices).render(sandbox.plain(row))
            values["answer_choices"] = [part.strip() for part in choices.split("|||")]
        parts = plain.from_string(template.jinja).render(values).split("|||")
        assert [part.strip() for part in parts] == [m.content for m in instance.messages], template.key
        rendered += 1
    compile_template.cache_clear()
    assert rendered == 2085


@pytest.mark.parametrize(
    ("file", "name", "columns", "classes"),
    [
        ("sst2/dev.jsonl", "glue/sst2", {"sentence": "text"}, ["negative", "positive"]),
        ("sst2/dev.jsonl", "imdb", {}, ["negative", "positive"]),
        ("cola/dev_in.jsonl", "glue/cola", {"sentence": "text"}, ["unacceptable", "acceptable"]),
        ("esnli/dev.jsonl.gz", "snli", {}, ["entailment", "neutral", "contradiction"]),
    ],
)
def test_real_rows(real_data, file, name, columns, classes):
    reference = f"{real_data}/instructions/promptsource_templates.jsonl.gz#{name}"
    formatter = promptsource_formatter(reference, columns=columns, classes={"label": classes})
    rows = list(read_rows(real_data / "tasks" / file))[:300]
    instances = [formatter(row, number) for number, row in rows]
    templates = {instance.provenance.template for instance in instances}
    assert len(templates) >= 5
    for template in templates:
        answers = {i.messages[1].content for i in instances if i.provenance.template == template}
        assert 2 <= len(answers) <= len(classes)
    for instance, (_, row) in zip(instances, rows, strict=True):
        field = row.get("text", row.get("premise"))
        assert field.strip() in instance.messages[0].content
