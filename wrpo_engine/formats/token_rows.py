"""Triples as token ids from files of rows, for tools; training reads its own (training/tokenized.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wrpo_engine.errors import DataError
from wrpo_engine.formats.reading import Table
from wrpo_engine.formats.rows import TOKENS, bad_row
from wrpo_engine.formats.shown import names, shown

_MAX_ID = 1 << 62


def token_frame(tables: Sequence[Table]) -> pl.DataFrame:
    """Return the rows of all tables; DataError names the first row of JSON that holds no lists of token ids."""
    frames = [table.frame if table.frame is not None else _of_objects(table) for table in tables]
    try:
        return pl.concat(frames, how="vertical_relaxed")
    except pl.exceptions.PolarsError as error:
        each = "; ".join(f"{table.where}: {names(table.columns)}" for table in tables[:3])
        raise DataError(
            f"the files have columns of different names or types ({each})",
            code="RowFormat",
            hint="Give all files of a directory the same columns.",
        ) from error


def _of_objects(table: Table) -> pl.DataFrame:
    present = [name for name in TOKENS if name in table.columns]
    for number, row in table.rows():
        for name in present:
            _check_ids(row, name, number, table.where)
    return pl.DataFrame(
        {name: [row.get(name) for _, row in table.rows()] for name in present},
        schema=dict.fromkeys(present, pl.List(pl.Int64)),
    )


def _check_ids(row: Mapping[str, Any], name: str, number: int, where: str) -> None:
    ids = row.get(name)
    if ids is None:
        return
    if not isinstance(ids, list):
        raise bad_row(number, where, f"column `{name}` holds {shown(ids)}, where a list of token ids is needed")
    for each in ids:
        if not isinstance(each, int) or isinstance(each, bool) or abs(each) > _MAX_ID:
            raise bad_row(number, where, f"column `{name}` holds {shown(each)} among its token ids")
