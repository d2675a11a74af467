"""Files of the represent and align artifacts in addition to their parts: vocabularies, and maps between two of them."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import polars as pl

from wrpo_engine.artifacts import Artifact, ArtifactWriter
from wrpo_engine.config import ArtifactRef
from wrpo_engine.errors import AlreadyCommitted
from wrpo_engine.formats.columns import read_columns
from wrpo_engine.fusing.tokens import Vocabulary
from wrpo_engine.fusing.vocabulary import Kind, VocabularyMap, edit_map
from wrpo_engine.stage import StageContext

VOCABULARY_FILE = "vocabulary.parquet"
MAPS = "vocabulary_map/"
MAP_FILE = "vocabulary_map.parquet"
_MAP_STAGE = "vocabulary-map"
_MAP_VERSION = "MinED 1"
"""Changes with the rule of the map: it is part of the address of a cached one."""
_VOCABULARY = {
    "token_id": pl.Int32,
    "text": pl.Binary,
    "end_of_turn": pl.Boolean,
    "has_bytes": pl.Boolean,
}
_MAP = {"source_id": pl.Int32, "target_id": pl.Int32, "distance": pl.Int32, "kind": pl.String}


def publish_vocabulary(output: ArtifactWriter, vocabulary: Vocabulary) -> None:
    """Publish what the model's tokens mean unless another shard has."""
    if VOCABULARY_FILE in output.published(VOCABULARY_FILE):
        return
    frame = pl.DataFrame(
        {
            "token_id": range(len(vocabulary.texts)),
            "text": [
                None if text is None else text.encode("latin-1" if vocabulary.has_bytes else "utf-8")
                for text in vocabulary.texts
            ],
            "end_of_turn": [index == vocabulary.end_of_turn for index in range(len(vocabulary.texts))],
            "has_bytes": [vocabulary.has_bytes] * len(vocabulary.texts),
        },
        schema=_VOCABULARY,
    )
    output.publish(VOCABULARY_FILE, frame.write_parquet)


def read_vocabulary(artifact: Artifact) -> Vocabulary:
    """Return the vocabulary of a represent artifact."""
    frame = read_columns([artifact.file(VOCABULARY_FILE)], _VOCABULARY, nullable=("text",))
    has_bytes = bool(frame["has_bytes"][0])
    encoding = "latin-1" if has_bytes else "utf-8"
    texts = tuple(None if text is None else text.decode(encoding) for text in frame["text"].to_list())
    return Vocabulary(texts, int(frame["end_of_turn"].arg_true()[0]), has_bytes)


def write_map(path: Path, found: VocabularyMap) -> None:
    """Write a map as rows of the tokens that are mapped."""
    frame = pl.DataFrame(
        {
            "source_id": range(len(found.target_ids)),
            "target_id": found.target_ids,
            "distance": found.distances,
            "kind": [None if kind is None else kind.value for kind in found.kinds],
        },
        schema=_MAP,
    )
    frame.write_parquet(path)


def read_map(path: Path) -> VocabularyMap:
    """Return a map that `write_map` wrote."""
    frame = read_columns([path], _MAP, nullable=("kind",))
    kinds = tuple(None if kind is None else Kind(kind) for kind in frame["kind"].to_list())
    return VocabularyMap(
        frame["target_id"].to_numpy().astype(np.int32), frame["distance"].to_numpy().astype(np.int32), kinds
    )


def cached_edit_map(ctx: StageContext, source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """Return the MinED map of two vocabularies. It is a separate artifact that all experiments share."""
    digest = hashlib.sha256(f"{_MAP_VERSION} {source.digest} {target.digest}".encode()).hexdigest()[:16]
    ref = ArtifactRef(stage=_MAP_STAGE, hash=digest)
    known = ctx.store.open(ref)
    if known is not None:
        return read_map(known.file(MAP_FILE))
    found = with_end_of_turn(edit_map(source.texts, target.texts), source, target)
    writer = ctx.store.writer(ref, config={"source": source.digest, "target": target.digest}, inputs={})
    # Another shard may have made the same map meanwhile.
    with contextlib.suppress(AlreadyCommitted):
        writer.begin()
        writer.publish(MAP_FILE, lambda path: write_map(path, found))
        writer.commit(files=[MAP_FILE], rows={MAP_FILE: len(found.target_ids)})
    return found


def with_end_of_turn(found: VocabularyMap, source: Vocabulary, target: Vocabulary) -> VocabularyMap:
    """Return the map in which the source's end of turn is the target's, regardless of their names."""
    return found.replaced({source.end_of_turn: target.end_of_turn})
