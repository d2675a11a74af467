"""The mutants of a Python module: its source with one place changed. `scripts/mutation.py` runs the tests on them.

Changed are comparisons (by one place or negated), arithmetic, `and` and `or`, conditions, numbers, `min` and `max`,
`any` and `all`, `break` and `continue`, and returned values. Calls whose result is unused and `raise` are removed.
Not changed are texts, annotations, decorators, assertions, log calls, and the expression of a `raise`. `strict` of a
call, e.g. of `zip`, counts as an assertion.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "ceil": "floor", "floor": "ceil"}
LOGGERS = frozenset({"log", "logger", "logging"})


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a module's source."""

    start: int
    """Byte offset of what is replaced, and of its end."""
    end: int
    replacement: str
    line: int
    was: str
    """The changed lines before, stripped and joined by blanks, and after."""
    now: str

    def of(self, source: str) -> str:
        """Return the changed source."""
        content = source.encode()
        return (content[: self.start] + self.replacement.encode() + content[self.end :]).decode()


def mutants_of(source: str) -> list[Mutant]:
    """Return all mutants that compile, in the order of the source."""
    text = _Text(source)
    found: dict[tuple[int, int, str], Mutant] = {}
    for start, end, replacement in _changes(ast.parse(source), text):
        mutant = text.mutant(start, end, replacement)
        if _compiles(mutant.of(source)):
            found.setdefault((start, end, replacement), mutant)
    return sorted(found.values(), key=lambda mutant: (mutant.start, mutant.end, mutant.replacement))


def replaced(source: str, was: str, now: str) -> Mutant:
    """Return the mutant that replaces one passage of the source by another; ValueError unless it occurs once."""
    content, passage = source.encode(), was.encode()
    if content.count(passage) != 1:
        raise ValueError(f"occurs {content.count(passage)} times in the module, must occur once: {was}")
    start = content.index(passage)
    return _Text(source).mutant(start, start + len(passage), now)


class _Text:
    """A source by byte offsets, in which `ast` counts columns."""

    def __init__(self, source: str) -> None:
        self.content = source.encode()
        self.starts = [0]
        for line in self.content.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.starts[node.lineno - 1] + node.col_offset, self.starts[node.end_lineno - 1] + node.end_col_offset

    def of(self, node: ast.expr | ast.stmt) -> str:
        start, end = self.span(node)
        return self.content[start:end].decode()

    def between(self, left: ast.expr, right: ast.expr, word: str) -> tuple[int, int]:
        """Return the span of the operator between its operands."""
        start = self.content.index(word.encode(), self.span(left)[1], self.span(right)[0])
        return start, start + len(word)

    def mutant(self, start: int, end: int, replacement: str) -> Mutant:
        line = self.content.count(b"\n", 0, start) + 1
        first = self.starts[line - 1]
        last = self.content.find(b"\n", end)
        last = len(self.content) if last < 0 else last
        after = self.content[first:start] + replacement.encode() + self.content[end:last]
        return Mutant(start, end, replacement, line, _one_line(self.content[first:last]), _one_line(after))


def _one_line(content: bytes) -> str:
    return " ".join(line.strip() for line in content.decode().splitlines())


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


def _changes(node: ast.AST, text: _Text) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, replacement) of all below a node."""
    if _is_left_alone(node):
        return
    yield from _of_node(node, text)
    if isinstance(node, ast.Raise):
        return
    for child in _children(node):
        yield from _changes(child, text)


def _is_left_alone(node: ast.AST) -> bool:
    """Return whether no change below a node could matter to a test: assertions, log lines, docstrings and messages."""
    match node:
        case ast.Assert() | ast.keyword(arg="strict") | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call() as call):
            return _is_log(call)
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr():
            return True
        case _:
            return False


def _of_node(node: ast.AST, text: _Text) -> Iterator[tuple[int, int, str]]:
    """Yield the changes of a node itself."""
    match node:
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield (*text.span(node), "pass")
        case ast.stmt():
            yield from _of_statement(node, text)
        case ast.expr():
            yield from _of_expression(node, text)
        case ast.comprehension():
            for condition in node.ifs:
                yield (*text.span(condition), f"not ({text.of(condition)})")
        case _:
            pass


def _children(node: ast.AST) -> Iterator[ast.AST]:
    skipped = {"annotation", "returns", "decorator_list"}
    if isinstance(node, ast.ClassDef):
        skipped |= {"bases", "keywords"}
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if name not in skipped and isinstance(child, ast.AST):
                yield child


def _is_log(call: ast.Call) -> bool:
    function = call.func
    return isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in LOGGERS


def _of_statement(node: ast.stmt, text: _Text) -> Iterator[tuple[int, int, str]]:
    match node:
        case ast.If(test=test) | ast.While(test=test):
            yield (*text.span(test), f"not ({text.of(test)})")
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            yield (*text.span(value), "None")
        case ast.Break():
            yield (*text.span(node), "continue")
        case ast.Continue():
            yield (*text.span(node), "break")
        case ast.AugAssign(op=operator) if type(operator) in ARITHMETIC:
            old, new = ARITHMETIC[type(operator)]
            start, _ = text.between(node.target, node.value, f"{old}=")
            yield start, start + len(old), new
        case _:
            pass


def _of_expression(node: ast.expr, text: _Text) -> Iterator[tuple[int, int, str]]:
    match node:
        case ast.Compare():
            for (left, right), operator in zip(pairwise([node.left, *node.comparators]), node.ops, strict=True):
                old, new = COMPARISONS[type(operator)]
                yield (*text.between(left, right, old), new)
        case ast.BinOp(op=operator) if type(operator) in ARITHMETIC:
            old, new = ARITHMETIC[type(operator)]
            yield (*text.between(node.left, node.right, old), new)
        case ast.BoolOp():
            old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
            for left, right in pairwise(node.values):
                yield (*text.between(left, right, old), new)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield (*text.span(node), text.of(node.operand))
        case ast.IfExp(test=test):
            yield (*text.span(test), f"not ({text.of(test)})")
        case ast.Constant(value=value):
            yield from ((*text.span(node), new) for new in _of_constant(value))
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in FUNCTIONS and isinstance(node.ctx, ast.Load):
            end = text.span(node)[1]
            yield end - len(name), end, FUNCTIONS[name]
        case _:
            pass


def _of_constant(value: object) -> Iterator[str]:
    match value:
        case bool():
            yield str(not value)
        case int() | float():
            yield repr(value + 1)
        case _:
            pass
