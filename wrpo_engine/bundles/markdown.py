"""Counts of Markdown elements, as Arena-Hard counts them."""

from __future__ import annotations

import re

_CODE = re.compile(r"```([^`]*)```")
_HEADERS = {f"h{level}": re.compile(rf"^#{{{level}}}\s", re.MULTILINE) for level in range(1, 7)}
_LISTS = {
    "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
}
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Return the numbers of headers, list items and bold texts outside code blocks, as Arena-Hard's files name them."""
    plain = text
    for code in _CODE.findall(text):
        # The original removes a block's text wherever it occurs, and leaves the fences.
        plain = plain.replace(code, "")
    groups = {"header_count": _HEADERS, "list_count": _LISTS, "bold_count": _BOLD}
    return {
        group: {name: len(pattern.findall(plain)) for name, pattern in patterns.items()}
        for group, patterns in groups.items()
    }
