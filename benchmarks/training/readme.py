"""Puts the saved results into benchmarks/README.md: `python -m benchmarks.training.readme`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common.results import RESULTS, Table, load_result, machine_of, replace_section
from benchmarks.training import compare, growth, scaling, vocabulary

README = Path(__file__).resolve().parents[1] / "README.md"
PARTS: tuple[tuple[str, Callable[[Mapping[str, Any]], list[Table]]], ...] = (
    (compare.NAME, compare.tables),
    (vocabulary.NAME, vocabulary.tables),
    (scaling.NAME, scaling.tables),
    (growth.NAME, growth.tables),
)


def render(readme: Path = README, results: Path = RESULTS) -> list[str]:
    """Replace the section of every result that there is; return their names."""
    rendered = []
    for name, tables in PARTS:
        result = load_result(name, directory=results)
        if result is None:
            continue
        parts = [f"Measured {machine_of(result).line}.", *(table.markdown() for table in tables(result))]
        replace_section(readme, name, "\n\n".join(parts))
        rendered.append(name)
    return rendered


if __name__ == "__main__":
    print("rendered:", ", ".join(render()) or "nothing: no results under .benchmarks/")
