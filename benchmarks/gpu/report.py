"""Tables of the results: one for each part, with ratios to its base case and the errors of cases that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.results import Table
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.rows import Row

_ERROR_LENGTH = 120


def tables(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables of the parts that a result has, in their order."""
    return [
        table(part, [Row.from_json(row) for row in result["parts"][part.name]["rows"]])
        for part in PARTS
        if part.name in result["parts"]
    ]


def table(part: Part, rows: Sequence[Row]) -> Table:
    base = base_of(part, rows)
    columns = ["case", *(column.title for column in part.columns)]
    if base is not None:
        columns.append(f"times {base.case}")
    failed = any(row.error for row in rows)
    return Table(
        title=part.what[0].upper() + part.what[1:],
        columns=[*columns, "error"] if failed else columns,
        rows=[_cells(part, row, base, failed=failed) for row in rows],
    )


def base_of(part: Part, rows: Sequence[Row]) -> Row | None:
    """Return the row to which the others are compared, or None if there is no such figure or only one row."""
    if part.ratio is None:
        return None
    measured = [row for row in rows if row.figures.get(part.ratio.key)]
    return measured[0] if len(measured) > 1 else None


def speed_ratio(part: Part, row: Row, base: Row) -> float | None:
    """Return how many times as fast as the base case a case is, or None without a figure."""
    assert part.ratio is not None
    value, reference = row.figures.get(part.ratio.key), base.figures[part.ratio.key]
    if not value:
        return None
    return float(value / reference if part.higher_is_better else reference / value)


def _cells(part: Part, row: Row, base: Row | None, *, failed: bool) -> list[str]:
    cells = [row.case, *(column.text(row.figures.get(column.key)) for column in part.columns)]
    if base is not None:
        ratio = speed_ratio(part, row, base)
        cells.append("-" if ratio is None else f"{ratio:.2f}x")
    if failed:
        cells.append((row.error or "")[:_ERROR_LENGTH].replace("|", "/"))
    return cells
