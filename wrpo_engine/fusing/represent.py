"""The represent stage: the likeliest tokens for each label of the SFT corpus under one model, in parts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from wrpo_engine.artifacts.parts import commit_when_complete, count_progress, own_parts, part_name, pending_parts
from wrpo_engine.contract.fusing import RepresentParams
from wrpo_engine.errors import ConfigError, DataError
from wrpo_engine.fusing.files import VOCABULARY_FILE, publish_vocabulary
from wrpo_engine.fusing.represented import CorpusRow, Limits, Top, corpus_row, represented_frame
from wrpo_engine.fusing.tokens import Vocabulary, vocabulary_of
from wrpo_engine.hub.models import (
    ResolvedModel,
    check_vocabulary,
    context_length,
    resolve_model,
    tokenizer_of,
    transformers_config,
)
from wrpo_engine.loading.weights import is_quantised
from wrpo_engine.process.hang_watch import HangWatch
from wrpo_engine.sampling.preflight import source_field
from wrpo_engine.stage import StageContext, StageResult
from wrpo_engine.text.chat import end_of_turn_id, prompt_token_ids
from wrpo_engine.training.batch.rows import TokenRow
from wrpo_engine.training.data.inputs import SFT_ROWS_FILE, ChatEncoder, read_sft_rows
from wrpo_engine.training.data.tokenize import MAX_CHANGED_SHARE, TextRow

log = logging.getLogger("wrpo_engine")

_NO_LIMIT = 1 << 30


class Forward(Protocol):
    """A model in memory that reads rows."""

    def tops(self, rows: Sequence[TokenRow], on_row: Callable[[int], None]) -> Iterator[tuple[int, Top]]:
        """Yield (index, likeliest tokens) of every row, in any order; `on_row` gets the number of finished ones."""
        ...

    def close(self) -> None:
        """Free the model's memory."""
        ...


def run(ctx: StageContext) -> StageResult:
    """Represent the pending parts of this shard, and commit once all parts of all shards are there."""
    params = ctx.config.params
    assert isinstance(params, RepresentParams)
    field = source_field(params.source)
    model = resolve_model(params.model, ctx, field=f"{field}.model")
    tokenizer = tokenizer_of(model, field=field)
    _check_model(model, tokenizer, params, field=field)
    vocabulary = vocabulary_of(tokenizer, end_of_turn_id(tokenizer))
    # Every row of every shard is encoded before the model is loaded: a corpus that does not fit fails at once.
    texts = _texts(ctx, params)
    log.info("encoding %d rows with the tokenizer of %s (%s)", len(texts), model.identity, field)
    rows = _corpus(texts, params, model, tokenizer, vocabulary)
    _check(rows, model, vocabulary, field=field)
    publish_vocabulary(ctx.output, vocabulary)
    size = params.rows_per_part
    names = [part_name(index) for index in range(max(1, -(-len(rows) // size)))]
    parts = {name: rows[index * size : (index + 1) * size] for index, name in enumerate(names)}
    todo = pending_parts(ctx, names)
    if todo:
        _represent(ctx, params, model, parts, todo)
    details = {
        "model": model.details(),
        "top_k": params.top_k,
        "vocabulary": vocabulary.digest,
    }
    metrics = commit_when_complete(ctx, names, details=details, measure=measure, further=lambda: [VOCABULARY_FILE])
    return StageResult(rows=sum(len(parts[name]) for name in todo), metrics=metrics)


def _check_model(model: ResolvedModel, tokenizer: Any, params: RepresentParams, *, field: str) -> None:
    """Raise ConfigError for a model that the backend cannot read, or with tokens that it has no embedding for."""
    check_vocabulary(model, tokenizer, [*prompt_token_ids(tokenizer, "?"), end_of_turn_id(tokenizer)])
    if params.backend == "Engine" and is_quantised(transformers_config(model).to_dict()):
        raise ConfigError(
            "sft.fusion.backend",
            params.backend,
            f"the weights of {model.identity} are quantised, which the engine's forward pass does not read",
            f"Set sft.fusion.backend: vLLM, or set {field}.model to the model before quantisation.",
        )


def _texts(ctx: StageContext, params: RepresentParams) -> list[TextRow]:
    texts = read_sft_rows(ctx.input("sft-rows").file(SFT_ROWS_FILE))
    if not texts:
        raise DataError(
            f"stage represent/{params.source} has no rows: {SFT_ROWS_FILE} of its corpus is empty",
            code="NoTrainingRows",
            field="prompts.sftFraction",
            hint="See the dropped counts in the manifest of curate-sft. Relax the curation or use more prompts.",
        )
    return texts


def _corpus(
    texts: Sequence[TextRow], params: RepresentParams, model: ResolvedModel, tokenizer: Any, vocabulary: Vocabulary
) -> list[CorpusRow]:
    context = context_length(model)
    if context is not None and params.backend == "vLLM":
        context -= 1  # for the one token that vLLM generates
    longest = params.max_length or _NO_LIMIT
    if params.max_length is not None and context is not None:
        longest = min(longest, context)
    limits = Limits(longest, params.max_prompt_length or longest, context)
    encoder = ChatEncoder(tokenizer)
    return [corpus_row(row, encoder, vocabulary, limits) for row in texts]


def _check(rows: Sequence[CorpusRow], model: ResolvedModel, vocabulary: Vocabulary, *, field: str) -> None:
    """Raise DataError if no row can be represented, or if the tokenizer changes the text of too many."""
    dropped = Counter(row.dropped for row in rows if row.dropped is not None)
    if dropped:
        shown = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        log.warning("of %d rows %d are not represented: %s", len(rows), dropped.total(), shown)
    if dropped.total() == len(rows):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise DataError(
            f"none of the {len(rows)} rows of the corpus can be represented by {model.identity}: {reasons}",
            code="NoTrainingRows",
            field=f"{field}.model",
            hint="Use a model with a longer context, or leave this source out of sft.fusion.sources.",
        )
    if not vocabulary.has_bytes:
        return
    kept = [row for row in rows if row.tokens is not None]
    changed = [row for row in kept if row.starts is None]
    if len(changed) > MAX_CHANGED_SHARE * len(kept):
        raise DataError(
            f"the tokens of {len(changed)} of {len(kept)} responses do not give their text back with the tokenizer of "
            f"{model.identity}; the first is row {changed[0].row_id}. At most {MAX_CHANGED_SHARE:.0%} may differ",
            code="ResponsesChanged",
            field=f"{field}.model",
            hint="Use a model whose tokenizer keeps texts as they are, or leave this source out of sft.fusion.sources.",
        )


def _represent(
    ctx: StageContext,
    params: RepresentParams,
    model: ResolvedModel,
    parts: dict[str, list[CorpusRow]],
    todo: Sequence[str],
) -> None:
    own = own_parts(ctx, list(parts))
    watch = HangWatch(f"reading rows with {model.identity}", ctx.config.runtime.hang_timeout_seconds, ctx.environ)

    ctx.stop.raise_if_requested()
    report = count_progress(ctx, {name: len(parts[name]) for name in own}, todo, message="loading the model")

    def on_row(count: int) -> None:
        watch.beat()
        report(count)

    longest = max(row.tokens.num_tokens for rows in parts.values() for row in rows if row.tokens is not None)
    forward = _forward(ctx, params, model, longest=longest, poll=watch.beat)
    try:
        with watch:
            for name in todo:
                frame = _part(forward, parts[name], on_row)
                ctx.output.publish(name, frame.write_parquet)
    finally:
        forward.close()


def _forward(
    ctx: StageContext, params: RepresentParams, model: ResolvedModel, *, longest: int, poll: Callable[[], None]
) -> Forward:
    runtime = ctx.config.runtime
    if params.backend == "Engine":
        from wrpo_engine.fusing.forward import EngineForward

        return EngineForward(model, params, batch_tokens=runtime.batch_tokens)
    from wrpo_engine.fusing.vllm_tops import VllmForward

    return VllmForward(model, params, runtime, longest=longest, poll=poll)


def _part(forward: Forward, rows: Sequence[CorpusRow], on_row: Callable[[int], None]) -> pl.DataFrame:
    """Return the part with these rows; DataError names a row whose log-probabilities are not finite."""
    kept = [(index, row.tokens) for index, row in enumerate(rows) if row.tokens is not None]
    tops: list[Top | None] = [None] * len(rows)
    for place, top in forward.tops([tokens for _, tokens in kept], on_row):
        index = kept[place][0]
        if not np.isfinite(top.labels_T).all() or np.isnan(top.logps_TK).any():
            raise DataError(
                f"row {rows[index].row_id}: the model's log-probabilities are not finite",
                code="LogprobsInvalid",
                field="sft.fusion",
                hint="Check the model's weights; with precision bfloat16 or float16 some models overflow.",
            )
        tops[index] = top
    on_row(len(rows) - len(kept))
    return represented_frame(rows, tops)


def measure(parts: Iterable[pl.DataFrame]) -> dict[str, float]:
    """Return the metrics of a whole artifact: rows, those left out, labels, and cross-entropy per token and byte."""
    columns = ("ce_sum", "label_tokens", "bytes", "dropped")
    rows = pl.concat([part.select(columns) for part in parts])
    kept = rows.filter(pl.col("dropped").is_null())
    cross_entropy = float(kept["ce_sum"].cast(pl.Float64).sum())
    tokens, size = int(kept["label_tokens"].sum()), int(kept["bytes"].sum())
    return {
        "rows": float(kept.height),
        "dropped": float(rows.height - kept.height),
        "label_tokens": float(tokens),
        "ce_per_token": cross_entropy / max(tokens, 1),
        "ce_per_byte": cross_entropy / max(size, 1),
    }
