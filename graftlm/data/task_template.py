"""Task templates: how rows of a labelled data set become instructions. YAML with Jinja.

The project's own lie in ``task_templates/``; a path names one of somebody else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from jinja2 import pass_context
from jinja2.runtime import Context
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from graftlm.data.task_pattern import Pattern, TaskSandbox, read_pattern
from graftlm.errors import UserError, nearest, unknown_name

LANGUAGES = ("en", "zh")
LETTERS = "ABCDEFGHIJKLMNOPQRST"
RESERVED = ("choices", "options", "letter", "language", "input", "output")
DEMONSTRATION = {"en": "{{ input }}\nAnswer: {{ output }}", "zh": "{{ input }}\n答案：{{ output }}"}


def as_word(value: Any) -> str:
    """A value of YAML or of a data file as text: 1.0 is "1", True is "true"."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _words(value: Any) -> Any:
    return [as_word(v) for v in value] if isinstance(value, list) else value


def _by_word(value: Any) -> Any:
    return {as_word(key): entry for key, entry in value.items()} if isinstance(value, dict) else value


def _alternatives(value: Any) -> Any:
    return [[entry] if isinstance(entry, str) else entry for entry in value] if isinstance(value, list) else value


Texts = Annotated[tuple[str, ...], Field(min_length=1)]
Spellings = Annotated[tuple[str, ...], BeforeValidator(_words)]
Descriptions = dict[str, Texts]
ByLanguage = dict[str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Options(_Strict):
    """Alternatives of a multiple choice."""

    columns: Annotated[tuple[Texts, ...], BeforeValidator(_alternatives), Field(min_length=1)] = Field(
        description="where the alternatives stand: a column with a list, or a list of columns; the first that exist"
    )
    answer: str = Field(description="the field that names the right one: its number, letter, mark or text")
    count_from: int = Field(0, ge=0, le=1, description="the number of the first alternative in the data: 0 or 1")


class Inverted(_Strict):
    """The task the other way round: the input is produced from the output."""

    descriptions: Descriptions
    input: ByLanguage
    output: ByLanguage


class TaskTemplate(_Strict):
    """One task. Patterns are Jinja; they see the fields, and ``choices`` or ``options`` where there are some."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="small letters, digits and hyphens")
    family: str = Field(min_length=1, description="the family of tasks, for mixing and holding out")
    about: str = Field("", description="one line for the list of templates")
    columns: dict[str, Texts] = Field(description="field: the columns that may serve it, in order of preference")
    optional: tuple[str, ...] = Field((), description="fields that a row may lack")
    lists: tuple[str, ...] = Field((), description="fields that are lists of texts")
    labels: dict[str, Spellings] | None = Field(None, description="label: its other spellings in data")
    words: dict[str, ByLanguage] = Field(default_factory=dict, description="language: label: the word written for it")
    options: Options | None = None
    descriptions: Descriptions = Field(description="language: descriptions of the task, one is drawn for a row")
    input: ByLanguage = Field(description="what stands below the description")
    output: ByLanguage = Field(description="the answer")
    inverted: Inverted | None = None
    demonstration: ByLanguage = Field(
        default_factory=lambda: dict(DEMONSTRATION),
        description="an example from input and output; the row itself is written by it with an empty output",
    )

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, values: Any) -> Any:
        """One pattern for all languages may be written as a text; labels may be written as numbers."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        inner = values.get("inverted")
        for part in (values, inner):
            if not isinstance(part, dict) or not isinstance(part.get("descriptions"), dict):
                continue
            spread = {key: part[key] for key in ("input", "output", "demonstration") if isinstance(part.get(key), str)}
            new = {**part, **{key: dict.fromkeys(part["descriptions"], text) for key, text in spread.items()}}
            if part is inner:
                values["inverted"] = new
            else:
                values = new
        if isinstance(values.get("labels"), dict):
            values["labels"] = _by_word(values["labels"])
        if isinstance(values.get("words"), dict):
            values["words"] = {key: _by_word(words) for key, words in values["words"].items()}
        return values

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.descriptions)

    @cached_property
    def spelled(self) -> Mapping[str, str]:
        """Every spelling in small letters with its label."""
        return {s.lower(): label for label, others in (self.labels or {}).items() for s in (label, *others)}

    @property
    def names(self) -> frozenset[str]:
        """What patterns may name."""
        more = {"language"} | ({"choices"} if self.labels else set())
        return frozenset(self.columns) | more | ({"options", "letter"} if self.options else set())

    def patterns(self) -> Iterator[tuple[str, str]]:
        """All patterns, each with its key."""
        for prefix, part in (("", self), ("inverted.", self.inverted)):
            if part is None:
                continue
            for language, texts in part.descriptions.items():
                yield from ((f"{prefix}descriptions.{language}[{i}]", text) for i, text in enumerate(texts, 1))
            for key in ("input", "output"):
                yield from ((f"{prefix}{key}.{lang}", text) for lang, text in getattr(part, key).items())
        yield from ((f"demonstration.{language}", text) for language, text in self.demonstration.items())

    def problems(self) -> Iterator[str]:
        """What is wrong with the whole, beyond what a single key shows."""
        for key in self.columns:
            if key in RESERVED or not key.isidentifier():
                yield f"columns.{key}: a field is a word, and none of {', '.join(RESERVED)}"
        for key in ("optional", "lists"):
            for name in getattr(self, key):
                if name not in self.columns:
                    yield f"{key}: '{name}' is no field; the fields are: {', '.join(self.columns)}"
        if self.labels is not None and "label" not in self.columns:
            yield "labels: the field 'label' is not in columns"
        if self.options is not None and self.options.answer not in self.columns:
            yield f"options.answer: '{self.options.answer}' is no field; the fields are: {', '.join(self.columns)}"
        seen: dict[str, str] = {}
        for label, others in (self.labels or {}).items():
            for spelling in {s.lower() for s in (label, *others)}:
                if spelling in seen:
                    yield f"labels.{label}: '{spelling}' is a spelling of '{seen[spelling]}' too"
                seen[spelling] = label
        yield from self._language_problems()
        for key, source in self.patterns():
            allowed = frozenset({"input", "output"}) if key.startswith("demonstration") else self.names
            yield from _pattern_problems(key, source, allowed)

    def _language_problems(self) -> Iterator[str]:
        for prefix, part in (("", self), ("inverted.", self.inverted)):
            for language in part.descriptions if part else ():
                for key in ("input", "output"):
                    if language not in getattr(part, key):
                        yield f"{prefix}{key}: there is none for the language '{language}' of descriptions"
        for language in self.languages:
            if not {language, "en"} & set(self.demonstration):
                yield f"demonstration: there is none for the language '{language}' of descriptions"
        for language in self.languages if self.labels else ():
            words = self.words.get(language, {})
            if set(words) != set(self.labels or ()):
                yield f"words.{language}: one word for each of the labels is needed: {', '.join(self.labels or ())}"
            elif len(set(words.values())) < len(words):
                yield f"words.{language}: two labels have the same word"


def _pattern_problems(key: str, source: str, allowed: frozenset[str]) -> Iterator[str]:
    try:
        unknown = pattern(source).names - allowed
    except UserError as error:
        yield f"{key}: {error.message}"
        return
    for name in sorted(unknown):
        guess = nearest(name, sorted(allowed))
        meant = f" (did you mean '{guess}'?)" if guess else ""
        yield f"{key}: '{name}' is not known here{meant}; known are: {', '.join(sorted(allowed))}"


@pass_context
def _listed(context: Context, values: Iterable[Any]) -> str:
    """a, b or c; in Chinese a、b或c."""
    texts = [str(value) for value in values]
    comma, last = ("、", "或") if context.get("language") == "zh" else (", ", " or ")
    return last.join([comma.join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)


def _lettered(values: Iterable[Any]) -> str:
    """Alternatives below each other, each with its letter."""
    return "\n".join(f"{letter}. {value}" for letter, value in zip(LETTERS, values, strict=False))


def _worked(text: str) -> str:
    """The working of a GSM8K answer: without the marks of its calculator and the final line."""
    import re

    return re.sub(r"<<[^<>]*>>", "", str(text).partition("####")[0]).strip()


def _final(text: str) -> str:
    """The result of a GSM8K answer: what stands behind ####."""
    return str(text).rpartition("####")[2].strip()


FILTERS: dict[str, Callable[..., Any]] = {
    "listed": _listed,
    "lettered": _lettered,
    "worked": _worked,
    "final": _final,
}


@cache
def sandbox() -> TaskSandbox:
    """Where the patterns of task templates run."""
    return TaskSandbox(FILTERS)


def pattern(source: str) -> Pattern:
    """A pattern of a task template, read once."""
    return read_pattern(source, sandbox())


@cache
def shipped() -> dict[str, Path]:
    """The project's own templates by name."""
    folder = Path(str(files("graftlm.data") / "task_templates"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_task_template(name: str | Path) -> TaskTemplate:
    """A template by the name of one of the project's own, or by its path.

    Raises:
        UserError: there is none, or it is not as it has to be: all problems at once, each with its key.
    """
    path = shipped().get(str(name), Path(name))
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        error = unknown_name("task template", str(name), sorted(shipped()))
        raise UserError(error.message + ", or the path of a YAML file", hint=error.hint)
    return parse_task_template(_read(path), str(path))


def _read(path: Path) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"task template {path}: there is no such file") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"task template {path}{where}: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"task template {path}: not UTF-8, at byte {error.start}", hint="Save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"task template {path}: the file cannot be read: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"task template {path}: {error}") from error


def parse_task_template(values: Any, source: str) -> TaskTemplate:
    """A template from its values; ``source`` names it in errors.

    Raises:
        UserError: all problems at once, each with its key and what is allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"task template {source}: expected keys: {', '.join(TaskTemplate.model_fields)}")
    try:
        template = TaskTemplate.model_validate(values)
    except ValidationError as error:
        problems = [_problem(found) for found in error.errors(include_url=False)]
    else:
        problems = list(template.problems())
        if not problems:
            return template
    raise UserError("\n".join([f"task template {source}:", *(f"  {p}" for p in problems)]))


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    parts: dict[str, type[BaseModel]] = {"inverted": Inverted, "options": Options}
    model = parts.get(str(error["loc"][0]), TaskTemplate) if len(error["loc"]) > 1 else TaskTemplate
    if error["type"] == "extra_forbidden":
        known = list(model.model_fields)
        guess = nearest(str(error["loc"][-1]), known)
        return f"{path}: unknown key; allowed: {', '.join(known)}" + (f" (did you mean '{guess}'?)" if guess else "")
    field = model.model_fields.get(str(error["loc"][-1])) if error["loc"] else None
    what = f" ({field.description})" if field is not None and field.description else ""
    if error["type"] == "missing":
        return f"{path}: this key is needed{what}"
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}, not {error['input']!r:.60}{what}"
