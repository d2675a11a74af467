"""Reader of the experiment's prompts: a hub data set, a file, a directory of files or a saved data set."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrpo_engine.errors import ConfigError
from wrpo_engine.formats.directory import Wanted, file_split, select, type_of
from wrpo_engine.formats.files import LINES, TABLES, lines_of, rows_of
from wrpo_engine.formats.parquet import parquet_columns
from wrpo_engine.formats.prompt_columns import HISTORY
from wrpo_engine.formats.saved import damaged_named, is_saved, load_saved
from wrpo_engine.formats.shown import names
from wrpo_engine.hub.data import HubData, load_from_hub
from wrpo_engine.prompts.asked import with_history

log = logging.getLogger("wrpo_engine")

SUFFIXES = (*TABLES, LINES)
_SPLIT_FIELD = "prompts.split"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptColumn:
    """Where the prompts are."""

    dataset: str
    """What the experiment says, for messages."""
    path: str
    """What it resolves to: absolute for local files."""
    config: str | None
    split: str
    column: str
    revision: str | None = None
    """Of a hub id."""
    field: str = "prompts.dataset"
    """Of the spec: the data set."""
    only_split: bool = False
    """Accept the only split of a directory under any name."""


def read_values(source: PromptColumn) -> Iterator[Any]:
    """Yield the column's raw value of every row of a split, in the data set's order; of a .txt file its lines.

    A text whose row has a column `history` with messages comes as the last message of that conversation.
    """
    dataset, column, field = source.dataset, source.column, source.field
    local = Path(source.path)
    if not local.is_absolute():
        hub = HubData(dataset, revision=source.revision, config=source.config)
        rows = load_from_hub(hub, split=source.split, field=field, split_field=_SPLIT_FIELD)
        yield from _data_set_values(rows, column, dataset, field)
        return
    if not local.exists():
        raise ConfigError(
            field,
            dataset,
            f"there is no file or directory {local}",
            "Check the path and its volume.",
            code="DatasetNotFound",
        )
    if is_saved(local):
        if source.config is not None:
            rule = f"{local} is a saved data set, which has none"
            raise ConfigError("prompts.config", source.config, rule, "Leave it out.")
        rows = load_saved(local, source.split, split_field=_SPLIT_FIELD, field=field, only_split=source.only_split)
        yield from _data_set_values(rows, column, local, field)
        return
    wanted = Wanted(
        split=source.split,
        suffixes=SUFFIXES,
        refuse=_refusal(source),
        config=source.config,
        only_split=source.only_split,
    )
    for file in _files(local, wanted):
        yield from _file_values(file, column, field)


def _refusal(source: PromptColumn) -> Any:
    def refuse(setting: str, rule: str, hint: str) -> ConfigError:
        match setting:
            case "split":
                return ConfigError(_SPLIT_FIELD, source.split, rule, hint)
            case "config":
                return ConfigError("prompts.config", source.config, rule, hint)
            case _:
                return ConfigError(source.field, source.dataset, rule, hint, code="DatasetFormat")

    return refuse


def _files(path: Path, wanted: Wanted) -> Sequence[Path]:
    if path.is_file():
        file_split(path, wanted)
        return [path]
    selected = select(path, wanted)
    for note in selected.notes:
        log.info("%s", note)
    return selected.files


def _file_values(file: Path, column: str, field: str) -> Iterator[Any]:
    if type_of(file) == LINES:
        # A line is a prompt; the column has no meaning here.
        yield from lines_of(file, field=field)
        return
    if type_of(file) == ".parquet":
        # A file without rows has columns, too.
        _check_column(column, parquet_columns(file, field=field), file)
    for position, (number, row) in enumerate(rows_of(file, only=(column, HISTORY), field=field)):
        _check_column(column, row, f"row {number} of {file}" if position else file)
        yield with_history(row[column], row.get(HISTORY))


def _data_set_values(rows: Any, column: str, where: Path | str, field: str) -> Iterator[Any]:
    _check_column(column, rows.column_names, where)
    with damaged_named(where, field=field):
        if HISTORY in rows.column_names:
            yield from map(with_history, rows[column], rows[HISTORY])
        else:
            yield from rows[column]


def _check_column(column: str, present: Iterable[str], where: Path | str) -> None:
    if column not in present:
        raise ConfigError(
            "prompts.column",
            column,
            f"{where} has no such column; its columns: {names(present) or 'none'}",
            "Name one of them.",
            code="ColumnNotFound",
        )
