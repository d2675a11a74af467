"""Conversion of triples in memory to plain lists of token ids.

Rows are an iterable of mappings (a list, a generator, a `datasets` Dataset in any format), or a data frame of polars,
pandas or Arrow. The ids of a cell are a sequence of integers: a list, a numpy array, a torch tensor, a series. Anything
else is a DataError that names row, column and type.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wrpo_engine.errors import DataError
from wrpo_engine.training.data.token_ids import (
    ID_COLUMN,
    PROMPT_COLUMN,
    REJECTED_COLUMN,
    SOURCE_COLUMN,
    TARGET_COLUMN,
    require_columns,
)

_ALWAYS = (PROMPT_COLUMN, TARGET_COLUMN, REJECTED_COLUMN)
_COLUMNS = (*_ALWAYS, SOURCE_COLUMN)
_AS_LISTS = ("tolist", "to_list", "to_pylist")
"""Conversion methods of numpy arrays and torch tensors, of polars' series, and of Arrow's arrays."""
_NO_ROWS = (Mapping, str, bytes)
_HINT = "Give each cell a list, array or tensor of one dimension that holds token ids (integers)."


def plain_rows(triples: object) -> list[dict[str, Any]]:
    """Return the rows with the columns that training reads, ids as lists of int; a cell that is None stays None.

    Raise DataError for anything but rows of token ids, for no rows, and for missing columns.
    """
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for index, row in enumerate(_rows(triples)):
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {index} of triples is {_type(row)}, but must be a mapping of column names to token ids",
                code="TriplesType",
                field="triples",
                hint=f"Give each row as a dictionary with the columns {', '.join(_COLUMNS)}.",
            )
        names |= dict.fromkeys(str(name) for name in row)
        rows.append(_row(row, index))
    if not rows:
        raise DataError("triples holds no rows to train on", code="NoTrainingRows", field="triples")
    require_columns("triples", list(names), _ALWAYS)
    return rows


def _row(row: Mapping[str, Any], index: int) -> dict[str, Any]:
    plain: dict[str, Any] = {
        name: None if row[name] is None else _ids(row[name], name, index) for name in _COLUMNS if name in row
    }
    if row.get(ID_COLUMN) is not None:
        plain[ID_COLUMN] = str(row[ID_COLUMN])
    return plain


def _rows(triples: object) -> Iterable[Any]:
    for package, name in (("polars", "DataFrame"), ("polars", "LazyFrame"), ("pandas", "DataFrame")):
        if _is(triples, package, name):
            return _of_frame(triples)
    if _is(triples, "pyarrow", "Table") or _is(triples, "pyarrow", "RecordBatch"):
        found: Iterable[Any] = triples.to_pylist()  # type: ignore[attr-defined]
        return found
    if _is(triples, "datasets", "Dataset"):
        return _of_dataset(triples)
    if isinstance(triples, _NO_ROWS) or getattr(triples, "shape", None) == ():
        raise _no_rows(triples)
    if hasattr(triples, "__getitem__") and hasattr(triples, "__len__"):
        # PyTorch's map-style data sets have these two methods only.
        return (triples[index] for index in range(len(triples)))
    if not isinstance(triples, Iterable):
        raise _no_rows(triples)
    return triples


def _no_rows(triples: object) -> DataError:
    keys = f" with the keys {', '.join(map(str, triples))}" if isinstance(triples, Mapping) else ""
    return DataError(
        f"triples is {_type(triples)}{keys}, which is neither a path nor rows of token ids",
        code="TriplesType",
        field="triples",
        hint="Give a path, a sequence of dictionaries, a data frame, or one split of a `datasets` data set.",
    )


def _of_frame(frame: Any) -> Iterable[Any]:
    if _is(frame, "pandas", "DataFrame"):
        rows: Iterable[Any] = frame.to_dict("records")
        return rows
    collected = frame.collect() if _is(frame, "polars", "LazyFrame") else frame
    named: Iterable[Any] = collected.iter_rows(named=True)
    return named


def _of_dataset(dataset: Any) -> Iterable[Any]:
    # Formats are views of the same lists (some return tables of one row), but a user's transform changes them.
    return dataset if dataset.format["type"] == "custom" else dataset.with_format(None)  # type: ignore[no-any-return]


def _is(value: object, package: str, name: str) -> bool:
    """Return whether the value is an instance of a package's class; its package has then been imported."""
    loaded = sys.modules.get(package)
    kind = getattr(loaded, name, None)
    return kind is not None and isinstance(value, kind)


def _ids(cell: Any, name: str, index: int) -> list[int]:
    found = _as_list(cell)
    if found is None:
        raise _fault(name, index, f"is {_type(cell)}, but must be token ids")
    ids: list[int] = []
    for place, value in enumerate(found):
        number = _as_integer(value)
        if number is None:
            dimensions = getattr(cell, "shape", None)
            shape = f"of shape {list(dimensions)} " if dimensions is not None and len(dimensions) != 1 else ""
            raise _fault(name, index, f"is {_type(cell)} {shape}that holds {_type(value)} at index {place}")
        if not -(2**63) <= number < 2**63:
            raise _fault(name, index, f"holds {number} at index {place}, which is not a token id")
        ids.append(number)
    return ids


def _as_list(cell: Any) -> Sequence[Any] | None:
    """Return the elements of an ordered container that is not text; None for anything else."""
    if isinstance(cell, list | tuple | range):
        return cell
    for method in _AS_LISTS:
        if hasattr(cell, method):
            try:
                found = getattr(cell, method)()
            except RuntimeError:
                # Sparse tensors and tensors on the device `meta` cannot be listed.
                return None
            # An array without dimensions is a number.
            return found if isinstance(found, list) else None
    return None


def _as_integer(value: Any) -> int | None:
    """Return an integer of Python, numpy or torch as int; None for anything else, also for booleans."""
    if type(value) is int:
        return value
    if isinstance(value, bool | float | str | bytes | None):
        return None
    item = getattr(value, "item", None)
    found = item() if item is not None and getattr(value, "shape", None) in {(), None} else None
    return found if type(found) is int else None


def _type(value: object) -> str:
    """Return the description of a value in messages: short values themselves, otherwise package and class."""
    name, package = type(value).__name__, type(value).__module__.split(".")[0]
    if isinstance(value, str | int | float | None):
        return f"{str(value)[:40]!r} ({name})" if isinstance(value, str) else f"{value} ({name})"
    return f"a {name}" if package == "builtins" else f"a {package} {name}"


def _fault(name: str, index: int, what: str) -> DataError:
    return DataError(f"{name} of row {index} of triples {what}", code="TokenIdsInvalid", field="triples", hint=_HINT)
