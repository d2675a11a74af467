"""Writers of triples, for other tools and for the train stage."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import assert_never

import polars as pl

from wrpo_engine.artifacts import Artifact, ArtifactStore
from wrpo_engine.artifacts.manifest import sha256_of
from wrpo_engine.artifacts.roots import BucketRoot, DirectoryRoot
from wrpo_engine.artifacts.s3 import Copies
from wrpo_engine.artifacts.transfer import upload_first
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import AlreadyCommitted, DataError
from wrpo_engine.formats.location import Output
from wrpo_engine.formats.prompt_columns import history_in
from wrpo_engine.formats.published import published_row, write_published
from wrpo_engine.formats.saved import is_mark

ARTIFACT_STAGE = "curate-triples"
_SLICE_ROWS = 2048


class Format(StrEnum):
    """What `wrpo-engine convert --to` writes."""

    PUBLISHED = "published"
    JSONL = "jsonl"
    PARQUET = "parquet"
    DATASETS = "datasets"
    ARTIFACT = "artifact"


def write_file(table: pl.DataFrame, path: Path, kind: Format) -> None:
    """Write a file, or a directory for `datasets`; it appears whole or not at all."""
    writers: dict[Format, Callable[[Path], None]] = {
        Format.PUBLISHED: lambda place: write_published(table, place),
        Format.JSONL: table.write_ndjson,
        Format.PARQUET: table.write_parquet,
        Format.DATASETS: lambda place: _write_saved(table, place),
    }
    if path.exists():
        raise _exists(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        writers[kind](temporary)
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            import shutil

            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def write_output(table: pl.DataFrame, output: Output, kind: Format) -> None:
    """Write to a location; existing data are not replaced."""
    match output.root:
        case DirectoryRoot(path=directory):
            write_file(table, directory / output.name, kind)
        case BucketRoot() as root:
            write_to_bucket(table, root.copies(), output.name, kind)
        case _:
            assert_never(output.root)


def write_to_bucket(table: pl.DataFrame, copies: Copies, name: str, kind: Format) -> None:
    """Write an object below the bucket's prefix, or several for `datasets`, whose mark comes last."""
    bucket, cache = copies.bucket, copies.cache
    if any(found.key == name or found.key.startswith(f"{name}/") for found in bucket.listing(name)):
        raise _exists(bucket.uri(name))
    with cache.named_errors():
        cache.root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=cache.root)
    with scratch:
        local = Path(scratch.name) / Path(name).name
        with cache.named_errors():
            write_file(table, local, kind)
        files = [local] if local.is_file() else [path for path in local.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (is_mark(path), path)):
            key = name if path == local else f"{name}/{path.relative_to(local).as_posix()}"
            if not upload_first(bucket, path, key, sha256=sha256_of(path)):
                raise _exists(bucket.uri(key))


def _exists(place: Path | str) -> DataError:
    return DataError(f"{place} already exists", code="OutputExists", hint="Remove it or choose another name.")


def write_artifact(table: pl.DataFrame, store: ArtifactStore) -> Artifact:
    """Commit the rows as an artifact that the train stage's role `triples` reads; equal rows give an equal address."""
    digest = hashlib.sha256()
    for part in table.iter_slices(_SLICE_ROWS):
        digest.update(part.write_ndjson().encode())
    ref = ArtifactRef(stage=ARTIFACT_STAGE, hash=digest.hexdigest()[:16])
    writer = store.writer(ref, config={"converted": True}, inputs={})
    if (existing := writer.committed()) is not None:
        return existing
    with contextlib.suppress(AlreadyCommitted):
        writer.publish("triples.parquet", table.write_parquet)
        writer.publish("triples.jsonl", lambda path: write_published(table, path))
    metrics = {"rows": float(table.height)}
    rows = {"triples.parquet": table.height}
    return writer.commit(files=[*rows, "triples.jsonl"], rows=rows, metrics=metrics)


def _write_saved(table: pl.DataFrame, path: Path) -> None:
    """Save the published rows together with the other columns, so that reading them back loses nothing."""
    import datasets

    history = history_in(table.columns)
    others = [name for name in table.columns if name not in {"source_chosen", "target_chosen", "rejected", *history}]
    rows = (
        {**{name: row[name] for name in others}, **published_row(row, has_history=bool(history))}
        for part in table.iter_slices(_SLICE_ROWS)
        for row in part.to_dicts()
    )
    message = {"role": datasets.Value("string"), "content": datasets.Value("string")}
    kinds = {pl.String: "string", pl.Float64: "float64", pl.Boolean: "bool"}
    features = datasets.Features(
        {
            **{name: datasets.Value(kinds[type(table.schema[name])]) for name in others},
            "prompt": [message] if history else message,
            "chosen": [message],
            "rejected": [message],
        }
    )
    datasets.Dataset.from_list(list(rows), features=features).save_to_disk(str(path))
