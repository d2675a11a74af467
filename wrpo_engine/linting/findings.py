"""Findings of a check: rule, severity, number of rows, and the ids of some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import polars as pl

_SHOWN_CHARS = 80


class Severity(StrEnum):
    """ERROR: training on it fails or learns the wrong thing. WARNING: probably a mistake. INFO: for information."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row, 1 the first; `text` shows what was found."""

    row: int
    prompt_id: str | None
    column: str | None
    text: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A rule that `count` rows break."""

    rule: str
    severity: Severity
    count: int
    message: str
    examples: list[Example] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as --json prints it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of output and work."""

    max_examples: int = 3
    near: float = 0.7
    """Jaccard similarity of word trigrams from which two prompts count as near duplicates."""

    def shown(self, column: str | None = None, *, as_column: str | None = None) -> Shown:
        """Return which rows a finding about a column shows, with the text of `as_column` if it is another one."""
        return Shown(self.max_examples, column, as_column or column)


@dataclass(frozen=True)
class Shown:
    """What a finding shows of the rows that break a rule."""

    most: int
    column: str | None
    """The column that the finding names."""
    text_column: str | None

    def of(self, rows: pl.DataFrame) -> list[Example]:
        """Return the examples of these rows."""
        return [
            Example(
                row=row["row"],
                prompt_id=row.get("prompt_id"),
                column=self.column,
                text=shorten(row.get(self.text_column or "")),
            )
            for row in rows.head(self.most).iter_rows(named=True)
        ]


def finding(rows: pl.DataFrame, rule: str, severity: Severity, message: str, shown: Shown) -> list[Finding]:
    """Return a finding about these rows (`row`, perhaps prompt_id), or none if there are no rows."""
    if not rows.height:
        return []
    return [Finding(rule=rule, severity=severity, count=rows.height, message=message, examples=shown.of(rows))]


def shorten(value: Any) -> str:
    """Return a value in one line of bounded length."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 1]}…"


def has_errors(findings: Sequence[Finding]) -> bool:
    """Return whether a finding has severity ERROR."""
    return any(each.severity is Severity.ERROR for each in findings)
