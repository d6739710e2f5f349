"""How a parsed pattern is changed before it is compiled, so that it pays for its work (see ``counted_jinja``)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.visitor import NodeTransformer

STEP = 50  # units of one turn of a loop, beside what is written and computed in it
LETTERS = 8  # letters of a text for one unit
STATEMENTS = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock)


class Rewrite(NodeTransformer):
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
        if isinstance(node.arg, nodes.Slice):
            return _helper("weighed", node)
        if words and not isinstance(node.arg, nodes.Const | nodes.Neg):
            node.arg = _helper("position", node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        constant = any(isinstance(part, nodes.Const) for part in (node.expr, *(operand.expr for operand in node.ops)))
        searched = any(operand.op in ("in", "notin") for operand in node.ops)
        if searched or not constant:
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
