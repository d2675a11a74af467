"""Go's regular expressions (RE2 syntax) on Python's `regex` module, with Go's refusals and `$` as the very end."""

from __future__ import annotations

import re
from functools import lru_cache

import regex

_GROUP = re.compile(
    r"\((?:\?(?:P?<(?P<name>\w+)>|(?P<flags>[imsU]*(?:-[imsU]+)?)(?P<end>[:)])|(?P<other>.?)))?", re.DOTALL
)
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_MOST_REPEATED = 1000
_WORD = "[0-9A-Za-z_]"
_CLASSES = {"d": "0-9", "s": r"\t\n\f\r\ ", "w": "0-9A-Za-z_"}
"""Go's classes are ASCII."""
_NAMED = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "ascii": r"\x00-\x7F", "blank": r"\t\ ", "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9", "graph": r"\x21-\x7E", "lower": "a-z", "print": r"\x20-\x7E",
    "punct": r"\x21-\x2F\x3A-\x40\x5B-\x60\x7B-\x7E", "space": r"\t\n\v\f\r\ ", "upper": "A-Z",
    "word": "0-9A-Za-z_", "xdigit": "0-9A-Fa-f",
}  # fmt: skip
_PLAIN_ESCAPES = frozenset("afnrtv")
_ASSERTIONS = {
    "A": r"\A",
    "z": r"\Z",
    "b": f"(?:(?<={_WORD})(?!{_WORD})|(?<!{_WORD})(?={_WORD}))",
    "B": f"(?:(?<={_WORD})(?={_WORD})|(?<!{_WORD})(?!{_WORD}))",
}


class PatternError(ValueError):
    """A pattern that Go does not compile, with Go's message."""

    def __init__(self, why: str, part: str) -> None:
        super().__init__(f"error parsing regexp: {why}: `{part}`")


class _Translator:
    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.at = 0
        self.out: list[str] = []
        self.flags = [frozenset[str]()]
        self.open_groups = 0
        self.is_repeatable = False
        """Whether a repeatable expression precedes."""
        self.after_repeat = False

    def run(self) -> str:
        while self.at < len(self.pattern):
            self.step(self.pattern[self.at])
        if self.open_groups:
            raise PatternError("missing closing )", self.pattern)
        return "".join(self.out)

    def emit(self, text: str, width: int, *, repeatable: bool = True) -> None:
        self.out.append(text)
        self.at += width
        self.is_repeatable, self.after_repeat = repeatable, False

    def step(self, letter: str) -> None:
        match letter:
            case "(":
                self.group()
            case ")":
                self.close()
            case "[":
                self.character_class()
            case "\\":
                self.escape()
            case "*" | "+" | "?" | "{":
                self.repeat(letter)
            case "$":
                self.emit("$" if "m" in self.flags[-1] else r"\Z", 1)
            case "|":
                self.emit("|", 1, repeatable=False)
            case "^" | ".":
                self.emit(letter, 1)
            case _:
                self.emit(regex.escape(letter), 1)

    def group(self) -> None:
        match = _GROUP.match(self.pattern, self.at)
        if match is None or match["other"] is not None:
            raise PatternError("invalid or unsupported Perl syntax", self.pattern[self.at : self.at + 3])
        flags = self.flags[-1]
        if match["flags"] is not None:
            on, _, off = match["flags"].partition("-")
            flags = (flags | set(on)) - set(off)
            if "U" in flags:
                raise PatternError("the flag U is not supported by this server", match.group())
        is_open = match["end"] != ")"
        self.flags = [*self.flags, flags] if is_open else [*self.flags[:-1], flags]
        self.open_groups += is_open
        self.emit(match.group().replace("(?<", "(?P<"), match.end() - match.start(), repeatable=False)

    def close(self) -> None:
        if not self.open_groups:
            raise PatternError("unexpected )", self.pattern)
        self.open_groups -= 1
        self.flags.pop()
        self.emit(")", 1)

    def repeat(self, letter: str) -> None:
        width = 1
        if letter == "{":
            match = _COUNT.match(self.pattern, self.at)
            if match is None:
                self.emit(r"\{", 1)
                return
            width = match.end() - match.start()
            bounds = [int(one) for one in (match[1], match[3]) if one]
            if max(bounds) > _MOST_REPEATED or (len(bounds) == 2 and bounds[0] > bounds[1]):
                raise PatternError("invalid repeat count", match.group())
        operator = self.pattern[self.at : self.at + width]
        if self.after_repeat:
            raise PatternError("invalid nested repetition operator", operator)
        if not self.is_repeatable:
            raise PatternError("missing argument to repetition operator", operator)
        lazy = self.pattern[self.at + width : self.at + width + 1] == "?"
        self.emit(operator + "?" * lazy, width + lazy)
        self.after_repeat = True

    def escape(self) -> None:
        letter = self.pattern[self.at + 1 : self.at + 2]
        if not letter:
            raise PatternError("trailing backslash at end of expression", "")
        if letter == "Q":
            end = self.pattern.find(r"\E", self.at)
            text = self.pattern[self.at + 2 : end if end >= 0 else None]
            self.emit("".join(regex.escape(one) for one in text), len(text) + 2 + 2 * (end >= 0))
        elif letter in _ASSERTIONS:
            self.emit(_ASSERTIONS[letter], 2)
        else:
            text, width = self.one_escape()
            self.emit(text, width)

    def one_escape(self) -> tuple[str, int]:
        """Return an escape that represents characters, in Python's dialect, and its width in the pattern."""
        letter, rest = self.pattern[self.at + 1 : self.at + 2], self.pattern[self.at :]
        if letter in _PLAIN_ESCAPES:
            return f"\\{letter}", 2
        if letter.lower() in _CLASSES:
            return f"[{'^' * letter.isupper()}{_CLASSES[letter.lower()]}]", 2
        if letter in {"p", "P"}:
            return self.unicode_class(rest)
        if (match := re.match(r"\\x(?:([0-9a-fA-F]{2})|\{([0-9a-fA-F]+)\})", rest)) is not None:
            code = int(match[1] or match[2], 16)
            if code <= 0x10FFFF:
                return regex.escape(chr(code)), match.end()
        if (match := re.match(r"\\(0[0-7]{0,2}|[1-7][0-7]{1,2})", rest)) is not None:
            return regex.escape(chr(int(match[1], 8))), match.end()
        if letter.isascii() and not letter.isalnum() and letter:
            return regex.escape(letter), 2
        raise PatternError("invalid escape sequence", f"\\{letter}")

    @staticmethod
    def unicode_class(rest: str) -> tuple[str, int]:
        match = re.match(r"\\([pP])(?:([A-Z])|\{(\^?)([A-Za-z_]+)\})", rest)
        if match is None:
            raise PatternError("invalid character class range", rest[:3])
        name = match[2] or match[4]
        sign = match[1] if not match[3] else ("P" if match[1] == "p" else "p")
        found = f"\\{sign}{{{name}}}"
        try:
            regex.compile(found)
        except regex.error as problem:
            raise PatternError("invalid character class range", match.group()) from problem
        return found, match.end()

    def character_class(self) -> None:
        start, begin = self.at, self.at + 1
        negated = self.pattern[begin : begin + 1] == "^"
        self.at = begin + negated
        parts: list[str] = []
        is_first, low = True, ""
        while self.pattern[self.at : self.at + 1] != "]" or is_first:
            if self.at >= len(self.pattern):
                raise PatternError("missing closing ]", self.pattern[start:])
            is_first = False
            if self.pattern.startswith("[:", self.at):
                parts.append(self.named_class())
                low = ""
                continue
            text, width = self.class_item()
            self.at += width
            is_one = len(text.lstrip("\\")) == 1
            is_dash = self.pattern[self.at - 1] == "-" and width == 1
            if is_dash and low and self.pattern[self.at : self.at + 1] not in {"]", ""}:
                text, width = self.class_item()
                self.at += width
                if len(text.lstrip("\\")) != 1 or low[-1] > text[-1]:
                    raise PatternError("invalid character class range", f"{low}-{text}")
                parts.append(f"-{text}")
                low = ""
                continue
            low = text if is_one else ""
            parts.append(text)
        width = self.at + 1 - start
        self.at = start
        self.emit(f"[{'^' * negated}{''.join(parts)}]", width)

    def named_class(self) -> str:
        match = re.match(r"\[:(\^?)([a-z]+):\]", self.pattern[self.at :])
        if match is None or match[2] not in _NAMED:
            raise PatternError("invalid character class range", self.pattern[self.at : self.at + 2])
        self.at += match.end()
        return f"[{match[1]}{_NAMED[match[2]]}]"

    def class_item(self) -> tuple[str, int]:
        letter = self.pattern[self.at]
        if letter == "\\":
            return self.one_escape() if self.at + 1 < len(self.pattern) else ("", 1)
        return (f"\\{letter}" if letter in r"[]^-&|~ " else letter), 1


@lru_cache(maxsize=2048)
def compile_pattern(pattern: str) -> regex.Pattern[str]:
    """Return the compiled pattern; raise PatternError if Go would not compile it."""
    translated = _Translator(pattern).run()
    try:
        return regex.compile(translated, regex.VERSION1)
    except (regex.error, OverflowError) as problem:
        raise PatternError(str(problem), pattern) from problem


def matches(pattern: str, text: str) -> bool:
    """Return whether a Go pattern occurs in a text; raise PatternError if Go would not compile it."""
    return compile_pattern(pattern).search(text) is not None
