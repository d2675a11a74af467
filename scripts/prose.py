"""Check the English of documentation and sources against the rules in `.vale/styles/WRPO`.

    python scripts/prose.py            checks what [tool.prose] of pyproject.toml lists
    python scripts/prose.py FILE...    checks these files

The rules are files of the linter vale (https://vale.sh), so that editors and forks can run vale itself. This script
needs no binary: the package `vale` downloads one at its first run, which fails offline. It supports three kinds of
rules: `existence`, `substitution` and `occurrence`.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / ".vale" / "styles" / "WRPO"
CODE = "\N{REPLACEMENT CHARACTER}"
"""Stands in for inline code, which is not checked but counts as a word."""

GENERATED = re.compile(r"<!-- (?P<name>[a-z-]+) -->.*?<!-- /(?P=name) -->", re.DOTALL)
"""A part of a page that a program writes."""
SENTENCE = re.compile(r"[^.!?:;]+(?:[.!?:;](?!\s|$)[^.!?:;]*)*")
INLINE_CODE = re.compile(r"``.+?``|`[^`\n]*`", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of prose; `line` is the line of the file on which it begins, counted from 1."""

    line: int
    text: str
    heading: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A place where a passage breaks a rule."""

    line: int
    rule: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One file of a vale style: patterns with the message for each, or a maximum of words in a sentence."""

    name: str
    patterns: tuple[tuple[re.Pattern[str], str], ...]
    headings_only: bool = False
    maximum: int | None = None

    def findings(self, passage: Passage) -> Iterator[Finding]:
        """Yield every place in the passage that breaks this rule."""
        if self.headings_only and not passage.heading:
            return
        for pattern, message in self.patterns:
            for start, text in self._matches(pattern, passage.text):
                line = passage.line + passage.text.count("\n", 0, start)
                yield Finding(line, self.name, message.replace("%s", " ".join(text.split())))

    def _matches(self, pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
        if self.maximum is None:
            yield from ((match.start(), match[0]) for match in pattern.finditer(text))
            return
        for sentence in SENTENCE.finditer(text):
            if len(pattern.findall(sentence[0])) > self.maximum:
                start = sentence.start() + len(sentence[0]) - len(sentence[0].lstrip())
                yield start, sentence[0]


def read_rule(path: Path) -> Rule:
    """Return the rule of a file of a vale style.

    Raises ValueError for a kind of rule that this script does not know.
    """
    content: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    flags = re.IGNORECASE if content.get("ignorecase") else re.NOFLAG
    message = str(content["message"])

    def compiled(token: str) -> re.Pattern[str]:
        spaced = token.replace(" ", r"\s+")
        return re.compile(spaced if content.get("nonword") else rf"\b(?:{spaced})\b", flags)

    match content["extends"]:
        case "existence":
            patterns = [(compiled(token), message) for token in content["tokens"]]
            return Rule(path.stem, tuple(patterns), headings_only=content.get("scope") == "heading")
        case "substitution":
            swaps = content["swap"].items()
            return Rule(path.stem, tuple((compiled(old), message.replace("%s", new, 1)) for old, new in swaps))
        case "occurrence":
            return Rule(path.stem, ((re.compile(content["token"]), message),), maximum=int(content["max"]))
        case kind:
            raise ValueError(f"{path}: a rule that extends {kind!r} is not supported by {Path(__file__).name}")


def read_rules(directory: Path = RULES) -> tuple[Rule, ...]:
    """Return the rules of a style, by name."""
    return tuple(read_rule(path) for path in sorted(directory.glob("*.yml")))


def markdown_passages(text: str) -> Iterator[Passage]:
    """Yield paragraphs, list items, headings and table cells; code, HTML and generated parts are left out."""
    heading = False
    line = 0
    written = GENERATED.sub(lambda part: "\n" * part[0].count("\n"), text)
    for token in MarkdownIt("commonmark").enable("table").parse(written):
        heading = token.type == "heading_open" or (heading and token.type != "heading_close")
        line = token.map[0] if token.map else line
        if token.type == "inline":
            yield Passage(line + 1, "".join(_inline(token.children or [])), heading=heading)


def _inline(children: Sequence[Token]) -> Iterator[str]:
    for child in children:
        match child.type:
            case "text":
                yield child.content
            case "softbreak" | "hardbreak":
                yield "\n"
            case "code_inline":
                yield CODE
            case _:
                continue


def python_passages(source: str) -> Iterator[Passage]:
    """Yield docstrings, comments, and every other text of three words or more, such as messages and help."""
    yield from _comments(source)
    inside: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else CODE for part in node.values]
            inside.update(id(part) for part in node.values)
            yield from _text(node.lineno, "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield from _text(node.lineno, node.value)


def _comments(source: str) -> Iterator[Passage]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from _text(token.start[0], token.string.lstrip("#! "))


def _text(line: int, text: str) -> Iterator[Passage]:
    """Yield the paragraphs of a text in which inline code and indented blocks are no prose."""
    if len(text.split()) < 3:
        return
    number = line
    for paragraph in re.split(r"(\n(?:\s*\n)+)", _without_margin(text)):
        if paragraph.strip() and not paragraph.startswith("    "):
            prose = INLINE_CODE.sub(lambda code: CODE + "\n" * code[0].count("\n"), paragraph)
            # Click does not wrap a paragraph that begins with a backspace: each of its lines is an item.
            items = prose.split("\n") if prose.startswith("\b") else [prose]
            yield from (Passage(number + index, item) for index, item in enumerate(items))
        number += paragraph.count("\n")


def _without_margin(text: str) -> str:
    """Remove the indentation that all lines but the first share, as `inspect.cleandoc` does, and keep all lines."""
    first, *others = text.split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first, *(line[margin:] for line in others)])


def yaml_passages(text: str) -> Iterator[Passage]:
    """Yield each `description` of a schema and each comment."""
    for document in yaml.compose_all(text):
        yield from _descriptions(document)
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#"):
            yield from _text(number, line.lstrip("# "))


def _descriptions(node: yaml.Node) -> Iterator[Passage]:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _descriptions(item)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value in {"description", "summary"} and isinstance(value, yaml.ScalarNode):
                yield from _text(value.start_mark.line + 1, value.value)
            yield from _descriptions(value)


PASSAGES: Mapping[str, Callable[[str], Iterator[Passage]]] = {
    ".md": markdown_passages,
    ".py": python_passages,
    ".yaml": yaml_passages,
    ".yml": yaml_passages,
}


def check(path: Path, rules: Iterable[Rule]) -> list[Finding]:
    """Return the findings in a file, by line."""
    passages = list(PASSAGES[path.suffix](path.read_text(encoding="utf-8")))
    found = [finding for rule in rules for passage in passages for finding in rule.findings(passage)]
    return sorted(found, key=lambda finding: (finding.line, finding.rule, finding.message))


def listed(settings: Mapping[str, Sequence[str]]) -> list[Path]:
    """Return the files that the patterns of `paths` name and those of `exclude` do not.

    Raises ValueError for a pattern of `paths` that matches no file.
    """
    excluded = {path for pattern in settings.get("exclude", ()) for path in ROOT.glob(pattern)}
    files: set[Path] = set()
    for pattern in settings["paths"]:
        matched = {path for path in ROOT.glob(pattern) if path.is_file() and path.suffix in PASSAGES}
        if not matched:
            raise ValueError(f"pyproject.toml, tool.prose.paths: {pattern!r} matches no file")
        files |= matched
    return sorted(files - excluded)


def not_applied(settings: Mapping[str, Any]) -> Mapping[str, frozenset[Path]]:
    """Return rule -> files to which it does not apply, as the table `without` names them.

    Raises ValueError for a pattern that matches no file.
    """
    found: dict[str, frozenset[Path]] = {}
    for rule, patterns in settings.get("without", {}).items():
        files = {pattern: frozenset(ROOT.glob(pattern)) for pattern in patterns}
        for pattern, matched in files.items():
            if not matched:
                raise ValueError(f"pyproject.toml, tool.prose.without.{rule}: {pattern!r} matches no file")
        found[rule] = frozenset().union(*files.values())
    return found


def main(arguments: Sequence[str]) -> int:
    """Print every finding as FILE:LINE: message (rule); return 1 if there is one."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["prose"]
    files = [Path(argument).resolve() for argument in arguments] or listed(settings)
    rules, without = read_rules(), not_applied(settings)
    count = 0
    for path in files:
        applied = [rule for rule in rules if path not in without.get(rule.name, ())]
        for finding in check(path, applied):
            count += 1
            print(f"{path.relative_to(ROOT)}:{finding.line}: {finding.message} ({finding.rule})")
    print(f"prose: {count} findings in {len(files)} files" if count else f"prose: {len(files)} files checked")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
