"""Fused distributions of an align stage for the token rows: checked and published once, mapped into every rank.

Ranks of a node share the pages of the mapped files, so the distributions take memory once a node, not once a rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wrpo_engine.artifacts import Artifact, records
from wrpo_engine.artifacts.checks import address
from wrpo_engine.config import SftParams
from wrpo_engine.contract.fusion import FusionLoss
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.formats.columns import read_batches
from wrpo_engine.stage import StageContext
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.batch.soft import FusedRow
from wrpo_engine.training.data.tokenize import TokenizedRows
from wrpo_engine.training.distributed.collectives import Group
from wrpo_engine.training.paths import TOKENS_DIRECTORY

_IDS = f"{TOKENS_DIRECTORY}/fused-ids.npy"
_PROBABILITIES = f"{TOKENS_DIRECTORY}/fused-probabilities.npy"
_TOLERANCE = 0.01
"""Largest distance of a sum of probabilities from 1; each is rounded to float16."""
_ALIGN_AGAIN = "Run the align stage of this experiment again; it must align the rows that SFT trains on."
Array = np.ndarray[Any, Any]


def with_fusion(
    ctx: StageContext, params: SftParams, tokenized: TokenizedRows, group: Group, *, vocabulary: int | None
) -> TokenizedRows:
    """Return the rows with their fused distributions; all ranks call this together.

    `vocabulary` is the number of the model's token ids, None if unknown. ConfigError if the loss is not on responses
    alone. DataError names the first row without distributions, of other tokens, or whose probabilities do not sum to 1.
    """
    fusion = params.fusion
    if fusion is None:
        return tokenized
    if params.loss_tokens != "Response":
        raise ConfigError(
            "sft.lossTokens",
            params.loss_tokens,
            "the fusion loss is on tokens of responses alone",
            "Set sft.lossTokens: Response, or remove sft.fusion.",
        )
    role = fusion.targets

    def publish() -> None:
        if _PROBABILITIES not in ctx.output.published(TOKENS_DIRECTORY):
            ids_RK, probabilities_RK = _arrays(ctx.input(role), tokenized.rows, vocabulary)
            ctx.output.publish(_IDS, lambda path: _save(path, ids_RK))
            ctx.output.publish(_PROBABILITIES, lambda path: _save(path, probabilities_RK))

    group.on_main(publish)
    ids_RK, probabilities_RK = (np.load(ctx.output.fetch(name), mmap_mode="r") for name in (_IDS, _PROBABILITIES))
    return replace(tokenized, rows=list(_attached(tokenized.rows, ids_RK, probabilities_RK, fusion)))


def _save(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _attached(rows: list[TokenRow], ids_RK: Array, probabilities_RK: Array, fusion: FusionLoss) -> Iterator[TokenRow]:
    start = 0
    for row in rows:
        stop = start + row.num_loss_tokens
        yield replace(row, fused=FusedRow(ids_RK[start:stop], probabilities_RK[start:stop], fusion.weight))
        start = stop


def _arrays(aligned: Artifact, rows: list[TokenRow], vocabulary: int | None) -> tuple[Array, Array]:
    """Return the ids [R, K] and probabilities [R, K] of the rows' R tokens with loss, in the order of the rows."""
    where = address(aligned.ref)
    starts: dict[str, tuple[int, TokenRow]] = {}
    total = 0
    for row in rows:
        starts[row.row_id] = (total, row)
        total += row.num_loss_tokens
    width = aligned.manifest.details.get("top_k")
    if not isinstance(width, int):
        raise DataError(
            f"{where} is not an artifact of an align stage: its manifest does not have top_k",
            code="FusionInvalid",
            field="sft.fusion",
            hint="Name the role of an align stage in sft.fusion.targets.",
        )
    ids_RK = np.zeros((total, width), dtype=np.int32)
    probabilities_RK = np.zeros((total, width), dtype=np.float16)
    for frame in read_batches(aligned, records.ALIGNED):
        for found in frame.iter_rows(named=True):
            if (known := starts.pop(found["row_id"], None)) is not None:
                start, row = known
                _require_valid(row, found, width, where)
                for index, (ids, values) in enumerate(zip(found["fused_ids"], found["fused_p"], strict=True), start):
                    ids_RK[index, : len(ids)] = ids
                    probabilities_RK[index, : len(ids)] = np.asarray(values, dtype=np.float32)
    if vocabulary is not None and ids_RK.size and not 0 <= ids_RK.min() <= ids_RK.max() < vocabulary:
        raise DataError(
            f"{where} has distributions over the ids {ids_RK.min()} to {ids_RK.max()}, but the model has {vocabulary}",
            code="FusionInvalid",
            field="sft.fusion",
            hint=_ALIGN_AGAIN,
        )
    if starts:
        raise DataError(
            f"{where} has no distributions for {len(starts)} rows that SFT trains on; the first is row "
            f"{next(iter(starts))}",
            code="FusionIncomplete",
            field="sft.fusion",
            hint=_ALIGN_AGAIN,
        )
    return ids_RK, probabilities_RK


def _require_valid(row: TokenRow, found: dict[str, Any], width: int, where: str) -> None:
    """Raise DataError unless the distributions are those of the row's response, with at most `width` ids each."""
    (response,) = row.responses
    if tuple(found["target_ids"]) != response or len(found["fused_ids"]) != len(response):
        raise DataError(
            f"row {row.row_id} of {where} has distributions for other tokens than those of the response "
            f"({len(found['target_ids'])} instead of {len(response)}, or other ids)",
            code="FusionMismatch",
            field="sft.fusion",
            hint=_ALIGN_AGAIN,
        )
    for index, (ids, probabilities) in enumerate(zip(found["fused_ids"], found["fused_p"], strict=True)):
        values = np.asarray(probabilities, dtype=np.float32)
        if not (abs(float(values.sum()) - 1) <= _TOLERANCE and bool((values >= 0).all())):
            raise DataError(
                f"token {index} of row {row.row_id} of {where} has probabilities with the sum {values.sum():.4g}; "
                "they must not be negative and sum to 1",
                code="FusionInvalid",
                field="sft.fusion",
                hint=_ALIGN_AGAIN,
            )
        if len(values) > width or len(set(ids)) != len(ids) or len(ids) != len(values):
            raise DataError(
                f"token {index} of row {row.row_id} of {where} has {len(values)} probabilities for {len(set(ids))} "
                f"distinct ids; at most {width} are allowed, one for each id",
                code="FusionInvalid",
                field="sft.fusion",
                hint=_ALIGN_AGAIN,
            )
