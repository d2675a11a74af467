"""The align stage: decide the distributions that SFT trains on, in the target's vocabulary, in parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.artifacts.checks import address
from wrpo_engine.artifacts.parts import PARTS, commit_when_complete, own_parts, pending_parts
from wrpo_engine.contract.fusing import AlignParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.fusing.distributions import EMPTY, Kept
from wrpo_engine.fusing.dtw import warp
from wrpo_engine.fusing.files import (
    MAPS,
    cached_edit_map,
    read_map,
    read_vocabulary,
    with_end_of_turn,
    write_map,
)
from wrpo_engine.fusing.fuse import ModelRow, Source, entries, fuse, texts_of
from wrpo_engine.fusing.positions import NONE, by_spans
from wrpo_engine.fusing.tokens import Vocabulary
from wrpo_engine.fusing.vocabulary import VocabularyMap, exact_map, identity_map, statistics_map, with_statistics
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")

_FIELD = "sft.fusion"


def run(ctx: StageContext) -> StageResult:
    """Align the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, AlignParams)
    target = _Represented.of(ctx.input(params.target_input))
    names = sorted(target.artifact.files(PARTS))
    # Every shard needs the maps, which the first one publishes.
    sources = [_source(ctx, params, role, target) for role in params.source_inputs]
    written = _align(ctx, params, target, sources, names)
    maps = [_map_file(source.name) for source in sources]
    details = {
        "top_k": target.artifact.manifest.details["top_k"],
        "models": {
            role: ctx.input(role).manifest.details["model"] for role in (params.target_input, *params.source_inputs)
        },
    }
    metrics = commit_when_complete(ctx, names, details=details, measure=measure, further=lambda: maps)
    return StageResult(rows=written, metrics=metrics)


def _name(role: str) -> str:
    return role.rpartition("/")[2]


def _map_file(source: str) -> str:
    return f"{MAPS}{source}.parquet"


@dataclass(frozen=True, slots=True)
class _Represented:
    """A corpus as one model represents it."""

    artifact: Artifact
    vocabulary: Vocabulary

    @classmethod
    def of(cls, artifact: Artifact) -> _Represented:
        return cls(artifact, read_vocabulary(artifact))

    @property
    def model(self) -> str:
        return str(self.artifact.manifest.details["model"]["name"])


def _source(ctx: StageContext, params: AlignParams, role: str, target: _Represented) -> Source:
    artifact = ctx.input(role)
    parts, wanted = artifact.files(PARTS), target.artifact.files(PARTS)
    if sorted(parts) != sorted(wanted):
        raise _disagree(artifact, target.artifact, f"{len(parts)} parts and {len(wanted)}")
    source = _Represented.of(artifact)
    for one in (target, source):
        if params.alignment == "Spans" and not one.vocabulary.has_bytes:
            raise ConfigError(
                f"{_FIELD}.alignment",
                params.alignment,
                f"the tokenizer of {one.model} does not give the bytes of its tokens",
                f"Set {_FIELD}.alignment: DTW, or leave this source out.",
                code="TokenizerWithoutOffsets",
            )
    name = _map_file(_name(role))
    if name not in ctx.output.published(name):
        found = _map(ctx, params, source, target)
        ctx.output.publish(name, lambda path: write_map(path, found))
    found = read_map(ctx.output.fetch(name))
    _require_common(found, source, target)
    kinds = Counter(kind.value for kind in found.kinds if kind is not None)
    log.info("vocabulary map of %s: %s", _name(role), dict(sorted(kinds.items())))
    return Source.of(_name(role), source.vocabulary, target.vocabulary, found)


def _map(ctx: StageContext, params: AlignParams, source: _Represented, target: _Represented) -> VocabularyMap:
    """Return the map from the source's tokens to the target's; a tokenizer's map to itself is the identity."""
    vocabulary, own = source.vocabulary, target.vocabulary
    if vocabulary.digest == own.digest:
        return identity_map(len(own.texts))
    if params.vocabulary == "EM":
        return with_end_of_turn(exact_map(vocabulary.texts, own.texts), vocabulary, own)
    found = cached_edit_map(ctx, vocabulary, own)
    if params.vocabulary == "MinED":
        return found
    counts: Counter[tuple[int, int]] = Counter()
    for name in sorted(target.artifact.files(PARTS)):
        rows = zip(_read(source.artifact, name), _read(target.artifact, name), strict=True)
        for row, wanted in rows:
            ctx.stop.raise_if_requested()
            counts.update(_pairs(row, wanted, vocabulary, own, params))
    pairs = statistics_map(
        [(its, aligned, float(count)) for (its, aligned), count in counts.items()],
        vocabulary.texts,
        own.texts,
        by=params.statistics,
    )
    pairs.pop(vocabulary.end_of_turn, None)
    return with_statistics(found, pairs, vocabulary.texts, own.texts)


def _pairs(
    row: ModelRow, target: ModelRow, vocabulary: Vocabulary, own: Vocabulary, params: AlignParams
) -> Iterable[tuple[int, int]]:
    """Yield (source id, target id) of the tokens of one row that are aligned, the ends of turns left out."""
    if not row.is_represented or not target.is_represented:
        return
    if params.alignment == "Spans":
        places = by_spans(target.starts, row.starts) if target.starts and row.starts else np.array([], dtype=np.int64)
        matches = [(int(place), index) for index, place in enumerate(places) if place != NONE]
    else:
        sources, targets = texts_of(vocabulary, row.ids), texts_of(own, target.ids)
        matches = warp(
            [text.replace(" ", "") for text in sources],
            [text.replace(" ", "") for text in targets],
            band=params.band,
        ).matches
    for place, index in matches:
        if vocabulary.end_of_turn != row.ids[place] and own.end_of_turn != target.ids[index]:
            yield row.ids[place], target.ids[index]


def _require_common(found: VocabularyMap, source: _Represented, target: _Represented) -> None:
    """Raise DataError unless the vocabularies share a token besides the end of turn."""
    if found.num_exact > 1:
        return
    raise DataError(
        f"the vocabularies of {source.model} and {target.model} have no token in common",
        code="VocabulariesDisjoint",
        field=f"{_FIELD}.sources",
        hint="Check that both models have the tokenizer they were trained with, or leave this source out.",
    )


def _align(
    ctx: StageContext, params: AlignParams, target: _Represented, sources: Sequence[Source], names: Sequence[str]
) -> int:
    """Publish the pending parts of this shard; return their rows."""
    todo = pending_parts(ctx, names)
    if not todo:
        return 0
    shard = own_parts(ctx, names)
    done, written = len(shard) - len(todo), 0
    for name in todo:
        ctx.progress.update(done, len(shard))
        wanted = _read(target.artifact, name)
        given = [_read(ctx.input(role), name) for role in params.source_inputs]
        for role, rows in zip(params.source_inputs, given, strict=True):
            if [row.row_id for row in rows] != [row.row_id for row in wanted]:
                raise _disagree(ctx.input(role), target.artifact, f"other rows in {name}")
        together = [(row, [rows[index] for rows in given]) for index, row in enumerate(wanted)]
        frame = _part(ctx, params, sources, together)
        ctx.output.publish(name, frame.write_parquet)
        done, written = done + 1, written + frame.height
    ctx.progress.update(done, len(shard))
    return written


def _part(
    ctx: StageContext,
    params: AlignParams,
    sources: Sequence[Source],
    rows: Sequence[tuple[ModelRow, Sequence[ModelRow]]],
) -> pl.DataFrame:
    """Return the fused distributions of rows; each is given by the target and by the sources in their order."""
    values = []
    for target, given in rows:
        ctx.stop.raise_if_requested()
        if not target.is_represented:
            continue
        fused = fuse(target, given, sources, params)
        ids, shares = entries(fused)
        values.append((target.row_id, list(target.ids), ids, shares, fused.source, fused.ce, fused.one_hot_share))
    return pl.DataFrame(values, schema=records.ALIGNED, orient="row")


def _disagree(artifact: Artifact, target: Artifact, what: str) -> DataError:
    return DataError(
        f"{address(artifact.ref)} and {address(target.ref)} represent different corpora: {what}",
        code="InputsDisagree",
        field=_FIELD,
        hint="Represent the same SFT rows by all models, with the same rows_per_part.",
    )


def _read(artifact: Artifact, name: str) -> list[ModelRow]:
    """Return a part's rows; DataError names the first row with log-probabilities that are none."""
    path = artifact.file(name)
    frame = read_columns([path], records.REPRESENTED, nullable=("dropped",))
    return [_model_row(row, path) for row in frame.iter_rows(named=True)]


def _model_row(row: dict[str, object], path: Path) -> ModelRow:
    labels = [index for index, is_label in zip(row["ids"], row["label_mask"], strict=True) if is_label]  # type: ignore[call-overload]
    width = max((len(place) for place in row["top_ids"]), default=1)  # type: ignore[attr-defined]
    ids_TK = np.full((len(labels), width), EMPTY, dtype=np.int32)
    logits_TK = np.zeros((len(labels), width), dtype=np.float32)
    for index, (ids, logps) in enumerate(zip(row["top_ids"], row["top_logp"], strict=True)):  # type: ignore[call-overload]
        ids_TK[index, : len(ids)] = ids
        logits_TK[index, : len(logps)] = logps
    if not np.isfinite(logits_TK).all() or (labels and not np.isfinite(float(row["ce_sum"]))):  # type: ignore[arg-type]
        raise DataError(
            f"row {row['row_id']} of {path} has log-probabilities that are not finite",
            code="LogprobsInvalid",
            field=_FIELD,
            hint="Remove its artifact and represent the corpus again; check the model's weights.",
        )
    return ModelRow(
        str(row["row_id"]),
        tuple(labels),
        tuple(row["starts"]),  # type: ignore[arg-type]
        Kept(ids_TK, logits_TK),
        float(row["ce_sum"]),  # type: ignore[arg-type]
        int(row["bytes"]),  # type: ignore[call-overload]
    )


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole artifact: rows, labels, the share of each model and of one-hot distributions."""
    columns = ("source", "ce", "one_hot_share")
    rows = pl.concat([part.select(*columns, labels=pl.col("target_ids").list.len()) for part in parts])
    if rows.is_empty():
        raise DataError(
            "no row of the corpus is represented by the target",
            code="NoTrainingRows",
            field=_FIELD,
            hint="See the dropped counts in the manifest of represent/target.",
        )
    labels = rows["labels"].to_numpy().astype(np.float64)
    shares = rows["one_hot_share"].to_numpy().astype(np.float64)
    by_source = Counter(rows["source"].to_list())
    return {
        "rows": float(rows.height),
        "label_tokens": float(labels.sum()),
        "one_hot_share": float((shares * labels).sum() / labels.sum()),
        **{f"share_{source}": count / rows.height for source, count in sorted(by_source.items())},
    }
