"""Triples in memory: ids of tokenizers and data frames are accepted, anything else is named in the error."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrpo_engine.errors import ConfigError, DataError, WrpoError
from wrpo_engine.training.api import train_triples
from wrpo_engine.training.data.triples_in_memory import plain_rows

COLUMNS = ("prompt_ids", "source_chosen_ids", "target_chosen_ids", "rejected_ids")
ROWS: list[dict[str, Any]] = [
    {name: [10 * place + row, 11, *([2] * row)] for place, name in enumerate(COLUMNS)} for row in range(3)
]


def cells(convert: Callable[[list[int]], Any]) -> list[dict[str, Any]]:
    return [{name: convert(ids) for name, ids in row.items()} for row in ROWS]


def dataset(format_type: str | None = None) -> Any:
    made = datasets.Dataset.from_list(ROWS)
    return made if format_type is None else made.with_format(format_type)


def generator() -> Iterator[dict[str, Any]]:
    yield from ROWS


class MapStyle:
    """A data set as PyTorch's loaders take it."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return ROWS[index % len(ROWS)]


KINDS: dict[str, Callable[[], Any]] = {
    "lists": lambda: ROWS,
    "tuples": lambda: tuple(cells(tuple)),
    "numpy arrays": lambda: cells(np.array),
    "small numpy arrays": lambda: cells(lambda ids: np.array(ids, dtype=np.uint16)),
    "numpy integers": lambda: cells(lambda ids: [np.int64(value) for value in ids]),
    "torch tensors": lambda: cells(torch.tensor),
    "small torch tensors": lambda: cells(lambda ids: torch.tensor(ids, dtype=torch.int32)),
    "torch integers": lambda: cells(lambda ids: list(torch.tensor(ids))),
    "polars series": lambda: cells(lambda ids: pl.Series("ids", ids)),
    "pandas series": lambda: cells(pd.Series),
    "Arrow arrays": lambda: cells(pa.array),
    "mappings that are no dict": lambda: [UserDict(row) for row in ROWS],
    "a generator": generator,
    "an array of objects": lambda: np.array(ROWS, dtype=object),
    "a map-style data set": MapStyle,
    "a polars frame": lambda: pl.DataFrame(ROWS),
    "a lazy polars frame": lambda: pl.LazyFrame(ROWS),
    "a polars frame of arrays": lambda: pl.DataFrame(ROWS).with_columns(pl.all().cast(pl.List(pl.Int16))),
    "a pandas frame": lambda: pd.DataFrame(ROWS),
    "a pandas frame of arrays": lambda: pd.DataFrame(cells(np.array)),
    "a pandas frame with an index": lambda: pd.DataFrame(ROWS, index=["x", "y", "z"]),
    "an Arrow table": lambda: pa.Table.from_pylist(ROWS),
    "a dataset": dataset,
    "a dataset that streams": lambda: dataset().to_iterable_dataset(),
    "a dataset with a transform": lambda: dataset().with_transform(
        lambda batch: {name: [torch.tensor(ids) for ids in column] for name, column in batch.items()}
    ),
    **{
        f"a dataset as {name}": partial(dataset, name)
        for name in ("numpy", "torch", "pandas", "polars", "arrow", "python")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_every_kind_are_the_same_lists(kind: str) -> None:
    rows = plain_rows(KINDS[kind]())
    assert rows == ROWS
    assert {type(value) for row in rows for ids in row.values() for value in ids} == {int}


def test_only_what_training_reads_is_kept_and_row_names_become_texts() -> None:
    rows = plain_rows([{**ROWS[0], "prompt": object(), "prompt_id": 7}, {**ROWS[1], "prompt_id": None}])
    assert rows == [{**ROWS[0], "prompt_id": "7"}, ROWS[1]]


def test_a_missing_cell_is_left_for_the_check_of_rows() -> None:
    assert plain_rows([ROWS[0], {**ROWS[1], "rejected_ids": None}])[1]["rejected_ids"] is None


def test_objectives_without_a_source_do_without_its_column() -> None:
    rows = [{name: ids for name, ids in row.items() if name != "source_chosen_ids"} for row in ROWS]
    assert plain_rows(rows) == rows


CELLS: dict[str, tuple[Any, str]] = {
    "a text": ("1 2", "is '1 2' (str), but must be token ids"),
    "one number": (7, "is 7 (int), but must be token ids"),
    "not a number": (float("nan"), "is nan (float), but must be token ids"),
    "a tensor of no dimension": (torch.tensor(7), "is a torch Tensor, but must be token ids"),
    "a sparse tensor": (torch.tensor([1, 0]).to_sparse(), "is a torch Tensor, but must be token ids"),
    "a tensor without data": (torch.empty(2, device="meta"), "is a torch Tensor, but must be token ids"),
    "a set": ({1, 2}, "is a set, but must be token ids"),
    "a mapping": ({"ids": [1]}, "is a dict, but must be token ids"),
    "bytes": (b"ab", "is a bytes, but must be token ids"),
    "floats": ([1, 2.0], "is a list that holds 2.0 (float) at index 1"),
    "an array of floats": (np.array([1.0]), "is a numpy ndarray that holds 1.0 (float) at index 0"),
    "truth values": (torch.tensor([True]), "is a torch Tensor that holds True (bool) at index 0"),
    "texts": (["7"], "is a list that holds '7' (str) at index 0"),
    "nothing within": ([1, None], "is a list that holds None (NoneType) at index 1"),
    "a batch of one": (torch.tensor([[1, 2]]), "is a torch Tensor of shape [1, 2] that holds a list at index 0"),
    "lists of lists": ([[1], [2]], "is a list that holds a list at index 0"),
    "tensors of one element": ([torch.tensor([1])], "is a list that holds a torch Tensor at index 0"),
    "a huge number": ([2**63], "holds 9223372036854775808 at index 0, which is not a token id"),
}


@pytest.mark.parametrize("case", CELLS.values(), ids=CELLS)
def test_a_cell_that_holds_no_token_ids_is_named_with_its_row_column_and_type(case: tuple[Any, str]) -> None:
    cell, what = case
    with pytest.raises(DataError) as caught:
        plain_rows([ROWS[0], {**ROWS[1], "rejected_ids": cell}])
    assert caught.value.message == f"rejected_ids of row 1 of triples {what}"
    assert (
        caught.value.hint == "Give each cell a list, array or tensor of one dimension that holds token ids (integers)."
    )


INPUTS: dict[str, tuple[Any, str]] = {
    "a number": (7, "triples is 7 (int), which is neither a path nor rows of token ids"),
    "nothing": (None, "triples is None (NoneType), which is neither a path nor rows of token ids"),
    "columns": (
        {"prompt_ids": [[1]], "rejected_ids": [[2]]},
        "triples is a dict with the keys prompt_ids, rejected_ids, which is neither a path nor rows of token ids",
    ),
    "splits": (
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
        "triples is a datasets DatasetDict with the keys train, which is neither a path nor rows of token ids",
    ),
    "bytes": (b"rows", "triples is a bytes, which is neither a path nor rows of token ids"),
    "no rows": ([], "triples holds no rows to train on"),
    "an empty frame": (pl.DataFrame(), "triples holds no rows to train on"),
    "rows that are lists": (
        [ROWS[0], [1, 2]],
        "row 1 of triples is a list, but must be a mapping of column names to token ids",
    ),
    "a tensor": (
        torch.tensor([[1, 2]]),
        "row 0 of triples is a torch Tensor, but must be a mapping of column names to token ids",
    ),
    "other columns": (
        [{"prompt": "a", "target_chosen_ids": [1]}],
        "triples lacks the columns prompt_ids, rejected_ids; it has prompt, target_chosen_ids",
    ),
}


@pytest.mark.parametrize("case", INPUTS.values(), ids=INPUTS)
def test_what_holds_no_rows_is_named(case: tuple[Any, str]) -> None:
    triples, message = case
    with pytest.raises(WrpoError) as caught:
        plain_rows(triples)
    assert caught.value.message == message


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
    | st.just(np.array([1])) | st.just(torch.tensor(2)) | st.just(np.array(["a"])) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(triples=anything)
def test_any_input_raises_no_other_exception_than_ours(triples: object) -> None:
    try:
        rows = plain_rows(triples)
    except WrpoError:
        return
    for row in rows:
        assert all(ids is None or all(type(value) is int for value in ids) for ids in row.values())


ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"model": 7}, "model is 'int': it must be a path"),
    "output": ({"output": None}, "output is 'NoneType': it must be a path"),
    "a loaded model": ({"model": torch.nn.Linear(1, 1)}, "model is 'Linear': it must be a path"),
    "runtime": ({"runtime": [1]}, "runtime is '[1]': Input should be a valid dictionary or instance of Runtime"),
    "lora": ({"lora": 4}, "lora is '4': Input should be a valid dictionary or instance of LoraParams"),
    "target modules as one text": (
        {"lora": {"target_modules": "q_proj"}},
        "lora.target_modules is 'q_proj': Input should be a valid tuple",
    ),
    "target modules that are numbers": (
        {"lora": {"target_modules": [1]}},
        "lora.target_modules.0 is '1': Input should be a valid string",
    ),
    "a rank as text": (
        {"lora": {"rank": "four"}},
        "lora.rank is 'four': Input should be a valid integer, unable to parse string as an integer",
    ),
    "beta as a tensor": ({"beta": torch.ones(2)}, "beta is 'tensor([1., 1.])': Input should be a valid number"),
    "the stage": ({"stage": "sft"}, "stage is 'sft': it cannot be set: train_triples trains"),
    "triples twice": (
        {"tokenized_triples": "x"},
        "tokenized_triples is 'x': it cannot be set: the triples are a separate argument",
    ),
}


@pytest.mark.parametrize("case", ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_of_wrong_types_are_named(case: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    changes, message = case
    with pytest.raises(ConfigError) as caught:
        train_triples(**{"model": tmp_path, "triples": ROWS, "output": tmp_path / "results", **changes})
    assert caught.value.message == message
