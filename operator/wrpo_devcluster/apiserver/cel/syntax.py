"""Lexer, parser and macros of Kubernetes' CEL dialect."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

RESERVED = frozenset({
    "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package",
    "namespace", "return", "var", "void", "while",
})  # fmt: skip
KEYWORDS = frozenset({"true", "false", "null", "in"})
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f]+|//[^\n]*)
    |(?P<number>0[xX][0-9a-fA-F]+[uU]?|(?:[0-9]+\.[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+|\.[0-9]+(?:[eE][+-]?[0-9]+)?)|[0-9]+[uU]?)
    |(?P<string>[rR]?[bB]?(?:\"{3}|'{3}|\"|')|[bB][rR](?:\"{3}|'{3}|\"|'))
    |(?P<ident>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<op>&&|\|\||[<>=!]=|[-+*/%<>!?:.,()\[\]{}])""",
    re.VERBOSE,
)
_SIMPLE_ESCAPES = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "\\": "\\", "?": "?", '"': '"', "'": "'", "`": "`",
}  # fmt: skip
_HEX_ESCAPES = {"x": 2, "X": 2, "u": 4, "U": 8}
MAX_DEPTH = 250
"""Deepest nesting that is parsed, as in the library of the real server."""


class RuleSyntaxError(ValueError):
    """An expression that cannot be parsed; `at` is the offset of the fault."""

    def __init__(self, at: int, message: str) -> None:
        super().__init__(message)
        self.at = at


@dataclass(slots=True, eq=False)
class Expr:
    """Node of a tree. `kind` determines which of the other fields matter. The checker sets `type` and `overload`."""

    kind: str
    """literal, ident, select, has, call, list, map or macro."""
    at: int
    name: str = ""
    """Identifier, field, function or macro."""
    value: Any = None
    """Value of a literal: None for null, UInt for unsigned integers."""
    target: Expr | None = None
    args: list[Expr] = field(default_factory=list)
    variables: tuple[str, ...] = ()
    optional: frozenset[int] = frozenset()
    """Which items of a list or map literal are marked with `?`."""
    type: Any = None
    overload: str = ""

    def children(self) -> list[Expr]:
        """Return the parts of the node: its target, if any, and its arguments."""
        return [*([self.target] if self.target is not None else []), *self.args]


class UInt(int):
    """An unsigned literal."""


_MACROS = {
    ("all", 2): 1, ("exists", 2): 1, ("exists_one", 2): 1, ("existsOne", 2): 1, ("map", 2): 1, ("map", 3): 1,
    ("filter", 2): 1, ("optMap", 2): 1, ("optFlatMap", 2): 1,
    ("all", 3): 2, ("exists", 3): 2, ("existsOne", 3): 2, ("transformList", 3): 2, ("transformList", 4): 2,
    ("transformMap", 3): 2, ("transformMap", 4): 2,
}  # fmt: skip
"""(name, number of arguments) -> number of variables that it declares."""
_RELATIONS = ("<", "<=", ">=", ">", "==", "!=", "in")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int
    value: Any = None


def _number(text: str, at: int) -> Any:
    if text[-1] in "uU":
        return UInt(int(text[:-1], 0))
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", text):
        found = int(text, 0) if text[:2] in {"0x", "0X"} else int(text)
        if found > 2**63:
            raise RuleSyntaxError(at, "invalid int literal")
        return found
    return float(text)


def _string(source: str, start: int, opening: str) -> tuple[Any, int]:
    """Return the value of a string or bytes literal and the offset after it."""
    quote = opening.lstrip("rRbB")
    prefix = opening[: len(opening) - len(quote)].lower()
    at, parts = start + len(opening), []
    while not source.startswith(quote, at):
        if at >= len(source) or (len(quote) == 1 and source[at] == "\n"):
            raise RuleSyntaxError(start, "Syntax error: unterminated string")
        if source[at] == "\\" and "r" not in prefix:
            text, at = _escape(source, at + 1)
            parts.append(text)
        else:
            parts.append(source[at])
            at += 1
    text = "".join(parts)
    return (text.encode() if "b" in prefix else text), at + len(quote)


def _escape(source: str, at: int) -> tuple[str, int]:
    letter = source[at : at + 1]
    if letter in _SIMPLE_ESCAPES:
        return _SIMPLE_ESCAPES[letter], at + 1
    width = _HEX_ESCAPES.get(letter, 0)
    digits = source[at + 1 : at + 1 + width] if width else source[at : at + 3]
    pattern = f"[0-9a-fA-F]{{{width}}}" if width else "[0-3][0-7]{2}"
    if not letter or not re.fullmatch(pattern, digits):
        raise RuleSyntaxError(at, "Syntax error: invalid escape sequence")
    code = int(digits, 16 if width else 8)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise RuleSyntaxError(at, "invalid unicode code point")
    return chr(code), at + (1 + width if width else 3)


def _tokens(source: str) -> list[_Token]:
    found, at = [], 0
    while at < len(source):
        match = _TOKEN.match(source, at)
        if match is None:
            raise RuleSyntaxError(at, f"Syntax error: token recognition error at: '{source[at]}'")
        kind, text, begin = str(match.lastgroup), match.group(), at
        at = match.end()
        if kind == "string":
            value, at = _string(source, begin, text)
            found.append(_Token(kind, text, begin, value))
        elif kind == "number":
            found.append(_Token(kind, text, begin, _number(text, begin)))
        elif kind != "space":
            found.append(_Token(kind, text, begin))
    return [*found, _Token("end", "<EOF>", len(source))]


class _Parser:
    def __init__(self, source: str) -> None:
        self.tokens = _tokens(source)
        self.place = 0
        self.depth = 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.place]

    def take(self, *texts: str) -> _Token | None:
        token = self.now
        if token.text in texts and token.kind in {"op", "ident"}:
            self.place += 1
            return token
        return None

    def expect(self, text: str) -> _Token:
        token = self.take(text)
        if token is None:
            raise RuleSyntaxError(self.now.at, f"Syntax error: mismatched input '{self.now.text}' expecting '{text}'")
        return token

    def expression(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RuleSyntaxError(self.now.at, f"expression recursion limit exceeded: {MAX_DEPTH}")
        condition = self.binary(0)
        mark = self.take("?")
        if mark is not None:
            then = self.binary(0)
            self.expect(":")
            condition = Expr("call", mark.at, "_?_:_", args=[condition, then, self.expression()])
        self.depth -= 1
        return condition

    LEVELS = (("||",), ("&&",), _RELATIONS, ("+", "-"), ("*", "/", "%"))

    def binary(self, level: int) -> Expr:
        if level == len(self.LEVELS):
            return self.unary()
        left = self.binary(level + 1)
        while (token := self.take(*self.LEVELS[level])) is not None:
            name = "@in" if token.text == "in" else f"_{token.text}_"
            left = Expr("call", token.at, name, args=[left, self.binary(level + 1)])
        return left

    def unary(self) -> Expr:
        token = self.take("!", "-")
        if token is None:
            return self.member()
        if token.text == "-" and self.now.kind == "number" and not isinstance(self.now.value, UInt):
            number = self.now
            self.place += 1
            return self.suffixes(Expr("literal", token.at, value=-number.value))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise RuleSyntaxError(token.at, f"expression recursion limit exceeded: {MAX_DEPTH}")
        operand = self.unary()
        self.depth -= 1
        return Expr("call", token.at, f"{token.text}_", args=[operand])

    def member(self) -> Expr:
        return self.suffixes(self.primary())

    def suffixes(self, found: Expr) -> Expr:
        while True:
            if (dot := self.take(".")) is not None:
                found = self.selection(found, dot)
            elif (bracket := self.take("[")) is not None:
                is_optional = self.take("?") is not None
                found = Expr("call", bracket.at, "_[?_]" if is_optional else "_[_]", args=[found, self.expression()])
                self.expect("]")
            else:
                return found

    def selection(self, operand: Expr, dot: _Token) -> Expr:
        is_optional = self.take("?") is not None
        token = self.now
        if token.kind != "ident" or token.text in KEYWORDS:
            raise RuleSyntaxError(token.at, f"Syntax error: no viable alternative at input '.{token.text}'")
        self.place += 1
        if is_optional:
            field_name = Expr("literal", token.at, value=token.text)
            return Expr("call", dot.at, "_?._", args=[operand, field_name])
        if (bracket := self.take("(")) is not None:
            return self.call(token.text, bracket.at, operand, self.items(")"))
        return Expr("select", dot.at, token.text, target=operand)

    def call(self, name: str, at: int, target: Expr | None, args: list[Expr]) -> Expr:
        if target is None and name == "has":
            if len(args) != 1 or args[0].kind != "select":
                raise RuleSyntaxError(at, "invalid argument to has() macro")
            return Expr("has", at, args[0].name, target=args[0].target)
        variables = _MACROS.get((name, len(args))) if target is not None else None
        if variables is None:
            return Expr("call", at, name, target=target, args=args)
        declared = args[:variables]
        for one in declared:
            if one.kind != "ident":
                raise RuleSyntaxError(one.at, "argument must be a simple name")
        names = tuple(one.name for one in declared)
        return Expr("macro", at, name, target=target, args=args[variables:], variables=names)

    def items(self, closing: str) -> list[Expr]:
        found: list[Expr] = []
        while self.take(closing) is None:
            found.append(self.expression())
            if self.take(",") is None:
                self.expect(closing)
                break
        return found

    def primary(self) -> Expr:
        token = self.now
        if token.kind in {"number", "string"}:
            self.place += 1
            if token.value == 2**63 and isinstance(token.value, int) and not isinstance(token.value, UInt):
                raise RuleSyntaxError(token.at, "invalid int literal")
            return Expr("literal", token.at, value=token.value)
        if token.kind == "op":
            return self.bracketed(token)
        if token.kind != "ident" or token.text == "in":
            raise RuleSyntaxError(token.at, f"Syntax error: mismatched input '{token.text}' expecting an expression")
        self.place += 1
        if token.text in KEYWORDS:
            return Expr("literal", token.at, value={"true": True, "false": False, "null": None}[token.text])
        if token.text in RESERVED:
            raise RuleSyntaxError(token.at, f"reserved identifier: {token.text}")
        if (bracket := self.take("(")) is not None:
            return self.call(token.text, bracket.at, None, self.items(")"))
        return Expr("ident", token.at, token.text)

    def bracketed(self, token: _Token) -> Expr:
        self.place += 1
        if token.text == "(":
            inner = self.expression()
            self.expect(")")
            return inner
        if token.text == "[":
            return self.literal_items(token, "list", "]")
        if token.text == "{":
            return self.literal_items(token, "map", "}")
        if token.text == "." and self.now.kind == "ident":
            return self.primary()
        self.place -= 1
        raise RuleSyntaxError(token.at, f"Syntax error: mismatched input '{token.text}' expecting an expression")

    def literal_items(self, token: _Token, kind: str, closing: str) -> Expr:
        args: list[Expr] = []
        marked: set[int] = set()
        while self.take(closing) is None:
            if self.take("?") is not None:
                marked.add(len(args))
            args.append(self.expression())
            if kind == "map":
                self.expect(":")
                args.append(self.expression())
            if self.take(",") is None:
                self.expect(closing)
                break
        return Expr(kind, token.at, args=args, optional=frozenset(marked))


def parse(source: str) -> Expr:
    """Return the tree of an expression; raise RuleSyntaxError if it cannot be parsed."""
    parser = _Parser(source)
    try:
        found = parser.expression()
    except RecursionError as problem:
        raise RuleSyntaxError(0, f"expression recursion limit exceeded: {MAX_DEPTH}") from problem
    if parser.now.kind != "end":
        raise RuleSyntaxError(parser.now.at, f"Syntax error: extraneous input '{parser.now.text}' expecting <EOF>")
    return found


def where(source: str, at: int, message: str) -> str:
    """Return a fault in the real server's form: line, column, message, and the source line with a mark under it."""
    line = source.count("\n", 0, at) + 1
    begin = source.rfind("\n", 0, at) + 1
    shown = source[begin:].split("\n", 1)[0]
    return f"ERROR: <input>:{line}:{at - begin + 1}: {message}\n | {shown}\n | {'.' * (at - begin)}^"
