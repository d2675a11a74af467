"""Inputs of lint: triples, SFT rows, token ids or the three sets of prompts, and the prompts to compare with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import polars as pl

from wrpo_engine.artifacts import Artifact, ArtifactStore, records
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats import prompt_columns as prompt_tables
from wrpo_engine.formats.columns import Schema, read_columns
from wrpo_engine.formats.directory import TRAIN
from wrpo_engine.formats.location import Locator
from wrpo_engine.formats.parquet import parquet_columns, read_parquet
from wrpo_engine.formats.questions import FaultOf
from wrpo_engine.formats.reading import Table, read_tables, triples_of
from wrpo_engine.formats.rows import TOKENS, bad_row, prompt_id_of, text_in
from wrpo_engine.formats.shown import names, shown
from wrpo_engine.formats.token_rows import token_frame
from wrpo_engine.linting.leakage import EVALUATION
from wrpo_engine.prompts.asked import Asked, asked_in_row
from wrpo_engine.text.conversations import prompt_of

SFT, PREFERENCE = "sft", "preference"
SETS = (SFT, PREFERENCE, EVALUATION)
_SFT_TEXTS = {name: records.SFT_ROWS[name] for name in ("prompt_id", "prompt", "response")}


class Kind(StrEnum):
    """What the rows are."""

    TRIPLES = "triples"
    SFT_ROWS = "SFT rows"
    TOKENS = "tokenised triples"
    PROMPTS = "prompts"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Rows to check, each with its number `row`; prompts have no table but sets only."""

    kind: Kind
    location: str
    table: pl.DataFrame | None = None
    sets: dict[str, pl.DataFrame] = field(default_factory=dict)
    """Prompts (row, prompt_id, prompt, perhaps history) of the sets that must not share any."""
    faults: Sequence[tuple[int, FaultOf]] = ()
    """Rows of triples, by position, whose prompt is not the one their responses belong to."""

    @property
    def num_rows(self) -> int:
        """Number of rows to check; of prompts, over all sets."""
        return self.table.height if self.table is not None else sum(rows.height for rows in self.sets.values())


def open_subject(location: str, locator: Locator, *, split: str, others: Mapping[str, str]) -> Subject:
    """Read what `location` names; `others` maps a set's name to the location of its prompts.

    An artifact of a curation brings the prompts artifact it was made from, if that is in the same storage.
    """
    given = {name: read_prompts(locator.local(place), split=split) for name, place in others.items()}
    found = locator.artifact(location)
    if found is not None:
        if split != TRAIN:
            raise ConfigError("--split", split, f"{location} is an artifact, which has no splits", "Leave it out.")
        return _artifact(location, *found, given)
    tables = read_tables(locator.local(location), split=split)
    columns = {name for table in tables for name in table.columns}
    if columns & set(TOKENS):
        return Subject(kind=Kind.TOKENS, location=location, table=_numbered(token_frame(tables)), sets=given)
    if {"prompt", "response"} <= columns:
        return _rows(Kind.SFT_ROWS, location, _sft_rows(tables), given)
    if columns & {"chosen", "rejected", "target_chosen"} or {"instruction", "output"} <= columns:
        return _triples(location, tables, given)
    if "prompt" in columns:
        name = next((name for name in SETS if name not in given), SFT)
        return Subject(kind=Kind.PROMPTS, location=location, sets={name: _prompts(tables, location), **given})
    raise DataError(
        f"{location} holds neither triples nor SFT rows nor prompts; its columns: {names(sorted(columns))}",
        code="RowFormat",
        hint="`wrpo-engine convert --help` shows the row formats that are read.",
    )


def read_prompts(location: str, *, split: str) -> pl.DataFrame:
    """Return (row, prompt_id, prompt, perhaps history) of a file with prompts, SFT rows or triples.

    The split is that of a directory or data set; a file is read whole, regardless of the split of the checked data.
    """
    tables = read_tables(location, split=TRAIN if Path(location).is_file() else split)
    columns = {name for table in tables for name in table.columns}
    if "prompt" in columns:
        return _prompts(tables, location)
    if {"chosen", "rejected"} <= columns:
        table = triples_of(tables, keep_faults=True).table
        return _numbered(table.select([*records.PROMPTS, *prompt_tables.history_in(table.columns)]))
    raise DataError(
        f"{location} has no column prompt; its columns: {names(sorted(columns))}",
        code="ColumnMissing",
        hint="Name a file whose rows have a prompt.",
    )


def _artifact(location: str, artifact: Artifact, store: ArtifactStore, given: Mapping[str, pl.DataFrame]) -> Subject:
    files = artifact.files()
    if "triples.parquet" in files:
        table = read_parquet(artifact.file("triples.parquet"))
        tables = [Table(where=location, columns=table.columns, frame=table)]
        return _triples(location, tables, {**_upstream(artifact, store), **given})
    if "rows.parquet" in files and artifact.ref.stage == "curate-sft":
        path = artifact.file("rows.parquet")
        history = prompt_tables.history_in(parquet_columns(path))
        rows = read_columns([path], {**_SFT_TEXTS, **history}, nullable=list(history))
        return _rows(Kind.SFT_ROWS, location, rows, {**_upstream(artifact, store), **given})
    sets = _parts(artifact)
    if not sets:
        raise DataError(
            f"{location} is an artifact of stage {artifact.ref.stage}, which holds no rows to check",
            code="RowFormat",
            hint="Name an artifact of prepare, curate-sft or curate-triples, or a file.",
        )
    return Subject(kind=Kind.PROMPTS, location=location, sets={**sets, **given})


def _upstream(artifact: Artifact, store: ArtifactStore) -> dict[str, pl.DataFrame]:
    entry = artifact.manifest.inputs.get("prompts")
    prompts = store.open(ArtifactRef(stage=entry.stage, hash=entry.hash)) if entry else None
    return _parts(prompts) if prompts else {}


def _parts(artifact: Artifact) -> dict[str, pl.DataFrame]:
    present = [name for name in SETS if f"{name}.parquet" in artifact.files()]
    return {name: _numbered(prompt_tables.read_prompts([artifact.file(f"{name}.parquet")])) for name in present}


def _triples(location: str, tables: Sequence[Table], given: Mapping[str, pl.DataFrame]) -> Subject:
    triples = triples_of(tables, keep_faults=True)
    return replace(_rows(Kind.TRIPLES, location, triples.table, given), faults=triples.faults)


def _rows(kind: Kind, location: str, table: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> Subject:
    """Return rows whose own prompts take their set's place."""
    numbered = _numbered(table)
    own = SFT if kind is Kind.SFT_ROWS else PREFERENCE
    return Subject(kind=kind, location=location, table=numbered, sets={**sets, own: numbered})


def _numbered(table: pl.DataFrame) -> pl.DataFrame:
    return table.drop("row", strict=False).with_row_index("row", offset=1)


def _prompts(tables: Sequence[Table], where: str) -> pl.DataFrame:
    """Return (row, prompt_id, prompt) of the rows whose value is a prompt, as prepare takes them."""
    found: list[dict[str, Any]] = []
    for table in tables:
        for number, row in table.rows():
            if "prompt" not in row:
                raise bad_row(number, table.where, f"it has no column `prompt`; its columns: {names(row)}")
            if (asked := asked_in_row(row)).fault is None:
                found.append(_identified(row, asked, number, table.where))
    if not found:
        raise DataError(f"{where} holds no prompt", code="DatasetEmpty", hint="The column `prompt` is empty.")
    return _numbered(_frame(found, records.PROMPTS))


def _sft_rows(tables: Sequence[Table]) -> pl.DataFrame:
    """Return the texts of rows with `prompt` and `response`; DataError names the first row without one of them."""
    found: list[dict[str, Any]] = []
    for table in tables:
        for number, row in table.rows():
            asked = asked_in_row(row)
            if asked.fault is not None:
                needed = "where a text or a user's message is needed"
                held = f"holds {shown(row.get('prompt'))}, {needed}"
                said = held if asked.fault.reason == "no_user_message" else asked.fault.what
                raise bad_row(number, table.where, f"column `prompt` {said}")
            response = text_in(row, "response", number, table.where)
            found.append({**_identified(row, asked, number, table.where), "response": response})
    return _frame(found, _SFT_TEXTS)


def _identified(row: Mapping[str, Any], asked: Asked, number: int, where: str) -> dict[str, Any]:
    messages = [{"role": role, "content": text} for role, text in asked.history]
    for message in messages:
        text_in(message, "content", number, where)
    named = {
        "prompt": asked.text,
        "prompt_id": prompt_id_of(row.get("prompt_id"), prompt_of(asked.text, messages)),
    }
    texts = {name: text_in(named, name, number, where) for name in records.PROMPTS}
    return {**texts, prompt_tables.HISTORY: messages or None}


def _frame(rows: Sequence[Mapping[str, Any]], schema: Schema) -> pl.DataFrame:
    """Return rows as a table, with the column `history` if one of them has any."""
    frame = pl.DataFrame(rows, schema={**schema, **records.HISTORY})
    return frame.drop(prompt_tables.HISTORY) if frame[prompt_tables.HISTORY].null_count() == len(frame) else frame
