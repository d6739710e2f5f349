"""Recognise what rows hold by their fields, and make instances of them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graftlm.data.instances import ORIGINS, Instance, Message
from graftlm.data.instances import RowProblem as RowProblem
from graftlm.data.p3 import origin_of
from graftlm.data.preferences import (
    USED,
    Judged,
    duels,
    is_duel,
    is_judged_question,
    is_list,
    is_pair,
    read_answers,
    read_judged_question,
    read_pair,
    read_single,
    used_columns,
)
from graftlm.data.row_messages import Row as Row
from graftlm.data.row_messages import (
    chat_turns,
    instruction_turns,
    oasst_turns,
    pair_turns,
    self_instruct_parts,
    tag_turns,
    text_of,
    turns_of,
)
from graftlm.data.tools import check_turns
from graftlm.data.verdicts import COLUMNS, has_verdict, settled
from graftlm.errors import UserError, nearest

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("question", "response"),
    ("prompt", "answer"),
)
WORDS, TAGS = ("tokens", "words"), ("tags", "ner_tags", "pos_tags", "labels")
ALONE = ("prompt", "question", "instruction", "query")  # columns of prompts that nobody has answered
NO_ANSWER = "conversation ends without an answer"
LABELS = ("label", "labels", "answer", "target", "coarse_label", "class")
_PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclass(frozen=True)
class Format:
    """A way to read rows: ``expand`` gives the parts of a row, ``convert`` makes messages of a part.

    ``judged`` gives what was said of its answers as well. ``ignored`` are columns that the format does not use.
    """

    name: str
    convert: Callable[[Row], list[Message]]
    expand: Callable[[Row], list[Row]] = lambda row: [row]
    ignored: tuple[str, ...] = ()
    judged: Callable[[Row], Judged] | None = None

    def read(self, part: Row) -> Judged:
        """The messages of a part, and what was said of its answers.

        Raises:
            RowProblem: a field is missing or of the wrong kind.
        """
        return (self.convert(part), ()) if self.judged is None else self.judged(part)

    def to_instances(self, row: Row, source: str, number: int) -> list[Instance]:
        """The instances of a row: one, or several in self-instruct rows.

        Raises:
            RowProblem: a field is missing or of the wrong kind, an answer is empty, roles are out of order.
        """
        found = []
        for part in self.expand(row):
            messages, verdicts = self.read(part)
            instance = settled(Instance(tuple(messages), source, number, origin_of(row), verdicts))
            found.append(replace(instance, messages=check(instance.messages)))
        return found


def recognise(
    rows: Sequence[Row],
    source: str,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    prompts: bool = False,
) -> Format:
    """The format of a file by the fields of its first ``rows``; or one made of patterns with column names.

    ``prompts``: whether rows of a prompt alone are wanted, and read where the rows are of no other format.

    Raises:
        UserError: the rows are of no known format (it lists their columns), are halves of pairs or prompt
            templates, or a pattern names a column that does not exist.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if prompt is not None or answer is not None or system is not None:
        return _patterns(columns, source, prompt, answer, system)
    _refuse(rows, source)
    counts = Counter[str]()
    for row in rows:
        counts.update(name for name, (matches, _) in _KNOWN.items() if matches(row))
    alone = next((c for c in ALONE if sum(c in row for row in rows) * 2 > len(rows)), None)
    if not counts and alone is not None and prompts:
        return Format(f"prompts ({alone})", _prompt_turns(alone), ignored=tuple(c for c in columns if c != alone))
    if not counts:
        raise _unrecognised(columns, source)
    most = max(counts.values())
    # A few faulty rows must not hide what the others say of their answers.
    judged = (name for name in _JUDGED if 2 * counts[name] >= len(rows))
    name = next(judged, next(name for name in _KNOWN if counts[name] == most))
    form = _KNOWN[name][1](columns)
    if name == "compared answers":
        return replace(form, ignored=tuple(c for c in columns if c not in used_columns(columns)))
    single = name not in _JUDGED and not name.startswith(("plain text", "words and tags"))
    return _with_verdicts(form) if single and 2 * sum(map(has_verdict, rows)) >= len(rows) else form


def _prompt_turns(column: str) -> Callable[[Row], list[Message]]:
    """A prompt that nobody has answered: a text, or a list of turns."""

    def convert(row: Row) -> list[Message]:
        if isinstance(row.get(column), list):
            return turns_of(row[column], column)
        return [Message("user", text_of(row, column))]

    return convert


def _with_verdicts(form: Format) -> Format:
    """The format for rows that also say something of their answer."""

    ignored = tuple(column for column in form.ignored if column not in COLUMNS)
    return replace(
        form, name=f"judged answers ({form.name})", judged=lambda row: read_single(row, form.convert), ignored=ignored
    )


def fill(messages: Sequence[Message], variables: Mapping[str, str]) -> tuple[tuple[Message, ...], list[str]]:
    """Replace ``{{name}}`` in the contents; also gives all names that stand there, replaced or not."""
    if not any("{{" in m.content for m in messages):
        return tuple(messages), []
    names: list[str] = []

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        names.append(name)
        return variables.get(name, match.group(0))

    filled = tuple(Message(m.role, _PLACEHOLDER.sub(value, m.content), m.train) for m in messages)
    return filled, names


def check(messages: Sequence[Message], *, prompts: bool = False) -> tuple[Message, ...]:
    """The messages, if they are a conversation: tools and system first, user and assistant in turn, an answer last.

    ``prompts``: without an answer last too.

    Raises:
        RowProblem: they are not, or a content is empty.
    """
    if not messages:
        raise RowProblem("no messages")
    if messages[0].role == "text":
        if not messages[0].content.strip():
            raise RowProblem("empty text")
        return tuple(messages)
    rejected = [message for message in messages if message.role == "rejected"]
    tools = [messages[0]] if messages[0].role == "tools" else []
    turns = messages[len(tools) : len(messages) - len(rejected)]
    system = [turns[0]] if turns and turns[0].role == "system" else []
    turns = turns[len(system) :]
    if not turns:
        raise RowProblem("no messages")
    check_turns(turns)
    if turns[-1].role not in ("assistant", "calls") and not prompts:
        raise RowProblem(NO_ANSWER)
    if any(not message.content.strip() for message in rejected):
        raise RowProblem("empty rejected answer")
    return (*tools, *(m for m in system if m.content.strip()), *turns, *rejected)


def _has_turns(row: Row, key: str, role: str) -> bool:
    turns = row.get(key)
    return isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict) and role in turns[0]


def _known(
    name: str, convert: Callable[[Row], list[Message]], used: Sequence[str], **more: Any
) -> Callable[[list[str]], Format]:
    def form(columns: list[str]) -> Format:
        read = {*used, *(ORIGINS if "template" in columns else ())}
        return Format(name, convert, ignored=tuple(c for c in columns if c not in read), **more)

    return form


def _formats() -> dict[str, tuple[Callable[[Row], bool], Callable[[list[str]], Format]]]:
    """By name, the more telling first: whether a row looks like it, and the format."""
    known: dict[str, tuple[Callable[[Row], bool], Callable[[list[str]], Format]]] = {}

    def add(
        name: str,
        matches: Callable[[Row], bool],
        convert: Callable[[Row], list[Message]],
        used: Sequence[str],
        **more: Any,
    ) -> None:
        known[name] = (matches, _known(name.partition(" of ")[0], convert, used, **more))

    def add_judged(
        name: str, matches: Callable[[Row], bool], read: Callable[[Row], Judged], used: Sequence[str], **more: Any
    ) -> None:
        add(name, matches, lambda row: read(row)[0], used, judged=read, **more)

    add_judged("preference rows", is_pair, read_answers, USED)
    add_judged("ranked answers", is_list, read_answers, USED)
    add_judged("compared answers", is_duel, read_pair, (), expand=duels)
    add_judged("judged answers (TruthfulQA)", is_judged_question, read_judged_question, ("prompt", "completion"))
    for key in ("messages", "conversations", "conversation"):
        for role, name in (("role", "messages"), ("from", "ShareGPT")):
            add(
                f"{name} of {key} {role}",
                lambda row, k=key, r=role: _has_turns(row, k, r),  # type: ignore[misc]
                chat_turns(key),
                (key, "system", "tools"),
            )
    add(
        "self-instruct",
        lambda row: "instruction" in row and isinstance(row.get("instances"), list),
        instruction_turns("output", "input"),
        ("instruction", "instances"),
        expand=self_instruct_parts,
    )
    for answer, extra, name in (("output", "input", "Alpaca"), ("response", "context", "Dolly")):
        add(
            name,
            lambda row, a=answer: "instruction" in row and a in row,  # type: ignore[misc]
            instruction_turns(answer, extra),
            ("instruction", extra, answer, "system", "history"),
        )
    add(
        "OASST (### Human / ### Assistant)",
        lambda row: "output" in row and str(row.get("input", "")).startswith("### Human:"),
        oasst_turns,
        ("input", "output"),
    )
    for words, tags in ((words, tags) for words in WORDS for tags in TAGS):
        add(
            f"words and tags of {words} {tags}",
            lambda row, w=words, t=tags: isinstance(row.get(w), list) and isinstance(row.get(t), list),  # type: ignore[misc]
            tag_turns(words, tags),
            (words, tags),
        )
    for prompt, answer in PAIRS:
        add(
            f"{prompt}/{answer}",
            lambda row, p=prompt, a=answer: p in row and a in row,  # type: ignore[misc]
            pair_turns(prompt, answer),
            (prompt, answer, "system", "tools"),
        )
    add(
        "plain text",
        lambda row: isinstance(row.get("text"), str) and not any(label in row for label in LABELS),
        lambda row: [Message("text", text_of(row, "text"))],
        ("text",),
    )
    return known


_KNOWN = _formats()
_JUDGED = ("preference rows", "ranked answers", "compared answers", "judged answers (TruthfulQA)")


def _refuse(rows: Sequence[Row], source: str) -> None:
    """Files that are known, but hold no instances."""
    first = rows[0] if rows else {}
    kinds = {
        "prompt templates (PromptSource: a field 'jinja')": "jinja" in first,
        "halves of preference pairs ('chosen' or 'rejected' without the other)": ("rejected" in first)
        != ("chosen" in first),
    }
    for kind, holds in kinds.items():
        if holds:
            use = (
                "Templates are applied to labelled data; they hold no examples themselves:"
                " graftlm data format ROWS --template promptsource:FILE#dataset/name --out SET"
                if "templates" in kind
                else 'A pair has both: {"prompt": "…", "chosen": "…", "rejected": "…"}. A single answer with a label is'
                ' {"prompt": "…", "completion": "…", "label": true}.'
            )
            raise UserError(f"{source}: these are {kind}, not instances to learn from", hint=use)


def _unrecognised(columns: Sequence[str], source: str) -> UserError:
    prompt = _likely(columns, ("question", "text", "sentence", "input", "prompt", "source", "story", "premise"))
    answer = _likely([c for c in columns if c != prompt], (*LABELS, "output", "target", "answer"))
    return UserError(
        f"{source}: the format of these rows is not known; their columns are: {', '.join(columns)}",
        hint=f'Say how to read them: --prompt "{{{prompt}}}" --answer "{{{answer}}}". Known without that:'
        " Alpaca (instruction, input, output), ShareGPT (conversations), messages, self-instruct"
        " (instruction, instances), prompt/completion, question/answer, input/output, plain text (text)."
        " Prompts without answers are for policies alone (objective: grpo, rloo, reinforce, ppo).",
    )


def _likely(columns: Sequence[str], words: Sequence[str]) -> str:
    """The column named by the first word that one is named by, else holds it in its name, else any."""
    for match in (str.__eq__, str.__contains__):
        for word in words:
            for column in columns:
                if match(column.lower(), word):
                    return column
    return columns[-1] if columns else "column"


class _Columns(string.Formatter):
    """``str.format`` over columns, with ``[…]`` for items of lists and objects but no attributes."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        name, *items = _parts(field_name)
        value: Any = kwargs.get(name)
        for item in items:
            try:
                value = value[int(item) if isinstance(value, list) else item]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise RowProblem(f"'{{{field_name}}}' is not in the row") from error
        return text_of({field_name: value}, field_name), name


def _parts(field_name: str) -> list[str]:
    """``answers[text][0]`` as its column and items; a column's own name may hold anything else."""
    match = re.fullmatch(r"(.*?)((?:\[[^\]]*\])*)", field_name)
    return [match.group(1), *re.findall(r"\[([^\]]*)\]", match.group(2))] if match else [field_name]


def _patterns(
    columns: Sequence[str], source: str, prompt: str | None, answer: str | None, system: str | None
) -> Format:
    formatter = _Columns()
    used: list[str] = []
    for option, pattern in (("prompt", prompt), ("answer", answer), ("system", system)):
        if pattern is None:
            continue
        try:
            names = [_parts(name)[0] for _, name, _, _ in formatter.parse(pattern) if name is not None]
        except ValueError as error:
            raise UserError(f'--{option} "{pattern}": {error}', hint="A brace itself is written twice: {{") from error
        for name in names:
            if name not in columns:
                guess = nearest(name, list(columns))
                raise UserError(
                    f"--{option} \"{pattern}\": {source} has no column '{name}'; its columns are: {', '.join(columns)}",
                    hint=f"Did you mean '{guess}'?" if guess else None,
                )
        used += names
    if answer is None or not used:
        raise UserError(
            f"{source}: a pattern for the answer is needed" + ("" if answer is None else " that names a column"),
            hint=f'For example --answer "{{{columns[-1] if columns else "answer"}}}".',
        )

    def convert(row: Row) -> list[Message]:
        if prompt is None:
            return [Message("text", formatter.format(answer, **row))]
        given = Message("system", formatter.format(system, **row) if system else "")
        question, reply = formatter.format(prompt, **row), formatter.format(answer, **row)
        return [given, Message("user", question), Message("assistant", reply)]

    ignored = tuple(c for c in columns if c not in used)
    return Format("columns by pattern", convert, ignored=ignored)
