"""PromptSource templates as they are: Jinja that renders ``input ||| target`` of a labelled row.

A file has one template a line: ``dataset``, ``subset``, ``name``, ``jinja``, ``answer_choices`` (a pattern too, its
parts apart by ``|||``), ``languages``. A template is named ``dataset/subset/name``, or ``dataset/name``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError

from graftlm.data.counted_jinja import BadValue, OverBudget, compile_pattern, fields, plain, render
from graftlm.data.formats import Row, RowProblem, check
from graftlm.data.instances import Instance, Message, Provenance
from graftlm.data.p3 import family_of
from graftlm.data.prepare import RowCounts, grouped
from graftlm.data.prompt_sides import SEPARATOR, Sides, keys_of, sides
from graftlm.data.readers import read_rows
from graftlm.data.task_fields import expand_row, group_of
from graftlm.errors import UserError, unknown_name

PREFIX = "promptsource:"
Classes = Sequence[str] | Mapping[str, int]
_PROTECTED = "\ue0f0\ue0f1\ue0f0"  # stands for a separator that is part of a row's own text
_BAD_VALUES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """One template. ``line`` of the file at ``path`` is where it stands."""

    dataset: str
    subset: str
    name: str
    jinja: str
    answer_choices: str = ""
    languages: tuple[str, ...] = ()
    original_task: bool = False
    path: str = ""
    line: int = 0

    @property
    def task(self) -> str:
        """The data set with its subset: ``glue/sst2``."""
        return f"{self.dataset}/{self.subset}" if self.subset else self.dataset

    @property
    def family(self) -> str:
        """The family of tasks where it is known, such as sentiment, else the data set."""
        return family_of(self.task) or self.task

    @property
    def key(self) -> str:
        """The name that a reference gives: ``glue/sst2/review``."""
        return f"{self.task}/{self.name}"

    def sides(self) -> Sides:
        """The columns that its input shows, and those that its target shows.

        Raises:
            UserError: the template is not valid.
        """
        compile_template(self)
        return sides(self.jinja, self.answer_choices)

    def fields(self) -> frozenset[str]:
        """The columns that it may use.

        Raises:
            UserError: the template is not valid.
        """
        compile_template(self)
        return (fields(self.jinja) | fields(self.answer_choices)) - {"answer_choices"}


def load_promptsource(path: str | Path) -> dict[str, PromptTemplate]:
    """The templates of a file by their names, in its order. They are compiled when first used.

    Raises:
        UserError: the file cannot be read, or a line holds no template or one of the same name again.
    """
    templates: dict[str, PromptTemplate] = {}
    for line, row in read_rows(path):
        template = _template(row, str(path), line)
        if template.key in templates:
            first = templates[template.key].line
            raise UserError(f"{path}: line {line}: template '{template.key}' stands in line {first} already")
        templates[template.key] = template
    return templates


def _template(row: Row, path: str, line: int) -> PromptTemplate:
    texts: dict[str, str] = {}
    for field, required in (
        ("dataset", True),
        ("name", True),
        ("jinja", True),
        ("subset", False),
        ("answer_choices", False),
    ):
        value = row.get(field)
        if not isinstance(value, str) and (required or value is not None):
            raise UserError(
                f"{path}: line {line} is no PromptSource template: its field '{field}' is missing or not text",
                hint="A line has dataset, name and jinja, and may have subset, answer_choices and languages.",
            )
        texts[field] = value or ""
    languages = tuple(str(code) for code in row.get("languages") or ())
    return PromptTemplate(
        **texts, languages=languages, original_task=bool(row.get("original_task")), path=path, line=line
    )


@lru_cache(maxsize=4096)
def compile_template(template: PromptTemplate) -> tuple[jinja2.Template, jinja2.Template | None]:
    """The compiled pattern, and that of its answer choices.

    Raises:
        UserError: naming file, template and line: not valid Jinja, or something that is not allowed.
    """
    compiled: list[jinja2.Template | None] = []
    for part, source in (("", template.jinja), (" of the answer choices", template.answer_choices)):
        try:
            compiled.append(compile_pattern(source) if source else None)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{_where(template)}, line {error.lineno}{part}: {error.message}") from error
        except (OverBudget, MemoryError) as error:
            raise UserError(f"{_where(template)}{part}: its constant values are too large") from error
        except (RecursionError, SyntaxError) as error:
            raise UserError(f"{_where(template)}{part}: it is nested too deep") from error
        except (BadValue, *_BAD_VALUES) as error:
            raise UserError(f"{_where(template)}{part}: {error}") from error
    if compiled[0] is None:
        raise UserError(f"{_where(template)}: the template is empty")
    return compiled[0], compiled[1]


def to_instance(
    template: PromptTemplate,
    row: Row,
    *,
    source: str = "",
    number: int = 0,
    licence: str = "",
    seed: int = 0,
    alone: bool = True,
) -> Instance:
    """The row as the template writes it: a user message, and the target as the answer.

    ``choice`` in a template draws by ``seed``, the template's name and the row, whatever its ``number``. ``alone``: the
    answer is comparable with those of this template only, not with those of others of its data set.

    Raises:
        RowProblem: the template skips the row, lacks a column, writes an empty part or takes too many steps.
        UserError: the template is not valid, or reaches for what is not allowed.
    """
    main, choices = compile_template(template)
    if "answer_choices" in row:
        raise RowProblem("the row has a field 'answer_choices', which is a template's own")
    try:
        values = plain(row, _protect)
    except RecursionError as error:
        raise RowProblem("the row is nested too deep") from error
    draw = f"{seed}\0{template.key}"
    if choices is not None:
        rendered = _render(template, choices, values, draw)
        values["answer_choices"] = [part.strip() for part in rendered.split(SEPARATOR)]
    parts = [part.strip() for part in _render(template, main, values, draw).split(SEPARATOR)]
    if not any(parts):
        raise RowProblem("template skips the row")
    if len(parts) != 2:
        wrong = "no" if len(parts) == 1 else f"{len(parts) - 1} times"
        raise RowProblem(f"template writes {wrong} '{SEPARATOR}'")
    prompt, answer = (part.replace(_PROTECTED, SEPARATOR) for part in parts)
    messages = check([Message("user", prompt), Message("assistant", answer)])
    language = template.languages[0] if len(template.languages) == 1 else ""
    key, said = (template.key, answer) if alone else (template.task, "")
    keys = keys_of(key, template.sides(), row, said)
    return Instance(messages, source, number, Provenance(template.family, template.key, language, licence, "", *keys))


def find_templates(reference: str) -> list[PromptTemplate]:
    """The template of ``FILE.jsonl.gz#dataset/subset/name``, or all of a data set: ``FILE.jsonl.gz#dataset/subset``.

    Raises:
        UserError: there is none, or one of them is not valid.
    """
    path, _, name = reference.removeprefix(PREFIX).partition("#")
    templates = load_promptsource(path)
    chosen = [templates[name]] if name in templates else [t for k, t in templates.items() if k.startswith(f"{name}/")]
    if not chosen:
        raise _no_template(reference, name, list(templates))
    for template in chosen:
        compile_template(template)
    return chosen


def promptsource_formatter(
    reference: str | Sequence[PromptTemplate],
    *,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, Classes] | None = None,
    source: str = "",
    licence: str = "",
    seed: int = 0,
) -> Callable[[Row, int], Instance]:
    """What makes an instance of a row and its number, by a reference (see ``find_templates``) or by templates.

    Of several templates one is drawn for each row. ``columns`` gives the file's column for a field of the template
    ({"sentence": "text"}); ``classes`` the words of a field in the order of the numbers that the template expects
    ({"label": ["negative", "positive"]}), or each word's number.

    Raises:
        UserError: there is no such template, or it is not valid. The formatter raises what ``to_instance`` does.
    """
    chosen = find_templates(reference) if isinstance(reference, str) else list(reference)
    renamed = dict(columns or {})
    places = {
        name: dict(words) if isinstance(words, Mapping) else {word: place for place, word in enumerate(words)}
        for name, words in (classes or {}).items()
    }

    def formatter(row: Row, number: int) -> Instance:
        values = {**row, **{name: row[column] for name, column in renamed.items() if column in row}}
        for name, place in places.items():
            word = values.get(name)
            if isinstance(word, str):
                if word not in place:
                    raise RowProblem(f"field '{name}' is none of its classes")
                values[name] = place[word]
        template = chosen[0]
        if len(chosen) > 1:
            template = random.Random(f"{seed}\0{template.task}\0{values!r}").choice(chosen)
        alone = len(chosen) == 1
        return to_instance(template, values, source=source, number=number, licence=licence, seed=seed, alone=alone)

    return formatter


def format_with(
    formatters: Sequence[Callable[[Row, int], Instance]],
    rows: Iterable[tuple[int, Row]],
    counts: RowCounts,
    source: str = "",
    split: str | None = None,
    group: str | None = None,
) -> Iterator[Instance]:
    """The instances of rows, one by each formatter; what is dropped is in ``counts`` by reason.

    With ``split``, rows whose column of that name says otherwise are dropped. ``group``: the column whose equal values
    belong together.
    """
    for number, whole in rows:
        counts.rows += 1
        for row in map(_as_datasets, expand_row(whole)) if "paragraphs" in whole else [whole]:
            if split is not None and str(row.get("split", split)) != split:
                counts.read += 1
                counts.drop(f"of another split than '{split}'", source, number)
                continue
            for formatter in formatters:
                counts.read += 1
                try:
                    instance = formatter(row, number)
                except RowProblem as problem:
                    counts.drop(problem.reason, source, number)
                else:
                    counts.kept += 1
                    yield instance if group is None else grouped(instance, group_of(row, group), counts)


def _as_datasets(row: Row) -> Row:
    """A question of a SQuAD article as templates know it: of its answers, the list of texts and that of places."""
    answers = row.get("answers")
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        return row
    names = dict.fromkeys(name for answer in answers for name in answer)
    return {**row, "answers": {name: [answer.get(name) for answer in answers] for name in names}}


def _no_template(reference: str, name: str, known: list[str]) -> UserError:
    if not name:
        return UserError(f"'{reference}' names no template", hint=f"Write FILE#dataset/name, for example #{known[0]}")
    dataset = name.partition("/")[0]
    subset = "/".join(name.split("/")[:2])
    for near in (
        [key for key in known if key.startswith(subset + "/")],
        list(dict.fromkeys("/".join(key.split("/")[:2]) for key in known if key.startswith(dataset + "/"))),
    ):
        if near:
            return unknown_name("template", name, near)
    return unknown_name("data set of templates", dataset, list(dict.fromkeys(key.partition("/")[0] for key in known)))


def _render(template: PromptTemplate, pattern: jinja2.Template, values: dict[str, Any], draw: str) -> str:
    try:
        return render(pattern, values, draw)
    except SecurityError as error:
        raise UserError(f"{_where(template)}: it reaches for what is not allowed: {error.message}") from error
    except (OverBudget, RecursionError, MemoryError) as error:
        raise RowProblem("template takes too many steps or writes too much") from error
    except jinja2.UndefinedError as error:
        raise RowProblem(_missing(error.message or "")) from error
    except BadValue as error:
        raise RowProblem(str(error)) from error
    except _BAD_VALUES as error:  # their messages may hold text of the row
        raise RowProblem(f"template fails on the row ({type(error).__name__})") from error


def _missing(message: str) -> str:
    """Why a value is undefined, without the row's own text."""
    name = re.fullmatch(r"'(\w+)' is undefined", message)
    if name:
        return f"missing field '{name[1]}'"
    return f"template finds no value ({message.partition(' has no element')[0]})"


def _protect(text: str) -> str:
    return text.replace(SEPARATOR, _PROTECTED) if SEPARATOR in text else text


def _where(template: PromptTemplate) -> str:
    place = f"{template.path}: line {template.line}: " if template.path else ""
    return f"{place}template '{template.name}' of {template.task}"
