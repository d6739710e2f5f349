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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
from jinja2.visitor import NodeTransformer

WORK = 5_000_000  # units of a rendering
STEP = 50  # units of one turn of a loop, beside what is written and computed in it
LETTERS = 8  # letters of a text for one unit
BITS = 4096  # the longest whole number

STATEMENTS = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock)
FILTER_NAMES = (
    "abs capitalize count d default dictsort e first float format int items join last length list lower map max min"
    " reject rejectattr replace reverse round select selectattr sort string sum title tojson trim truncate unique"
    " upper wordcount"
)
TEXT_METHODS = (
    "split rsplit splitlines partition rpartition join lower upper title capitalize casefold swapcase strip lstrip"
    " rstrip replace startswith endswith removeprefix removesuffix index rindex find rfind count isdigit isalpha"
    " isalnum isnumeric isspace isupper islower istitle"
)
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


def compile_pattern(source: str) -> jinja2.Template:
    """The pattern as a template.

    Raises:
        jinja2.TemplateSyntaxError: it is not valid, or uses a statement, filter or name that is not allowed.
        OverBudget: what is constant in it is too large.
    """
    token = _BUDGET.set(Budget(WORK))
    try:
        return _sandbox().from_string(source)
    finally:
        _BUDGET.reset(token)


def fields(source: str) -> frozenset[str]:
    """The names that a pattern takes from a row."""
    environment = _sandbox()
    found = meta.find_undeclared_variables(environment.parse(source))
    return frozenset(found - set(environment.globals))


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
def _sandbox() -> _Sandbox:
    return _Sandbox()


class _Sandbox(SandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, finalize=_written, autoescape=False)
        filters = {name: FILTERS[name] for name in FILTER_NAMES.split()}
        own = {"tojson": _to_json, "choice": _choice, "random": _choice, "most_frequent": _most_frequent}
        self.filters = {name: _paid(name, call) for name, call in {**filters, **own}.items()}
        self.tests = {name: _paid(name, call) for name, call in TESTS.items() if name != "callable"}
        self.globals = {"range": _range, "zip": zip, "enumerate": enumerate, "namespace": Namespace}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Rewrite(self.filters).visit(super()._parse(source, name, filename))
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
        if owner is __self:  # a helper that _Rewrite put there
            return __obj(*args)
        name = getattr(__obj, "__name__", "")
        if isinstance(owner, str | list | dict) and name not in MEMBERS.get(type(owner), ()):
            raise SecurityError(f"'{name}' must not be called")
        _charge(owner, *args, *kwargs.values())
        if isinstance(owner, str):
            _charge_text(name, owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        _charge(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _charge(left, right)
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
        """The value, once it is known to be small enough to be compared or put into a list."""
        _charge(value)
        return value

    def position(self, value: Any) -> Any:
        """A place in a list of words, which a label gives."""
        if isinstance(value, str):
            raise BadValue("a label is text where its number is due (give the words in order: classes)")
        if isinstance(value, int) and value < 0:
            raise BadValue("a label is negative: the row is not labelled")
        return value

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
        elif isinstance(value, list | tuple | set | frozenset):
            budget.spend(1 + len(value))
            waiting.extend(value)
        elif isinstance(value, dict):
            budget.spend(1 + 2 * len(value))
            waiting.extend(value)
            waiting.extend(value.values())
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
    """Pay for a product, a power or a text filled in by ``%`` before it is made."""
    if operator == "**" or (operator == "%" and isinstance(left, str) and re.search(r"\d{4}|\*", left)):
        raise OverBudget
    if operator == "*":
        for values, times in ((left, right), (right, left)):
            if isinstance(values, str | list | tuple) and isinstance(times, int):
                _BUDGET.get().spend(max(times, 0) * (1 + len(values)) // LETTERS)


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
        _pay_ahead("%", str(given[0]), None)
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


def _range(*bounds: int) -> range:
    found = range(*bounds)
    if len(found) > MAX_RANGE:
        raise OverBudget
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=None if indent is None else min(indent, 8))


def _choice(values: Any) -> Any:
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


class _Rewrite(NodeTransformer):
    """Refuses what is not allowed, and has loops, comparisons, lists and ``~`` pay."""

    def __init__(self, filters: Collection[str]) -> None:
        self.filters = filters

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        if isinstance(node, nodes.Stmt) and not isinstance(node, STATEMENTS):
            raise jinja2.TemplateSyntaxError(f"'{type(node).__name__.lower()}' is not allowed here", node.lineno)
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        if node.recursive:
            raise jinja2.TemplateSyntaxError("a recursive loop is not allowed here", node.lineno)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        cost = nodes.Const(STEP + text // LETTERS, lineno=node.lineno)
        self.generic_visit(node)
        node.iter = _helper("turns", node.iter, cost)
        return node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in self.filters:
            raise jinja2.TemplateSyntaxError(f"there is no filter '{node.name}' here", node.lineno)
        return self.generic_visit(node)

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        _refuse_internal(node.attr, node)
        return self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Const):
            _refuse_internal(node.arg.value, node)
        words = isinstance(node.node, nodes.List) or (
            isinstance(node.node, nodes.Name) and node.node.name == "answer_choices"
        )
        self.generic_visit(node)
        if words and not isinstance(node.arg, nodes.Const | nodes.Slice | nodes.Neg):
            node.arg = _helper("position", node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not any(isinstance(part, nodes.Const) for part in (node.expr, *(op.expr for op in node.ops))):
            node.expr = _helper("weighed", node.expr)
            for operand in node.ops:
                operand.expr = _helper("weighed", operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _helper("joined", *node.nodes)

    def visit_List(self, node: nodes.List | nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        stored = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if constant or stored else _helper("weighed", node)

    visit_Tuple = visit_List

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(pair.value, nodes.Const) for pair in node.items) else _helper("weighed", node)


def _helper(name: str, *args: Any) -> nodes.Call:
    line = args[0].lineno
    return nodes.Call(nodes.EnvironmentAttribute(name, lineno=line), list(args), [], None, None, lineno=line)


def _refuse_internal(name: Any, node: nodes.Node) -> None:
    if isinstance(name, str) and name.startswith("__"):
        raise jinja2.TemplateSyntaxError(f"'{name}' reaches into Python's internals: not allowed", node.lineno)
