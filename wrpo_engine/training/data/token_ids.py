"""Reader of tokenised triples: token ids are checked and used unchanged.

No template is applied, nothing is added and nothing is cut, so that two trainers can be compared on the same tokens.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wrpo_engine.errors import ConfigError, DataError, WrpoError, first_line
from wrpo_engine.formats.directory import TRAIN, Wanted, select
from wrpo_engine.formats.parquet import PARQUET_FAULTS
from wrpo_engine.formats.saved import damaged_named, is_saved
from wrpo_engine.training.batch.rows import TokenRow

log = logging.getLogger("wrpo_engine")

PROMPT_COLUMN = "prompt_ids"
SOURCE_COLUMN = "source_chosen_ids"
TARGET_COLUMN = "target_chosen_ids"
REJECTED_COLUMN = "rejected_ids"
ID_COLUMN = "prompt_id"
"""Optional column with the names of rows in messages; otherwise rows have numbers, counted from 0."""
_FIELD = "training.tokenizedTriples"


@dataclass(frozen=True, slots=True)
class TokenizedTriples:
    """The rows in the order of the input, and the digest of their content."""

    rows: list[TokenRow]
    sha256: str
    """Digest of all ids of the used columns in row order, equal for Parquet and for a `datasets` directory."""


def columns_needed(*, has_source: bool) -> tuple[str, ...]:
    """Return the required columns: the prompt, then the responses in the order of `TokenRow`."""
    return (PROMPT_COLUMN, *([SOURCE_COLUMN] if has_source else []), TARGET_COLUMN, REJECTED_COLUMN)


def read_tokenized_triples(path: Path, *, has_source: bool, vocabulary: int) -> TokenizedTriples:
    """Read and check all rows.

    Ids must be in [0, vocabulary). DataError names the first row and column that cannot be trained on; ConfigError a
    missing path.
    """
    columns = columns_needed(has_source=has_source)
    frame = _read_frame(path)
    require_columns(str(path), frame.columns, columns)
    if frame.is_empty():
        raise DataError(f"{path} holds no rows to train on", code="NoTrainingRows", field=_FIELD)
    row_ids = _row_ids(frame)
    for name in columns:
        _check_column(frame[name], row_ids, path, vocabulary)
    lists = frame.select(pl.col(columns).cast(pl.List(pl.Int64)))
    rows = [
        TokenRow(row_id, tuple(prompt), tuple(tuple(response) for response in responses))
        for row_id, (prompt, *responses) in zip(row_ids, lists.iter_rows(), strict=True)
    ]
    return TokenizedTriples(rows, _digest(lists))


def require_columns(place: str, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raise DataError with the names of the missing and the existing columns if one of `needed` is missing."""
    absent = [name for name in needed if name not in found]
    if not absent:
        return
    without = "; DPO, SimPO and IPO do not need source_chosen_ids" if SOURCE_COLUMN in absent else ""
    raise DataError(
        f"{place} lacks the columns {', '.join(absent)}; it has {', '.join(found) or 'none'}{without}",
        code="ColumnMissing",
        field=_FIELD,
        hint=f"Give each row the integer lists {', '.join(needed)}.",
    )


def _read_frame(path: Path) -> pl.DataFrame:
    if not path.exists():
        raise ConfigError(
            _FIELD,
            str(path),
            "there is no such file or directory",
            "Check the path and that its volume is mounted. storage://PATH is relative to the storage root.",
            code="TokenizedTriplesNotFound",
        )
    try:
        if path.is_file():
            return pl.read_parquet(path, glob=False)
        if is_saved(path):
            return _read_saved_dataset(path)
        files = _training_files(path)
        if files:
            return pl.concat([pl.read_parquet(file, glob=False) for file in files], how="vertical_relaxed")
    except PARQUET_FAULTS as error:
        raise DataError(
            f"{path} cannot be read as tokenised triples: {first_line(error)}",
            code="TokenizedTriplesUnreadable",
            field=_FIELD,
            hint="Give a Parquet file, a directory of Parquet files of one schema, or a saved `datasets` directory.",
        ) from error
    raise DataError(
        f"{path} holds neither *.parquet files nor a saved data set (state.json)",
        code="TokenizedTriplesUnreadable",
        field=_FIELD,
        hint="Give a Parquet file, a directory of Parquet files of one schema, or a saved `datasets` directory.",
    )


def _training_files(path: Path) -> list[Path]:
    """Return a directory's Parquet files; if it has several splits, those of `train`, never held-out ones."""
    if not any(path.rglob("*.parquet")):
        return []

    def refuse(setting: str, rule: str, hint: str) -> WrpoError:  # noqa: ARG001
        return ConfigError(_FIELD, str(path), rule, f"{hint} Name the file or directory to train on.")

    selected = select(path, Wanted(split=TRAIN, suffixes=[".parquet"], refuse=refuse, only_split=True))
    for note in selected.notes:
        log.info("%s", note)
    return selected.files


def _read_saved_dataset(path: Path) -> pl.DataFrame:
    from datasets import DatasetDict, load_from_disk

    with damaged_named(path, field=_FIELD):
        loaded = load_from_disk(str(path))
    if isinstance(loaded, DatasetDict):
        splits = sorted(loaded)
        if len(splits) != 1 and "train" not in splits:
            raise ValueError(
                f"it has the splits {', '.join(splits)}, but none is called train; give the directory of one split"
            )
        loaded = loaded["train" if "train" in splits else splits[0]]
    with damaged_named(path, field=_FIELD):
        # A selection or a shuffle is an index in addition to the table; reading all rows applies it.
        frame = pl.from_arrow(loaded.with_format("arrow")[:])
    assert isinstance(frame, pl.DataFrame)
    return frame


def _row_ids(frame: pl.DataFrame) -> list[str]:
    if frame.schema.get(ID_COLUMN) != pl.String:
        return [f"row {index}" for index in range(frame.height)]
    named = frame[ID_COLUMN].to_list()
    return [f"row {index}" if name is None else f"row {index} ({name})" for index, name in enumerate(named)]


def _check_column(column: pl.Series, row_ids: Sequence[str], path: Path, vocabulary: int) -> None:
    inner: Any = column.dtype.inner if isinstance(column.dtype, pl.List | pl.Array) else None
    if inner is None or not inner.is_integer():
        raise DataError(
            f"column {column.name} of {path} is {column.dtype}, but must be lists of integers",
            code="ColumnType",
            field=_FIELD,
            hint="Write token ids, not text. A column without values has no type: fill it or leave it out.",
        )
    lists = column.cast(pl.List(inner))
    faults = {
        "is null": lists.is_null(),
        "is empty": lists.list.len() == 0,
        "holds a null": lists.list.eval(pl.element().is_null()).list.any(),
        f"holds an id outside the vocabulary of {vocabulary} tokens": (lists.list.min() < 0)
        | (lists.list.max() >= vocabulary),
    }
    for fault, is_faulty in faults.items():
        hits = is_faulty.fill_null(value=False).arg_true()
        if len(hits):
            first = int(hits[0])
            raise DataError(
                f"{column.name} of {row_ids[first]} of {path} {fault}{_found(lists[first], vocabulary)}"
                + (f"; {len(hits)} rows in all" if len(hits) > 1 else ""),
                code="TokenIdsInvalid",
                field=_FIELD,
                hint="Tokenise with the tokenizer of the trained model. Prompt and responses need at least one token.",
            )


def _found(ids: pl.Series | None, vocabulary: int) -> str:
    outside = [] if ids is None else [value for value in ids if value is not None and not 0 <= value < vocabulary]
    return f" (id {outside[0]})" if outside else ""


def _digest(lists: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for column in lists.get_columns():
        digest.update(f"{column.name} {len(column)}\n".encode())
        for values in (column.list.len(), column.explode()):
            digest.update(values.to_numpy().astype(np.dtype("<i8")).tobytes())
    return digest.hexdigest()
