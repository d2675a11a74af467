"""Checks of triples as token ids, which training takes as they are."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from wrpo_engine.errors import DataError
from wrpo_engine.formats.rows import TOKENS
from wrpo_engine.linting.findings import Finding, Limits, Severity, finding

_INTEGERS = {pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64}
_COMMON = 0.5
"""Share of rows from which a token at the border is interpreted as BOS or end of turn."""


def token_columns(table: pl.DataFrame, where: str) -> list[str]:
    """Return the response columns; DataError if a needed column is absent or holds no integers."""
    absent = [name for name in TOKENS if name not in table.columns and name != "source_chosen_ids"]
    if absent:
        raise DataError(
            f"{where} lacks {', '.join(absent)}; it has {', '.join(table.columns)}",
            code="RowFormat",
            hint=f"Tokenised triples have the columns {', '.join(TOKENS)}; the second is optional.",
        )
    present = [name for name in TOKENS if name in table.columns]
    for name in present:
        kind = table.schema[name]
        if not isinstance(kind, pl.List) or kind.inner not in _INTEGERS:
            raise DataError(f"column {name} of {where} holds {kind}, not lists of integers", code="RowFormat")
    return [name for name in present if name != "prompt_ids"]


def check_tokens(
    table: pl.DataFrame, responses: Sequence[str], limits: Limits, *, bos: int | None, eos: int | None
) -> list[Finding]:
    """Check BOS, end of turn, empty and equal sequences; ids that are not given are taken from the data.

    BOS is the id that most prompts begin with, if they begin with it twice anywhere it is an error; the end of turn is
    the id that most responses end with.
    """
    found: list[Finding] = []
    for column in ["prompt_ids", *responses]:
        rule = "empty-prompt" if column == "prompt_ids" else "empty-response"
        empty = table.filter(pl.col(column).list.len() == 0)
        found += finding(empty, rule, Severity.ERROR, f"{column} holds no token", limits.shown(column))
    bos = _common(table["prompt_ids"].list.first()) if bos is None else bos
    if eos is None:
        eos = _common(pl.concat([table[name].list.last() for name in responses]))
    if bos is not None:
        prompt = pl.col("prompt_ids").list
        twice = table.filter((prompt.get(0, null_on_oob=True) == bos) & (prompt.get(1, null_on_oob=True) == bos))
        found += finding(
            twice, "double-bos", Severity.ERROR, f"prompt_ids begin with BOS ({bos}) twice", limits.shown("prompt_ids")
        )
        for name in responses:
            again = table.filter(pl.col(name).list.first() == bos)
            message = f"{name} begins with BOS ({bos}), which belongs before the prompt"
            found += finding(again, "double-bos", Severity.ERROR, message, limits.shown(name))
    if eos is not None:
        for name in responses:
            count = pl.col(name).list.count_matches(eos)
            more = table.filter(count > 1)
            message = f"{name} holds the end-of-turn token ({eos}) more than once"
            found += finding(more, "double-eos", Severity.ERROR, message, limits.shown(name))
            cut = table.filter((pl.col(name).list.len() > 0) & (pl.col(name).list.last() != eos))
            message = f"{name} does not end with the end-of-turn token ({eos})"
            found += finding(cut, "truncated-response", Severity.WARNING, message, limits.shown(name))
    for name in responses:
        if name != "rejected_ids":
            same = table.filter(pl.col(name) == pl.col("rejected_ids"))
            message = f"{name} and rejected_ids are the same"
            found += finding(same, "identical-pair", Severity.ERROR, message, limits.shown(name))
    again = table.filter(~pl.struct("prompt_ids", *responses).hash().is_first_distinct())
    message = "the whole row equals an earlier one"
    return found + finding(again, "duplicate-row", Severity.WARNING, message, limits.shown("prompt_ids"))


def _common(values: pl.Series) -> int | None:
    """Return the value that at least half of the rows have."""
    known = values.drop_nulls()
    if not len(known):
        return None
    counts = known.value_counts(sort=True)
    value, count = counts.row(0)
    return int(value) if count >= _COMMON * len(known) else None
