"""Directories that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError
from wrpo_engine.formats.lines import unreadable

_MARKS = ("state.json", "dataset_dict.json")


def is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in _MARKS)


def is_mark(path: Path) -> bool:
    return path.name in _MARKS


def load_saved(path: Path, split: str, *, split_field: str, field: str | None = None) -> Any:
    """Return the `datasets.Dataset` in the directory; of a DatasetDict the split. Errors name both fields."""
    from datasets import DatasetDict, load_from_disk

    try:
        rows = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, field=field) from error
    if not isinstance(rows, DatasetDict):
        return rows
    if split not in rows:
        rule = f"{path} has the splits {', '.join(sorted(rows))}"
        raise ConfigError(split_field, split, rule, "Name one of them.")
    return rows[split]
