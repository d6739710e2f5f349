"""Patterns that others wrote: what they may do, and where they are stopped."""

from __future__ import annotations

import time
from typing import Any

import pytest

from graftlm.data.task_pattern import CannotFill
from graftlm.data.task_template import pattern
from graftlm.errors import UserError


@pytest.mark.parametrize(
    ("source", "values", "expected"),
    [
        ("plain", {}, "plain"),
        (" {{ a }} ", {"a": "x"}, "x"),
        ("{{ a | listed }}", {"a": ["x"], "language": "en"}, "x"),
        ("{{ a | listed }}", {"a": ["x", "y", "z"], "language": "en"}, "x, y or z"),
        ("{{ a | listed }}", {"a": ["甲", "乙", "丙"], "language": "zh"}, "甲、乙或丙"),
        ("{{ a | lettered }}", {"a": ["x", "y"]}, "A. x\nB. y"),
        ("{{ a | worked }}|{{ a | final }}", {"a": "2+2 = <<2+2=4>>4 in all.\n#### 4"}, "2+2 = 4 in all.|4"),
        ("{% for x in a %}{{ loop.index }}{{ x }} {% endfor %}", {"a": "xy"}, "1x 2y"),
        ('{{ a ~ "-" ~ 1 }}{{ [1, 2] | join(",") }}', {"a": "x"}, "x-11,2"),
        ("{{ a.strip().upper() | replace('X', 'yy') }}", {"a": " x "}, "yy"),
        ("{% if a %}{{ a }}{% else %}none{% endif %}", {"a": ""}, "none"),
    ],
)
def test_what_a_pattern_writes(source: str, values: dict[str, object], expected: str) -> None:
    assert pattern(source).fill(values) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        "{{ x * 999999999 }}",
        "{{ 999999999 * x }}",
        "{{ [x] * 999999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ n ** n ** n ** n ** n ** n }}",
        "{{ x.ljust(999999999) }}",
        "{{ x.format(x) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '{0.__class__}'.format(x) }}",
        "{{ x['__cla' ~ 'ss__'] }}",
        "{% set a = 'x' * 9999999 %}{% set b = a ~ a ~ a ~ a %}{{ b }}",
        "{% set a = 'x' * 9999 %}{{ a | replace('x', a) }}",
        "{% set a = 'x' * 9999 %}{{ range(9999) | join(a) }}",
        "{{ range(99999999) | list }}",
        "{% for a in range(999) %}{% for b in range(90) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
    ],
)
def test_what_runs_on_or_reaches_inside_is_stopped_soon(source: str) -> None:
    start = time.perf_counter()
    with pytest.raises((UserError, CannotFill)):
        pattern(source).fill({"x": "x", "n": 9})
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{{ b", "line 2"),
        ("{% if a %}", "line 1"),
        ("{{ a.__class__ }}", "'__class__' reaches into Python's internals"),
        ("{{ a['__class__'] }}", "'__class__' reaches into Python's internals"),
        ("{{ ''.__class__.__mro__ }}", "reaches into Python's internals"),
        ("{% include 'x' %}", "'include' is not allowed here"),
        ("{% for a in b recursive %}{{ loop(a) }}{% endfor %}", "recursive"),
        ("{{ a | nosuch }}", "there is no filter 'nosuch'"),
        ("{{ a | attr('__class__') }}", "there is no filter 'attr'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "'macro' is not allowed here"),
    ],
)
def test_what_is_refused_when_it_is_read(source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pattern(source)


def test_a_name_without_a_value_is_the_rows_problem() -> None:
    with pytest.raises(CannotFill, match="'b' is undefined"):
        pattern("{{ b }}").fill({"a": 1})


@pytest.mark.parametrize("source", ["{{ a.append(1) }}", "{{ a.pop() }}", "{{ b.update({}) }}"])
def test_what_is_in_a_row_cannot_be_changed(source: str) -> None:
    values: dict[str, Any] = {"a": ["x"], "b": {}}
    with pytest.raises((UserError, CannotFill)):
        pattern(source).fill(values)
    assert values == {"a": ["x"], "b": {}}


def test_every_rendering_has_its_own_steps() -> None:
    loop = pattern("{% for a in range(60000) %}{% endfor %}x")
    assert [loop.fill({}) for _ in range(3)] == ["x"] * 3
