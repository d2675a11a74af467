"""One fused distribution for each of the target's labels, from the target's own and the sources' ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wrpo_engine.contract.fusion import AlignFields
from wrpo_engine.fusing.distributions import (
    EMPTY,
    Kept,
    average_weights,
    averaged,
    least,
    mapped,
    one_hot_share,
    probabilities,
    rows_at,
    with_one_hot,
)
from wrpo_engine.fusing.dtw import Preference
from wrpo_engine.fusing.positions import NONE, Matching, Tokens, by_spans, by_warping, predicted
from wrpo_engine.fusing.tokens import Vocabulary
from wrpo_engine.fusing.vocabulary import VocabularyMap, first_token_ids

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ModelRow:
    """One row of the corpus under one model."""

    row_id: str
    ids: tuple[int, ...]
    """The labels: the response's tokens. Empty if the model does not represent the row."""
    starts: tuple[int, ...]
    """Of the labels in the text; empty if they are not known."""
    kept: Kept
    ce_sum: float
    num_bytes: int

    @property
    def is_represented(self) -> bool:
        """Whether the model has distributions for the row."""
        return bool(self.ids)

    def cross_entropy(self, normalise: str) -> float:
        """Return the cross-entropy per token or per byte in nats; NaN if the row is not represented."""
        count = len(self.ids) if normalise == "PerToken" else self.num_bytes
        return self.ce_sum / count if self.is_represented and count else float("nan")


@dataclass(frozen=True)
class Source:
    """A source of distributions."""

    name: str
    vocabulary: Vocabulary
    own: Vocabulary
    """The target's."""
    to_target: VocabularyMap
    first_less: Array
    """Map for the first token of a text if the source alone writes a blank in front of it."""
    first_more: Array
    """The same if the target alone does."""

    @classmethod
    def of(cls, name: str, vocabulary: Vocabulary, own: Vocabulary, to_target: VocabularyMap) -> Source:
        """Return the source with its map to `own`, the target's vocabulary."""
        return cls(name, vocabulary, own, to_target, *first_token_ids(to_target, vocabulary.texts, own.texts))


@dataclass(frozen=True)
class FusedDistributions:
    """What SFT trains on for one row."""

    ids_TK: Array
    """EMPTY where there is no entry."""
    probabilities_TK: Array
    source: str
    ce: float
    one_hot_share: float


def aligned_labels(target: ModelRow, row: ModelRow, source: Source, fields: AlignFields) -> Array:
    """Return for each of the target's labels the source's label whose distribution it takes, NONE for none."""
    if fields.alignment == "Spans":
        if not target.starts or not row.starts:
            return np.full(len(target.ids), NONE, dtype=np.int64)
        return by_spans(target.starts, row.starts)
    matched = by_warping(
        Tokens(target.ids, texts_of(source.own, target.ids)),
        Tokens(row.ids, texts_of(source.vocabulary, row.ids)),
        Matching(
            fields.vocabulary,
            source.to_target,
            band=fields.band,
            preference=Preference.UP_FIRST if fields.compat else Preference.LEFT_FIRST,
        ),
    )
    labels = predicted(matched)
    return np.where(labels < len(row.ids), labels, NONE)


def _map_first(kept: Kept, target: ModelRow, row: ModelRow, labels: Array, source: Source) -> None:
    """Map the entries of the text's first token again if only one tokenizer writes a blank in front of the text."""
    if 0 not in target.starts or labels[first := target.starts.index(0)] == NONE:
        return
    place = labels[first]
    (mine,), (its,) = texts_of(source.own, target.ids[first : first + 1]), texts_of(source.vocabulary, [row.ids[place]])
    if mine.startswith(" ") == its.startswith(" "):
        return
    target_ids = source.first_less if its.startswith(" ") else source.first_more
    kept.ids_TK[first] = mapped(rows_at(row.kept, labels[first : first + 1]), target_ids).ids_TK[0]


def texts_of(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    """Return the texts of tokens; special ones have none."""
    return [(vocabulary.texts[index] if index < len(vocabulary.texts) else None) or "" for index in ids]


def fuse(
    target: ModelRow, rows: Sequence[ModelRow], sources: Sequence[Source], fields: AlignFields
) -> FusedDistributions:
    """Return the fused distributions of a row that the target represents; `rows` are the sources' in their order."""
    names = ["target", *(source.name for source in sources)]
    values = [row.cross_entropy(fields.normalise) for row in (target, *rows)]
    lowest = least(values)

    def in_target(index: int) -> tuple[Kept, float]:
        """Return a model's rows for the target's labels, and the share that became one-hot."""
        if index == 0:
            return target.kept, 0.0
        row, source = rows[index - 1], sources[index - 1]
        labels = aligned_labels(target, row, source, fields)
        kept = mapped(rows_at(row.kept, labels), source.to_target.target_ids)
        _map_first(kept, target, row, labels, source)
        return with_one_hot(kept, _one_hot_ids(target, fields)), one_hot_share(kept)

    if fields.strategy == "MinCE":
        kept, share = in_target(lowest)
        found = probabilities(kept, fields.temperature)
        return FusedDistributions(kept.ids_TK, found, names[lowest], values[lowest], share)
    weights = average_weights(values)
    used = [index for index, weight in enumerate(weights) if weight > 0]
    each = [in_target(index) for index in used]
    ids_TK, found = averaged(
        [kept.ids_TK for kept, _ in each],
        [probabilities(kept, fields.temperature) for kept, _ in each],
        weights[used],
        target.kept.ids_TK.shape[1],
    )
    share = float(np.mean([share for _, share in each[1:]])) if len(each) > 1 else 0.0
    return FusedDistributions(ids_TK, found, "+".join(names[index] for index in used), values[lowest], share)


def _one_hot_ids(target: ModelRow, fields: AlignFields) -> Array:
    """Return the id of each position's one-hot distribution: the label or, as FuseLLM has it, the token before it."""
    labels = np.array(target.ids, dtype=np.int32)
    return np.concatenate([labels[:1], labels[:-1]]) if fields.compat else labels


def entries(fused: FusedDistributions) -> tuple[list[list[int]], list[list[float]]]:
    """Return ids and probabilities of every label, without empty places; probabilities in float16 sum to 1."""
    is_entry_TK = (fused.ids_TK != EMPTY) & (fused.probabilities_TK.astype(np.float16) > 0)
    ids = [row[kept].tolist() for row, kept in zip(fused.ids_TK, is_entry_TK, strict=True)]
    shares = [
        row[kept].astype(np.float16).astype(np.float32).tolist()
        for row, kept in zip(fused.probabilities_TK, is_entry_TK, strict=True)
    ]
    return ids, shares
