"""Small changes to the functions of a module, one at a time: what a test suite should notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

Function = ast.FunctionDef | ast.AsyncFunctionDef

OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
NEXT_BOUND: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
NOT_CODE = ("decorator_list", "args", "returns", "annotation", "type_comment", "ctx")
"""Fields of the syntax tree that hold no code of a function's body."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change at ``line``."""

    line: int
    change: str
    text: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of the functions of a module whose text is ``source``, in the order of its lines."""
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for place, old, new in _changes(function, _assigned(function)):
                place.put(new)
                yield Mutant(old.lineno, f"{_short(old)} -> {_short(new)}", ast.unparse(tree))
                place.put(old)


@dataclass(frozen=True)
class _Place:
    """Where a node hangs in the tree."""

    parent: ast.AST
    field: str
    index: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def _changes(parent: ast.AST, assigned: set[str]) -> Iterator[tuple[_Place, ast.AST, ast.AST]]:
    for field, value in ast.iter_fields(parent):
        if field in NOT_CODE:
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.stmt | ast.expr) or isinstance(node, Function):
                continue  # a function in a function is visited by itself
            place = _Place(parent, field, index if isinstance(value, list) else None)
            for new in _alternatives(node, assigned):
                yield place, node, new
            yield from _changes(node, assigned)


def _alternatives(node: ast.AST, assigned: set[str]) -> Iterator[ast.AST]:
    """What ``node`` is replaced with, one after the other."""
    match node:
        case ast.BoolOp(op=op, values=values):
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.Compare(left=left, ops=[op], comparators=comparators):
            yield ast.Compare(left, [OPPOSITE[type(op)]()], comparators)
            if type(op) in NEXT_BOUND:
                yield ast.Compare(left, [NEXT_BOUND[type(op)]()], comparators)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.If(body=body, orelse=orelse):
            for always in (True, False):
                yield ast.If(ast.Constant(always), body, orelse)
        case ast.stmt() if _can_go(node, assigned):
            yield ast.Pass()


def _can_go(statement: ast.stmt, assigned: set[str]) -> bool:
    """True if a function without ``statement`` does something else, rather than fail at a missing name."""
    match statement:
        case ast.Expr(value=ast.Constant()):
            return False  # a docstring
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in assigned
        case ast.Assign(targets=[ast.Tuple()]):
            return False
    return isinstance(statement, ast.Expr | ast.Assign | ast.AugAssign | ast.Break | ast.Continue)


def _assigned(function: Function) -> set[str]:
    """Names that have a value without one of their assignments: arguments, and those assigned twice."""
    arguments = function.args
    found = {argument.arg for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs}
    once: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            (found if node.id in once else once).add(node.id)
    return found


def _short(node: ast.AST) -> str:
    """The node on one line; of a compound statement, its first."""
    if isinstance(node, ast.Pass):
        return "nothing"
    return ast.unparse(node).splitlines()[0]
