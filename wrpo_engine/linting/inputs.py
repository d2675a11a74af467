"""What is checked: triples, SFT rows, token ids or the three sets of prompts; and what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import polars as pl

from wrpo_engine import records
from wrpo_engine.artifacts import Artifact, ArtifactStore
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import DataError
from wrpo_engine.formats.location import Locator
from wrpo_engine.formats.reading import as_triples, read_table
from wrpo_engine.formats.rows import TOKENS, id_of
from wrpo_engine.linting.leakage import EVALUATION
from wrpo_engine.prompts.split import prompt_text

SFT, PREFERENCE = "sft", "preference"
SETS = (SFT, PREFERENCE, EVALUATION)


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
    """Prompts (row, prompt_id, prompt) of the sets that must not share any."""

    @property
    def num_rows(self) -> int:
        return self.table.height if self.table is not None else sum(rows.height for rows in self.sets.values())


def open_subject(location: str, locator: Locator, *, split: str, others: Mapping[str, str]) -> Subject:
    """Read what `location` names; `others` maps a set's name to where its prompts lie.

    An artifact of a curation brings the prompts artifact it was made from, if that is in the same storage.
    """
    given = {name: read_prompts(locator.local(place), split=split) for name, place in others.items()}
    found = locator.artifact(location)
    if found is not None:
        return _artifact(location, *found, given)
    table = read_table(locator.local(location), split=split)
    columns = set(table.columns)
    if columns & set(TOKENS):
        return Subject(kind=Kind.TOKENS, location=location, table=_numbered(table), sets=given)
    if {"prompt", "response"} <= columns:
        return _rows(Kind.SFT_ROWS, location, _with_ids(table), given)
    if "rejected" in columns:
        return _rows(Kind.TRIPLES, location, as_triples(table, location), given)
    if "prompt" in columns:
        name = next((name for name in SETS if name not in given), SFT)
        return Subject(kind=Kind.PROMPTS, location=location, sets={name: _prompts(table, location), **given})
    raise DataError(
        f"{location} holds neither triples nor SFT rows nor prompts; its columns: {', '.join(table.columns)}",
        code="RowFormat",
        hint="`wrpo-engine convert --help` shows the row formats that are read.",
    )


def read_prompts(location: str, *, split: str) -> pl.DataFrame:
    """Return (row, prompt_id, prompt) of a file whose rows have a prompt: prompts, SFT rows or triples."""
    table = read_table(location, split=split)
    if "prompt" not in table.columns:
        raise DataError(
            f"{location} has no column prompt; its columns: {', '.join(table.columns)}",
            code="ColumnMissing",
            hint="Name a file whose rows have a prompt.",
        )
    return _prompts(table, location)


def _artifact(location: str, artifact: Artifact, store: ArtifactStore, given: Mapping[str, pl.DataFrame]) -> Subject:
    names = artifact.files()
    if "triples.parquet" in names:
        table = as_triples(pl.read_parquet(artifact.file("triples.parquet")), location)
        return _rows(Kind.TRIPLES, location, table, {**_upstream(artifact, store), **given})
    if "rows.parquet" in names and artifact.ref.stage == "curate-sft":
        table = pl.read_parquet(artifact.file("rows.parquet"))
        return _rows(Kind.SFT_ROWS, location, table, {**_upstream(artifact, store), **given})
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
    names = [name for name in SETS if f"{name}.parquet" in artifact.files()]
    return {name: _numbered(pl.read_parquet(artifact.file(f"{name}.parquet"))) for name in names}


def _rows(kind: Kind, location: str, table: pl.DataFrame, sets: Mapping[str, pl.DataFrame]) -> Subject:
    """Return rows whose own prompts take their set's place."""
    numbered = _numbered(table)
    own = SFT if kind is Kind.SFT_ROWS else PREFERENCE
    return Subject(kind=kind, location=location, table=numbered, sets={**sets, own: numbered})


def _numbered(table: pl.DataFrame) -> pl.DataFrame:
    return table.drop("row", strict=False).with_row_index("row", offset=1)


def _prompts(table: pl.DataFrame, where: str) -> pl.DataFrame:
    values = table["prompt"]
    texts = values if values.dtype == pl.String else pl.Series([prompt_text(each) for each in values], dtype=pl.String)
    ids = [table["prompt_id"]] if "prompt_id" in table.columns else []
    rows = _with_ids(pl.DataFrame([*ids, texts.alias("prompt")])).select(list(records.PROMPTS))
    if not rows["prompt"].drop_nulls().len():
        raise DataError(f"{where} holds no prompt", code="DatasetEmpty", hint="The column `prompt` is empty.")
    return _numbered(rows.drop_nulls("prompt"))


def _with_ids(table: pl.DataFrame) -> pl.DataFrame:
    if "prompt_id" in table.columns:
        return table
    return table.with_columns(pl.col("prompt").map_elements(id_of, return_dtype=pl.String).alias("prompt_id"))
