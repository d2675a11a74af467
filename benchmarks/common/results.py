"""Results: JSON under .benchmarks/, a table on the terminal, the same table in a README between two markers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.common.machine import Machine

RESULTS = Path(__file__).resolve().parents[2] / ".benchmarks"


@dataclass(frozen=True)
class Table:
    """Rows of text under a title, with notes for the reader."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)

    def markdown(self) -> str:
        lines = [f"| {' | '.join(self.columns)} |", f"|{'---|' * len(self.columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join([f"**{self.title}**", "", *lines, *(["", *self.notes] if self.notes else [])])

    def show(self, console: Console) -> None:
        table = RichTable(title=self.title)
        for position, column in enumerate(self.columns):
            table.add_column(column, justify="left" if position == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        for note in self.notes:
            console.print(note)


def save_result(name: str, machine: Machine, figures: Mapping[str, Any], *, directory: Path = RESULTS) -> Path:
    """Write the machine and its measurements to `.benchmarks/NAME.json`, for `load_result` and comparisons."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"name": name, "machine": machine.to_json(), **figures}, indent=1) + "\n")
    temporary.replace(path)
    return path


def load_result(name: str, *, directory: Path = RESULTS) -> dict[str, Any] | None:
    path = directory / f"{name}.json"
    if not path.is_file():
        return None
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def machine_of(result: Mapping[str, Any]) -> Machine:
    return Machine(**result["machine"])


def replace_section(readme: Path, name: str, content: str) -> None:
    """Put `content` between `<!-- NAME -->` and `<!-- /NAME -->`; raise ValueError if the page lacks these markers."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    text = readme.read_text()
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{readme} has no section {begin} ... {end}")
    readme.write_text(f"{before}{begin}\n{content}\n{end}{after}")
