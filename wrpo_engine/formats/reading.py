"""Readers of triples and prompts from files, directories, `datasets` directories, artifacts and the hub."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.artifacts.manifest import MANIFEST_NAME
from wrpo_engine.errors import ConfigError, DataError, WrpoError
from wrpo_engine.formats.directory import TRAIN, Wanted, file_split, select, type_of
from wrpo_engine.formats.files import TABLES, rows_of
from wrpo_engine.formats.parquet import dicts_of, read_parquet
from wrpo_engine.formats.questions import CONTEXT_COLUMNS, PROMPT_COLUMNS
from wrpo_engine.formats.rows import NEEDED, TOKENS, TRIPLES, Reading, Triples, read_rows
from wrpo_engine.formats.saved import damaged_named, is_saved, load_saved
from wrpo_engine.formats.shown import names
from wrpo_engine.hub.data import HubData, load_from_hub
from wrpo_engine.text.conversations import id_of

log = logging.getLogger("wrpo_engine")

_SPLIT_FIELD, _CONFIG_FIELD = "--split", "--config"
_ARTIFACT_FILES = ("triples.parquet", "rows.parquet")
"""Of an artifact only its table is read, as the JSON lines repeat it."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one file or data set, with the columns they have: a frame, or numbered rows of mixed types."""

    where: str
    columns: Sequence[str]
    frame: pl.DataFrame | None = None
    objects: Sequence[tuple[int, Mapping[str, Any]]] = ()

    @property
    def height(self) -> int:
        """Number of rows."""
        return len(self.objects) if self.frame is None else self.frame.height

    def rows(self) -> Iterable[tuple[int, Mapping[str, Any]]]:
        """Return (number, row); the number is 1 for the first row, or the line of a file of JSON lines."""
        return self.objects if self.frame is None else enumerate(dicts_of(self.frame, self.where), start=1)


def read_tables(location: str, *, split: str = TRAIN, config: str | None = None) -> list[Table]:
    """Return all rows of a file, of a directory's split, or of a hub data set."""
    path = Path(location)
    if not path.exists():
        tables = [_of_frame(_from_hub(location, split, config), location)]
    elif is_saved(path):
        if config is not None:
            raise ConfigError(_CONFIG_FIELD, config, f"{path} is a saved data set, which has none", "Leave it out.")
        rows = load_saved(path, split, split_field=_SPLIT_FIELD)
        with damaged_named(path):
            tables = [_of_frame(rows.to_polars(), location)]
    else:
        tables = [_from_file(file) for file in _files(path, split, config)]
    if not sum(table.height for table in tables):
        raise DataError(f"{location} holds no row", code="DatasetEmpty", hint="Check the file.")
    return tables


def read_triples(location: str, *, split: str = TRAIN) -> pl.DataFrame:
    """Return the rows as TRIPLES."""
    return triples_of(read_tables(location, split=split)).table


def triples_of(tables: Sequence[Table], reading: Reading | None = None, *, keep_faults: bool = False) -> Triples:
    """Return the rows of all tables as TRIPLES, whichever form they have; see `read_rows`."""
    parts = [_as_triples(table, reading or Reading(), keep_faults=keep_faults) for table in tables]
    # A file in which no row has a history lacks the column.
    whole = Triples(table=pl.concat([part.table for part in parts], how="diagonal"))
    start = 0
    for part in parts:
        whole.faults += [(start + position, fault) for position, fault in part.faults]
        whole.skipped += part.skipped
        start += part.table.height
    return whole


def _as_triples(table: Table, reading: Reading, *, keep_faults: bool) -> Triples:
    columns = set(table.columns)
    if set(TOKENS) & columns:
        raise DataError(
            f"{table.where} holds token ids, which cannot be turned into texts without their tokenizer",
            code="RowFormat",
            hint="training.tokenizedTriples trains on such a file directly.",
        )
    if not columns & {"chosen", "rejected", "output", "target_chosen"}:
        raise DataError(
            f"{table.where} holds no triples; its columns: {names(table.columns) or 'none'}; needed: {NEEDED}",
            code="RowFormat",
            hint="`wrpo-engine convert --help` shows the row formats that are read.",
        )
    if table.frame is not None and _is_ours(table.frame):
        return Triples(table=_ours(table.frame))
    return read_rows(table.rows(), table.where, reading, keep_faults=keep_faults)


def _is_ours(frame: pl.DataFrame) -> bool:
    """Return whether the columns can be used as they are: the engine's columns and types, without nulls or context."""
    schema = frame.schema
    needed = {"prompt", "target_chosen", "rejected"}
    allowed = {name: {kind, pl.Null} for name, kind in TRIPLES.items()} | {name: {pl.String} for name in needed}
    context = ({*PROMPT_COLUMNS, *CONTEXT_COLUMNS} - {"prompt"}) & set(schema)
    return (
        needed <= set(schema)
        and not context
        and all(schema[name] in kinds for name, kinds in allowed.items() if name in schema)
        and not any(frame[name].null_count() for name in needed)
    )


def _ours(frame: pl.DataFrame) -> pl.DataFrame:
    absent = [pl.lit(None, kind).alias(name) for name, kind in TRIPLES.items() if name not in frame.columns]
    whole = frame.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in TRIPLES.items())
    ids = pl.col("prompt_id")
    return whole.with_columns(
        pl.when(ids.is_null() | (ids == ""))
        .then(pl.col("prompt").map_elements(id_of, return_dtype=pl.String))
        .otherwise(ids)
        .alias("prompt_id")
    )


def _files(path: Path, split: str, config: str | None) -> Sequence[Path]:
    wanted = Wanted(split=split, suffixes=TABLES, refuse=_refusal(path, split, config), config=config)
    if path.is_file():
        file_split(path, wanted)
        return [path]
    if (path / MANIFEST_NAME).exists():
        for name in _ARTIFACT_FILES:
            if (path / name).exists():
                return [path / name]
    selected = select(path, wanted)
    for note in selected.notes:
        # Tools configure no logging: warnings reach stderr by default.
        log.warning("%s", note)
    return selected.files


def _refusal(path: Path, split: str, config: str | None) -> Any:
    def refuse(setting: str, rule: str, hint: str) -> WrpoError:
        if setting == "split":
            return ConfigError(_SPLIT_FIELD, split, rule, hint)
        if setting == "config" and config is not None:
            return ConfigError(_CONFIG_FIELD, config, rule, hint)
        return DataError(f"{path}: {rule}", code="DatasetFormat", hint=hint)

    return refuse


def _of_frame(frame: pl.DataFrame, where: str) -> Table:
    return Table(where=where, columns=frame.columns, frame=frame)


def _from_file(path: Path) -> Table:
    if type_of(path) == ".parquet":
        return _of_frame(read_parquet(path), str(path))
    objects = list(rows_of(path))
    return Table(where=str(path), columns=list(dict.fromkeys(_keys(objects))), objects=objects)


def _keys(objects: Iterable[tuple[int, Mapping[str, Any]]]) -> Iterator[str]:
    for _, row in objects:
        yield from row


def _from_hub(name: str, split: str, config: str | None) -> pl.DataFrame:
    if name.startswith(("/", ".")) or name.count("/") != 1 or name.endswith(TABLES):
        raise DataError(f"there is no file or directory {name}", code="DatasetNotFound", hint="Check the path.")
    rows = load_from_hub(HubData(name, config=config), split=split, field="IN", split_field=_SPLIT_FIELD)
    with damaged_named(name):
        table: pl.DataFrame = rows.to_polars()
    return table
