"""Completion indexes as the Job status writes them: `0,2-5,7`."""

from __future__ import annotations

from collections.abc import Iterable


def parse_indexes(text: str | None) -> set[int]:
    """Return the indexes that a text lists; none for None."""
    indexes: set[int] = set()
    for part in (text or "").split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        indexes.update(range(int(first), int(last or first) + 1))
    return indexes


def format_indexes(indexes: Iterable[int]) -> str:
    """Format indexes: three or more in a row as a range, two in a row as two."""
    parts: list[str] = []
    run: list[int] = []
    for index in [*sorted(indexes), None]:
        if run and (index is None or index != run[-1] + 1):
            parts.append(f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(map(str, run)))
            run = []
        if index is not None:
            run.append(index)
    return ",".join(parts)
