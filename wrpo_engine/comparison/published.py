"""The paper's figures, which a comparison shows next to its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of the paper's tables."""

    row: str
    figures: Mapping[str, Mapping[str, float]]
    """Kind of benchmark -> figure by name: lc, wr or score."""
    notes: Sequence[str] = field(default_factory=tuple)
    """Where the paper contradicts itself about this row."""

    def text(self, kind: str) -> str:
        """Return the figures for a benchmark as the paper writes them, e.g. 55.9 / 57.6; empty if there are none."""
        figures = self.figures.get(kind, {})
        return " / ".join(f"{figures[name]:g}" for name in ("lc", "wr", "score") if name in figures)


def published_row(name: str) -> Published | None:
    """Return the paper's row of a system's name, its capitals aside; None if the paper has none."""
    return _rows().get(name.rpartition("/")[2].lower())


def published_note(kind: str) -> str:
    """Return what to know about the paper's figures for a benchmark."""
    return str(_content()["notes"].get(kind, ""))


@cache
def _rows() -> dict[str, Published]:
    found: dict[str, Published] = {}
    for row, entry in _content()["rows"].items():
        figures = {kind: values for kind, values in entry.items() if kind not in ("names", "notes")}
        published = Published(row=row, figures=figures, notes=tuple(entry.get("notes", ())))
        for name in entry["names"]:
            known = found.setdefault(name.lower(), published)
            if known.row != row:
                raise ValueError(f"published.yaml has the name {name} in the rows {known.row} and {row}")
    return found


@cache
def _content() -> dict[str, Any]:
    text = files("wrpo_engine.comparison").joinpath("published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
