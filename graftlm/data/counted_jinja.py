"""Jinja patterns from elsewhere, rendered so that they can neither reach Python nor run or grow without end.

Allowed are the statements that write, set, branch and loop; a list of filters; and a list of methods of texts,
lists and objects. All work is paid from a budget that is counted, not timed: the same pattern on the same row
stops at the same place on every machine, in any thread, and nothing goes on running.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any

import jinja2
from jinja2 import Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import MAX_RANGE, SandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import Namespace

from graftlm.data.counted_rewrite import LETTERS, Rewrite

WORK = 5_000_000  # units of a rendering
ENTRIES = 4  # entries of a list that is joined to another, for one unit
BITS = 4096  # the longest whole number

FILTER_NAMES = (
    "abs capitalize count d default dictsort e first float format int items join last length list lower map max min"
    " reject rejectattr replace reverse round select selectattr sort string title tojson trim truncate unique"
    " upper wordcount"
)
TEXT_METHODS = (
    "split rsplit splitlines partition rpartition join lower upper title capitalize casefold swapcase strip lstrip"
    " rstrip replace startswith endswith removeprefix removesuffix index rindex find rfind count isdigit isalpha"
    " isalnum isnumeric isspace isupper islower istitle"
)
QUICK = frozenset(
    ["append", "pop", "get", "keys", "values", "items", "setdefault", "update"]
)  # whatever their owner's size
LOOP_NAMES = "index index0 revindex revindex0 first last length previtem nextitem depth depth0 cycle changed"
MEMBERS: dict[type, frozenset[str]] = {
    str: frozenset(TEXT_METHODS.split()),
    list: frozenset(["append", "pop", "insert", "remove", "index", "count", "reverse", "copy"]),
    tuple: frozenset(["index", "count"]),
    dict: frozenset(["get", "keys", "values", "items", "update", "pop", "setdefault", "copy"]),
    LoopContext: frozenset(LOOP_NAMES.split()),
}


class OverBudget(Exception):
    """A pattern took more steps, or made larger values, than a row may cost."""


class BadValue(Exception):
    """A row's value is not what the pattern is for; the message holds no text of the row."""


@dataclass(slots=True)
class Budget:
    """What a rendering may still spend, and what its random choices follow from."""

    left: int
    seed: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 0

    def spend(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise OverBudget


_BUDGET: ContextVar[Budget] = ContextVar("budget")


def render(template: jinja2.Template, row: Mapping[str, Any], seed: str, *, work: int = WORK) -> str:
    """The pattern with a row's values; ``choice`` and ``random`` draw by ``seed`` and the row, wherever it stands.

    Patterns may append to the lists of the row: give a copy (``plain``).

    Raises:
        OverBudget: it takes more than ``work``.
        BadValue: the row's values are not what the pattern is for.
        jinja2.exceptions.SecurityError: it reaches for what is not allowed.
        jinja2.TemplateError, and what else bad values raise (TypeError, ValueError, LookupError, ArithmeticError).
    """
    token = _BUDGET.set(Budget(work, seed, row))
    try:
        return template.render(row)
    finally:
        _BUDGET.reset(token)


def compile_pattern(source: str, sandbox: Sandbox | None = None) -> jinja2.Template:
    """The pattern as a template, of ``sandbox`` if it has filters of its own.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid, or uses a statement, filter or name that is not allowed.
        OverBudget: what is constant in it is too large.
    """
    token = _BUDGET.set(Budget(WORK))
    try:
        return (sandbox or _sandbox()).from_string(source)
    finally:
        _BUDGET.reset(token)


def fields(source: str) -> frozenset[str]:
    """The names that a pattern takes from a row."""
    environment = _sandbox()
    found = meta.find_undeclared_variables(environment.parse(source))
    return frozenset(found - set(environment.globals))


def parse_pattern(source: str) -> tuple[nodes.Template, frozenset[str]]:
    """A pattern as a tree, and the names in it that are no row's: functions that patterns may call.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid.
    """
    environment = _sandbox()
    return environment.parse(source), frozenset(environment.globals)


def plain(value: Any, text: Callable[[str], str] = str) -> Any:
    """A copy made of texts, numbers, lists and objects only; ``text`` is done to every text."""
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, dict):
        return {str(key): plain(entry, text) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, text) for entry in value]
    return text(str(value))


@cache
def _sandbox() -> Sandbox:
    return Sandbox()


class Sandbox(SandboxedEnvironment):
    """Where patterns run. ``more`` are further filters; ``trim_blocks`` leaves out the lines of statements."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, more: Mapping[str, Callable[..., Any]] | None = None, *, trim_blocks: bool = False) -> None:
        super().__init__(
            undefined=jinja2.StrictUndefined,
            finalize=_written,
            autoescape=False,
            trim_blocks=trim_blocks,
            lstrip_blocks=trim_blocks,
        )
        filters = {name: FILTERS[name] for name in FILTER_NAMES.split()}
        own = {"tojson": _to_json, "choice": _choice, "random": _choice, "most_frequent": _most_frequent, "sum": _sum}
        self.filters = {name: _paid(name, call) for name, call in {**filters, **own, **(more or {})}.items()}
        self.tests = {name: _paid(name, call) for name, call in TESTS.items() if name != "callable"}
        self.globals = {"range": _range, "zip": _zip, "enumerate": _enumerate, "namespace": Namespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = Rewrite(self.filters).visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return any(type(obj) is kind and attr in names for kind, names in MEMBERS.items())

    def wrap_str_format(self, value: Any) -> None:
        """``format`` of a text is not among the methods allowed: a width may make it as long as it likes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A method that is allowed, else the entry of an object."""
        if attribute.startswith("_"):
            raise SecurityError(f"'{attribute}' is an internal of Python")
        if isinstance(obj, dict) and attribute not in MEMBERS[dict]:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (TypeError, LookupError):
            if isinstance(argument, str):
                return self.getattr(obj, argument)
        return self.undefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if owner is __self:  # a helper that the rewriting put there
            return __obj(*args)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str | list | dict) and name not in MEMBERS.get(type(owner), ()):
            raise SecurityError(f"'{name}' must not be called")
        _charge(*args, *kwargs.values())
        if name not in QUICK:
            _charge(owner)
        if isinstance(owner, str):
            _charge_text(name, owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(result, Namespace):
            _charge(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _pay_ahead(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and result.bit_length() > BITS:
            raise OverBudget
        return result

    def joined(self, *values: Any) -> str:
        """``a ~ b``."""
        _charge(*values)
        return "".join(map(str, values))

    def weighed(self, value: Any) -> Any:
        """The value, once it is paid for: before it is compared, put into a list or cut."""
        _charge(value)
        return value

    def position(self, value: Any) -> Any:
        """A place in a list of words, which a label gives."""
        if isinstance(value, str):
            raise BadValue(
                "a label is text where its number is due (say the numbers with --label, or with classes in a recipe)"
            )
        if isinstance(value, int | float) and value < 0:
            raise BadValue("a label is negative: the row is not labelled")
        return int(value) if isinstance(value, float) and value.is_integer() else value

    def turns(self, values: Iterable[Any], cost: int) -> Iterator[Any]:
        """The values of a loop, each paid for."""
        spend = _BUDGET.get().spend
        for value in values:
            spend(cost)
            yield value


def _charge(*values: Any) -> None:
    """Pay for handling the values: their letters and entries, at every depth."""
    budget = _BUDGET.get()
    waiting = [value for value in values if not isinstance(value, Undefined)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Undefined):
            str(value)  # one inside a list would be written as it is; this raises
        elif isinstance(value, str):
            budget.spend(1 + len(value) // LETTERS)
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            budget.spend(1 + len(value))
            waiting.extend(value)
        elif isinstance(value, dict):
            budget.spend(1 + 2 * len(value))
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, Namespace) or (callable(value) and not isinstance(value, LoopContext)):
            raise BadValue("a method or a namespace is used as a value")
        else:
            budget.spend(1)


def _charge_text(name: str, text: str, *args: Any) -> None:
    """Pay for what ``join`` and ``replace`` will make, before they make it."""
    size = 0
    if name == "join" and args and hasattr(args[0], "__len__"):
        size = len(text) * len(args[0])
    if name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
        size = text.count(args[0]) * len(args[1])
    _BUDGET.get().spend(size // LETTERS)


def _pay_ahead(operator: str, left: Any, right: Any) -> None:
    """Pay for what an operator makes, before it makes it."""
    budget = _BUDGET.get()
    if operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > BITS:
            raise OverBudget
        return
    if operator == "%" and isinstance(left, str):
        if re.search(r"\d{4}|\*", left):
            raise OverBudget
        before = budget.left
        _charge(right)
        budget.spend((before - budget.left) * left.count("%"))  # a named part may be written again and again
    elif operator == "*":
        for values, times in ((left, right), (right, left)):
            if isinstance(values, str | list | tuple) and isinstance(times, int):
                budget.spend(max(times, 0) * (1 + len(values)) // ENTRIES)
    else:
        for values in (left, right):
            budget.spend(1 + (len(values) // ENTRIES if isinstance(values, str | list | tuple) else 0))


def _paid(name: str, call: Any) -> Callable[..., Any]:
    """A filter or test that pays for what it is given and for what it makes; what it makes is no longer lazy."""

    @wraps(call)
    def paid(*args: Any, **kwargs: Any) -> Any:
        given = [value for value in args if not isinstance(value, Context | SandboxedEnvironment | nodes.EvalContext)]
        _charge(*given, *kwargs.values())
        _refuse_bombs(name, given, kwargs)
        result = call(*args, **kwargs)
        if isinstance(result, Iterator):
            result = list(_sandbox().turns(result, 1))
        elif isinstance(result, list | str):
            _charge(result)
        return result

    return paid


def _refuse_bombs(name: str, given: list[Any], kwargs: Mapping[str, Any]) -> None:
    """Filters whose result may be far larger than what they are given."""
    if name == "replace" and len(given) > 2:
        _charge_text(name, str(given[0]), str(given[1]), str(given[2]))
    elif name == "join":
        between = kwargs.get("d", given[1] if len(given) > 1 else "")
        if hasattr(given[0], "__len__"):
            _charge_text(name, str(between), given[0])
    elif name == "format":
        _pay_ahead("%", str(given[0]), [given[1:], dict(kwargs)])
    elif name == "round" and any(value > 20 for value in [*given[1:], *kwargs.values()] if isinstance(value, int)):
        raise OverBudget


def _written(value: Any) -> Any:
    """What ``{{ value }}`` writes. Nothing for an ``if`` without ``else``; a null is a fault of the row."""
    if value is None:
        raise BadValue("a null is written")
    if type(value) is Undefined:
        return ""
    _charge(value)
    return value


def _zip(*lists: Iterable[Any]) -> list[Any]:
    return list(_sandbox().turns(zip(*lists, strict=False), 1))


def _enumerate(values: Iterable[Any], start: int = 0) -> list[Any]:
    return list(_sandbox().turns(enumerate(values, start), 1))


def _sum(numbers: Iterable[Any]) -> Any:
    return sum(numbers)


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_RANGE:
        raise OverBudget
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 8))


@jinja2.pass_context  # else one of a constant list would be chosen once, when the pattern is compiled
def _choice(_: Context, values: Any) -> Any:
    """One of the values: a row is always given the same, and two choices in one pattern are independent."""
    budget = _BUDGET.get()
    values = list(values)
    if not values:
        raise BadValue("there is nothing to choose from")
    budget.draws += 1
    return random.Random(f"{budget.seed}\0{budget.draws}\0{budget.row!r}").choice(values)


def _most_frequent(values: Iterable[Any]) -> list[Any]:
    """The values that occur most often, in order."""
    counts = Counter(values)
    most = max(counts.values(), default=0)
    return [value for value, times in counts.items() if times == most]
