"""Directories that `Dataset.save_to_disk` or `DatasetDict.save_to_disk` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError, WrpoError
from wrpo_engine.formats.directory import TRAIN
from wrpo_engine.formats.lines import unreadable

_STATE, _DICT = "state.json", "dataset_dict.json"


def is_saved(path: Path) -> bool:
    """Return whether a directory is a saved data set. state.json alone is no proof: other tools write one, too."""
    return (path / _DICT).is_file() or ((path / _STATE).is_file() and any(path.glob("*.arrow")))


def is_mark(path: Path) -> bool:
    """Return whether a file completes such a directory: it must be written last."""
    return path.name in {_STATE, _DICT}


def load_saved(path: Path, split: str, *, split_field: str, field: str | None = None, only_split: bool = False) -> Any:
    """Return the `datasets.Dataset` in the directory; of a DatasetDict the split. Errors name both fields.

    A single Dataset is the split that it says, and `train`; another one that is asked for is refused. With `only_split`
    the only split is accepted under any name.
    """
    from datasets import DatasetDict, load_from_disk

    with damaged_named(path, field=field):
        rows = load_from_disk(str(path))
    if not isinstance(rows, DatasetDict):
        if split not in {TRAIN, str(rows.split)} and not only_split:
            raise ConfigError(split_field, split, f"{path} is a single data set, which has no splits", "Leave it out.")
        return rows
    if split in rows:
        return rows[split]
    if only_split and len(rows) == 1:
        return next(iter(rows.values()))
    raise ConfigError(split_field, split, f"{path} has the splits {', '.join(sorted(rows))}", "Name one of them.")


@contextmanager
def damaged_named(where: Path | str, *, field: str | None = None) -> Iterator[None]:
    """Turn every exception of `datasets` and Arrow about a damaged data set into a DataError that names it."""
    try:
        yield
    except WrpoError:
        raise
    # Files of others, read by others: errors of every kind, of which none is a fault of the engine.
    except Exception as error:
        raise unreadable(where, error, field=field) from error
