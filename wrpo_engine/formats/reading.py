"""Triples from wherever they lie: files, directories, `datasets` directories, artifacts, the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.artifacts.manifest import MANIFEST_NAME
from wrpo_engine.errors import DataError
from wrpo_engine.formats.lines import json_objects, unreadable
from wrpo_engine.formats.rows import TOKENS, TRIPLES, id_of, triples_frame
from wrpo_engine.formats.saved import is_saved, load_saved
from wrpo_engine.hub_data import load_from_hub

SUFFIXES = (".parquet", ".jsonl", ".json")
_SLICE_ROWS = 4096


def read_table(location: str, *, split: str = "train") -> pl.DataFrame:
    """Return all rows of a file, a directory or a hub data set, in the columns they have.

    Columns of a JSON file are those of the triples it holds, or of its first row if that holds no pair.
    """
    path = Path(location)
    if not path.exists():
        return _from_hub(location, split)
    if is_saved(path):
        return _from_saved(path, split)
    frames = [_from_file(file) for file in files_of(path)]
    names = {tuple(frame.columns) for frame in frames}
    if len(names) > 1:
        shown = " and ".join(", ".join(each) for each in sorted(names)[:2])
        raise DataError(f"the files of {path} have different columns: {shown}", code="RowFormat")
    table = pl.concat(frames, how="vertical_relaxed")
    if not table.height:
        raise DataError(f"{path} holds no row", code="DatasetEmpty", hint="Check the file.")
    return table


def read_triples(location: str, *, split: str = "train") -> pl.DataFrame:
    """Return the rows as TRIPLES."""
    return as_triples(read_table(location, split=split), location)


def as_triples(table: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return the rows of a table as TRIPLES, whichever form they have; ours are taken column by column."""
    columns = table.schema
    if set(TOKENS) & set(columns):
        raise DataError(
            f"{where} holds token ids, which cannot be turned into texts without their tokenizer",
            code="RowFormat",
            hint="training.tokenizedTriples trains on such a file directly.",
        )
    needed = {"prompt", "target_chosen", "rejected"}
    if needed <= set(columns) and all(columns[name] == pl.String for name in needed):
        if "prompt_id" not in columns:
            table = table.with_columns(pl.col("prompt").map_elements(id_of, return_dtype=pl.String).alias("prompt_id"))
        absent = [pl.lit(None, kind).alias(name) for name, kind in TRIPLES.items() if name not in table.columns]
        try:
            whole = table.with_columns(absent).select(pl.col(name).cast(kind) for name, kind in TRIPLES.items())
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{where}: {str(error).splitlines()[0]}", code="RowFormat") from error
        holes = whole.with_row_index("row", offset=1).filter(pl.any_horizontal(pl.col(sorted(needed)).is_null()))
        if holes.height:
            raise DataError(
                f"row {holes['row'][0]} of {where} lacks prompt, target_chosen or rejected", code="RowFormat"
            )
        return whole
    if not {"chosen", "rejected"} <= set(columns):
        raise DataError(
            f"{where} holds no triples: it needs prompt, chosen and rejected (published format) or prompt, "
            f"target_chosen and rejected, and has {', '.join(columns) or 'no columns'}",
            code="RowFormat",
            hint="`wrpo-engine convert --help` shows the row formats that are read.",
        )
    frames = []
    for start in range(0, table.height, _SLICE_ROWS):
        rows = table.slice(start, _SLICE_ROWS).to_dicts()
        frames.append(triples_frame(enumerate(rows, start=start + 1), where))
    return pl.concat(frames) if frames else pl.DataFrame(schema=TRIPLES)


def files_of(path: Path) -> Sequence[Path]:
    """Return the files of a directory, sorted; of an artifact only its table, as the JSON lines repeat it."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise DataError(
                f"{path}: files of type {path.suffix or 'none'} are not read",
                code="DatasetFormat",
                hint=f"Use one of {', '.join(SUFFIXES)}, or a directory that `save_to_disk` wrote.",
            )
        return [path]
    if (path / MANIFEST_NAME).exists():
        for name in ("triples.parquet", "rows.parquet"):
            if (path / name).exists():
                return [path / name]
    files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path} holds no file of type {', '.join(SUFFIXES)}", code="DatasetEmpty")
    return files


def _from_file(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        try:
            return pl.read_parquet(path, glob=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(path, error) from error
    rows = list(json_objects(path))
    if rows and isinstance(rows[0][1], dict) and not {"rejected"} <= set(rows[0][1]):
        return _plain(path, [row for _, row in rows])
    return triples_frame(rows, str(path))


def _plain(path: Path, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Return rows that are no triples, for example prompts or token ids."""
    try:
        return pl.DataFrame(rows, infer_schema_length=None)
    except (TypeError, UnicodeEncodeError, pl.exceptions.PolarsError) as error:
        raise unreadable(path, error) from error


def _from_saved(path: Path, split: str) -> pl.DataFrame:
    table: pl.DataFrame = load_saved(path, split, split_field="--split").to_polars()
    if not table.height:
        raise DataError(f"{path} holds no row", code="DatasetEmpty", hint="Check the data set.")
    return table


def _from_hub(name: str, split: str) -> pl.DataFrame:
    if name.startswith(("/", ".")) or name.count("/") != 1 or name.endswith(SUFFIXES):
        raise DataError(f"there is no file or directory {name}", code="DatasetNotFound", hint="Check the path.")
    table: pl.DataFrame = load_from_hub(name, split=split, field="IN", split_field="--split").to_polars()
    return table
