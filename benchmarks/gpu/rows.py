"""Rows of a part's result, written one by one: a part that fails or is ended keeps the cases that it finished."""

from __future__ import annotations

import gc
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Figures = Mapping[str, Any]
LOG = "log"
"""File next to the rows: what the process and its children print."""
_DETAIL = 4000


@dataclass(frozen=True)
class Row:
    """One measured case: its figures, or the error that it ended with."""

    case: str
    figures: Figures
    error: str | None = None
    """One line."""
    detail: str | None = None
    """End of the traceback or of the process's output."""

    def to_json(self) -> dict[str, Any]:
        shown = {"case": self.case, "figures": dict(self.figures), "error": self.error, "detail": self.detail}
        return {name: value for name, value in shown.items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Row:
        return cls(value["case"], value["figures"], value.get("error"), value.get("detail"))

    @classmethod
    def failed(cls, case: str, output: str, figures: Figures | None = None) -> Row:
        """Return the row of an error whose traceback or output ends with `output`."""
        return cls(case, figures or {}, last_line(output), output[-_DETAIL:])


def last_line(output: str) -> str:
    """Return the last line of a traceback or output that is not empty: the line of the exception."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # A traceback's last unindented line begins the exception's text, which may have several lines.
    starts = [line for line in output.splitlines() if line and not line[0].isspace() and "Error" in line.split(":")[0]]
    return (starts or lines or ["ended without output"])[-1].strip()


class RowWriter:
    """The rows of one part's process, appended to a file as soon as they exist."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def measure(self, case: str, act: Callable[[], Figures]) -> Figures | None:
        """Add the row of a case; return its figures, or None if it failed, which does not end the part."""
        try:
            figures = act()
        except Exception:  # noqa: BLE001 (any error is this row's result)
            self.add(Row.failed(case, traceback.format_exc()))
            figures = None
        _free_memory()
        if figures is not None:
            self.add(Row(case, figures))
        return figures

    def add(self, row: Row) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(row.to_json()) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the complete rows of a file that may not exist and whose last line may be incomplete."""
    if not path.exists():
        return []
    text = path.read_text()
    return [Row.from_json(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
