"""The prepare stage: read, clean, split, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import polars as pl

from wrpo_engine.artifacts import records
from wrpo_engine.config import PrepareParams
from wrpo_engine.errors import DataError
from wrpo_engine.prompts.reader import PromptColumn, read_values
from wrpo_engine.prompts.split import Cleaned, Prompt, clean, shuffled, split
from wrpo_engine.stage import StageContext, StageResult

log = logging.getLogger("wrpo_engine")


def run(ctx: StageContext) -> StageResult:
    """Read, clean and split the prompts, and commit the parts. DataError if there are none."""
    params = ctx.config.params
    assert isinstance(params, PrepareParams)
    ctx.progress.update(0, 2, message="reading prompts")
    training = _read(ctx, params, params.dataset)
    prompts = shuffled(training.prompts, params.seed)[: params.limit]
    dropped = {f"dropped_{reason}": count for reason, count in training.dropped.items()}
    dropped["dropped_over_limit"] = len(training.prompts) - len(prompts)
    held_out: list[Prompt] = []
    if params.evaluation_dataset is not None and params.evaluation_prompts:
        candidates = _read(ctx, params, params.evaluation_dataset, field="prompts.evaluation.dataset").prompts
        held_out = shuffled(candidates, params.seed)[: params.evaluation_prompts]
        _check_held_out(len(candidates), params, params.evaluation_dataset)
        seen = {prompt.prompt_id for prompt in held_out}
        # A prompt that is held out must not be trained on.
        kept = [prompt for prompt in prompts if prompt.prompt_id not in seen]
        dropped["dropped_in_evaluation"] = len(prompts) - len(kept)
        prompts = kept
    else:
        _check_held_out(len(prompts) - 1, params, params.dataset)
    from_training = 0 if held_out else params.evaluation_prompts
    parts = split(prompts, held_out=from_training, sft_fraction=params.sft_fraction, seed=params.seed)
    _explain_fraction(params.sft_fraction)
    tables = {"sft": parts.sft, "preference": parts.preference, "evaluation": held_out or parts.evaluation}
    metrics = {f"prompts_{name}": float(len(rows)) for name, rows in tables.items()}
    metrics |= {name: float(count) for name, count in dropped.items() if count}
    metrics |= {f"left_out_{name}": float(count) for name, count in training.left_out.items()}
    metrics["prompts_read"] = float(training.num_read)
    # One schema for all parts, because several of them are read as one table.
    has_history = any(prompt.history for rows in tables.values() for prompt in rows)
    counts = {f"{name}.parquet": _write(ctx, name, rows, has_history=has_history) for name, rows in tables.items()}
    ctx.output.commit(files=counts, rows=counts, metrics=metrics)
    ctx.progress.update(2, 2, metrics=metrics)
    return StageResult(rows=sum(counts.values()), metrics=metrics)


def _read(ctx: StageContext, params: PrepareParams, dataset: str, *, field: str = "prompts.dataset") -> Cleaned:
    own = dataset == params.dataset
    cleaned = clean(
        read_values(
            PromptColumn(
                dataset=dataset,
                path=ctx.resolve_path(dataset),
                revision=params.revision if own else params.evaluation_revision,
                config=params.config if own else None,
                split=params.split,
                column=params.column,
                field=field,
                only_split=not own,
            )
        )
    )
    ctx.stop.raise_if_requested()
    faults = {reason: what for reason, what in cleaned.first_dropped.items() if reason != "empty"}
    if not cleaned.prompts:
        counted = ", ".join(f"{count} {reason}" for reason, count in sorted(cleaned.dropped.items())) or "none"
        if faults:
            counted += f"; in column {params.column} {next(iter(faults.values()))}"
        raise DataError(
            f"{field} {dataset!r} holds no prompt: {cleaned.num_read} rows read, dropped: {counted}",
            code="DatasetEmpty",
            field=field,
            hint="Check prompts.split and prompts.column, or use another data set.",
        )
    for reason, what in faults.items():
        counted = f"{cleaned.dropped[reason]} values dropped as {reason}"
        log.warning("%s: %s, the first: in column %s %s", dataset, counted, params.column, what)
    _explain_left_out(dataset, cleaned)
    return cleaned


def _check_held_out(available: int, params: PrepareParams, dataset: str) -> None:
    if params.evaluation_prompts > available:
        raise DataError(
            f"prompts.evaluation.prompts is {params.evaluation_prompts}, but {dataset!r} can spare only {available}",
            code="TooFewPrompts",
            field="prompts.evaluation.prompts",
            hint="Hold out fewer prompts, raise prompts.limit, or name another evaluation data set.",
        )


def _explain_fraction(sft_fraction: float) -> None:
    if sft_fraction == 0:
        log.info("prompts.sftFraction is 0: no prompts for SFT; preference training starts from the target itself")
    elif sft_fraction == 1:
        log.info("prompts.sftFraction is 1: no prompts for preference training; only SFT is possible")


def _explain_left_out(dataset: str, cleaned: Cleaned) -> None:
    """Log which parts of conversations are not in their prompts: responses are sampled without them."""
    if cleaned.left_out:
        counted = ", ".join(f"{name.replace('_', ' ')} in {count}" for name, count in sorted(cleaned.left_out.items()))
        # Data sets of conversations end with a response as a rule; parts that are not text are a loss.
        log.log(
            logging.WARNING if "parts" in cleaned.left_out else logging.INFO,
            "%s: a prompt is a conversation up to its last user turn. Left out: %s of %d prompts",
            dataset,
            counted,
            len(cleaned.prompts),
        )


def _write(ctx: StageContext, name: str, rows: Sequence[Prompt], *, has_history: bool) -> int:
    columns = {"prompt_id": [row.prompt_id for row in rows], "prompt": [row.prompt for row in rows]}
    frame = pl.DataFrame(columns, schema=records.PROMPTS)
    if has_history:
        histories = [
            [{"role": role, "content": text} for role, text in row.history] if row.history else None for row in rows
        ]
        frame = frame.hstack(pl.DataFrame({"history": histories}, schema=records.HISTORY))
    # The data set may have changed since an attempt that was killed: its parts must not be mixed with these.
    ctx.output.publish(f"{name}.parquet", frame.write_parquet, replace=True)
    return len(rows)
